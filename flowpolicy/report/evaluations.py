"""What a report shows of evaluations: success, chunks, latency, videos."""

import base64
from collections import Counter
from collections.abc import Sequence
from html import escape
from itertools import groupby
from typing import Any

from flowpolicy.report.page import Section, details, none, table
from flowpolicy.report.svg import INK, Line, Row, histogram, interval_chart, line_chart
from flowpolicy.results.folders import EvaluationFolder
from flowpolicy.results.seen_seeds import remarks

MAX_VIDEO_BYTES = 4_000_000  # one recording; a base64 page grows by a third of it more
MAX_PAGE_VIDEO_BYTES = 24_000_000  # all recordings: browsers open a 32 MB page without complaint
HISTOGRAMS = 6
_NO_EVALUATION = "No evaluation among the folders (summary.json)."


def success_section(evaluations: Sequence[EvaluationFolder]) -> Section:
    """Forest plot and table of every evaluation, the mean over checkpoints, and one square per episode.

    Args:
        evaluations: Evaluation folders, read.
    """
    if not evaluations:
        return Section("Success", none(_NO_EVALUATION))
    chart = []
    for e in evaluations:
        s = e.summary
        chart.append(
            Row(_name(e), s["success_once"], s["ci_low"], s["ci_high"], _colour(e, evaluations), f"n = {s['n']}")
        )
    header = [
        "evaluation",
        "steps",
        "n",
        "success",
        "95 % interval",
        "at end",
        "mean return",
        "failures",
        "p50 ms",
        "p95 ms",
        "p99 ms",
        "env steps/s",
    ]
    said = "".join(
        f"<p class='verdict lost'>{escape(one)}</p>" for e in evaluations for one in remarks(e.summary, _name(e))
    )
    body = said + interval_chart(chart) + table(header, [_row(e) for e in evaluations])
    body += _mean_over_checkpoints(evaluations)
    ways = [(e, e.summary["success_outcomes"]) for e in evaluations if "success_outcomes" in e.summary]
    if ways:
        rows = [[_name(e), ", ".join(f"{name} {n / sum(of.values()):.0%}" for name, n in of.items())] for e, of in ways]
        body += "<h3>Ways of succeeding</h3>" + table(["evaluation", "share of successes"], rows, text_columns=2)
    strips = "".join(f"<h3>{escape(_name(e))}</h3>{_strip(e.episodes)}" for e in evaluations if e.episodes)
    missing = [_name(e) for e in evaluations if not e.episodes]
    if strips:
        body += details("Episode by episode", strips, is_open=len(evaluations) <= 4)
    if missing:
        body += none(f"No results.jsonl for {', '.join(missing)}.")
    return Section("Success", body, "Share of episodes that succeeded, with the 95 % Wilson interval.")


def chunk_section(evaluations: Sequence[EvaluationFolder]) -> Section:
    """Predicted chunks at several noise draws over what was executed and what was demonstrated.

    Args:
        evaluations: Evaluation folders, read.
    """
    shown = [(e, e.chunks) for e in _fewest_steps_first(evaluations) if e.chunks]
    if not shown:
        return Section("Action chunks", none("No chunks.json among the folders."))
    parts = [
        details(_name(e), "".join(_panel(panel, chunks["names"]) for panel in chunks["panels"]), is_open=i == 0)
        for i, (e, chunks) in enumerate(shown)
    ]
    body = parts[0] + (details(f"{len(parts) - 1} more", "".join(parts[1:])) if len(parts) > 1 else "")
    lead = "Plain line: the actions of the episode. Coloured: chunks predicted at that moment, one line per noise draw."
    return Section("Action chunks", body, lead)


def latency_section(evaluations: Sequence[EvaluationFolder]) -> Section:
    """Histogram of predict times with its percentiles, and where the time goes.

    Args:
        evaluations: Evaluation folders, read.
    """
    shown = [(e, e.latency) for e in _fewest_steps_first(evaluations) if e.latency]
    if not shown:
        return Section("Latency", none("No latency.json among the folders."))
    charts, rows = [], []
    for e, latency in shown:
        marks = {name: latency["predict"][name] for name in ("p50", "p95", "p99")}
        charts.append(
            histogram(
                latency["samples_ms"], marks, title=_name(e), x_label="predict, ms", colour=_colour(e, evaluations)
            )
        )
        stages = latency["stages"]
        rows.append(
            [
                _name(e),
                *(f"{stages[s]['p50']:.3f}" for s in ("encode", "head", "decode")),
                f"{latency['predict']['p50']:.3f}",
                f"{latency['floor']['p50']:.3f}",
                f"{latency['overhead']:.0%}",
                f"{latency['predict']['max']:.2f}",
                str(latency["threads"]),
                latency["device"],
            ]
        )
    body = "<div class='grid2'>" + "".join(f"<div>{chart}</div>" for chart in charts[:HISTOGRAMS]) + "</div>"
    if len(charts) > HISTOGRAMS:
        body += none(f"{len(charts) - HISTOGRAMS} more are in the table only.")
    header = [
        "p50 in ms",
        "normalise, encode",
        "head",
        "un-normalise",
        "predict",
        "bare net",
        "overhead",
        "worst",
        "threads",
        "device",
    ]
    lead = "One observation at a time, after warm-up. The bare net is the floor: its forward passes and nothing else."
    return Section("Latency", body + table(header, rows), lead)


