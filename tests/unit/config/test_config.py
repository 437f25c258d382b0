import json
import pickle
from datetime import UTC, date, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from kubeloop import config
from kubeloop.config import ConfigError, Loop

SMALL: dict[str, Any] = {
    "name": "loop",
    "source": {"tables": {"t": {"available_at": "at", "path": "t.csv"}}},
    "features": {"service": "v1"},
}
REPLAY = {"train_from": "2013-01-01", "train_to": "2013-02-01", "until": "2013-03-01"}


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("1s", 1), ("90m", 5400), ("12h", 43200), ("7d", 604800), ("2w", 1209600), (" 3 d ", 259200), ("0s", 0)],
)
def test_a_duration_is_a_number_and_a_unit(text: str, seconds: int) -> None:
    assert config.duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "7", "d", "-7d", "1.5h", "7 days", "1d12h", "P7D", "7D"])
def test_any_other_text_is_not_a_duration(text: str) -> None:
    with pytest.raises(ValueError, match="such as 7d, 12h or 30m"):
        config.duration(text)


@given(st.integers(0, 10**9).map(lambda seconds: timedelta(seconds=seconds)))
def test_a_duration_is_read_as_it_was_written(value: timedelta) -> None:
    assert config.duration(config.duration_text(value)) == value


@pytest.mark.parametrize(
    ("seconds", "text"), [(604800, "1w"), (86400 * 10, "10d"), (3600 * 36, "36h"), (90 * 60, "90m"), (61, "61s")]
)
def test_a_duration_is_written_in_its_largest_whole_unit(seconds: int, text: str) -> None:
    assert config.duration_text(timedelta(seconds=seconds)) == text


@pytest.mark.parametrize(
    "text",
    ["2013-04-01", "2013-04-01T00:00", "2013-04-01T00:00:00Z", "2013-04-01T02:00:00+02:00", "2013-03-31T20:00-04:00"],
)
def test_a_moment_without_an_offset_is_utc(text: str) -> None:
    found = config.instant(text)
    assert found == datetime(2013, 4, 1, tzinfo=UTC)
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("text", ["", "yesterday", "2013-13-01", "01.04.2013"])
def test_any_other_text_is_not_a_moment(text: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a moment; write one such as 2013-04-01"):
        config.instant(text)


@pytest.mark.parametrize(
    "value", [date(2013, 1, 1), datetime(2013, 1, 1), datetime(2013, 1, 1, 5, tzinfo=timezone(timedelta(hours=5)))]
)
def test_yaml_dates_are_moments(value: date) -> None:
    loop = Loop.model_validate(SMALL | {"replay": REPLAY | {"train_from": value}})
    assert loop.replay is not None
    assert loop.replay.train_from == datetime(2013, 1, 1, tzinfo=UTC)


def _durations(unit: str, low: int, high: int) -> st.SearchStrategy[str]:
    return st.integers(low, high).map(lambda number: f"{number}{unit}")


@st.composite
def _loops(draw: st.DrawFn) -> Loop:
    days = draw(st.integers(1, 100))
    start = draw(st.datetimes(datetime(1990, 1, 1), datetime(2030, 1, 1), timezones=st.just(UTC)))
    data: dict[str, Any] = {
        "name": draw(st.from_regex(r"[a-z]([a-z0-9-]{0,20}[a-z0-9])?", fullmatch=True)),
        "description": draw(st.text(max_size=30)),
        "source": {
            "entry": draw(st.none() | st.just("flights:write")),
            "live": draw(st.none() | st.just("flights:repeat")),
            "tables": draw(
                st.dictionaries(
                    st.from_regex(r"[A-Za-z0-9_][A-Za-z0-9_.+=@-]{0,7}", fullmatch=True),
                    st.fixed_dictionaries({"available_at": st.text(min_size=1, max_size=8), "static": st.booleans()}),
                    min_size=1,
                    max_size=3,
                )
            ),
        },
        "features": {"service": draw(st.text(max_size=8)), "history": draw(_durations("h", 0, 10_000))},
        "training": {
            "window": f"{days * 2}d",
            "holdout": f"{days}d",
            "parameters": draw(
                st.dictionaries(
                    st.text(min_size=1, max_size=8),
                    st.integers(-100, 100) | st.floats(-10, 10) | st.booleans() | st.text(max_size=5),
                    max_size=3,
                )
            ),
        },
        "drift": {"votes": 1, "of": draw(st.integers(1, 9)), "window": draw(_durations("m", 1, 100_000))},
        "gates": {"slices": draw(st.lists(st.text(max_size=5), max_size=3))},
        "replay": draw(
            st.none()
            | st.just({"train_from": start, "train_to": start + timedelta(days=1), "until": start + timedelta(weeks=1)})
        ),
    }
    return Loop.model_validate(data)


@given(_loops())
def test_a_loop_is_read_as_it_was_written(loop: Loop) -> None:
    again = Loop.parse(loop.dump())
    assert again == loop
    assert again.dump() == loop.dump()
    assert again.digest() == loop.digest()


@given(_loops(), st.integers(0, 99))
def test_the_digest_is_of_what_shapes_a_model(loop: Loop, seed: int) -> None:
    def replayed(**changes: object) -> str:
        return loop.model_copy(update={"replay": config.Replay.model_validate(REPLAY | changes)}).digest()

    assert replayed(seed=seed) == replayed(seed=100, sample=0.5, until="2014-01-01")
    # Of the replay, only this setting bounds what a run learns from.
    assert replayed(train_from="2012-12-31") != replayed()
    training = loop.training.model_copy(update={"seed": loop.training.seed + 1})
    assert loop.model_copy(update={"training": training}).digest() != loop.digest()


def test_a_loop_does_not_change() -> None:
    loop = Loop.model_validate(SMALL)
    with pytest.raises(ValueError, match="frozen"):
        loop.name = "other"  # type: ignore[misc]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("name", "Upper"),
        ("name", "ends-"),
        ("name", "x" * 43),
        ("nmae", "x"),
        ("source.entry", "no colon"),
        ("source.tables", {}),
        ("source.tables.t.available_at", None),
        ("source.tables.t.pth", "t.csv"),
        ("features.service", None),
        ("features.history", "two weeks"),
        ("training.algorithm", "magic"),
        ("training.trials", -1),
        ("training.window", 90),
        ("training.threads", 0),
        ("training", {"window": "10d", "holdout": "6d"}),
        ("gates.metric", "accuracy"),
        ("gates.confidence", 1.0),
        ("gates.resamples", 10),
        ("gates.floors.auc", 1.1),
        ("gates.floors.brier", 0.1),
        ("gates.ceilings.auc", 0.1),
        ("gates.slice_min_rows", 0),
        ("drift.engine", "evidently"),
        ("drift.alpha", 0.5),
        ("drift.min_effect", -0.1),
        ("drift", {"votes": 4, "of": 3}),
        ("drift", {"cooldown": "60d"}),
        ("serving.max_body_bytes", 1),
        ("serving.timeout_s", 0),
        ("delivery.applier", "ftp"),
        ("delivery.namespace", "Not_DNS"),
        ("replay", REPLAY | {"train_to": "2012-01-01"}),
        ("replay.sample", 0),
        ("replay.until", "soon"),
    ],
)
def test_a_refusal_names_the_setting(setting: str, value: Any) -> None:
    data = json.loads(json.dumps(SMALL | {"replay": REPLAY}))
    *path, last = setting.split(".")
    inner = data
    for part in path:
        inner = inner.setdefault(part, {})
    inner[last] = value
    with pytest.raises(ConfigError) as raised:
        Loop.parse(yaml.safe_dump(data))
    assert f"\n  {setting}" in str(raised.value)


