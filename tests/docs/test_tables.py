"""What docs/results/ and README.md print is what the committed rows say; and the program that writes it errs aloud."""

import importlib.util
import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from tests.docs.pages import ROOT

RESULTS = sorted(
    path for path in (ROOT / "docs" / "results").glob("*.md") if path.name not in ("index.md", "SUMMARY.md")
)
ROW = {"command": "flowpolicy …", "task": "toy", "policy": "dm1", "source": "here", "n": 100, "successes": 93}
PAGE = """# Page

<!-- table file.all
task: {task}
> success: {success:.2f}
^ interval: {low:.2f} to {high:.2f}
> expert: {expert}
-->
old
<!-- /table -->

It was <!-- value file.all only -->…<!-- /value -->.
"""


@pytest.fixture
def tables() -> ModuleType:
    spec = importlib.util.spec_from_file_location("tables", ROOT / "scripts" / "site" / "tables.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(tables: ModuleType, folder: Path, *every: dict, **table: object) -> object:
    (folder / "file.json").write_text(json.dumps({"all": {"about": {"id": "only"}, "rows": every, **table}}))
    return tables.Rows(folder)


def test_the_pages_say_what_the_rows_say(tables: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert tables.main(["--check"]) == 0, capsys.readouterr().out


@pytest.mark.parametrize("page", RESULTS, ids=lambda page: page.stem)
def test_no_table_of_results_is_written_by_hand(page: Path) -> None:
    by_hand = re.sub(r"<!-- table .*?<!-- /table -->", "", page.read_text(), flags=re.DOTALL)
    assert not re.findall(r"^\|.*\|$", by_hand, re.MULTILINE)


def test_intervals_are_computed_and_fields_that_are_not_there_are_dashes(tables: ModuleType, tmp_path: Path) -> None:
    page = tables.written(PAGE, rows(tables, tmp_path, ROW))
    assert "| task | success | interval | expert |\n| --- | ---: | :---: | ---: |\n" in page
    assert "| toy | 0.93 | 0.86 to 0.97 | – |\n" in page and "-->0.93 (0.86 to 0.97)<!-- /value -->." in page
    assert tables.written(page, rows(tables, tmp_path, ROW)) == page


def test_a_page_whose_numbers_were_changed_differs(tables: ModuleType, tmp_path: Path) -> None:
    page = tables.written(PAGE, rows(tables, tmp_path, ROW))
    for old, new in (("| 0.93 |", "| 0.94 |"), ("0.93 (0.86", "0.93 (0.90")):
        assert old in page and tables.written(page.replace(old, new), rows(tables, tmp_path, ROW)) == page


def test_a_row_that_no_page_shows_and_one_without_its_source_are_errors(tables: ModuleType, tmp_path: Path) -> None:
    unseen = rows(tables, tmp_path, ROW, {**ROW, "id": "other", "task": "reach"})
    tables.written("<!-- value file.all only --><!-- /value -->", unseen)
    assert len(unseen.forgotten()) == 1 and "reach" in unseen.forgotten()[0]
    with pytest.raises(ValueError, match="lacks command, source"):
        rows(tables, tmp_path, {"task": "toy", "policy": "dm1"})


@pytest.mark.parametrize("mark", ["table file.none\n-->\n<!-- /table", "table file.all task=reach\n-->\n<!-- /table"])
def test_a_table_that_is_not_there_is_an_error(tables: ModuleType, tmp_path: Path, mark: str) -> None:
    with pytest.raises(ValueError, match=r"file\.(none|all)"):
        tables.written(f"<!-- {mark} -->", rows(tables, tmp_path, ROW))


def test_cells_give_rates_a_deviation_of_training_seeds_and_differences_of_pairs(
    tables: ModuleType, tmp_path: Path
) -> None:
    """Means of training seeds 0.6 and 0.8; the other row is behind by 0.2, 0.0, 0.2, 0.0."""
    one = {"n": 10, "cells": {"a": [5, 7], "b": [7, 9]}}
    other = {"n": 10, "cells": {"a": [3, 7], "b": [5, 9]}}
    every = [{**ROW, "policy": "best", "one": one}, {**ROW, "policy": "second", "one": other}]
    reference = {"field": "policy", "is": "best", "part": "one", "second": "two"}
    best, second = rows(tables, tmp_path, *every, reference=reference).table("file.all", {})
    assert best["one"]["rate"] == {"a": 0.6, "b": 0.8} and best["ahead"] == {}
    assert (best["one"]["success"], best["one"]["deviation"]) == (pytest.approx(0.7), pytest.approx(0.1 * 2**0.5))
    assert second["ahead"]["mean"] == pytest.approx(0.1)
    assert second["ahead"]["high"] == pytest.approx(0.1 + 3.182446 * 0.11547005 / 2)
