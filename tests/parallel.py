"""Share the suite out between two processes: rooms stay whole, since their fixtures are what takes time.

Used by `make test` (pytest -n 2); with one process pytest does not ask.
"""

from pathlib import PurePosixPath
from typing import Any

import pytest

WHOLE = (
    *("tests/alerts", "tests/cluster", "tests/components", "tests/e2e", "tests/images", "tests/kfp", "tests/pipelines"),
    *("tests/spark", "tests/unit/data/validation", "tests/unit/report", "tests/unit/scaffold"),
    "tests/unit/tasks/tabular",
)
"""Folders whose tests share fixtures of a session that take long; elsewhere a file stays whole."""
FIRST = ("tests/images", "tests/e2e", "tests/faults", "tests/pipelines", "tests/hostile", "tests/cluster")
"""The folders that take longest, so that no process is left with one of them at the end."""


def unit(nodeid: str) -> str:
    """Return what stays in one process with a test."""
    file = nodeid.partition("::")[0]
    parents = {str(folder) for folder in PurePosixPath(file).parents}
    return next((folder for folder in WHOLE if folder in parents), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the tests that take longest to the front; the others keep their order."""
    places = {folder: place for place, folder in enumerate(FIRST)}

    def place(item: pytest.Item) -> int:
        parents = (str(folder) for folder in PurePosixPath(item.nodeid.partition("::")[0]).parents)
        return next((places[folder] for folder in parents if folder in places), len(places))

    items.sort(key=place)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """Give each process whole units, in the order of the tests."""
    from xdist.scheduler import LoadScopeScheduling

    class Rooms(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return unit(nodeid)

    config.option.loadscopereorder = False
    return Rooms(config, log)
