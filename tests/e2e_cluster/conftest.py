"""Shared fixtures of the tests against a cluster, which build on each other and run in the order of PARTS."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e_cluster import cluster
from tests.e2e_cluster.figures import Figures
from tests.e2e_cluster.traffic import Client
from tests.e2e_cluster.workspace import FOLDER, Workspace

PARTS = ("install", "loop", "runs", "switches", "faults", "removal")
_GROUND = ("install", "loop")
"""Parts that all later parts depend on."""
_broken: list[str] = []


def _part(item: pytest.Item) -> str:
    return item.path.stem.removeprefix("test_") if item.path.parent == Path(__file__).parent else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests into the order of the parts."""
    items.sort(key=lambda item: PARTS.index(part) if (part := _part(item)) in PARTS else -1)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Remember a failed test if others depend on it."""
    outcome: Any = yield
    if outcome.get_result().failed and _part(item) in _GROUND:
        _broken.append(item.name)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the measured numbers."""
    if os.environ.get("KUBELOOP_E2E") == "1":
        terminalreporter.write_line(Figures(FOLDER / "figures.json").table())


@pytest.fixture(scope="session", autouse=True)
def reachable() -> None:
    """Skip unless `make e2e` runs these tests; fail if the cluster does not answer."""
    if os.environ.get("KUBELOOP_E2E") != "1":
        pytest.skip("takes the cluster that KUBECONFIG names, and changes it; see `make e2e` in docs/testing.md")
    cluster.kubectl("get", "--raw", "/readyz")


@pytest.fixture(autouse=True)
def unbroken(request: pytest.FixtureRequest, reachable: None) -> None:
    """Skip a test if one that it depends on failed."""
    if _broken:
        pytest.skip(f"{_broken[0]} failed, and this test depends on it")


@pytest.fixture(scope="session")
def workspace(reachable: None) -> Iterator[Workspace]:
    """The folder in which the page's commands run."""
    found = Workspace()
    yield found
    found.close()


@pytest.fixture(scope="session")
def figures(reachable: None) -> Figures:
    """The numbers that the run measures."""
    return Figures(FOLDER / "figures.json")


@pytest.fixture(scope="session")
def client(reachable: None) -> Client:
    """A pod that asks for predictions."""
    return Client.made()
