"""`report`: evaluation and train run folders in, one offline HTML page out."""

from collections.abc import Sequence
from datetime import datetime
from html import escape
from pathlib import Path
from typing import Any

from flowpolicy import __version__
from flowpolicy.files import write_atomic
from flowpolicy.report.axes import number
from flowpolicy.report.curves import curves_section
from flowpolicy.report.evaluations import chunk_section, latency_section, success_section, video_section
from flowpolicy.report.page import Section, details, facts, none, page, pairs, table
from flowpolicy.results.folders import EvaluationFolder, RunFolder, find_folders

MAX_TASK_CARDS = 6  # more tasks than this: the table tells


def write_report(paths: Sequence[Path], out: Path, *, title: str = "") -> Path:
    """Write the page about everything at or below `paths` to `out` and return it, absolute.

    Args:
        paths: Run and evaluation folders, or folders of such.
        out: The HTML file.
        title: Heading; by default the task and what was found. What a folder lacks is left out with a line saying so.

    Raises:
        FileNotFoundError: Or ValueError as `find_folders` does, before anything is written.
    """
    evaluations, runs = find_folders(paths)
    sections = [
        success_section(evaluations),
        chunk_section(evaluations),
        latency_section(evaluations),
        curves_section(runs),
        video_section(evaluations),
        _origin_section(evaluations, runs),
    ]
    tasks = sorted({f"{e.summary.get('task')} {e.summary.get('task_id')}" for e in evaluations})
    html = page(
        title or (", ".join(tasks) if tasks else "Training run"),
        subtitle=_subtitle(evaluations, runs),
        head=facts(_cards(evaluations)) if evaluations else "",
        sections=sections,
        footer=f"flowpolicy {__version__}, {datetime.now():%Y-%m-%d %H:%M}. One file; it loads nothing from a network.",
    )
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(out, html)
    return out


def _subtitle(evaluations: Sequence[EvaluationFolder], runs: Sequence[RunFolder]) -> str:
    said = []
    if evaluations:
        episodes = sum(int(e.summary.get("n", 0)) for e in evaluations)
        said.append(f"{_count(len(evaluations), 'evaluation')}, {episodes} episodes")
        said.append(_count(len({e.summary.get("checkpoint") for e in evaluations}), "checkpoint"))
    if runs:
        said.append(_count(len(runs), "training run"))
    return " · ".join(said)


def _count(n: int, noun: str) -> str:
    return f"{n} {noun}{'' if n == 1 else 's'}"


def _cards(evaluations: Sequence[EvaluationFolder]) -> list[tuple[str, str, str]]:
    """The headline: the fewest network evaluations, averaged over checkpoints, never the best of several."""
    fewest = min(e.summary["num_steps"] for e in evaluations)
    chosen = [e.summary for e in evaluations if e.summary["num_steps"] == fewest]
    tasks = list(dict.fromkeys(str(s.get("task_id")) for s in chosen))
    cards = []
    for task in tasks[:MAX_TASK_CARDS]:
        name = f"Success, {_count(fewest, 'step')}" + (f", {task}" if len(tasks) > 1 else "")
        cards.append(_success_card(name, [s for s in chosen if str(s.get("task_id")) == task]))
    slowest = max((s["latency_ms"] for s in chosen), key=lambda one: one["p50"])
    cards.append(
        (
            "Latency p50, batch 1",
            f"{slowest['p50']:.2f} ms",
            f"p95 {slowest['p95']:.2f} ms{', slowest of them' if len(chosen) > 1 else ''}",
        )
    )
    first = chosen[0]
    if "policy_params" in first and len(tasks) == 1:
        cards.append(("Parameters", f"{first['policy_params'] / 1e6:.2f} M", f"on {first.get('device', 'cpu')}"))
    seeds = [(s["start_seed"], s["start_seed"] + s["n"] - 1) for s in chosen if "start_seed" in s]
    if seeds:
        cards.append(
            (
                "Episodes per evaluation",
                number(first["n"]),
                f"seeds {min(a for a, _ in seeds)} to {max(b for _, b in seeds)}",
            )
        )
    return cards


def _success_card(name: str, summaries: Sequence[dict[str, Any]]) -> tuple[str, str, str]:
    rates = [s["success_once"] for s in summaries]
    if len(rates) == 1:
        remark = f"95 % interval {summaries[0]['ci_low']:.3f} to {summaries[0]['ci_high']:.3f}"
    else:
        remark = f"mean of {len(rates)}: {min(rates):.2f} to {max(rates):.2f}"
    return name, f"{sum(rates) / len(rates):.3f}", remark


def _origin_section(evaluations: Sequence[EvaluationFolder], runs: Sequence[RunFolder]) -> Section:
    """Versions, commit, command line and configuration: what it takes to get these numbers again."""
    found = {e.label: e.summary.get("versions", {}) for e in evaluations}
    found |= {r.label: r.record.get("versions", {}) for r in runs if r.record}
    names = list(dict.fromkeys(name for one in found.values() for name in one))
    body = ""
    if names:
        columns = list({tuple(one.get(name, "–") for name in names): None for one in found.values() if one})
        if len(columns) == 1:
            body += pairs(dict(zip(names, columns[0], strict=True)))
        else:
            titles = [f"environment {i + 1}" for i in range(len(columns))]
            rows = [[name, *(column[i] for column in columns)] for i, name in enumerate(names)]
            body += table(["package", *titles], rows, text_columns=1 + len(columns))
    else:
        body += none("No versions: neither summary.json nor run.json names any.")
    for run in runs:
        body += _run_facts(run)
    places = [[e.label, str(e.summary["num_steps"]), str(e.summary.get("checkpoint", "–"))] for e in evaluations]
    if places:
        body += details("Checkpoints", table(["evaluation", "steps", "checkpoint"], places, text_columns=3))
    return Section("Versions and configuration", body)


def _run_facts(run: RunFolder) -> str:
    if run.record is None:
        body = none("No run.json.")
    else:
        seeds = ", ".join(f"{name} {seed}" for name, seed in run.record.get("seeds", {}).items())
        rows = [
            ["seeds", seeds],
            ["device", str(run.record.get("device"))],
            ["started", str(run.record.get("started_at"))],
            ["git commit", str(run.record.get("git_commit") or "not a git checkout")],
            ["dataset hash", str(run.record.get("dataset_hash"))],
            ["config hash", str(run.record.get("config_hash"))],
            ["command", "flowpolicy " + " ".join(run.record.get("argv", []))],
        ]
        body = table(["training run", run.label], rows, text_columns=2)
    body += f"<pre>{escape(run.config)}</pre>" if run.config else none("No .hydra/config.yaml.")
    return details(f"Configuration of {run.label}", body)
