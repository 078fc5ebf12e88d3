"""The page of a comparison: verdicts, success with intervals, success against latency, pairs, seeds that disagree."""

from collections.abc import Sequence
from datetime import datetime
from html import escape

import numpy as np

from flowpolicy import __version__
from flowpolicy.provenance import versions
from flowpolicy.report.page import Section, details, facts, legend, none, page, pairs, table
from flowpolicy.report.svg import INK, NUM_COLOURS, Line, Mark, Row, interval_chart, line_chart, scatter_chart
from flowpolicy.results.arm_result import ArmResult
from flowpolicy.results.comparison import ALL_PAIRS, Comparison, omitted, peeking
from flowpolicy.statistics.pairs import BARNARD, MCNEMAR, SEQUENTIAL, Pair, p_text
from flowpolicy.statistics.power import MOST
from flowpolicy.statistics.sequential import stakes

LOOK = (
    "To look at one: evaluate with `checkpoint=DIR start_seed=SEED episodes=1 video=1 out=look/SEED`, which writes to "
    "that folder alone."
)
MAX_SEEDS = 300  # rows of the table of seeds; more are in results.jsonl
MAX_CARDS = 4
SAME_SPEED = 1.1  # medians of one policy differ by up to a tenth from call to call on a shared machine
OPEN_PAIRS = 6  # undecided ones; more are folded
_HOW = {
    MCNEMAR: "All arms ran the same seeds. The exact McNemar test counts only the seeds that one arm alone solved: "
    "where both are equally good, each of these is a fair coin.",
    BARNARD: "Arms that ran seeds of their own are compared by Barnard's exact test.",
    SEQUENTIAL: "All arms ran the same seeds, and were looked at again and again. The test bets on the seeds that one "
    "arm alone solved: its p-value holds at any moment, however often one looks.",
}


def comparison_page(comparison: Comparison, *, title: str = "") -> str:
    """The whole document.

    Args:
        comparison: Arms on one task, with their tests.
        title: Of the page or drawing.
    """
    arms = comparison.arms
    cards = [_card(arm) for arm in arms[:MAX_CARDS]]
    episodes = sum(arm.n for arm in arms)
    return page(
        title
        or f"{comparison.task} {comparison.task_id}: "
        + ", ".join(arm.name for arm in arms[:MAX_CARDS])
        + (f" and {len(arms) - MAX_CARDS} more" if len(arms) > MAX_CARDS else ""),
        subtitle=f"{len(arms)} arms · {comparison.tested:,} pair{'s' * (comparison.tested > 1)} · {episodes} episodes",
        head=facts(cards),
        sections=[*comparison_sections(comparison), origin_section([comparison])],
        footer=page_footer(),
    )


def comparison_sections(comparison: Comparison, *, task: str = "") -> list[Section]:
    """Everything about one task. task: put before each title, where a page shows several.

    Args:
        comparison: Arms on one task, with their tests.
        task: Put before each title, where a page shows several.
    """
    prefix = f"{task} · " if task else ""
    sections = [_success_section(comparison), frontier_section(comparison.arms)]
    if comparison.pairs:
        sections = [_verdict_section(comparison), *sections, _pair_section(comparison.pairs)]
        sections += [_evidence_section(comparison)] if comparison.sequential else []
        sections.append(_seed_section(comparison.arms))
    return [part._replace(title=prefix + part.title) for part in sections]


def frontier(arms: Sequence[ArmResult]) -> list[ArmResult]:
    """Those arms that no other beats in success or in speed without losing in the other; without latency: none.

    Latencies within SAME_SPEED of each other count as the same.

    Args:
        arms: With their latencies.
    """
    timed = [(arm.successes / arm.n, arm.latency_ms["p50"], arm) for arm in arms if arm.latency_ms]
    return [
        arm
        for rate, p50, arm in timed
        if not any((r > rate and p <= SAME_SPEED * p50) or (r >= rate and SAME_SPEED * p < p50) for r, p, _ in timed)
    ]


