"""Trigger replicas that share a ledger on PostgreSQL."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any


def test_replicas_that_get_every_event_at_once_start_one_run(
    home_on_postgres: Any, serve: Any, event: Any, eventually: Any
) -> None:
    home_on_postgres.behave("promote", wait=True)
    with ThreadPoolExecutor(3) as pool:
        replicas = list(pool.map(lambda _: serve(), range(3)))
        targets = [random.Random(7).choice(replicas) for _ in range(150)]
        answers = list(pool.map(lambda trigger: trigger.post(event()).json(), targets))
    assert [answer["duplicate"] for answer in answers].count(False) == 1
    assert len({answer["run_name"] for answer in answers}) == 1
    (run,) = eventually(lambda: _running(replicas[0]))
    holder = next(replica for replica in replicas if f"-{replica.process.pid}-" in run["holder"])
    holder.kill()
    others = [replica for replica in replicas if replica is not holder]
    eventually(lambda: _running(others[0])[0]["holder"] not in (run["holder"], None))
    home_on_postgres.gate.touch()
    eventually(lambda: others[1].status()["runs"][0]["outcome"] == "promoted")
    assert len(home_on_postgres.starts()) == 1
    (received,) = others[0].status()["events"]
    assert received["received"] == 150


def test_a_database_that_is_away_costs_neither_an_event_nor_a_run(
    home_on_postgres: Any, serve: Any, event: Any, eventually: Any, postgres_server: Any
) -> None:
    """The monitor keeps an event until it is accepted: a refusal must say so, and the server must recover by itself."""
    home_on_postgres.behave("promote", wait=True)
    trigger = serve()
    assert trigger.post(event(1)).json()["accepted"]
    eventually(lambda: _running(trigger))
    postgres_server.stop()
    try:
        assert trigger.post(event(2)).status_code == 503
        assert trigger.client.get("/readyz").status_code == 503
        assert trigger.client.get("/healthz").status_code == 200, "a restart would not help"
        home_on_postgres.gate.touch()
    finally:
        postgres_server.start()
    eventually(lambda: trigger.status()["runs"][0]["outcome"] == "promoted")
    assert trigger.client.get("/readyz").status_code == 200
    assert not trigger.post(event(2)).json()["duplicate"], "the refused event was not half recorded"
    assert len(home_on_postgres.starts()) == 1


def _running(trigger: Any) -> list[dict[str, Any]]:
    return [run for run in trigger.status()["runs"] if run["status"] == "running"]
