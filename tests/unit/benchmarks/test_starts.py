"""Every benchmark finds what it measures, even after a module has moved."""

import runpy
from pathlib import Path

import pytest

BENCHMARKS = sorted(path.name for path in (Path(__file__).parents[3] / "benchmarks").glob("[!_]*.py"))


@pytest.mark.parametrize("name", BENCHMARKS)
def test_a_benchmark_finds_what_it_measures(project: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # As when it runs as a script.
    monkeypatch.syspath_prepend(project / "benchmarks")
    assert runpy.run_path(str(project / "benchmarks" / name), run_name=name)["__doc__"]
