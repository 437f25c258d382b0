"""For each test a pipelines API, a use case whose pipelines are compiled, and clients of the API."""

import importlib.util
import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kubeloop import config
from kubeloop.config import Loop, Settings
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.runs import Runs
from kubeloop.kubeflow.submission import Package


def _load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"kfp_tests_{name}", Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SPEC, STORE, SERVER = _load("spec"), _load("store"), _load("server")


@pytest.fixture(scope="session")
def specification() -> Any:
    """The published API."""
    return SPEC.Specification()


@pytest.fixture(scope="session")
def fault() -> Any:
    """The errors that a request can meet."""
    return SERVER.Fault


@pytest.fixture
def open_server(specification: Any) -> Iterator[Callable[[], Any]]:
    """Start servers; in the end, none of them may have received a request that the specification forbids."""
    started = []

    def start() -> Any:
        started.append(SERVER.KfpServer(specification, STORE.Store(), STORE.ApiError, SPEC.SpecError))
        return started[-1]

    yield start
    for server in started:
        server.close()
        assert server.violations == []


@pytest.fixture
def server(open_server: Callable[[], Any]) -> Any:
    """An empty pipelines API for one user."""
    return open_server()


@pytest.fixture(scope="session")
def case(demo: Loop) -> Loop:
    """The demo with the settings of a cluster, with three recurring runs."""
    recurring = [
        {"name": "nightly", "pipeline": "materialize", "cron": "0 0 2 * * *"},
        {"name": "weekly", "pipeline": "training", "cron": "0 0 3 * * 1", "enabled": False},
        {"name": "scores", "pipeline": "batch-scoring", "cron": "0 30 * * * *", "max_concurrency": 2},
    ]
    content = json.loads(demo.dump())
    content["pipelines"] = {"recurring": recurring, "deadline": "2h"}
    content["delivery"] = {"applier": "cluster"}
    return Loop.model_validate(content)


@pytest.fixture(scope="session")
def packages(case: Loop, project: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Package]:
    """The compiled pipelines."""
    folder = tmp_path_factory.mktemp("packages")
    (folder / "loop.yaml").write_text(case.dump())
    settings = config.settings(project, folder / "state").model_copy(update={"home": folder})
    return submission.compile_all(case, settings, folder)


@pytest.fixture
def place(server: Any, tmp_path: Path) -> Settings:
    """Settings that name the server."""
    found = config.settings(tmp_path, tmp_path / ".kubeloop")
    return found.model_copy(update={"kfp_url": server.url, "kfp_ui": "https://kubeflow.example/pipeline/"})


@pytest.fixture
def api(place: Settings) -> Api:
    """A client of the server."""
    return Api.open(place)


@pytest.fixture
def runs(api: Api, case: Loop) -> Runs:
    """The use case's runs, with a client that looks again at once after a lost answer."""
    return Runs(api, case, looks_s=(0.0, 0.0))


@pytest.fixture
def steady(server: Any) -> None:
    """Give every object its own second."""
    server.store.clock = STORE.unique_seconds(datetime(2026, 1, 1, tzinfo=UTC))
