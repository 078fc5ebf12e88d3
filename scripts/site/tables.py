"""Tables and numbers of docs/results/ and README.md, from the rows in docs/results/rows/*.json.

    python scripts/site/tables.py            # write them into the pages
    python scripts/site/tables.py --check    # say what differs; exit code 1

A page marks where they stand; what is between the marks is written here, the rest by hand:

    <!-- table FILE.TABLE [field=value ...] [has=field]
    Header: {field}
    > Header on the right: {field:.2f}
    ^ Header in the middle: {low:.2f} to {high:.2f}
    -->

    <!-- /table -->

    … was <!-- value FILE.TABLE ID {success:.2f} -->0.93<!-- /value --> before …

FILE.json holds {TABLE: {"about": {...}, "rows": [{...}, ...]}}; `about` goes into every row. A row says what was run
(`command`), on what (`task`), with what (`policy`) and where the number is from (`source`). Where it has `n` and
`successes`, `success` and Wilson's 95 % interval (`low`, `high`) are computed; so are those of parts with `n` and
`cells`, task -> successes of each training seed: `rate`, `success`, `deviation` over training seeds, `low`, `high`.
A field that a row lacks is printed as –. A row that no page shows is an error.
"""

import json
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from scipy.stats import t as student

from flowpolicy.statistics.tests import wilson_interval

ROOT = Path(__file__).resolve().parents[2]
NEEDED = ("command", "task", "policy", "source")
Row = dict[str, Any]

_TABLE = re.compile(
    r"(?P<head><!-- table (?P<name>[\w.]+)(?P<where>[^\n]*)\n(?P<columns>.*?)-->\n).*?(?P<end><!-- /table -->)",
    re.DOTALL,
)
_VALUE = re.compile(
    r"(?P<head><!-- value (?P<name>[\w.]+) (?P<id>[\w.+-]+)(?P<format>[^>]*?) -->).*?(?P<end><!-- /value -->)",
    re.DOTALL,
)
INTERVAL = "{success:.2f} ({low:.2f} to {high:.2f})"


class Rows:
    """All rows, by file and table, and which of them were shown.

    Args:
        folder: of the JSON files.
    """

    def __init__(self, folder: Path) -> None:
        self.tables: dict[str, list[Row]] = {}
        self._shown: set[int] = set()
        for path in sorted(folder.glob("*.json")):
            for name, table in json.loads(path.read_text()).items():
                rows = [derived({**table.get("about", {}), **row}) for row in table["rows"]]
                for row in rows:
                    if missing := [key for key in NEEDED if not row.get(key)]:
                        raise ValueError(f"{path.name}: a row of {name} lacks {', '.join(missing)}: {row}")
                if reference := table.get("reference"):
                    compare(rows, reference)
                self.tables[f"{path.stem}.{name}"] = rows

    def table(self, name: str, where: dict[str, str]) -> list[Row]:
        """Rows of FILE.TABLE whose fields are as `where` says. Raises ValueError for none."""
        if name not in self.tables:
            raise ValueError(f"wanted a table of {', '.join(self.tables)}, got {name!r}")
        rows = [row for row in self.tables[name] if all(_holds(row, key, text) for key, text in where.items())]
        if not rows:
            raise ValueError(f"{name}: no row has {where}")
        self._shown.update(map(id, rows))
        return rows

    def forgotten(self) -> list[str]:
        """Rows that no page shows."""
        every = [(name, row) for name, rows in self.tables.items() for row in rows]
        return [f"{name}: no page shows {row}" for name, row in every if id(row) not in self._shown]


def derived(row: Row) -> Row:
    """The row, and its parts, with what their counts give."""
    row = {key: derived(value) if isinstance(value, dict) and key != "cells" else value for key, value in row.items()}
    if "cells" in row:
        cells: dict[str, list[int]] = row["cells"]
        means = [fmean(counts) / row["n"] for counts in zip(*cells.values(), strict=True)]
        counts = [count for every in cells.values() for count in every]
        row["rate"] = {task: fmean(every) / row["n"] for task, every in cells.items()}
        row |= _interval(sum(counts), row["n"] * len(counts))
        row |= {"deviation": stdev(means)} if len(means) > 1 else {}
    elif "successes" in row:
        row |= _interval(row["successes"], row["n"])
    return row


