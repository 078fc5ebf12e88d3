"""What the library says in Python, said in words of the command line.

Below cli/ a message names settings, values, parts and functions as Python code in backticks: `batch_size`,
`overwrite=True`, `MLP`, `validate_store("demos.zarr")`. Here they become what one types for the verb that runs:
trainer.batch_size, overwrite=true, policy/net=mlp, `flowpolicy data validate demos.zarr`. The keys are read from the
yaml files; code that no key, option or verb stands for stays as it is.
"""

import ast
import re
import shlex
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from flowpolicy.cli.keys import key_of, options
from flowpolicy.paths import config_dir

# function -> verb, and what its arguments after the first are called there
_VERBS = {
    "collect_episodes": "data collect",
    "validate_store": "data validate",
    "finish_store": "data finish",
    "trim_store": "data trim",
    "train_policy": "train",
    "evaluate": "evaluate",
    "export_with_certificate": "export",
    "save_policy": "train",
}
_CONSTANTS = {True: "true", False: "false", None: "null", ...: "…"}


def on_the_command_line(message: str, verb: str) -> str:
    """`message` with the Python code in it as one types it.

    Args:
        message: With code in backticks.
        verb: That runs, such as "train"; in its words.
    """
    return re.sub(r"`([^`]+)`", lambda match: _typed(match[1], verb) or match[0], message)


def speaker(verb: str) -> Callable[[str], None]:
    """What prints lines in the words of `verb`."""
    return lambda line: print(on_the_command_line(line, verb))


@contextmanager
def warnings_said_for(verb: str) -> Iterator[None]:
    """While the block runs, warnings are shown in the words of `verb`."""
    show = warnings.showwarning

    def translated(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
        show(category(on_the_command_line(str(message), verb)), category, *place, **more)

    warnings.showwarning = translated
    try:
        yield
    finally:
        warnings.showwarning = show


def _typed(code: str, verb: str) -> str:
    """One piece of code; "" where nothing stands for it."""
    name, equals, value = code.partition("=")
    if re.fullmatch(r"[\w.]+", name) and (equals or name[:1].islower()):
        key = key_of(name, verb)
        word = key + equals + _value(value)
        return "" if not key else f"'{word}'" if "[" in word and "…" not in word else word  # means something to shells
    try:
        parsed = ast.parse(code, mode="eval").body
    except SyntaxError:
        return ""
    called = parsed.func if isinstance(parsed, ast.Call) else parsed
    name = called.id if isinstance(called, ast.Name) else ""
    if not isinstance(parsed, ast.Call) or name not in _VERBS:
        return options(config_dir()).get(name, "")
    words = [_value(ast.unparse(word)) for word in parsed.args]
    words = [word if word.isupper() else shlex.quote(word) for word in words]
    words += [f"{word.arg}={_value(ast.unparse(word.value))}" for word in parsed.keywords]
    return f"`{' '.join(['flowpolicy', _VERBS[name], *words])}`"


def _value(code: str) -> str:
    """A value as Hydra reads it; names and what is no literal stay."""
    try:
        value = ast.literal_eval(code)
    except (ValueError, SyntaxError):
        return code.replace("...", "…")
    return _plain(value)


def _plain(value: Any) -> str:
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_plain, value))}]"
    return _CONSTANTS[value] if value is None or value is ... or isinstance(value, bool) else str(value)
