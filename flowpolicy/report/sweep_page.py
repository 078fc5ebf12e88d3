"""The page of a sweep: one table of everything, then each task's comparison; and the table as text and Markdown."""

from collections.abc import Sequence

from flowpolicy.report.compare_page import comparison_sections, origin_section, page_footer
from flowpolicy.report.page import Section, page, table
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import Comparison, Failure
from flowpolicy.results.one_step import OneStep, format_one_step, one_against_many


def sweep_page(comparisons: Sequence[Comparison], *, title: str = "", failed: Sequence[Failure] = ()) -> str:
    """The whole document: comparisons, one per task, and what could not be run.

    Args:
        comparisons: One per task.
        title: Of the page or drawing.
        failed: What could not be run, and why.
    """
    episodes = sum(arm.n for one in comparisons for arm in one.arms)
    arms, several = list(_by_name(comparisons)), len(comparisons) > 1
    sections = [*([_failed_section(failed)] if failed else []), _overview(comparisons)]
    if found := one_against_many(comparisons):
        sections.append(_one_step_section(found))
    for one in comparisons:
        sections += comparison_sections(one, task=one.task_id if several else "")
    return page(
        title or "Sweep: " + ", ".join(f"{one.task} {one.task_id}" for one in comparisons),
        subtitle=f"{len(arms)} arm{'s' * (len(arms) > 1)} · {len(comparisons)} task{'s' * several} · "
        f"{episodes} episodes",
        head="",
        sections=[*sections, origin_section(comparisons)],
        footer=page_footer(),
    )


def format_sweep(comparisons: Sequence[Comparison], *, failed: Sequence[Failure] = ()) -> str:
    """The table of the page, for a terminal.

    Args:
        comparisons: One per task.
        failed: What could not be run, and why.
    """
    header, rows = _cells(comparisons)
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in [header, *rows]
    ]
    lines += [format_one_step(found)] if (found := one_against_many(comparisons)) else []
    return "\n".join([*lines, *_remarks(comparisons), *format_failed(failed)])


def _remarks(comparisons: Sequence[Comparison]) -> list[str]:
    """What must be said beside the numbers."""
    return [f"{one.task_id}: {remark}" for one in comparisons for arm in one.arms for remark in arm.remarks]


def format_failed(failed: Sequence[Failure]) -> list[str]:
    """A line per arm that could not be run.

    Args:
        failed: What could not be run, and why.
    """
    return [f"failed: {one.name} on {one.task_id}: {one.error}" for one in failed]


def sweep_markdown(comparisons: Sequence[Comparison], *, failed: Sequence[Failure] = ()) -> str:
    """The tables of the page for a README, the arms with the highest mean first.

    Args:
        comparisons: One per task.
        failed: What could not be run, and why.
    """
    header, rows = _cells(comparisons)
    if len(comparisons) > 1:
        rows = sorted(rows, key=lambda row: row[-1].replace("–", "-1"), reverse=True)
    text = _markdown(header, rows, text_columns=1)
    if found := one_against_many(comparisons):
        text += "\n" + _markdown(*_one_step_cells(found), text_columns=3)
    return text + "".join(f"\n{line}\n" for line in [*_remarks(comparisons), *format_failed(failed)])


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]], *, text_columns: int) -> str:
    rule = ["---"] * text_columns + ["---:"] * (len(header) - text_columns)
    return "".join(f"| {' | '.join(cells)} |\n" for cells in [header, rule, *rows])


def _failed_section(failed: Sequence[Failure]) -> Section:
    lead = "They are in no table below. The same command tries them again."
    rows = [[one.name, one.task_id, one.error] for one in failed]
    return Section("Cells that failed", table(["arm", "task", "error"], rows, text_columns=3), lead)


def _overview(comparisons: Sequence[Comparison]) -> Section:
    header, rows = _cells(comparisons)
    lead = "Success with its 95 % Wilson interval. The mean is over the tasks of an arm that has run all of them."
    return Section("All of it", table(header, rows, text_columns=len(header)), lead)


def _one_step_section(found: Sequence[OneStep]) -> Section:
    header, rows = _one_step_cells(found)
    lead = (
        "On each task against the multi-step arm with the most successes there; p is that of the pair times their "
        "number, for the best of them was picked. Ratios: the least over the tasks."
    )
    return Section("One step against many", table(header, rows, text_columns=3), lead)


def _one_step_cells(found: Sequence[OneStep]) -> tuple[list[str], list[list[str]]]:
    rows = [
        [
            one.name,
            ", ".join(one.beaten) or "on no task",
            one.nearest or "–",
            f"{one.difference:+.3f}",
            f"{one.evaluations:g}",
            f"{one.speed:.1f}" if one.speed else "–",
        ]
        for one in found
    ]
    return [
        "one-step arm",
        "beaten",
        "nearest to it",
        "mean difference of success",
        "times fewer evaluations",
        "times as fast",
    ], rows


def _cells(comparisons: Sequence[Comparison]) -> tuple[list[str], list[list[str]]]:
    """Header and rows: arm, steps, p50, a column per task, the mean where there are several tasks."""
    rows = []
    for name, found in _by_name(comparisons).items():
        some = next(arm for arm in found if arm is not None)
        latency = [arm.latency_ms["p50"] for arm in found if arm is not None and arm.latency_ms]
        row = [name, str(some.num_steps), f"{max(latency):.2f}" if latency else "–", *map(_cell, found)]
        if len(comparisons) > 1:
            rates = [arm.successes / arm.n for arm in found if arm is not None]
            row.append(f"{sum(rates) / len(rates):.3f}" if len(rates) == len(found) else "–")
        rows.append(row)
    mean = ["mean"] if len(comparisons) > 1 else []
    return ["arm", "steps", "p50 ms", *(one.task_id for one in comparisons), *mean], rows


def _cell(arm: ArmResult | None) -> str:
    if arm is None:
        return "–"
    low, high = arm.interval
    return f"{arm.successes / arm.n:.3f} [{low:.3f}, {high:.3f}]"


def _by_name(comparisons: Sequence[Comparison]) -> dict[str, list[ArmResult | None]]:
    """Arm's name -> its result per task, None where it has not run one."""
    names = dict.fromkeys(arm.name for one in comparisons for arm in one.arms)
    return {name: [next((arm for arm in one.arms if arm.name == name), None) for one in comparisons] for name in names}