def video_section(evaluations: Sequence[EvaluationFolder]) -> Section:
    """Recordings inside the page as long as they are small, named otherwise.

    Args:
        evaluations: Evaluation folders, read.
    """
    left, shown, named = MAX_PAGE_VIDEO_BYTES, "", []
    for e in evaluations:
        for video in e.videos:
            size = video.stat().st_size
            if size > min(MAX_VIDEO_BYTES, left):
                named.append(str(video))
                continue
            left -= size
            data = base64.b64encode(video.read_bytes()).decode()
            if video.suffix == ".mp4":
                media = "<video controls muted loop playsinline preload='metadata' "
                media += f"src='data:video/mp4;base64,{data}'></video>"
            else:
                media = f"<img alt='{escape(video.stem)}' src='data:image/png;base64,{data}'>"
            shown += f"<figure>{media}<figcaption>{escape(video.stem)} · {escape(_name(e))}</figcaption></figure>"
    body = f"<div class='grid3'>{shown}</div>" if shown else ""
    if named:
        body += none("Too large to embed: " + ", ".join(named))
    return Section("Videos", body or none("No recordings; evaluating with `video=4` makes some."))


def _name(e: EvaluationFolder) -> str:
    steps = e.summary["num_steps"]
    return f"{e.label} · {steps} step{'' if steps == 1 else 's'}"


def _fewest_steps_first(evaluations: Sequence[EvaluationFolder]) -> list[EvaluationFolder]:
    """Stable, so folders keep their order within a number of steps."""
    return sorted(evaluations, key=lambda e: e.summary["num_steps"])


def _colour(e: EvaluationFolder, evaluations: Sequence[EvaluationFolder]) -> int:
    """Same label, same colour."""
    return list(dict.fromkeys(other.label for other in evaluations)).index(e.label)


def _row(e: EvaluationFolder) -> list[str]:
    s = e.summary
    reasons = Counter(line["failure"] for line in e.episodes if line.get("failure"))
    latency = s["latency_ms"]
    return [
        e.label,
        str(s["num_steps"]),
        str(s["n"]),
        f"{s['success_once']:.3f}",
        f"{s['ci_low']:.3f} – {s['ci_high']:.3f}",
        f"{s['success_at_end']:.3f}",
        f"{s['return_mean']:.2f}",
        ", ".join(f"{n} {reason}" for reason, n in reasons.most_common()) or "–",
        *(f"{latency[p]:.2f}" for p in ("p50", "p95", "p99")),
        f"{s['env_steps_per_s']:.0f}",
    ]


def _mean_over_checkpoints(evaluations: Sequence[EvaluationFolder]) -> str:
    """Training seeds side by side: mean, least and greatest success per task and number of steps."""

    def key(e: EvaluationFolder) -> tuple[str, int]:
        return str(e.summary.get("task_id")), e.summary["num_steps"]

    rows = []
    for (task, steps), group in groupby(sorted(evaluations, key=key), key=key):
        rates = [e.summary["success_once"] for e in group]
        if len(rates) > 1:
            rows.append(
                [
                    task,
                    str(steps),
                    str(len(rates)),
                    f"{sum(rates) / len(rates):.3f}",
                    f"{min(rates):.3f}",
                    f"{max(rates):.3f}",
                ]
            )
    if not rows:
        return ""
    return "<h3>Over checkpoints</h3>" + table(["task", "steps", "checkpoints", "mean", "least", "greatest"], rows)


def _strip(episodes: Sequence[dict[str, Any]]) -> str:
    squares = []
    for line in episodes:
        good = line["success_once"]
        outcome = "success" if good else line["failure"] or "failure"
        said = f"seed {line['seed']}: {outcome}, {line['episode_len']} steps"
        squares.append(f"<i{'' if good else ' class=bad'} title='{escape(said)}'></i>")
    return f"<div class='strip'>{''.join(squares)}</div>"


def _panel(panel: dict[str, Any], names: Sequence[str]) -> str:
    """Small charts, one per action dimension: the moments' draws over the episode's actions."""
    charts = []
    actions = panel["actions"]
    rows = [*actions, *(row for chunk in panel["chunks"] for draw in chunk["actions"] for row in draw)]
    if not panel["chunks"] or any(len(row) != len(names) for row in rows):
        raise ValueError(f"chunks.json is damaged: {panel['title']}: wanted {len(names)} numbers per action")
    for dim, name in enumerate(names):
        lines = [Line(panel["line"], range(len(actions)), [a[dim] for a in actions], colour=INK)]
        for chunk in panel["chunks"]:
            for draw in chunk["actions"]:
                x = range(chunk["step"], chunk["step"] + len(draw))
                lines.append(Line(f"predicted at step {chunk['step']}", x, [a[dim] for a in draw], 0, faint=True))
        charts.append(f"<div>{line_chart(lines, title=name, width=330, height=160)}</div>")
    draws = len(panel["chunks"][0]["actions"])
    key = (
        f"<div class='key'><span class='ink'>{escape(panel['line'])}</span>"
        f"<span class='s0'>predicted, {draws} noise draws</span></div>"
    )
    return f"<h3>{escape(panel['title'])}</h3>{key}<div class='grid3'>{''.join(charts)}</div>"
