"""Every message that docs/troubleshooting.md quotes is one that the source has."""

import ast
import re

import pytest

from flowpolicy.cli.remedies import on_the_command_line
from tests.docs.pages import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
QUOTED = re.findall(r"^### `(.+)`$", PAGE, re.MULTILINE)


def _text(node: ast.AST) -> str:
    """What is constant in a string, … for the rest."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) if isinstance(part, ast.Constant) else "…" for part in node.values)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return _text(node.left) + _text(node.right)
    return "…"


@pytest.fixture(scope="module")
def messages() -> str:
    """Every string of the source, one a line, as the command line says it."""
    found = []
    for folder in ("flowpolicy", "envs"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            nodes = ast.walk(ast.parse(file.read_text()))
            found += [_text(node) for node in nodes if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp)]
    lines = "\n".join(" ".join(text.split()) for text in found)
    return "\n".join(on_the_command_line(lines, verb) for verb in ("train", "finetune", "compare", "data"))


def test_the_page_names_enough_messages() -> None:
    assert len(QUOTED) >= 30 and len(set(QUOTED)) == len(QUOTED)


@pytest.mark.parametrize("quoted", QUOTED)
def test_the_source_has_what_is_quoted(quoted: str, messages: str) -> None:
    parts = [part for part in quoted.split("…") if part.strip(" ;:")]
    assert parts, "nothing but what differs"
    assert re.search("[^\n]*?".join(re.escape(part) for part in parts), messages)
