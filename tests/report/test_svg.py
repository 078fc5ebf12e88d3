"""Charts: round ticks, drawable points only, escaped text, well-formed markup."""

import math
import re
from xml.etree import ElementTree

import pytest
from hypothesis import given, strategies as st

from flowpolicy.report.axes import log_ticks, ticks
from flowpolicy.report.curves import running_mean
from flowpolicy.report.svg import LINE_POINTS, Line, Mark, Row, histogram, interval_chart, line_chart, scatter_chart


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_are_inside_and_evenly_spaced(low, size):
    found = ticks(low, low + size)
    assert 2 <= len(found) <= 12
    slack = 1e-6 * size + 1e-9 * abs(low)
    assert low - slack <= found[0] and found[-1] <= low + size + slack
    gaps = [b - a for a, b in zip(found, found[1:], strict=False)]
    assert gaps == pytest.approx([gaps[0]] * len(gaps), rel=1e-3)


def test_ticks_are_round_numbers():
    assert ticks(0.0, 1.0) == [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]
    assert ticks(0.0, 4000.0, 4) == [0.0, 1000.0, 2000.0, 3000.0, 4000.0]
    assert log_ticks(0.001, 1.0) == pytest.approx([0.001, 0.01, 0.1, 1.0])


def points(svg: str) -> list[tuple[float, float]]:
    """Corners of the first line."""
    found = re.search("points='([^']*)'", svg)
    assert found
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in found[1].split())]


def test_a_line_rises_on_the_screen_where_its_values_rise():
    drawn = points(line_chart([Line("a", [0, 1, 2], [0.0, 1.0, 4.0])]))
    assert [x for x, _ in drawn] == sorted(x for x, _ in drawn)
    assert drawn[0][1] > drawn[1][1] > drawn[2][1]  # y grows downwards
    assert (drawn[0][1] - drawn[1][1]) * 3 == pytest.approx(drawn[1][1] - drawn[2][1], abs=0.5)


def test_a_logarithmic_axis_spaces_decades_evenly_and_drops_what_is_not_positive():
    drawn = points(line_chart([Line("a", [0, 1, 2, 3], [1.0, 10.0, 100.0, 0.0])], log_y=True))
    assert len(drawn) == 3
    assert drawn[0][1] - drawn[1][1] == pytest.approx(drawn[1][1] - drawn[2][1], abs=0.2)


def test_values_that_are_not_finite_are_not_drawn():
    assert len(points(line_chart([Line("a", [0, 1, 2], [1.0, math.nan, 2.0])]))) == 2
    assert "no finite values" in line_chart([Line("a", [0], [math.nan])], title="loss")


def test_long_lines_are_thinned_but_keep_their_ends():
    drawn = points(line_chart([Line("a", range(10_000), [float(i) for i in range(10_000)])]))
    assert len(drawn) <= LINE_POINTS + 1
    whole = points(line_chart([Line("a", [0, 9_999], [0.0, 9_999.0])]))
    assert (drawn[0], drawn[-1]) == (whole[0], whole[-1])


def test_every_chart_is_well_formed_and_escapes_its_text():
    evil = "<script>&'\""
    charts = [
        line_chart([Line(evil, [0, 1], [1.0, 1.0])], title=evil, x_label=evil),
        interval_chart([Row(evil, 0.5, 0.4, 0.6, note=evil)]),
        histogram([1.0, 1.0, 1.0], {evil: 1.0}, title=evil),
        histogram([0.1 * i for i in range(50)] + [99.0], {"p50": 2.5, "p99": 5.0}),
    ]
    for chart in charts:
        assert "script>" not in ElementTree.fromstring(chart).tag
        assert not [node for node in ElementTree.fromstring(chart).iter() if node.tag == "script"]


def test_the_histogram_counts_the_tail_that_it_cuts():
    assert "1 beyond, max 99" in histogram([0.1 * i for i in range(50)] + [99.0], {"p50": 2.5, "p99": 5.0})


def test_an_interval_lies_where_its_numbers_say():
    svg = interval_chart([Row("a", 0.5, 0.25, 1.0)])
    grid = [float(x) for x in re.findall("class='grid' x1='([0-9.]+)'", svg)]  # 0, 25, 50, 75, 100 %
    band = re.search("class='band s0' x='([0-9.]+)'.*?width='([0-9.]+)'", svg)
    dot = re.search("class='dot s0' cx='([0-9.]+)'", svg)
    assert band and dot
    assert float(band[1]) == pytest.approx(grid[1], abs=0.1)
    assert float(band[1]) + float(band[2]) == pytest.approx(grid[4], abs=0.2)
    assert float(dot[1]) == pytest.approx(grid[2], abs=0.1)


def test_the_running_mean_keeps_a_straight_line_straight():
    line = [0.5 * i for i in range(200)]
    assert running_mean(line) == pytest.approx(line)
    assert running_mean([1.0, 5.0, 0.0], share=1.0) == pytest.approx([1.0, 2.0, 0.0])


# ---- scatter


def boxes(svg: str) -> list[tuple[float, float, float, float]]:
    """About the space that each label takes: left, top, right, bottom."""
    found = re.findall(r"<text class='label' x='([\d.]+)' y='([\d.]+)' text-anchor='(\w+)'>([^<]*)", svg)
    spans = [(float(x), float(y), 6.6 * len(text), anchor) for x, y, anchor, text in found]
    return [
        (x - wide * (anchor == "end"), y - 9, x + wide * (anchor == "start"), y + 3) for x, y, wide, anchor in spans
    ]


def test_the_stairs_go_along_the_frontier_and_to_the_edge():
    a, b, c = (
        Mark(name, x, y, y - 0.1, min(1.0, y + 0.05))
        for name, x, y in [("a", 1.0, 0.5), ("b", 10.0, 0.9), ("c", 100.0, 0.7)]
    )
    svg = scatter_chart([a, b, c], [a, b], title="t", x_label="ms")
    ElementTree.fromstring(svg)
    stairs = points(svg)
    assert len(stairs) == 4  # a, below b at the height of a, b, and on to the right
    assert stairs[0][1] == stairs[1][1] > stairs[2][1] == stairs[3][1]
    assert stairs[1][0] == stairs[2][0] and stairs[3][0] > stairs[2][0] > stairs[0][0]
    circles = [tuple(map(float, found)) for found in re.findall(r"cx='([\d.]+)' cy='([\d.]+)'", svg)]
    assert circles[0] == stairs[0] and circles[1] == stairs[2]
    assert circles[1][0] - circles[0][0] == pytest.approx(circles[2][0] - circles[1][0], abs=0.2)  # decades are equal


def test_labels_of_crowded_points_do_not_cover_each_other_or_leave_the_picture():
    marks = [Mark(f"policy number {i}", 1.0 + 0.01 * i, 0.9 - 0.01 * i, 0.8, 1.0, i) for i in range(5)]
    found = boxes(scatter_chart(marks, marks[:1], title="t", x_label="ms"))
    assert len(found) == 5
    for i, one in enumerate(found):
        assert one[0] >= 0 and one[2] <= 960 and one[1] >= 0
        for other in found[i + 1 :]:
            assert one[2] <= other[0] or other[2] <= one[0] or one[3] <= other[1] or other[3] <= one[1]


def test_one_point_alone_and_a_name_with_markup_are_drawn():
    mark = Mark("<b>&", 2.0, 1.0, 0.9, 1.0)
    root = ElementTree.fromstring(scatter_chart([mark], [mark], title="t", x_label="ms"))
    assert any(element.text == "<b>&" for element in root.iter())