def frontier_section(arms: Sequence[ArmResult]) -> Section:
    """Success over the latency of one prediction, with stairs along what no other arm beats in both.

    Args:
        arms: With their latencies.
    """
    marks = {
        arm.name: Mark(arm.name, arm.latency_ms["p50"], arm.successes / arm.n, *arm.interval, colour=i)
        for i, arm in enumerate(arms)
        if arm.latency_ms
    }
    if not marks:
        return Section("Success against latency", none("No latency was recorded with these episodes."))
    best = [marks[arm.name] for arm in frontier(arms)]
    body = scatter_chart(
        list(marks.values()),
        best,
        title="success against latency",
        x_label="p50 of one prediction, batch 1, ms (logarithmic)",
    )
    body += f"<p>On the frontier: {escape(', '.join(mark.label for mark in best))}.</p>"
    missing = [arm.name for arm in arms if arm.name not in marks]
    body += none(f"Without latency: {', '.join(missing)}.") if missing else ""
    lead = (
        f"Dashed: the frontier. Left of and above it there is no arm: whatever is more than {SAME_SPEED - 1:.0%} "
        "faster succeeds less often."
    )
    return Section("Success against latency", body, lead)


def origin_section(comparisons: Sequence[Comparison]) -> Section:
    """How the tests work, where the policies lie, versions.

    Args:
        comparisons: One per task.
    """
    tests = list(dict.fromkeys(pair.test for one in comparisons for pair in one.pairs))
    alpha = comparisons[0].alpha
    said = [_HOW[test] for test in tests]
    said += (
        [
            f"p-values are corrected by Holm over all pairs of a task, so that the chance of calling any equal pair "
            f"different is at most {alpha:.0%}."
        ]
        if tests
        else []
    )
    said += [
        "Episodes still needed: those with which a gap like the one seen is found in 80 % of comparisons. "
        "Intervals are Wilson's and Newcombe's (differences), for a number of episodes fixed before."
    ]
    rows = [
        [arm.name, str(arm.num_steps), str(arm.rows[0]["task_id"]), str(arm.rows[0]["checkpoint"])]
        for one in comparisons
        for arm in one.arms
    ]
    body = "".join(f"<p>{escape(sentence)}</p>" for sentence in said)
    body += table(["arm", "steps", "task", "checkpoint"], rows, text_columns=4) + pairs(versions())
    return Section("How this was compared", body)


def page_footer() -> str:
    """Version, date, and that nothing is fetched."""
    return f"flowpolicy {__version__}, {datetime.now():%Y-%m-%d %H:%M}. One file; it loads nothing from a network."


def _card(arm: ArmResult) -> tuple[str, str, str]:
    low, high = arm.interval
    speed = f", {arm.latency_ms['p50']:.2f}\u00a0ms" if arm.latency_ms else ""
    return arm.name, f"{arm.successes / arm.n:.3f}", f"{low:.3f} to {high:.3f}, n = {arm.n}{speed}"


def _verdict_section(comparison: Comparison) -> Section:
    won = [f"<p class='verdict won'>{escape(pair.sentence)}</p>" for pair in comparison.pairs if pair.winner]
    undecided = [f"<p class='verdict'>{escape(pair.sentence)}</p>" for pair in comparison.pairs if not pair.winner]
    body, rest = "".join(won), "".join(undecided)
    body += rest if len(undecided) <= OPEN_PAIRS else details(f"No difference found: {len(undecided)} pairs", rest)
    if comparison.gate:
        kind = "won" if comparison.gate.passed else "lost"
        body += f"<p class='verdict {kind}'><b>{escape(comparison.gate.reason)}</b></p>"
    if said := omitted(comparison):
        body += none(said)
    if warning := peeking(comparison):
        body += f"<p class='verdict lost'>{escape(warning)}</p>"
    return Section("Verdict", body)


def _success_section(comparison: Comparison) -> Section:
    chart = [
        Row(arm.name, arm.successes / arm.n, *arm.interval, i, f"n = {arm.n}") for i, arm in enumerate(comparison.arms)
    ]
    rows = []
    for arm in comparison.arms:
        (low, high), latency = arm.interval, arm.latency_ms
        params = arm.summary.get("policy_params")
        rows.append(
            [
                arm.name,
                arm.failures,
                str(arm.num_steps),
                str(arm.n),
                f"{arm.successes / arm.n:.3f}",
                f"{low:.3f} – {high:.3f}",
                *(f"{latency[p]:.2f}" if latency else "–" for p in ("p50", "p95", "p99")),
                f"{params / 1e6:.2f} M" if params else "–",
            ]
        )
    header = ["arm", "failures", "steps", "n", "success", "95 % interval", "p50 ms", "p95 ms", "p99 ms", "parameters"]
    lead = "Share of episodes that succeeded, with the 95 % Wilson interval of each arm by itself."
    said = [f"<p class='verdict lost'>{escape(remark)}</p>" for arm in comparison.arms for remark in arm.remarks]
    return Section("Success", "".join(said) + interval_chart(chart) + table(header, rows, text_columns=2), lead)


