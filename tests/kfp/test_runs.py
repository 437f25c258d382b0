"""One run per name, even if answers are lost, cross or come late."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kubeloop.config import Loop
from kubeloop.kubeflow import submission
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.errors import KfpError, NoAnswerError, RefusedError
from kubeloop.kubeflow.runs import Runs
from kubeloop.kubeflow.submission import Package
from kubeloop.kubeflow.values import Version

NAME = "flight-delay-2013-05-01-0a1b2c3d"


@pytest.fixture
def version(api: Api, case: Loop, packages: dict[str, Package]) -> Version:
    return submission.upload(api, case, packages["training"])


def start(runs: Runs, version: Version, attempt: int = 1, **parameters: Any) -> Any:
    return runs.start(NAME, attempt, version, {"run": NAME, **parameters}, "drift of 'dep_delay' & co, 100 % sure")


def only(server: Any) -> dict[str, Any]:
    [run] = server.store.runs.values()
    return run


def test_a_run_carries_its_key_its_identity_and_its_parameters(
    server: Any, runs: Runs, version: Version, case: Loop
) -> None:
    attempt = start(runs, version, as_of="2013-05-01T00:00:00+00:00")
    run = only(server)
    assert (attempt.number, attempt.run.run_id, attempt.run.state) == (1, run["run_id"], "PENDING")
    assert run["display_name"] == NAME
    assert run["service_account"] == "kubeloop-pipeline"
    assert run["runtime_config"]["parameters"] == {"run": NAME, "as_of": "2013-05-01T00:00:00+00:00"}
    assert run["pipeline_version_reference"]["pipeline_version_id"] == version.version_id
    assert server.store.experiments[run["experiment_id"]]["display_name"] == case.name
    reason, key = run["description"].split("\n")
    assert key == f"kubeloop.io/run: flight-delay/{NAME}/1"
    assert reason == "drift of 'dep_delay' & co, 100 % sure"


def test_the_same_name_starts_nothing_while_it_goes_on_or_has_succeeded(
    server: Any, runs: Runs, version: Version
) -> None:
    first = start(runs, version)
    assert start(runs, version, 2).run == first.run
    server.store.finish(first.run.run_id, "SUCCEEDED")
    assert start(runs, version, 3).run.state == "SUCCEEDED"
    assert len(server.store.runs) == 1


def test_a_failed_run_gets_a_next_attempt_and_each_attempt_one_run(server: Any, runs: Runs, version: Version) -> None:
    first = start(runs, version)
    server.store.finish(first.run.run_id, "FAILED")
    assert start(runs, version, 1).run.state == "FAILED", "the first attempt was made"
    second = start(runs, version, 2)
    assert (second.number, second.run.name) == (2, NAME), "KFP's cache must see the same name"
    assert start(runs, version, 2).run == second.run
    found = runs.find(NAME)
    assert found is not None
    assert found.number == 2
    assert len(server.store.runs) == 2


def test_an_attempt_that_an_older_release_started_still_counts(server: Any, runs: Runs, version: Version) -> None:
    first = start(runs, version)
    server.store.finish(first.run.run_id, "FAILED")
    second = start(runs, version, 2).run
    old = server.store.runs[second.run_id]
    reason, key = old["description"].split("\n")
    old |= {"display_name": f"{NAME} (attempt 2)", "description": f"{key}\n{reason}"}
    found = runs.find(NAME)
    assert found is not None
    assert (found.number, found.run.run_id) == (2, second.run_id)
    assert start(runs, version, 2).run.run_id == second.run_id
    assert len(server.store.runs) == 2


def test_names_that_begin_alike_and_other_loops_are_other_runs(
    server: Any, runs: Runs, version: Version, api: Api, case: Loop
) -> None:
    start(runs, version)
    assert runs.find(NAME[:-1]) is None
    assert runs.find(f"{NAME}-2") is None
    assert Runs(api, case.model_copy(update={"name": "flight"})).find(NAME) is None


def test_a_clone_made_in_the_kubeflow_ui_is_not_ours(server: Any, runs: Runs, version: Version) -> None:
    first = start(runs, version)
    clone = {**only(server), "run_id": "clone", "display_name": f"Clone of {NAME}", "state": "RUNNING"}
    server.store.runs["clone"] = clone
    server.store.finish(first.run.run_id, "FAILED")
    found = runs.find(NAME)
    assert found is not None
    assert found.run.run_id == first.run.run_id
    assert clone["state"] == "RUNNING"


@pytest.mark.parametrize("kind", ["lost before", "lost after"])
def test_a_lost_answer_to_a_start_is_looked_up(
    server: Any, runs: Runs, version: Version, fault: Any, kind: str
) -> None:
    server.fault = lambda operation: fault(kind) if operation.endswith("create_run") else None
    if kind == "lost after":
        assert start(runs, version).run.run_id == only(server)["run_id"]
    else:
        with pytest.raises(NoAnswerError, match="cannot start a run"):
            start(runs, version)
        assert server.store.runs == {}
    server.fault = lambda _: None
    start(runs, version)
    assert len(server.store.runs) == 1
    assert server.count("create_run") == (1 if kind == "lost after" else 2)


@pytest.mark.usefixtures("steady")
def test_a_start_that_comes_late_ends_as_one_run(server: Any, runs: Runs, version: Version, fault: Any) -> None:
    server.store.ends_at_once = False
    server.fault = lambda operation: fault("late") if operation.endswith("create_run") else None
    with pytest.raises(NoAnswerError):
        start(runs, version)
    server.fault = lambda _: None
    second = start(runs, version, 2)
    server.release()
    assert len(server.store.live()) == 2
    found = runs.find(NAME)
    assert found is not None
    [run] = server.store.live()
    assert run["run_id"] == found.run.run_id
    assert {found.number, second.number} == {1, 2}, "of two live attempts, the first counts"
    for state in ("CANCELING", "CANCELED"):
        server.store.runs[second.run.run_id]["state"] = state
        again = runs.find(NAME)
        assert again is not None
        assert again.run.run_id == found.run.run_id


@pytest.mark.usefixtures("steady")
def test_a_success_counts_more_than_what_comes_late(server: Any, runs: Runs, version: Version, fault: Any) -> None:
    server.fault = lambda operation: fault("late") if operation.endswith("create_run") else None
    with pytest.raises(NoAnswerError):
        start(runs, version)
    server.fault = lambda _: None
    second = start(runs, version, 2)
    server.store.finish(second.run.run_id, "SUCCEEDED")
    server.release()
    found = runs.find(NAME)
    assert found is not None
    assert found.run.run_id == second.run.run_id
    assert server.store.live() == []


def test_many_at_once_leave_one_run(server: Any, case: Loop, version: Version) -> None:
    def submit(_: int) -> str:
        api = Api(server.url)
        return str(start(Runs(api, case), version).run.run_id)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(submit, range(8)))
    assert len(server.store.live()) == 1
    found = Runs(Api(server.url), case).find(NAME)
    assert found is not None
    assert [found.run.run_id] == [run["run_id"] for run in server.store.live()]


def test_what_cannot_be_started_says_why(server: Any, runs: Runs, version: Version) -> None:
    with pytest.raises(RefusedError, match=r"parameter colour .* is not required"):
        start(runs, version, colour="red")
    assert server.store.runs == {}


def test_a_long_reason_is_cut_and_the_key_is_whole(server: Any, runs: Runs, version: Version) -> None:
    runs.start(NAME, 1, version, {"run": NAME}, "x" * 2000)
    assert len(only(server)["description"]) == 255
    assert runs.find(NAME) is not None


def test_a_run_among_hundreds_is_found(server: Any, runs: Runs, version: Version) -> None:
    start(runs, version)
    template = only(server)
    for number in range(250):
        run_id = f"run-{number + 2}"
        key = f"kubeloop.io/run: flight-delay/{NAME}/{number + 2}"
        server.store.runs[run_id] = {**template, "run_id": run_id, "description": key}
        server.store.finish(run_id, "FAILED")
    server.store.finish(template["run_id"], "FAILED")
    found = runs.find(NAME)
    assert found is not None
    assert found.number == 251


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(seed=st.integers(0, 2**32))
def test_with_answers_lost_at_random_each_name_has_one_run(
    server: Any, api: Api, version: Version, case: Loop, fault: Any, seed: int
) -> None:
    chance = random.Random(seed)
    server.store.runs.clear()

    def decide(operation: str) -> Any:
        if operation.startswith("healthz") or chance.random() < 0.6:
            return None
        kind = chance.choice(["lost before", "lost after", "status"])
        late = operation.endswith("create_run") and chance.random() < 0.2
        return fault("late" if late else kind)

    server.fault = decide
    names = ["one", "two", "three"]
    for _ in range(12):
        name = chance.choice(names)
        if chance.random() < 0.3:
            server.release()
        try:
            Runs(api, case, looks_s=(0.0,)).start(name, 1, version, {"run": name})
        except KfpError:
            continue
    server.fault = lambda _: None
    server.release()
    for name in names:
        found = Runs(api, case).start(name, 1, version, {"run": name})
        alive = [run for run in server.store.live() if f"/{name}/" in run["description"]]
        assert [run["run_id"] for run in alive] == [found.run.run_id]
