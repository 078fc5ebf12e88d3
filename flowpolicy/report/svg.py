"""Hand-written inline SVG: the few charts a report needs, coloured by the page's style sheet, so dark mode works.

Every chart is a string to put into an HTML page. Colours are classes s0..s5 (series) that the page defines.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from typing import final

import numpy as np

from flowpolicy.report.axes import log_ticks, number, ticks

NUM_COLOURS = 6
MOST_LABELS = 100  # of one chart: more hide each other, and to place them takes the third power of their number
INK = -1  # colour of what is not a series: the text's
LINE_POINTS = 400  # per line; a screen shows no more, and a page with a million points does not scroll


@final
@dataclass(frozen=True)
class Line:
    """One line of a chart. colour: series number, or INK.

    Args:
        name: For the legend.
        x: Of each point.
        y: Of each point.
        colour: Number of the series, or INK.
        faint: Thin and transparent, for draws, raw curves.
        dots: Draw the points too.
    """

    name: str
    x: Sequence[float]
    y: Sequence[float]
    colour: int = 0
    faint: bool = False
    dots: bool = False


@final
@dataclass(frozen=True)
class Row:
    """One row of an interval chart: a value with low and high, all in [0, 1].

    Args:
        label: At the left.
        value: 0 to 1.
        low: Lower end of the interval.
        high: Upper end of the interval.
        colour: Number of the series, or INK.
        note: At the right.
    """

    label: str
    value: float
    low: float
    high: float
    colour: int = 0
    note: str = ""


@final
@dataclass(frozen=True)
class Mark:
    """One point of a scatter chart with the interval of its height; x positive, y, low and high in [0, 1].

    Args:
        label: Beside the point.
        x: Positive.
        y: 0 to 1.
        low: Lower end of the interval of y.
        high: Upper end of the interval of y.
        colour: Number of the series, or INK.
    """

    label: str
    x: float
    y: float
    low: float
    high: float
    colour: int = 0


def line_chart(
    lines: Sequence[Line],
    *,
    title: str = "",
    x_label: str = "",
    log_y: bool = False,
    width: int = 480,
    height: int = 220,
    y_range: tuple[float, float] | None = None,
) -> str:
    """Lines over a common x. Values that are None-free and finite only; with log_y, positive ones only.

    Args:
        lines: What to draw.
        title: Of the page or drawing.
        x_label: Name and unit of the horizontal axis.
        log_y: Logarithmic vertical axis.
        width: Pixels.
        height: Pixels.
        y_range: Of the vertical axis; None is that of the values.
    """
    lines = [clean for line in lines if (clean := _clean(line, log_y)) is not None]
    if not lines:
        return f"<p class='none'>{escape(title)}: no finite values to draw.</p>"
    frame = _Frame(width, height, left=52, right=10, top=26 if title else 10, bottom=36 if x_label else 22)
    x = _span([v for line in lines for v in line.x])
    y = y_range or _span([v for line in lines for v in line.y], log=log_y, air=0.04)
    to_x = _scale(x, (frame.left, frame.right_edge))
    to_y = _scale(y, (frame.bottom_edge, frame.top), log=log_y)
    parts = [_title(frame, title), _y_axis(frame, log_ticks(*y) if log_y else ticks(*y, 4), to_y)]
    parts.append(_x_axis(frame, ticks(*x, 6 if width > 400 else 4), to_x, x_label))
    for line in sorted(lines, key=lambda line: (line.colour != INK, not line.faint)):  # ink below
        points = " ".join(f"{to_x(a):.1f},{to_y(b):.1f}" for a, b in zip(line.x, line.y, strict=True))
        kind = ("faint" if line.faint else "line") + (" again" if line.colour >= NUM_COLOURS else "")
        parts.append(
            f"<polyline class='{kind} {_colour(line.colour)}' points='{points}'>"
            f"<title>{escape(line.name)}</title></polyline>"
        )
        if line.dots:
            parts += [
                f"<circle class='dot {_colour(line.colour)}' cx='{to_x(a):.1f}' cy='{to_y(b):.1f}' r='2.5'/>"
                for a, b in zip(line.x, line.y, strict=True)
            ]
    return _svg(frame, parts, title or "line chart")


def interval_chart(rows: Sequence[Row], *, width: int = 960) -> str:
    """Forest plot: one row per result, a dot at the value and a bar over its interval, on a scale from 0 to 1.

    Args:
        rows: Lines of results.jsonl, one per episode.
        width: Pixels.
    """
    label_width = min(340, 24 + int(7.3 * max(len(row.label) for row in rows)))
    frame = _Frame(width, 30 + 28 * len(rows) + 22, left=label_width, right=210, top=8, bottom=28)
    to_x = _scale((0.0, 1.0), (frame.left, frame.right_edge))
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        parts.append(
            f"<line class='grid' x1='{to_x(tick):.1f}' x2='{to_x(tick):.1f}' y1='{frame.top}' "
            f"y2='{frame.bottom_edge}'/>"
        )
        parts.append(_text(to_x(tick), frame.bottom_edge + 17, f"{tick:.0%}", "middle"))
    for i, row in enumerate(rows):
        y = frame.top + 14 + 28 * i + 7
        colour = _colour(row.colour)
        said = f"{row.value:.3f}  [{row.low:.3f}, {row.high:.3f}]"
        parts.append(_text(frame.left - 12, y + 4, row.label, "end", "label"))
        parts.append(
            f"<g><title>{escape(row.label)}: {said} {escape(row.note)}</title>"
            f"<rect class='band {colour}' x='{to_x(row.low):.1f}' y='{y - 5}' rx='5' height='10' "
            f"width='{max(2.0, to_x(row.high) - to_x(row.low)):.1f}'/>"
            f"<circle class='dot {colour}' cx='{to_x(row.value):.1f}' cy='{y}' r='5'/></g>"
        )
        parts.append(_text(frame.right_edge + 14, y + 4, f"{said}  {row.note}", "start", "value"))
    return _svg(frame, parts, "success with 95 % interval")


def scatter_chart(
    marks: Sequence[Mark], frontier: Sequence[Mark], *, title: str, x_label: str, width: int = 960, height: int = 380
) -> str:
    """Labelled points with intervals over a logarithmic x, heights as shares, and stairs along the `frontier`.

    Of more than MOST_LABELS points only the frontier's have a label; each tells its name under the pointer.

    Args:
        marks: The points.
        frontier: Those of them that the stairs connect.
        title: Of the page or drawing.
        x_label: Name and unit of the horizontal axis.
        width: Pixels.
        height: Pixels.
    """
    frame = _Frame(width, height, left=52, right=24, top=16, bottom=40)
    air = 1.6 if len({mark.x for mark in marks}) > 1 else 3.0
    x = (min(mark.x for mark in marks) / air, max(mark.x for mark in marks) * air)
    y = (
        max(0.0, 0.1 * math.floor(10 * min(mark.low for mark in marks) - 0.2)),
        min(1.03, max(mark.high for mark in marks) + 0.15),
    )
    to_x, to_y = _scale(x, (frame.left, frame.right_edge), log=True), _scale(y, (frame.bottom_edge, frame.top))
    parts = []
    for tick in ticks(y[0], min(1.0, y[1]), 5):
        at = to_y(tick)
        parts.append(
            f"<line class='grid' x1='{frame.left}' x2='{frame.right_edge}' y1='{at:.1f}' y2='{at:.1f}'/>"
            + _text(frame.left - 7, at + 4, f"{tick:.0%}", "end")
        )
    parts.append(_x_axis(frame, log_ticks(*x), to_x, x_label))
    stairs = sorted(frontier, key=lambda mark: mark.x)
    corners = [(to_x(b.x), to_y(a.y)) for a, b in zip(stairs, stairs[1:], strict=False)]
    path = [point for i, mark in enumerate(stairs) for point in [(to_x(mark.x), to_y(mark.y)), *corners[i : i + 1]]]
    path += [(frame.right_edge, path[-1][1])] if path else []
    points = " ".join(f"{a:.1f},{b:.1f}" for a, b in path)
    parts.append(f"<polyline class='stairs' points='{points}'/>")
    named = {mark.label for mark in (marks if len(marks) <= MOST_LABELS else frontier)}
    placed: list[tuple[float, float, float, float]] = [
        (to_x(mark.x) - 7, to_y(mark.high) - 2, to_x(mark.x) + 7, to_y(mark.low) + 2)
        for mark in marks
        if mark.label in named
    ]
    placed += [(min(a, c), min(b, d) - 3, max(a, c), max(b, d) + 3) for (a, b), (c, d) in zip(path, path[1:])]
    for mark in marks:
        label = _label(mark.label, to_x(mark.x), to_y(mark.y), frame, placed) if mark.label in named else ""
        at, said = to_x(mark.x), f"{mark.label}: {mark.y:.3f} [{mark.low:.3f}, {mark.high:.3f}] at {number(mark.x)}"
        parts.append(
            f"<g class='{_colour(mark.colour)}'><title>{escape(said)}</title><line class='whisker' "
            f"x1='{at:.1f}' x2='{at:.1f}' y1='{to_y(mark.low):.1f}' y2='{to_y(mark.high):.1f}'/>"
            f"<circle class='dot' cx='{at:.1f}' cy='{to_y(mark.y):.1f}' r='5'/>"
            f"{label}</g>"
        )
    return _svg(frame, parts, title)


def _label(text: str, x: float, y: float, frame: "_Frame", placed: list[tuple[float, float, float, float]]) -> str:
    """The text beside (x, y), where it covers least of what is `placed` (boxes left, top, right, bottom); adds its own.

    Raised or lowered in steps, right of the point first, then left of it.
    """
    wide, best = 6.6 * len(text), (math.inf, 0.0, 0.0, "start")
    for lift in (0.0, -15.0, 15.0, -30.0, 30.0, -45.0, 45.0):
        for anchor, left in (("start", x + 11), ("end", x - 11 - wide)):
            box = (left, y + lift - 7, left + wide, y + lift + 7)
            outside = max(0.0, frame.left - box[0]) + max(0.0, box[2] - frame.right_edge)
            outside += max(0.0, frame.top - 12 - box[1]) + max(0.0, box[3] - frame.bottom_edge)
            cost = 30 * outside + abs(lift) / 10 + sum(_overlap(box, other) for other in placed)
            if cost < best[0]:
                best = (cost, left, y + lift, anchor)
    _, left, height, anchor = best
    placed.append((left, height - 7, left + wide, height + 7))
    return _text(left + (wide if anchor == "end" else 0.0), height + 4, text, anchor, "label")


def _overlap(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> float:
    """Common area of two boxes (left, top, right, bottom)."""
    return max(0.0, min(a[2], b[2]) - max(a[0], b[0])) * max(0.0, min(a[3], b[3]) - max(a[1], b[1]))


def histogram(
    values: Sequence[float],
    marks: dict[str, float],
    *,
    title: str = "",
    x_label: str = "",
    bins: int = 48,
    colour: int = 0,
    width: int = 480,
    height: int = 200,
) -> str:
    """Counts of `values` with labelled vertical marks; the far tail beyond the last mark is cut and counted.

    Args:
        values: To count.
        marks: Name and value of each vertical line.
        title: Of the page or drawing.
        x_label: Name and unit of the horizontal axis.
        bins: How many bars.
        colour: Number of the series, or INK.
        width: Pixels.
        height: Pixels.
    """
    data = np.asarray(values, dtype=np.float64)
    low, far = float(data.min()), max(marks.values(), default=float(data.max()))
    high = min(float(data.max()), far + 0.15 * max(far - low, 1e-9))
    high = high if high > low else low + max(abs(low) * 0.1, 1e-6)
    counts, edges = np.histogram(data, bins=bins, range=(low, high))
    beyond = int((data > high).sum())
    frame = _Frame(width, height, left=40, right=12, top=68 if title else 48, bottom=36)
    to_x = _scale((low, high), (frame.left, frame.right_edge))
    to_y = _scale((0.0, float(counts.max())), (frame.bottom_edge, frame.top))
    note = f"; {beyond} beyond, max {data.max():.3g}" if beyond else ""
    parts = [_title(frame, title), _y_axis(frame, ticks(0.0, float(counts.max()), 3), to_y)]
    parts.append(_x_axis(frame, ticks(low, high, 5), to_x, x_label + note))
    for count, a, b in zip(counts, edges[:-1], edges[1:], strict=True):
        if count:
            parts.append(
                f"<rect class='bar {_colour(colour)}' x='{to_x(a):.1f}' y='{to_y(float(count)):.1f}' "
                f"width='{max(0.8, to_x(b) - to_x(a) - 0.6):.1f}' "
                f"height='{frame.bottom_edge - to_y(float(count)):.1f}'/>"
            )
    for i, (name, value) in enumerate(sorted(marks.items(), key=lambda item: item[1])):
        y = frame.top - 34 + 13 * (i % 3)  # staggered: p95 and p99 often sit side by side
        left = to_x(value) > frame.right_edge - 80
        parts.append(
            f"<line class='mark' x1='{to_x(value):.1f}' x2='{to_x(value):.1f}' y1='{y - 7}' y2='{frame.bottom_edge}'/>"
        )
        parts.append(
            _text(to_x(value) + (-4 if left else 4), y + 1, f"{name} {value:.3g}", "end" if left else "start", "value")
        )
    return _svg(frame, parts, title or "histogram")


@final
@dataclass(frozen=True)
class _Frame:
    width: int
    height: int
    left: int
    right: int
    top: int
    bottom: int

    @property
    def right_edge(self) -> int:
        return self.width - self.right

    @property
    def bottom_edge(self) -> int:
        return self.height - self.bottom


def _colour(number: int) -> str:
    return "ink" if number == INK else f"s{number % NUM_COLOURS}"


def _clean(line: Line, log_y: bool) -> Line | None:
    """Only drawable points, at most LINE_POINTS of them; None when nothing is left."""
    pairs = [(a, b) for a, b in zip(line.x, line.y, strict=True) if math.isfinite(b) and (b > 0 or not log_y)]
    if not pairs:
        return None
    stride = math.ceil(len(pairs) / LINE_POINTS)
    kept = pairs[::stride] if pairs[::stride][-1] == pairs[-1] else [*pairs[::stride], pairs[-1]]
    return Line(line.name, [p[0] for p in kept], [p[1] for p in kept], line.colour, line.faint, line.dots)


def _span(values: Sequence[float], *, log: bool = False, air: float = 0.0) -> tuple[float, float]:
    """Range of the values plus the share `air` on both sides; never empty, and rounding noise is not a range."""
    low, high = min(values), max(values)
    if log:
        return (low / 1.15, high * 1.15)
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        pad = abs(low) * 0.1 or 1.0
        return (low - pad, high + pad)
    return (low - air * (high - low), high + air * (high - low))


def _scale(domain: tuple[float, float], target: tuple[float, float], *, log: bool = False) -> Callable[[float], float]:
    a, b = (math.log10(domain[0]), math.log10(domain[1])) if log else domain
    factor = (target[1] - target[0]) / (b - a)
    return lambda value: target[0] + ((math.log10(value) if log else value) - a) * factor


def _text(x: float, y: float, text: str, anchor: str, kind: str = "tick") -> str:
    return f"<text class='{kind}' x='{x:.1f}' y='{y:.1f}' text-anchor='{anchor}'>{escape(text)}</text>"


def _title(frame: _Frame, title: str) -> str:
    return _text(frame.left, 14, title, "start", "title") if title else ""


def _y_axis(frame: _Frame, values: Sequence[float], to_y: Callable[[float], float]) -> str:
    return "".join(
        f"<line class='grid' x1='{frame.left}' x2='{frame.right_edge}' y1='{to_y(v):.1f}' y2='{to_y(v):.1f}'/>"
        + _text(frame.left - 7, to_y(v) + 4, number(v), "end")
        for v in values
    )


def _x_axis(frame: _Frame, values: Sequence[float], to_x: Callable[[float], float], label: str) -> str:
    y = frame.bottom_edge
    axis = f"<line class='axis' x1='{frame.left}' x2='{frame.right_edge}' y1='{y}' y2='{y}'/>"
    marks = "".join(_text(to_x(v), y + 15, number(v), "middle") for v in values)
    return axis + marks + (_text((frame.left + frame.right_edge) / 2, y + 30, label, "middle") if label else "")


def _svg(frame: _Frame, parts: Sequence[str], label: str) -> str:
    return (
        f"<svg role='img' aria-label='{escape(label)}' viewBox='0 0 {frame.width} {frame.height}' "
        f"width='{frame.width}' height='{frame.height}'>{''.join(parts)}</svg>"
    )
