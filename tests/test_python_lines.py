"""What the package's docstring prints is Python that runs, in as few lines as it promises."""

import doctest
from pathlib import Path

import pytest

import flowpolicy


def examples() -> list[list[doctest.Example]]:
    """The two programs of the docstring."""
    every = doctest.DocTestParser().get_examples(flowpolicy.__doc__ or "")
    second = next(i for i, example in enumerate(every) if i and example.source.startswith("import "))
    return [every[:second], every[second:]]


@pytest.mark.parametrize(("program", "lines"), [(0, 12), (1, 10)], ids=["arrays to actions", "a head alone"])
def test_the_lines_of_the_docstring_run_and_are_few(
    program: int, lines: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    chosen = examples()[program]
    test = doctest.DocTest(chosen, {}, "flowpolicy", None, None, None)
    said: list[str] = []
    result = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS).run(test, out=said.append)
    assert result.failed == 0 and result.attempted == len(chosen), "".join(said)
    assert sum(len(example.source.splitlines()) for example in chosen) <= lines
    assert all(len(line) <= 120 for example in chosen for line in example.source.splitlines())
