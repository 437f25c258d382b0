"""The demo's flights, once a session: the real year, five weeks of it, and a use case that learns fast from those."""

import importlib.util
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from kubeloop import config, sources
from kubeloop.config import Loop, Settings

PROJECT = Path(__file__).parents[1]


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
    """Raw tables of every flight of 2013."""
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
    """Raw tables of what became known from 29 April to 3 June 2013."""
    folder = tmp_path_factory.mktemp("weeks")
    sources.cut(demo, year, folder, since=as_of - timedelta(days=21), as_of=as_of + timedelta(days=14))
    return folder


@pytest.fixture(scope="session")
def loop(demo: Loop) -> Loop:
    """The demo, learning from twelve days in a second or two."""
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
    """Makes a folder with loop.yaml, the feature repo and raw data, and returns the settings of it."""

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
    """A training set (Parquet) and the model folder trained on it."""
    from kubeloop import stages

    folder = tmp_path_factory.mktemp("learned")
    settings = make_home(folder)
    stages.extract(loop, settings, as_of, folder / "raw")
    stages.build_features(loop, settings, folder / "raw", as_of, folder / "training.parquet")
    stages.train(loop, folder / "training.parquet", folder / "model")
    return folder / "training.parquet", folder / "model"


@pytest.fixture(scope="session")
def blank_mlflow(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An MLflow database with its tables, which take a second to make."""
    import mlflow

    path = tmp_path_factory.mktemp("blank") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path
