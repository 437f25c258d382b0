"""A kind that a third party adds: the three files of docs/kinds.md in a separate package, used in every part."""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from kubeloop import config
from kubeloop.config import ConfigError, Loop, kinds
from kubeloop.models import gates
from kubeloop.monitoring import performance, policy
from kubeloop.monitoring.detector.builtin import BuiltinDetector
from kubeloop.monitoring.detector.port import Window
from kubeloop.steps import promotion, stages
from kubeloop.tasks import port
from kubeloop.tasks.intervals import Estimate
from kubeloop.tasks.reference import Reference
from kubeloop.tasks.tabular import model_folder

PAGE = Path(__file__).parents[3] / "docs" / "kinds.md"
LOOP = """
name: calls
task: count
source: {tables: {calls: {available_at: at}}}
features: {service: calls_v1}
training: {parameters: {n_estimators: 40, min_child_samples: 20}, window: 60d, holdout: 10d, threads: 1}
gates: {slices: [kind], slice_min_rows: 50, ceilings: {deviance: 3}}
"""


@pytest.fixture
def added(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Install the package of docs/kinds.md as pip would: its folder, and the metadata with its entry point."""
    package = tmp_path / "site" / "kubeloop_count"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    for name, text in re.findall(r"`(\w+\.py)`:\n\n```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL):
        (package / name).write_text(text)
    about = tmp_path / "site" / "kubeloop_count-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: kubeloop-count\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text(f"[{kinds.GROUP}]\ncount = kubeloop_count\n")
    monkeypatch.syspath_prepend(str(package.parent))
    kinds.packages.cache_clear()
    yield
    kinds.packages.cache_clear()
    for module in [name for name in sys.modules if name.startswith("kubeloop_count")]:
        del sys.modules[module]


def calls(rows: int = 3000) -> pd.DataFrame:
    random = np.random.default_rng(5)
    hour, kind = random.uniform(0, 24, rows), random.choice(["home", "work"], rows)
    return pd.DataFrame(
        {
            "event_id": [f"e{row}" for row in range(rows)],
            "event_timestamp": pd.date_range("2024-01-01", periods=rows, freq="27min", tz="UTC"),
            "label": random.poisson(np.exp(0.5 + 0.08 * hour + 0.7 * (kind == "work"))),
            "hour": hour,
            "kind": kind,
        }
    )


def test_a_kind_that_nobody_installed_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigError, match=r"task 'count' .*binary, multiclass, regression"):
        Loop.parse(LOOP)


@pytest.mark.usefixtures("added")
def test_an_added_kind_trains_is_judged_and_watched(tmp_path: Path) -> None:
    loop = Loop.parse(LOOP)
    assert Loop.parse(loop.dump()) == loop
    assert '"const": "count"' in json.dumps(Loop.model_json_schema()), "the JSON schema for editors has it"
    with pytest.raises(ConfigError, match=r"gates.metric: Input should be 'deviance'"):
        Loop.parse(LOOP, {"gates": {"metric": "auc"}})
    rows, model, held, out = (tmp_path / name for name in ("rows.parquet", "model", "holdout.parquet", "out"))
    calls().to_parquet(rows)

    card = stages.train(loop, rows, model, held)
    assert card["task"] == "count"
    assert card["metrics"]["parity_max_abs_difference"] < 1e-4
    found = stages.evaluate(loop, model, held, out, tmp_path / "report.html")
    assert found.roc is found.confusion is None
    assert "Poisson deviance" in (out / "evaluation.html").read_text()

    place = config.settings(tmp_path, tmp_path / "state")
    verdict = promotion.gate(loop, place, "first", model, held)
    assert verdict.promote, verdict.reason
    task, holdout = port.of(loop), calls().tail(500)
    y, ours = task.truths(holdout["label"]), model_folder.predict(port.of(loop), model, holdout)
    blocks = gates.time_blocks(holdout["event_timestamp"].dt.tz_localize(None), loop.gates.block)
    blind = np.full(len(y), y.mean())
    assert gates.compare(task, y, blind, ours, loop.gates, blocks=blocks, slices=holdout).promote
    assert not gates.compare(task, y, ours, blind, loop.gates, blocks=blocks, slices=holdout).promote

    reference = Reference.load(model / model_folder.REFERENCE)
    assert reference.measured is not None
    assert reference.measured.metric == "deviance"
    detector = BuiltinDetector()
    detector.fit("1", reference)
    window = Window(*reference.encode(holdout.to_dict("list")), ours.astype(np.float32) * 2)
    assert [score.effect > 0.2 for score in detector.score("1", window) if score.kind == "score"] == [True]

    served = pa.table({"event_id": holdout["event_id"].to_numpy(), "score": pa.array(blind, pa.float32())})
    told = pa.table(
        {"event_id": holdout["event_id"].to_numpy(), "label": y, "observed_at": holdout["event_timestamp"].to_numpy()}
    )
    known = performance.labels(told, np.zeros(len(y), np.int64))
    joined = performance.join(task, performance.scored(task, served), [known], 1)
    row = performance.measured(task, joined[0], performance.measure(task, *joined, 100)[1])
    sure = Estimate(row["value"], row["low"], row["high"])
    short = policy.performance(task.headline, sure, reference.measured.sure, loop.drift)
    assert short.drifted
    assert short.reason.startswith("Poisson deviance")
