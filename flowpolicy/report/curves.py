"""Training curves of a report: loss first, then everything else that was logged, in small charts."""

import math
from collections.abc import Sequence

import numpy as np

from flowpolicy.report.page import Section, legend, none
from flowpolicy.report.svg import NUM_COLOURS, Line, line_chart
from flowpolicy.results.folders import RunFolder

_FIRST = ("eval/success_once", "val/loss", "train/action_mse", "val/action_mse", "train/grad_norm", "train/lr")
_SKIPPED = ("_ci_low", "_ci_high", "_n")  # the table of results shows them; as curves they say nothing
_LOG = ("loss", "mse", "grad_norm")


def curves_section(runs: Sequence[RunFolder]) -> Section:
    """Loss over steps (log scale, all runs in one chart) and small charts of the other metrics.

    Args:
        runs: Train runs, read.
    """
    lead = "Thin: every logged value. Thick: running mean. The same colour is the same run everywhere."
    if not runs:
        return Section("Training", none("No training run among the folders (metrics.jsonl)."))
    names = list(dict.fromkeys(name for run in runs for line in run.metrics for name in line if name not in _AXES))
    if not names:
        return Section("Training", none("metrics.jsonl has no metrics yet."))
    body = legend([run.label for run in runs[:NUM_COLOURS]])
    if len(runs) > NUM_COLOURS:
        body += none(f"{len(runs)} runs share {NUM_COLOURS} colours.")
    main = "train/loss" if "train/loss" in names else names[0]
    body += "<div style='margin-top:12px'>" + _chart(runs, main, width=1000, height=280) + "</div>"
    rest = [n for n in _FIRST if n in names] + [n for n in names if n not in _FIRST and not n.endswith(_SKIPPED)]
    small = [_chart(runs, name, width=330, height=180) for name in rest if name != main]
    body += "<div class='grid3'>" + "".join(f"<div>{chart}</div>" for chart in small) + "</div>"
    return Section("Training", body, lead)


_AXES = ("step", "time_s")


def _chart(runs: Sequence[RunFolder], name: str, *, width: int, height: int) -> str:
    lines = []
    for colour, run in enumerate(runs):
        points = [(line["step"], line[name]) for line in run.metrics if line.get(name) is not None]
        if not points:
            continue
        x, y = [p[0] for p in points], [p[1] for p in points]
        if len(points) < 30:  # few enough to see them all: no smoothing
            lines.append(Line(run.label, x, y, colour, dots=True))
        else:
            lines += [Line(run.label, x, y, colour, faint=True), Line(run.label, x, running_mean(y), colour)]
    values = [v for line in lines for v in line.y]
    log = name.split("/")[-1].startswith(_LOG) or name.endswith(_LOG)
    log = log and bool(values) and min(values) > 0 and math.log10(max(values) / min(values)) > 0.5
    share = (0.0, 1.0) if "success" in name else None
    return line_chart(
        lines,
        title=name + (" (log)" if log else ""),
        x_label="step",
        log_y=log,
        width=width,
        height=height,
        y_range=share,
    )


def running_mean(values: Sequence[float], share: float = 0.04) -> list[float]:
    """Mean over a centred window of about `share` of the curve, so that it does not lag; shorter at the ends.

    Args:
        values: The curve.
        share: Of its length that a window spans.
    """
    half = max(1, round(share * len(values) / 2))
    total = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    index = np.arange(len(values))
    reach = np.minimum(half, np.minimum(index, len(values) - 1 - index))
    return ((total[index + reach + 1] - total[index - reach]) / (2 * reach + 1)).tolist()
