"""Requesting a run by hand, through a real trigger: once for the same request, again after a failure or a refusal."""

import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import pytest
import uvicorn

from kubeloop.config import Drift, Loop
from kubeloop.session import requests
from kubeloop.trigger.ledger import Ledger
from kubeloop.trigger.server import create_app
from tests.unit.trigger.test_ledger import LEASE, Outcome

MOMENT = datetime(2013, 5, 20, tzinfo=UTC)


@pytest.fixture
def ledger(tmp_path: Any) -> Iterator[Ledger]:
    found = Ledger(f"sqlite:///{tmp_path / 'ledger.db'}", Drift(), max_failures=1)
    yield found
    found.close()


@pytest.fixture
def trigger(ledger: Ledger, demo: Loop) -> Iterator[str]:
    server = uvicorn.Server(uvicorn.Config(create_app(ledger, demo.name), port=0, log_level="error"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join()


def end(ledger: Ledger, name: str, outcome: Outcome) -> None:
    run = ledger.claim("flight-delay", "a", LEASE)
    assert run
    assert run.name == name
    ledger.finish(run, outcome, "because")


def ask(trigger: str, demo: Loop, episode: str = "manual-1") -> str:
    return requests.request(trigger, demo, episode, MOMENT, "asked for by hand")


def test_asked_again_it_is_the_same_run_while_it_goes_on(trigger: str, ledger: Ledger, demo: Loop) -> None:
    assert ask(trigger, demo) == ask(trigger, demo)
    assert len(ledger.runs()) == 1


@pytest.mark.parametrize(("outcome", "number"), [("promoted", 1), ("rejected", 1), ("failed", 2)])
def test_a_verdict_stands_and_a_failure_is_tried_again(
    trigger: str, ledger: Ledger, demo: Loop, outcome: Outcome, number: int
) -> None:
    first = ask(trigger, demo)
    end(ledger, first, outcome)
    again = ask(trigger, demo)
    assert (again == first) == (number == 1)
    assert [run.episode for run in ledger.runs()] == ["flight-delay-manual-1", "flight-delay-manual-1-2"][:number]
    assert ask(trigger, demo) == again


def test_a_request_refused_because_of_another_run_is_asked_again(trigger: str, ledger: Ledger, demo: Loop) -> None:
    other = ask(trigger, demo, "another")
    for _ in range(2):
        with pytest.raises(requests.RunError, match=f"{other} is running"):
            ask(trigger, demo)
    end(ledger, other, "rejected")
    assert ledger.run(ask(trigger, demo)), "a cooldown does not hold back what a person asks for"