def _pair_section(tested: Sequence[Pair]) -> Section:
    rows = []
    for pair in tested:
        counts = [str(count) for count in pair.counts] if pair.counts else ["–"] * 4
        further = "–" if pair.winner else f"{pair.further:,}" if pair.further else f"over {MOST:,}"
        rows.append(
            [
                pair.name_a,
                pair.name_b,
                {pair.name_a: "A", pair.name_b: "B"}.get(pair.winner, "–"),
                f"{pair.difference:+.3f}",
                f"{pair.low:+.3f} to {pair.high:+.3f}",
                *counts,
                p_text(pair.p).removeprefix("p = ").removeprefix("p "),
                p_text(pair.p_holm).removeprefix("p = ").removeprefix("p "),
                further,
            ]
        )
    header = [
        "A",
        "B",
        "better",
        "A − B",
        "95 % interval",
        "both",
        "only A",
        "only B",
        "neither",
        "p",
        "corrected",
        "further",
    ]
    lead = (
        "Seeds that both arms solved, one of them alone, or neither. Corrected: p for all pairs together. Further: "
        "episodes of each that would be needed to separate such a gap."
    )
    return Section("Pairs", table(header, rows, text_columns=3), lead)


def _evidence_section(comparison: Comparison) -> Section:
    """The stake of each pair over the episodes; the pair is decided where it reaches the line."""
    arms = {arm.name: arm.outcomes() for arm in comparison.arms}
    lines = []
    for i, pair in enumerate(comparison.pairs[:NUM_COLOURS]):
        a, b = arms[pair.name_a], arms[pair.name_b]
        common = [seed for seed in a if seed in b]
        path = np.exp(np.minimum(stakes([a[s] for s in common], [b[s] for s in common]), 600.0))
        lines.append(Line(f"{pair.name_a} against {pair.name_b}", range(1, len(path) + 1), path.tolist(), i))
    longest, enough = max(len(line.x) for line in lines), len(comparison.pairs) / comparison.alpha
    chart = line_chart(
        [*lines, Line("decided", [1, longest], [enough] * 2, INK)],
        x_label="common seeds",
        log_y=True,
        title="stake (logarithmic)",
        width=1000,
        height=280,
    )
    lead = f"A bet that starts with 1 and gains nothing on average where two arms are equal; {enough:g} decides."
    return Section("Evidence over the episodes", chart + legend([line.name for line in lines]), lead)


def _seed_section(arms: Sequence[ArmResult]) -> Section:
    """One row per seed on which the arms that ran it disagree."""
    arms, dropped = list(arms[:ALL_PAIRS]), len(arms[ALL_PAIRS:])  # a cell each: 1,000 arms would be 300,000
    rows = {arm.name: {row["seed"]: row for row in arm.rows} for arm in arms}
    seeds = sorted({seed for found in rows.values() for seed in found})
    shown = [s for s in seeds if len({found[s]["success_once"] for found in rows.values() if s in found}) == 2]
    title = "Seeds on which they disagree"
    if not shown:
        return Section(title, none("None: wherever two arms ran the same seed, both succeeded or both failed."))
    body = "".join(
        f"<tr><td>{seed}</td>{''.join(_cell(found.get(seed)) for found in rows.values())}</tr>"
        for seed in shown[:MAX_SEEDS]
    )
    head = "".join(f"<th>{escape(name)}</th>" for name in ["seed", *(arm.name for arm in arms)])
    body = f"<div class='scroll'><table><tr>{head}</tr>{body}</table></div>"
    if len(shown) > MAX_SEEDS:
        body += none(f"{len(shown) - MAX_SEEDS} more seeds are in results.jsonl.")
    body += none(f"The first {ALL_PAIRS} arms; {dropped} more are in results.jsonl.") if dropped else ""
    common = sum(sum(seed in found for found in rows.values()) > 1 for seed in seeds)
    lead = LOOK
    return Section(title, details(f"{len(shown)} of {common} common seeds", body, is_open=len(shown) <= 40), lead)


def _cell(row: dict | None) -> str:
    if row is None:
        return "<td>–</td>"
    if row["success_once"]:
        return f"<td class='yes'>✓ {escape(row.get('outcome', ''))} {row['episode_len']}</td>"
    return f"<td class='no'>✗ {escape(row['failure'] or 'failure')} {row['episode_len']}</td>"
