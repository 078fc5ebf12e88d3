"""Below cli/ the library speaks Python: no key, option or verb of the command line in a message."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from flowpolicy.cli.keys import keys
from flowpolicy.cli.main import VERBS
from tests.test_architecture import LIBRARY, ROOT, tree, where


@cache
def typed_keys() -> frozenset[str]:
    """Every key that a verb takes."""
    return frozenset(key for verb in ("collect", *VERBS) for key in keys(ROOT / "configs", verb))


def command_words(text: str) -> list[str]:
    """What in a message only somebody at a command line could type; Python code stands in backticks.

    Args:
        text: Of a string literal, each value of an f-string as one NUL.
    """
    groups = {key.partition(".")[0] for key in typed_keys() if "." in key}
    plain = re.sub(r"`[^`]*`", "", text)
    found = re.findall(r"\b\w+=(?:true|false|null)\b", text)
    found += re.findall(rf"\bflowpolicy (?:{'|'.join(VERBS)})\b", text)
    found += [word for word in re.findall(r"(?<![\w./])[a-z_]+(?:\.\w+)+", text) if word in typed_keys()]
    found += [word for word in re.findall(r"(?<![\w./])([a-z_]+)\.\0", text) if word in groups]
    found += re.findall(r"\bpolicy/(?:net|head|encoder|times|weighting)\b", text)
    return found + [
        word for word in re.findall(r"(?<![\w.])(\w+)=(?![\0=>])", plain) if word in typed_keys() | {"task"}
    ]


def literals(path: Path) -> Iterator[tuple[ast.AST, str]]:
    """Texts that are no docstring, with a space or an equals sign in them: others are data, such as a name."""
    skip: set[ast.AST] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and isinstance(node.body[0], ast.Expr):
            skip.add(node.body[0].value)
        if isinstance(node, ast.JoinedStr):
            skip |= set(node.values)
    for node in ast.walk(tree(path)):
        values = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(value.value) if isinstance(value, ast.Constant) else "\0" for value in values)
        if node not in skip and isinstance(node, ast.JoinedStr | ast.Constant) and re.search("[ =]", text):
            yield node, text


def test_below_cli_nothing_speaks_command_line():
    wrong = []
    for path in LIBRARY:
        if "cli" not in path.parts and path.name != "ranges.py":  # a table of keys
            wrong += [
                f"{where(path, node)}: {found}" for node, text in literals(path) if (found := command_words(text))
            ]
    assert not wrong, wrong


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("lower trainer.lr", ["trainer.lr"]),
        ("trainer.\0 must be positive", ["trainer"]),
        ("pass policy/net=mlp", ["policy/net"]),
        ("choose another out=", ["out"]),
        ("pass overwrite=true", ["overwrite=true", "overwrite"]),
        ("`overwrite=true`", ["overwrite=true"]),
        ("run: flowpolicy data validate", ["flowpolicy data"]),
        ("pass task=… for all", ["task"]),
        ("lower `lr`, pass `overwrite=True`, got num_steps=\0", []),
        ("see policy.json of flowpolicy, as in state.shape", []),
    ],
)
def test_the_check_for_words_of_the_command_line_sees_them(text, words):
    assert command_words(text) == words