def _holds(row: Row, key: str, wanted: str) -> bool:
    return wanted in row if key == "has" else str(row.get(key)) == wanted


def _interval(successes: int, n: int) -> Row:
    low, high = wilson_interval(successes, n)
    return {"success": successes / n, "low": low, "high": high}


def compare(rows: list[Row], reference: Row) -> None:
    """Add `ahead` (the reference's part before the row's own) and `gain` (a second part before the first).

    Args:
        rows: changed in place.
        reference: `field` and `is`, which name the row; `part` and `second`, names of parts with cells.
    """
    part, second = reference["part"], reference["second"]
    best = next(row for row in rows if row[reference["field"]] == reference["is"])
    for row in rows:
        row["ahead"] = difference(best[part], row[part]) if row is not best else {}
        row["gain"] = difference(row[second], row[part]) if second in row else {}


def difference(one: Row, other: Row) -> Row:
    """Mean difference over pairs of trainings of one task and seed, with Student's 95 % interval."""
    pairs = [
        (a - b) / one["n"]
        for task in one["cells"]
        for a, b in zip(one["cells"][task], other["cells"][task], strict=True)
    ]
    half = student.ppf(0.975, len(pairs) - 1) * stdev(pairs) / math.sqrt(len(pairs))
    return {"mean": fmean(pairs), "low": fmean(pairs) - half, "high": fmean(pairs) + half}


def text(form: str, row: Row) -> str:
    """A cell; – where the row lacks a field."""
    try:
        return form.format(**row)
    except (KeyError, IndexError):
        return "–"


def table(columns: str, rows: list[Row]) -> str:
    """Markdown of a table."""
    heads, lines, forms = [], [], []
    for column in filter(None, map(str.strip, columns.splitlines())):
        mark, column = (column[0], column[1:].strip()) if column[0] in ">^" else ("", column)
        head, _, form = column.partition(": ")
        heads.append(head)
        lines.append({">": "---:", "^": ":---:", "": "---"}[mark])
        forms.append(form)
    body = [heads, lines, *([text(form, row) for form in forms] for row in rows)]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in body)


def written(page: str, rows: Rows) -> str:
    """A page with its tables and values written anew. Raises ValueError for a table or a row that is not there."""

    def one_table(match: re.Match[str]) -> str:
        where = dict(word.split("=", 1) for word in match["where"].split())
        return f"{match['head']}\n{table(match['columns'], rows.table(match['name'], where))}\n{match['end']}"

    def one_value(match: re.Match[str]) -> str:
        (row,) = rows.table(match["name"], {"id": match["id"]})
        return match["head"] + text(match["format"].strip() or INTERVAL, row) + match["end"]

    return _VALUE.sub(one_value, _TABLE.sub(one_table, page))


def pages() -> Iterator[Path]:
    """README.md and every page of docs/ that is not generated whole."""
    yield ROOT / "README.md"
    yield from sorted(path for path in (ROOT / "docs").rglob("*.md") if "reference" not in path.parts)


def main(argv: list[str]) -> int:
    """Write or check; the exit code."""
    rows, differ = Rows(ROOT / "docs" / "results" / "rows"), []
    for page in pages():
        before = page.read_text()
        after = written(before, rows)
        if after != before:
            differ.append(f"{page.relative_to(ROOT)}: differs from the rows; run python scripts/site/tables.py")
            if "--check" not in argv:
                page.write_text(after)
                differ[-1] = f"wrote {page.relative_to(ROOT)}"
    forgotten = rows.forgotten()
    print(*differ, *forgotten, sep="\n", end="\n" if differ or forgotten else "")
    return int(bool(forgotten or (differ and "--check" in argv)))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
