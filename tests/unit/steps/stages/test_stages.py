import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from kubeloop import __version__, config
from kubeloop.addresses import ServiceError
from kubeloop.config import Loop, Settings
from kubeloop.data import sources
from kubeloop.models import gates, gates_page, registry
from kubeloop.steps import promotion, stages
from kubeloop.tasks.binary.task import BINARY
from kubeloop.tasks.regression.settings import Training
from kubeloop.tasks.tabular import holdout as answered
from kubeloop.tasks.tabular import maker, model_folder, training

Learned = tuple[Path, Path]
DAY = timedelta(days=1)


@pytest.fixture
def settings(blank_mlflow: Path, tmp_path: Path) -> Settings:
    found = config.settings(tmp_path, tmp_path / "state")
    found.state.mkdir()
    shutil.copy(blank_mlflow, found.state / "mlflow.db")
    return found


def test_a_window_ends_at_its_moment(loop: Loop, as_of: datetime) -> None:
    assert stages.Window.ending(loop, as_of) == stages.Window(as_of - timedelta(days=12), as_of)
    assert stages.Window.ending(loop.model_copy(update={"replay": None}), as_of).start == as_of - timedelta(days=12)


def test_no_run_learns_from_what_is_older_than_the_replay_says(
    loop: Loop, make_home: Any, as_of: datetime, tmp_path: Path
) -> None:
    assert loop.replay
    began = as_of - 4 * DAY
    short = loop.model_copy(update={"replay": loop.replay.model_copy(update={"train_from": began})})
    assert stages.Window.ending(short, as_of) == stages.Window(began, as_of)
    (tmp_path / "home").mkdir()
    settings = make_home(tmp_path / "home")
    stages.build_features(short, settings, settings.raw, as_of, tmp_path / "training.parquet")
    learned = pq.read_table(tmp_path / "training.parquet")["event_timestamp"]
    assert began <= pc.min(learned).as_py() < began + DAY / 2


