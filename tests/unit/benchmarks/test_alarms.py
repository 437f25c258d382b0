"""docs/alarms.md is the output of `make bench ARGS=alarms`, and the bench judges with the monitor's code."""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def bench() -> Iterator[Any]:
    sys.path.insert(0, str(ROOT / "benchmarks"))
    import alarms  # type: ignore[import-not-found]

    yield alarms
    sys.path.remove(str(ROOT / "benchmarks"))


def part(page: str, name: str) -> list[list[str]]:
    found = re.search(rf"<!-- {name} -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found, f"docs/alarms.md has no {name}"
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in found[1].splitlines()]


def test_the_page_is_in_the_form_that_the_command_writes(bench: Any, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "alarms.md").read_text()
    head, _, *rows = part(page, "alarms")
    assert head == ["stream", *bench.VARIANTS, *[name for names in bench.PEERS.values() for name in names]]
    assert len(rows) == 12
    for row in rows:
        harmful = "harmful" in row[0]
        form = r"([\d.]+ windows, )?\d+% caught, [\d.]+ false" if harmful else r"[\d.]+ false"
        assert all(re.fullmatch(form, cell) for cell in row[1:]), row
    assert len(part(page, "gates")) == 2 + 6
    assert len(part(page, "kinds")) == 2 + 4 * 3
    copy = tmp_path / "alarms.md"
    copy.write_text(page)
    result = {"engine": "kubeloop", "stream": "s", "false a year": 0.25, "caught": 1.0, "delay": 2.0}
    bench.document(copy, years="3 years of each kind.", alarms=bench.table([result]), gates="none")
    assert "| s | 2 windows, 100% caught, 0.2 false |" in copy.read_text()
    assert copy.read_text().startswith(page[: page.index("<!-- years -->")])


@pytest.mark.parametrize(("harmful", "kind"), [(None, "none"), (1, "joined")])
def test_a_quiet_year_opens_at_most_one_episode_and_a_harmful_change_is_caught(
    bench: Any, harmful: int | None, kind: str
) -> None:
    scenario = bench.Scenario("s", sys.modules["alarms_streams"].made(kind), harmful, most=0.5)
    stream = bench.year(scenario, 3)
    opened = bench.alarms(stream, bench.written(stream))
    assert sum(week < bench.CHANGE for week in opened) == 0
    if harmful:
        assert bench.CHANGE <= min(opened) <= bench.CHANGE + 3
    else:
        assert len(opened) <= 1


def test_a_peers_alarms_rest_as_our_episodes_do(bench: Any) -> None:
    flags = np.isin(np.arange(12), [1, 2, 3, 4, 9]).tolist()
    assert bench.rested(flags) == [1, 4, 9]
