"""Keep `make quick` fast: leave out tests that start a process, serve, sleep or take long.

`tests/heavy.json` names these fixtures and tests; `make weigh` runs the suite and writes the file. A new test counts as
light until it is weighed; `make quick` fails it if it serves, sleeps or starts a process.
"""

import contextlib
import json
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests import outside

HEAVY = Path(__file__).with_name("heavy.json")
LIMIT_S = 1.0
"""The seconds that a light fixture, or a light test with all its parameters, may take."""
_ACTS = {
    **dict.fromkeys(("socket.bind", "socket.listen"), "serves"),
    **dict.fromkeys(("os.fork", "os.posix_spawn", "subprocess.Popen"), "starts a process"),
    "time.sleep": "sleeps",
}
"""Python's audit events that make a test heavy, in words."""


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options of `make quick` and `make weigh`."""
    parser.addoption("--quick", action="store_true", help="run only light tests")
    parser.addoption("--weigh", action="store_true", help="write tests/heavy.json from this run")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the tests if an option asks for it."""
    if config.getoption("--quick") or config.getoption("--weigh"):
        config.pluginmanager.register(Scales(quick=config.getoption("--quick")))


class Scales:
    """Records what each fixture and each test does, and how long it takes."""

    def __init__(self, *, quick: bool) -> None:
        self._quick = quick
        self._heavy = set(json.loads(HEAVY.read_text())["fixtures"]) if quick else set()
        self._acts: set[str] = set()
        self._item: pytest.Item | None = None
        self._found: dict[str, dict[str, tuple[float, bool]]] = {"fixtures": {}, "tests": {}}
        sys.addaudithook(self._hear)

    def _hear(self, event: str, _arguments: tuple[Any, ...]) -> None:
        # Servers of other tests sleep in their own threads.
        if event in _ACTS and (event != "time.sleep" or threading.current_thread() is threading.main_thread()):
            self._acts.add(_ACTS[event])

    @contextlib.contextmanager
    def _weigh(self, kind: str, name: str) -> Iterator[None]:
        outer, self._acts = self._acts, set()
        began = time.monotonic()
        try:
            yield
        finally:
            acts, self._acts = self._acts, outer
            if self._item:
                self._item.user_properties.append((kind, [name, time.monotonic() - began, sorted(acts)]))
        if self._quick and acts:
            pytest.fail(
                f"{name} {' and '.join(sorted(acts))}; `make weigh` takes it out of `make quick`", pytrace=False
            )

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Record which test runs."""
        self._item = item
        return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        """Weigh a fixture without the fixtures that it requests."""
        name = f"{fixturedef.baseid}::{fixturedef.argname}"
        if name in self._heavy:
            # It was requested while the test ran, so its name was not among the test's fixtures.
            heavy = pytest.skip.Exception("`make quick` leaves out what needs a heavy fixture; `make test` runs it")
            # Pytest keeps a fixture's exception for the next test that requests it.
            fixturedef.cached_result = (None, fixturedef.cache_key(request), (heavy, None))
            raise heavy
        with self._weigh("fixtures", name):
            return (yield)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_call(self, item: pytest.Item) -> Iterator[None]:
        """Weigh a test without its fixtures."""
        with self._weigh("tests", item.nodeid):
            return (yield)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect the results from every process."""
        if report.when == "teardown":
            for kind, value in report.user_properties:
                if kind in self._found:
                    name, seconds, acts = value
                    # A fixture is made again for each test that needs its own; the times of a test's parameters add up.
                    key = name.partition("[")[0] if kind == "tests" else name
                    known, before = self._found[kind].get(key, (0.0, False))
                    whole = known + seconds if kind == "tests" else max(known, seconds)
                    self._found[kind][key] = (whole, before or bool(acts))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Write what is heavy; workers of pytest-xdist leave that to the controller."""
        if self._quick or hasattr(session.config, "workerinput"):
            return
        heavy = {
            kind: {name for name, (seconds, acts) in found.items() if acts or seconds > LIMIT_S}
            for kind, found in self._found.items()
        }
        light = {name.partition("::")[0] for name in self._found["tests"].keys() - heavy["tests"]}
        # A file without a light test is named once.
        tests = {name if (file := name.partition("::")[0]) in light else file for name in heavy["tests"]}
        HEAVY.write_text(json.dumps({"fixtures": sorted(heavy["fixtures"]), "tests": sorted(tests)}, indent=1) + "\n")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out heavy tests, and tests that need something from outside the clone."""
    if not config.getoption("--quick"):
        return
    known = json.loads(HEAVY.read_text())
    tests, fixtures = set(known["tests"]), defaultdict(set)
    for fixture in known["fixtures"]:
        place, _, name = fixture.rpartition("::")
        fixtures[name].add(place)

    def heavy(item: pytest.Item) -> bool:
        names = getattr(item, "fixturenames", ())
        return (
            not tests.isdisjoint((item.nodeid.partition("[")[0], item.nodeid.partition("::")[0]))
            or any(item.nodeid.startswith(place) for name in names for place in fixtures.get(name, ()))
            or outside.wants(names, item.callspec.params.values() if hasattr(item, "callspec") else ())
        )

    left = [item for item in items if heavy(item)]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]
