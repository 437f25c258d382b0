"""Drawings: axes that contain what they show, marks that do not hide each other, escaped text."""

import itertools
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kubeloop.models.gates import Check, Verdict
from kubeloop.report import forest, marks, svg
from kubeloop.report.svg import Scale, Time

MOMENTS = st.datetimes(datetime(1990, 1, 1), datetime(2090, 1, 1), timezones=st.just(UTC))
SPANS = st.timedeltas(timedelta(hours=1), timedelta(days=4000))
VALUES = st.floats(-1e6, 1e6, allow_nan=False)


@settings(deadline=None)
@given(MOMENTS, SPANS)
def test_time_has_a_few_ticks_in_order(start: datetime, span: timedelta) -> None:
    ticks = Time(start, start + span).ticks()
    places = [place for place, _ in ticks]
    assert len(ticks) <= 14
    assert places == sorted(set(places))
    assert all(0 <= place <= 100 for place in places)


@pytest.mark.parametrize(
    ("days", "labels"),
    [
        (1, ["01 Apr", "03:00", "06:00", "09:00", "12:00", "15:00", "18:00", "21:00", "02 Apr"]),
        (5, ["01 Apr", "12:00", "02 Apr", "12:00", "03 Apr", "12:00", "04 Apr", "12:00", "05 Apr", "12:00", "06 Apr"]),
        (21, ["01 Apr", "03 Apr", "05 Apr", "07 Apr", "09 Apr", "11 Apr", "13 Apr", "15 Apr", "17 Apr", "19 Apr",
              "21 Apr"]),
        (275, ["Apr ’13", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec", "Jan ’14"]),
    ],
)  # fmt: skip
def test_ticks_are_round(days: int, labels: list[str]) -> None:
    start = datetime(2013, 4, 1, tzinfo=UTC)
    found = [label for _, label in Time(start, start + timedelta(days=days)).ticks()]
    assert found[: len(labels)] == labels


@settings(deadline=None)
@given(st.lists(VALUES, min_size=1, max_size=20))
def test_a_scale_holds_its_values(values: list[float]) -> None:
    scale = Scale.around(values, 10, 100)
    assert scale.low <= min(values)
    assert max(values) <= scale.high
    assert all(10 <= scale.y(value) <= 110 for value in values)
    slack = 1e-5 * (scale.high - scale.low)
    assert 2 <= len(scale.ticks()) <= 6
    assert all(scale.low - slack <= tick <= scale.high + slack for tick in scale.ticks())


@settings(deadline=None)
@given(st.lists(st.floats(0, 100), max_size=30).map(sorted), st.floats(5, 80))
def test_marks_in_a_lane_do_not_hide_each_other(places: list[float], width: float) -> None:
    lanes = marks.lanes(places, width)
    for lane in set(lanes):
        own = [place for place, at in zip(places, lanes, strict=True) if at == lane]
        assert all(right - left >= 100 * width / 700 - 1e-9 for left, right in itertools.pairwise(own))


@settings(deadline=None)
@given(st.text())
def test_text_stays_text(content: str) -> None:
    found: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
            found.append(tag)
            assert all("<" not in name for name, _ in attrs)

    Reader().feed(str(svg.element("g", svg.title(content), class_=content)))
    assert found[:1] == ["g"]
    assert set(found) <= {"g", "title"}


def test_a_line_does_not_bridge_what_nobody_knows() -> None:
    series = [(0.0, 1.0), (1.0, None), (2.0, 3.0), (3.0, 4.0), (4.0, None)]
    assert list(svg.runs(series)) == [[(0.0, 1.0)], [(2.0, 3.0), (3.0, 4.0)]]


def test_the_first_version_is_grey_and_neighbours_differ() -> None:
    names = [str(number) for number in range(1, 20)]
    found = marks.colours(names)
    assert found["1"] == "v0"
    assert "v0" not in list(found.values())[1:]
    assert all(found[left] != found[right] for left, right in itertools.pairwise(names))


def _verdict(low: float, high: float) -> Verdict:
    checks = (Check("gain", low > 0, low, 0.0), Check("slice a=b", False, None, -0.03))
    return Verdict(low > 0, "", "auc", 0.7, 0.7, (low + high) / 2, (low, high), 0.95, checks)


def test_the_forest_plot_uses_one_scale() -> None:
    drawn = forest.draw([_verdict(-0.01, 0.03), None, _verdict(0.02, 0.04)], 0.005)
    zero = [str(row).split('x1="')[1].split('"')[0] for row in drawn.rows if row]
    assert zero[0] == zero[1]
    assert not drawn.rows[1]
    assert all(str(row).count("limit") == 1 for row in drawn.rows if row)
    assert "+0.04" in drawn.axis


def test_failed_checks_are_named_also_when_undefined() -> None:
    assert forest.failed(_verdict(-0.01, 0.03).checks) == ["gain -0.01 (limit 0)", "slice a=b undefined (limit -0.03)"]