@pytest.mark.parametrize(
    ("delivery", "message"),
    [
        ({"runtime": "kubeloop-vllm"}, "runtime: kubeloop-vllm .*ONNX.* kubeloop-triton"),
        ({"autoscaling": {"scaler": "keda", "min_replicas": 0}}, "min_replicas: .*at least 1: .*CPU"),
        ({"autoscaling": {"min_replicas": -1}}, "min_replicas: .* greater than or equal to 1"),
        ({"autoscaling": {"min_replicas": 5}}, "min_replicas cannot exceed max_replicas"),
        ({"applier": "gitops"}, "`applier: gitops` .*`git: {repository: "),
        ({"applier": "cluster", "drain_s": 4}, "`drain_s: 4` .* for 4 s; write more"),
    ],
)
def test_what_a_cluster_could_not_run_is_refused(delivery: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loop.parse(yaml.safe_dump(SMALL | {"delivery": delivery}))


def test_a_host_name_that_kserve_could_not_make_is_refused() -> None:
    fits = SMALL | {"name": "l" * 25, "delivery": {"applier": "cluster", "namespace": "n" * 25}}
    assert Loop.model_validate(fits).name == "l" * 25
    longer = fits | {"name": "l" * 26}
    with pytest.raises(ValueError, match=r"host name l{26}-transformer-n{25} with 64 characters; 63 "):
        Loop.model_validate(longer)
    assert Loop.model_validate(longer | {"delivery": {"namespace": "n" * 25}})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2]", "mapping with at least name, source and features"),
        ("", "must be a mapping"),
        ("name: [", "is not valid YAML"),
        ("name: x", "source: Field required"),
    ],
)
def test_a_file_that_is_not_a_loop_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Loop.parse(text)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"loop\.yaml does not exist; .*`kubeloop init TABLE`"):
        config.load(tmp_path / "loop.yaml")


def test_the_demo_is_valid(demo: Loop) -> None:
    assert demo.name == "flight-delay"
    assert demo.replay is not None
    assert Loop.parse(demo.dump()) == demo


