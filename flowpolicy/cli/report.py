"""flowpolicy report: one offline HTML page about evaluations and training runs.

  flowpolicy report runs/pick
  flowpolicy report runs/seed0 runs/seed1 runs/seed2 out=pick.html
  flowpolicy report runs/pick/evaluation title="PickCube, 100 demonstrations"

  DIR …        evaluation folders, train run folders, or folders that hold some at any depth
  out=FILE     default: report.html in DIR; in the current folder when there are several
  title=TEXT   default: the task
Success with intervals, action chunks, latency, training curves, videos, versions. It loads nothing from a network.
"""

from pathlib import Path

from flowpolicy.report.report import write_report

_OPTIONS = ("out=", "title=")


def main(argv: list[str]) -> int:
    """Write the page and print its path."""
    options = dict(argument.split("=", 1) for argument in argv if argument.startswith(_OPTIONS))
    folders = [Path(argument).expanduser() for argument in argv if not argument.startswith(_OPTIONS)]
    if unknown := [str(folder) for folder in folders if "=" in str(folder) and not folder.exists()]:
        raise ValueError(f"unknown option {unknown[0]}; wanted DIR …, out=FILE or title=TEXT")
    if not folders:
        raise ValueError("wanted at least one DIR; for example: flowpolicy report runs/pick")
    default = folders[0] / "report.html" if len(folders) == 1 else Path("report.html")
    print(write_report(folders, Path(options.get("out", default)).expanduser(), title=options.get("title", "")))
    return 0
