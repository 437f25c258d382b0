"""Distribute the suite over two processes: a folder with slow fixtures stays in one process.

Used by `make test` (pytest -n 2); pytest does not call it with one process.
"""

from pathlib import PurePosixPath
from typing import Any

import pytest

WHOLE = (
    *("tests/alerts", "tests/cluster", "tests/components", "tests/e2e", "tests/images", "tests/kfp", "tests/pipelines"),
    *("tests/spark", "tests/unit/data/validation", "tests/unit/report", "tests/unit/scaffold"),
    "tests/unit/tasks/tabular",
)
"""Folders whose tests share slow session fixtures; elsewhere only a file stays whole."""
FIRST = ("tests/images", "tests/e2e", "tests/faults", "tests/pipelines", "tests/hostile", "tests/cluster")
"""The slowest folders, which come first so that no process runs one of them alone at the end."""


def unit(nodeid: str) -> str:
    """Return the name of the unit that must stay in one process with a test."""
    file = nodeid.partition("::")[0]
    parents = {str(folder) for folder in PurePosixPath(file).parents}
    return next((folder for folder in WHOLE if folder in parents), file)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort the slowest tests to the front; the others keep their order."""
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
