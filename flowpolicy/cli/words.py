"""Paths on the command line: spaces, parentheses, accents and commas that Hydra's grammar would refuse; and `~`."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

# keys whose values are paths; a list of them in brackets where the key is a plural
_PATHS = re.compile(r"out|checkpoints?|dataset\.path|demonstrations|policy\.encoder\.[\w.]*weights")
_SWEEP = re.compile(r"(?:choice|range|interval|glob|sort|shuffle|tag)\(.*\)")  # Hydra's functions, with -m
_PART = re.compile(r"""(?:\$\{[^}]*\}|"(?:\\.|[^"\\])*"|'(?:\\.|[^'\\])*'|[^,])+""")  # up to a comma of the list


def quoted(text: str | Path) -> str:
    """As a quoted string of Hydra's grammar; `${…}` inside it is still an interpolation."""
    # backslashes count only where a quote follows, the closing one included
    return '"' + re.sub(r'(\\*)("|$)', lambda match: match[1] * 2 + (match[2] and '\\"'), str(text)) + '"'


def path_words(argv: Sequence[str], *, sweep: bool = False) -> list[str]:
    """The overrides, with every path quoted for Hydra and its `~` expanded. What is quoted already stays as it is.

    Args:
        sweep: Whether a comma separates the values of a sweep, as after -m; otherwise it belongs to the path.
    """
    return [_path_word(word, sweep) for word in argv]


def _path_word(word: str, sweep: bool) -> str:
    key, _, value = word.partition("=")
    value = value.strip()
    count = key == "demonstrations" and value.isdigit()  # of `protocol`; a store of `evaluate`
    if count or not _PATHS.fullmatch(key) or (sweep and _SWEEP.fullmatch(value)):
        return word
    if key.endswith("s") and value.startswith("[") and value.endswith("]"):
        return f"{key}=[{','.join(map(_path, _PART.findall(value[1:-1])))}]"
    return f"{key}={','.join(map(_path, _PART.findall(value) if sweep else [value]))}"


def _path(text: str) -> str:
    text = text.strip()
    if text in ("", "null", "???") or re.fullmatch(r"""(["']).*\1""", text):
        return text
    return quoted(os.path.expanduser(text))