def test_settings_come_from_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = {
        "KUBELOOP_HOME": str(tmp_path / "home"),
        "KUBELOOP_STATE": str(tmp_path / "state"),
        "KUBELOOP_MLFLOW_URI": "http://mlflow:5000",
        "MLFLOW_RUN_ID": "abc",
        "KUBELOOP_CORE_PYTHON": "/core/python",
        "KUBELOOP_RUNTIME_PYTHON": "/runtime/python",
        "KUBELOOP_DETECTOR_PYTHON": "/detector/python",
    }
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    found = config.settings()
    assert (found.home, found.state) == (tmp_path / "home", tmp_path / "state")
    assert (found.mlflow_uri, found.mlflow_run_id) == ("http://mlflow:5000", "abc")
    assert [str(found.core_python), str(found.runtime_python), str(found.detector_python)] == [
        "/core/python", "/runtime/python", "/detector/python",
    ]  # fmt: skip
    assert found.environ() == {name: value for name, value in given.items() if name != "MLFLOW_RUN_ID"}


def test_arguments_win_over_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBELOOP_HOME", "/elsewhere")
    monkeypatch.setenv("KUBELOOP_STATE", "/elsewhere/state")
    found = config.settings(tmp_path, tmp_path / "s")
    assert (found.home, found.state) == (tmp_path, tmp_path / "s")


def test_without_variables_the_state_is_next_to_the_loop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("KUBELOOP_HOME", "KUBELOOP_STATE", "KUBELOOP_MLFLOW_URI", "MLFLOW_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    found = config.settings()
    assert (found.home, found.state) == (tmp_path, tmp_path / ".kubeloop")
    assert found.mlflow_uri == f"sqlite:///{tmp_path}/.kubeloop/mlflow.db"
    inside = [
        found.raw, found.features, found.payloads, found.runs, found.logs, found.services_file,
        Path(found.monitor_db.removeprefix("sqlite:///")), Path(found.ledger_db.removeprefix("sqlite:///")),
    ]  # fmt: skip
    assert all(path.parent == found.state for path in inside)
    assert len(set(inside)) == len(inside)


def test_a_child_process_reads_the_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = config.settings(tmp_path, tmp_path / "s")
    for name, value in found.environ().items():
        monkeypatch.setenv(name, value)
    assert config.settings() == found


@pytest.mark.parametrize(("text", "value"), [("1e-5", 1e-5), ("1E3", 1000.0), ("-2.5e+1", -25.0), ("gbdt", "gbdt")])
def test_a_number_with_an_exponent_is_one_to_yaml_too(text: str, value: Any) -> None:
    data = yaml.safe_dump(SMALL) + f"training: {{parameters: {{reg_alpha: {text}}}}}\n"
    found = Loop.parse(data).training.parameters["reg_alpha"]
    assert found == value
    assert type(found) is type(value)


def test_the_digest_knows_no_order_and_no_place() -> None:
    data = SMALL | {"training": {"parameters": {"a": 1, "b": 2}}}
    other = SMALL | {
        "training": {"parameters": {"b": 2, "a": 1}},
        "delivery": {"applier": "cluster"},
        "pipelines": {"deadline": "1h"},
    }
    first, second = (Loop.parse(yaml.safe_dump(text, sort_keys=False)) for text in (data, other))
    assert first.digest() == second.digest()
    assert Loop.parse(yaml.safe_dump(data | {"training": {"seed": 8}})).digest() != first.digest()


def test_what_a_section_leaves_out_is_that_sections_own_default() -> None:
    more = {
        "delivery": {"predictor": {"gpu": {}}, "transformer": {"cpu": "1"}},
        "pipelines": {"train_job": {"resources": {"gpu": {}}}},
    }
    found = Loop.model_validate(SMALL | more)
    assert (found.delivery.predictor.cpu, found.delivery.predictor.memory) == ("250m", "1Gi")
    assert (found.delivery.transformer.cpu, found.delivery.transformer.memory) == ("1", "1Gi")
    assert found.pipelines.train_job is not None
    assert (found.pipelines.train_job.resources.cpu, found.pipelines.train_job.resources.memory) == ("4", "16Gi")


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"task": "regression", "gates": {"metric": "mae"}},
        {"task": "multiclass", "training": {"classes": ["a", "b"]}},
    ],
)
def test_a_loop_of_any_kind_goes_to_another_process(more: dict[str, Any]) -> None:
    loop = Loop.model_validate(SMALL | more)
    again = pickle.loads(pickle.dumps(loop))  # noqa: S301 - our own bytes
    assert again == loop
    assert again.dump() == loop.dump()
    assert type(again) is type(loop)


@pytest.mark.parametrize(
    "classes", [["a"], ["a", "a"], ["a", ""], ["a", "b\x00"], ["a", "b" * 201], [str(n) for n in range(51)]]
)
def test_classes_that_cannot_be_told_apart_or_kept_are_refused(classes: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"training\.classes"):
        Loop.parse(yaml.safe_dump(SMALL | {"task": "multiclass", "training": {"classes": classes}}))