def test_extract_takes_the_window_and_its_history(loop: Loop, make_home: Any, as_of: datetime, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    settings = make_home(tmp_path / "home")
    found = stages.extract(loop, settings, as_of, tmp_path / "raw")
    assert found.snapshot == stages.digest(settings.raw)
    known = pq.read_table(tmp_path / "raw" / "arrivals.parquet")["available_at"]
    assert found.rows["arrivals"] == len(known)
    assert as_of - 21 * DAY <= pc.min(known).as_py() < as_of - 20 * DAY
    assert as_of - DAY < pc.max(known).as_py() <= as_of


def test_a_run_without_a_moment_or_a_name_takes_the_jobs(loop: Loop, make_home: Any, tmp_path: Path) -> None:
    """As in a recurring run, which gets neither."""
    settings = config.settings(tmp_path, tmp_path / "state")
    before = datetime.now(UTC)
    begun = stages.begin(settings, loop.dump(), "", "", "job-1")
    assert before <= datetime.fromisoformat(begun.as_of) <= datetime.now(UTC)
    assert (begun.run, begun.snapshot) == ("job-1", ""), "no table is read yet"
    (tmp_path / "home").mkdir()
    home = make_home(tmp_path / "home")
    assert stages.begin(home, loop.dump(), "2013-05-20", "mine", "job-1") == (
        "2013-05-20T00:00:00+00:00",
        "mine",
        stages.digest(home.raw),
        begun.loop,
    )


def test_a_run_without_any_name_is_refused(loop: Loop, tmp_path: Path) -> None:
    """Otherwise results would be cached under an empty name.

    Every run of a recurring run with a fixed version would then use them.
    """
    with pytest.raises(stages.StageError, match="kubeloop schedule"):
        stages.begin(config.settings(tmp_path, tmp_path / "state"), loop.dump(), "", "", "")


def test_a_run_learns_what_a_run_over_all_data_would_learn(
    learned: Learned, loop: Loop, repo: Path, weeks: Path, as_of: datetime, tmp_path: Path
) -> None:
    """Nothing is lost at the edges of a run's data: its history covers everything that features look back on."""
    from kubeloop import features

    features.build(repo, weeks, tmp_path)
    rows = features.events(repo, weeks, start=as_of - loop.training.window, end=as_of, labelled_by=as_of)
    assert pq.read_table(learned[0]).equals(features.training_set(tmp_path, loop.features.service, rows))


def test_build_features_needs_labels(loop: Loop, make_home: Any, as_of: datetime, tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    settings = make_home(tmp_path / "home")
    sources.cut(loop, settings.raw, tmp_path / "raw", since=as_of, as_of=as_of)
    with pytest.raises(stages.StageError, match="no event between 2013-05-08 and 2013-05-20 has a label"):
        stages.build_features(loop, settings, tmp_path / "raw", as_of, tmp_path / "training.parquet")
    assert not (tmp_path / "training.parquet").exists()


def test_the_same_data_make_the_same_model(learned: Learned, loop: Loop, tmp_path: Path) -> None:
    assert stages.train(loop, learned[0], tmp_path / "model")["sha256"] == model_folder.read(learned[1]).sha256


def held(learned: Learned) -> Path:
    """Return the hold-out with the model's answers."""
    return learned[0].with_name("holdout.parquet")


def test_the_hold_out_is_the_newest_rows_with_the_models_answers(learned: Learned, loop: Loop) -> None:
    rows, truths, answers = answered.read(held(learned), BINARY)
    _, expected = training.split(BINARY, pq.read_table(learned[0]).to_pandas(), loop.training.holdout)
    assert rows["event_id"].tolist() == expected["event_id"].tolist()
    assert truths.tolist() == expected["label"].tolist()
    assert np.array_equal(answers, model_folder.predict(BINARY, learned[1], expected))


def test_a_hold_out_of_another_kind_or_a_damaged_one_is_refused(learned: Learned, tmp_path: Path) -> None:
    with pytest.raises(answered.HoldOutError, match="low"):
        answered.read(held(learned), maker.make("regression", Training(), "rmse").task)
    (tmp_path / "half.parquet").write_bytes(held(learned).read_bytes()[:-100])
    with pytest.raises(answered.HoldOutError, match=r"half\.parquet"):
        answered.read(tmp_path / "half.parquet", BINARY)


def part(training_set: Path, out: Path, *, until: datetime, shuffle: bool = False) -> Path:
    """Write the rows of a training set before a moment; with `shuffle`, their labels are random."""
    table = pq.read_table(training_set)
    table = table.filter(pc.less(table["event_timestamp"], pa.scalar(until, table["event_timestamp"].type)))
    if shuffle:
        labels = np.random.default_rng(1).permutation(table["label"].to_numpy())
        table = table.set_column(2, "label", pa.array(labels, pa.int32()))
    pq.write_table(table, out)
    return out


def crown(loop: Loop, settings: Settings, model: Path, run: str = "r1", verdict: str = '{"promote": true}') -> None:
    tags = {"kubeloop.gate": verdict}
    registry.promote(settings, registry.register(settings, loop, model, run=run, tags=tags))


def test_a_first_model_is_promoted(loop: Loop, settings: Settings, learned: Learned) -> None:
    verdict = promotion.gate(loop, settings, "r1", learned[1], held(learned))
    assert verdict.promote
    assert verdict.champion is None
    assert promotion.numbers(verdict) == {"auc_challenger": verdict.challenger}


def test_a_model_with_a_feature_that_knows_the_label_is_not_promoted_without_a_word(
    loop: Loop, settings: Settings, learned: Learned, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Training, the model card, the evaluation, the gate and the registered version repeat the warning of `init`."""
    table = pq.read_table(learned[0])
    noted = pa.array([float(label) for label in table["label"].to_pylist()], pa.float32())
    pq.write_table(table.append_column("claim", noted), tmp_path / "training.parquet")
    model, holdout = tmp_path / "model", tmp_path / "holdout.parquet"
    card = stages.train(loop, tmp_path / "training.parquet", model, holdout)
    (warning,) = card["warnings"]
    assert warning.startswith("'claim' alone predicts the label almost perfectly (AUC 1.000)")
    assert warning in caplog.text
    assert model_folder.read(model).warnings == [warning]
    stages.evaluate(loop, model, holdout, tmp_path / "evaluation", tmp_path / "page.html")
    assert "claim&#39; alone predicts the label" in (tmp_path / "page.html").read_text()
    verdict = promotion.gate(loop, settings, "r1", model, holdout)
    assert verdict.promote, "a table can be that easy"
    assert verdict.reason.endswith(f"Warning: {warning}.")
    crown(loop, settings, model, verdict=json.dumps(verdict.to_dict()))
    assert promotion.gate(loop, settings, "r1", model, holdout) == verdict, "a resumed run says it once"
    strict = loop.model_copy(update={"gates": loop.gates.model_copy(update={"refuse_on_warning": True})})
    refused = promotion.gate(strict, settings, "r2", model, holdout)
    assert not refused.promote
    assert gates_page.html("m", refused).count("Warnings about the model") == 1


def test_the_gate_says_that_a_run_is_not_what_is_installed(loop: Loop, settings: Settings, learned: Learned) -> None:
    """The ledger, the report and `kubeloop submit` show the gate's reason."""
    newer = loop.model_copy(update={"description": "Other words."})
    cluster = settings.model_copy(update={"installed_loop": newer.dump(), "release": "ml/blue"})
    verdict = promotion.gate(loop, cluster, "r1", learned[1], held(learned))
    assert "another `description` than the installed loop" in verdict.reason
    assert "`kubeloop schedule --release blue --namespace ml`" in verdict.reason
    crown(loop, settings, learned[1], verdict=json.dumps(verdict.to_dict()))
    assert promotion.gate(loop, cluster, "r1", learned[1], held(learned)) == verdict, "a resumed run says it once"


def test_a_first_model_must_reach_the_floor(loop: Loop, settings: Settings, learned: Learned) -> None:
    strict = loop.model_copy(update={"gates": loop.gates.model_copy(update={"floors": {"auc": 0.99}})})
    verdict = promotion.gate(strict, settings, "r1", learned[1], held(learned))
    assert not verdict.promote
    assert "auc" in verdict.reason


def test_a_better_model_is_promoted(
    loop: Loop, settings: Settings, learned: Learned, as_of: datetime, tmp_path: Path
) -> None:
    stages.train(loop, part(learned[0], tmp_path / "t", until=as_of, shuffle=True), tmp_path / "blind")
    crown(loop, settings, tmp_path / "blind")
    verdict = promotion.gate(loop, settings, "r2", learned[1], held(learned))
    assert verdict.promote
    assert verdict.challenger is not None
    assert verdict.champion is not None
    assert verdict.challenger > verdict.champion + 0.1
    numbers = promotion.numbers(verdict)
    assert set(numbers) == {
        "auc_champion", "auc_challenger", "auc_difference", "auc_interval_low", "auc_interval_high",
    }  # fmt: skip
    assert numbers["auc_interval_low"] > 0
    slices = {check.name for check in verdict.checks if "origin=" in check.name}
    assert len(slices) == 3


@pytest.mark.parametrize("same", [True, False])
def test_a_model_that_is_not_better_is_rejected(
    loop: Loop, settings: Settings, learned: Learned, as_of: datetime, tmp_path: Path, same: bool
) -> None:
    crown(loop, settings, learned[1])
    challenger, holdout = learned[1], held(learned)
    if not same:
        challenger, holdout = tmp_path / "blind", tmp_path / "holdout.parquet"
        stages.train(loop, part(learned[0], tmp_path / "t", until=as_of, shuffle=True), challenger)
        rows = answered.read(held(learned), BINARY).rows
        answered.write(holdout, BINARY, rows, model_folder.predict(BINARY, challenger, rows))
    verdict = promotion.gate(loop, settings, "r2", challenger, holdout)
    assert not verdict.promote
    assert verdict.difference is not None
    assert verdict.difference == 0 if same else verdict.difference < -0.1


def test_the_champions_own_lessons_are_left_out(
    loop: Loop, settings: Settings, learned: Learned, as_of: datetime, tmp_path: Path
) -> None:
    """The champion learned from all but the last two days, so only those distinguish the two models."""
    longer = loop.model_copy(update={"training": loop.training.model_copy(update={"holdout": 2 * DAY})})
    stages.train(longer, learned[0], tmp_path / "champion")
    crown(loop, settings, tmp_path / "champion")
    verdict = promotion.gate(loop, settings, "r2", learned[1], held(learned))
    (blocks,) = (check for check in verdict.checks if check.name == "blocks")
    assert (blocks.value, blocks.passed, verdict.promote) == (3, False, False)

    rows = pq.read_table(learned[0]).to_pandas()
    newest = rows[rows["event_timestamp"] > model_folder.read(tmp_path / "champion").trained_to]
    assert 1000 < len(newest) < 2200
    expected = BINARY.score(newest["label"], model_folder.predict(BINARY, learned[1], newest))["auc"]
    assert verdict.challenger == pytest.approx(expected, abs=1e-9)


def test_too_few_new_rows_are_an_error(loop: Loop, settings: Settings, learned: Learned, tmp_path: Path) -> None:
    training = loop.training.model_copy(update={"holdout": timedelta(hours=2)})
    stages.train(loop.model_copy(update={"training": training}), learned[0], tmp_path / "champion")
    crown(loop, settings, tmp_path / "champion")
    with pytest.raises(stages.StageError, match=r"only .* hold-out's rows .* champion 1 "):
        promotion.gate(loop, settings, "r2", learned[1], held(learned))


def test_a_resumed_run_keeps_its_verdict(loop: Loop, settings: Settings, learned: Learned) -> None:
    first = promotion.gate(loop, settings, "r1", learned[1], held(learned))
    crown(loop, settings, learned[1], verdict=json.dumps(first.to_dict()))
    assert promotion.gate(loop, settings, "r1", learned[1], held(learned)) == first
    assert not promotion.gate(loop, settings, "r2", learned[1], held(learned)).promote


def test_slices_must_be_features(loop: Loop, settings: Settings, learned: Learned, tmp_path: Path) -> None:
    crown(loop, settings, learned[1])
    wrong = loop.model_copy(update={"gates": loop.gates.model_copy(update={"slices": ("origin", "pilot")})})
    with pytest.raises(stages.StageError, match=r"gates\.slices names pilot, "):
        promotion.gate(wrong, settings, "r2", learned[1], held(learned))


def test_a_late_resumption_does_not_depose_a_newer_champion(loop: Loop, settings: Settings, learned: Learned) -> None:
    crown(loop, settings, learned[1], "r1")
    crown(loop, settings, learned[1], "r2")
    with pytest.raises(stages.StageError, match=r"version 2 is the champion .* version 1"):
        promotion.deploy(loop, settings, "1")
    champion = registry.champion(settings, loop.name)
    assert champion is not None
    assert champion.version == "2"


def test_without_services_nothing_is_deployed(loop: Loop, settings: Settings, learned: Learned) -> None:
    registry.register(settings, loop, learned[1], run="r1", tags={})
    with pytest.raises(ServiceError, match=r"the collector is not running; .*`kubeloop serve`"):
        promotion.deploy(loop, settings, "1")
    assert registry.champion(settings, loop.name) is None


def test_a_digest_is_of_content_and_names(tmp_path: Path) -> None:
    def tree(name: str, files: dict[str, str]) -> str:
        for path, content in files.items():
            (tmp_path / name / path).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name / path).write_text(content)
        return stages.digest(tmp_path / name)

    one = tree("one", {"a.sql": "x", "b/c.yaml": "y", "d.parquet": "z"})
    assert (
        tree("same", {"a.sql": "x", "b/c.yaml": "y", "d.parquet": "z", "notes.txt": "n", "__pycache__/a.pyc": ""})
        == one
    )
    others = [
        tree("content", {"a.sql": "xx", "b/c.yaml": "y", "d.parquet": "z"}),
        tree("moved", {"a.sql": "x", "c.yaml": "y", "d.parquet": "z"}),
        tree("swapped", {"a.sql": "y", "b/c.yaml": "x", "d.parquet": "z"}),
        tree("fewer", {"a.sql": "x", "b/c.yaml": "y"}),
    ]
    assert len({one, *others}) == 5
    for name, content in {"file": "x", "renamed": "x", "other": "y"}.items():
        (tmp_path / name).write_text(content)
    assert stages.digest(tmp_path / "file") == stages.digest(tmp_path / "renamed") != stages.digest(tmp_path / "other")


def test_the_code_version_names_the_commit(settings: Settings) -> None:
    assert promotion.code_version(settings) == __version__

    def git(*arguments: str) -> str:
        who = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        done = subprocess.run(
            ["git", "-C", settings.home, *who, *arguments], capture_output=True, text=True, check=True
        )
        return done.stdout.strip()

    git("init", "-q")
    (settings.home / "file").write_text("x")
    git("add", "file")
    git("commit", "-q", "-m", "x")
    assert promotion.code_version(settings) == f"{__version__}+{git('rev-parse', '--short=12', 'HEAD')}"


def test_a_verdict_of_nothing_defined_has_no_numbers() -> None:
    verdict = gates.Verdict(False, "no", "auc", None, None, None, None, 0.95, ())
    assert promotion.numbers(verdict) == {}
