"""The demo's flights, made once per session: the real year, five weeks of it, and a use case that trains fast."""

import contextlib
import importlib.util
import json
import os
import shutil
import signal
import subprocess
from collections import Counter
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import hypothesis

# Before Feast, which would otherwise make it keep all counts of a process in files that every registry reads. Our
# services import it first as well.
import prometheus_client  # noqa: F401
import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.data import sources
from kubeloop.session.services import Services
from tests import outside

pytest_plugins = ["tests.backends", "tests.control_plane.plugin", "tests.parallel", "tests.quick"]

PROJECT = Path(__file__).parents[1]

# A shell's background job ignores Ctrl-C, and without this every program that the tests start would inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A slow or busy machine is not a failure of a property.
hypothesis.settings.register_profile("kubeloop", deadline=None)
hypothesis.settings.load_profile("kubeloop")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need something from outside the clone."""
    for item in items:
        parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
        if outside.wants(getattr(item, "fixturenames", ()), parameters):
            item.add_marker("outside")


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print once why tests were skipped, and what to do to run them."""
    skipped = [report.longrepr for report in terminalreporter.stats.get("skipped", ())]
    for reason, number in Counter(why[2].removeprefix("Skipped: ") for why in skipped).most_common():
        terminalreporter.write_line(f"{number} skipped: {reason}")


@pytest.fixture(scope="session")
def project() -> Path:
    """The checkout."""
    return PROJECT


@pytest.fixture(scope="session")
def repo() -> Path:
    """The demo's feature repo."""
    return PROJECT / "feature_repo"


@pytest.fixture(scope="session")
def demo() -> Loop:
    """The demo's use case, as a user gets it."""
    return config.load(PROJECT / "loop.yaml")


@pytest.fixture(scope="session")
def year(repo: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables of all flights of 2013."""
    folder = tmp_path_factory.mktemp("year")
    spec = importlib.util.spec_from_file_location("flights_source", repo / "flights.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.write(folder)
    return folder


@pytest.fixture(scope="session")
def as_of() -> datetime:
    """The moment of a first training run on `weeks`."""
    return datetime(2013, 5, 20, tzinfo=UTC)


@pytest.fixture(scope="session")
def weeks(year: Path, demo: Loop, as_of: datetime, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Raw tables with the rows that became known from 29 April to 3 June 2013."""
    folder = tmp_path_factory.mktemp("weeks")
    sources.cut(demo, year, folder, since=as_of - timedelta(days=21), as_of=as_of + timedelta(days=14))
    return folder


@pytest.fixture(scope="session")
def loop(demo: Loop) -> Loop:
    """The demo, trained on twelve days in a second or two."""
    return demo.model_copy(
        update={
            "features": demo.features.model_copy(update={"history": timedelta(days=9)}),
            "training": demo.training.model_copy(
                update={
                    "window": timedelta(days=12),
                    "holdout": timedelta(days=6),
                    "parameters": {"n_estimators": 40},
                    "threads": 1,
                }
            ),
            "gates": demo.gates.model_copy(update={"floors": {"auc": 0.55}, "slice_min_rows": 100, "resamples": 200}),
        }
    )


class Home:
    """Makes a folder with loop.yaml, the feature repo and raw data, and returns its settings."""

    def __init__(self, loop: Loop, repo: Path, raw: Path) -> None:
        self._loop = loop
        self._repo = repo
        self._raw = raw

    def __call__(self, folder: Path, loop: Loop | None = None) -> Settings:
        shutil.copytree(self._repo, folder / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
        (folder / "loop.yaml").write_text((loop or self._loop).dump())
        settings = config.settings(folder, folder / ".kubeloop")
        settings.state.mkdir()
        shutil.copytree(self._raw, settings.raw)
        return settings


@pytest.fixture(scope="session")
def make_home(loop: Loop, repo: Path, weeks: Path) -> Home:
    """Make installations."""
    return Home(loop, repo, weeks)


@pytest.fixture(scope="session")
def learned(
    loop: Loop, make_home: Home, as_of: datetime, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """A training set (Parquet) and the model folder trained on it, with the hold-out and its answers."""
    from kubeloop.steps import stages

    folder = tmp_path_factory.mktemp("learned")
    settings = make_home(folder)
    stages.extract(loop, settings, as_of, folder / "raw")
    stages.build_features(loop, settings, folder / "raw", as_of, folder / "training.parquet")
    stages.train(loop, folder / "training.parquet", folder / "model", folder / "holdout.parquet")
    return folder / "training.parquet", folder / "model"


@pytest.fixture(scope="session")
def blank_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take a second to create."""
    import mlflow

    path = tmp_path_factory.mktemp("blank") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path


class Installation:
    """An installation whose services are up, and its pipeline runs as the trigger starts them."""

    def __init__(self, settings: Settings, services: Services) -> None:
        self.settings = settings
        self.services = services

    def start(
        self, run: str, as_of: datetime, reason: str = "a test", pipeline: str = "training"
    ) -> "subprocess.Popen[bytes]":
        """Start a run in its own process group; its output goes to `log`."""
        command = [
            *(str(self.settings.core_python), "-m", "pipelines", "run", pipeline, "--run-name", run),
            *("--as-of", as_of.isoformat(), "--reason", reason),
            *("--loop", str(self.settings.loop_file), "--state", str(self.settings.state)),
        ]
        self.log(run).parent.mkdir(parents=True, exist_ok=True)
        with self.log(run).open("ab") as log:
            return subprocess.Popen(
                command, cwd=self.settings.home, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    def finish(self, run: str, as_of: datetime, reason: str = "a test", pipeline: str = "training") -> int:
        """Run to the end and return the exit code."""
        return self.start(run, as_of, reason, pipeline).wait(timeout=240)

    @staticmethod
    def alive(group: int) -> bool:
        """Return whether a process of a run still exists."""
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        return True

    def log(self, run: str) -> Path:
        return self.settings.runs / run / "log.txt"

    def report(self, run: str) -> dict[str, Any]:
        """Return the run's run.json."""
        found: dict[str, Any] = json.loads((self.settings.runs / run / "run.json").read_text())
        return found


@pytest.fixture(scope="session")
def install(
    loop: Loop, make_home: Home, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[str], Installation]]:
    """Make installations whose services stay up to the end of the session."""
    from kubeloop import features

    with contextlib.ExitStack() as stack:

        def install(name: str) -> Installation:
            settings = make_home(tmp_path_factory.mktemp(name))
            features.build(settings.home / "feature_repo", settings.raw, settings.features)
            services = stack.enter_context(Services(loop, settings, os.environ))
            services.start("collector", ["kubeloop.payloads.collector", "--dir", str(settings.payloads)])
            collector = ["--collector-url", services.url("collector")]
            services.start("node", ["kubeloop.node.server", "--state", str(settings.state), *collector])
            return Installation(settings, services)

        yield install


@pytest.fixture(scope="session")
def undisturbed(install: Callable[[str], Installation], as_of: datetime) -> Installation:
    """An installation in which the run `first` succeeded undisturbed."""
    installation = install("undisturbed")
    assert installation.finish("first", as_of) == 0, installation.log("first").read_text()[-3000:]
    return installation
