"""Recurring runs follow loop.yaml, and those of others stay untouched."""

import random
from pathlib import Path
from typing import Any

import pytest

from kubeloop.config import Loop, Settings
from kubeloop.kubeflow import recurring
from kubeloop.kubeflow.api import Api
from kubeloop.kubeflow.errors import KfpError, NoAnswerError
from kubeloop.kubeflow.submission import Package, upload
from kubeloop.kubeflow.values import Version


@pytest.fixture
def versions(api: Api, case: Loop, packages: dict[str, Package]) -> dict[str, Version]:
    return {name: upload(api, case, package) for name, package in packages.items()}


def changed(loop: Loop, name: str, **values: Any) -> Loop:
    items = [item.model_copy(update=values) if item.name == name else item for item in loop.pipelines.recurring]
    return with_items(loop, items)


def with_items(loop: Loop, items: list[Any]) -> Loop:
    return loop.model_copy(update={"pipelines": loop.pipelines.model_copy(update={"recurring": tuple(items)})})


def reconcile(api: Api, loop: Loop, versions: dict[str, Version]) -> list[tuple[str, str, str]]:
    changes = recurring.plan(api, loop, versions)
    recurring.apply(api, loop, versions, changes)
    return [(change.action, change.name, change.reason) for change in changes]


def test_what_is_declared_is_made_as_declared(server: Any, api: Api, case: Loop, versions: dict[str, Version]) -> None:
    assert reconcile(api, case, versions) == [
        ("create", "flight-delay-nightly", "new"),
        ("create", "flight-delay-weekly", "new"),
        ("create", "flight-delay-scores", "new"),
    ]
    found = {item["display_name"]: item for item in server.store.recurring.values()}
    weekly, scores = found["flight-delay-weekly"], found["flight-delay-scores"]
    assert weekly["trigger"] == {"cron_schedule": {"cron": "0 0 3 * * 1"}}
    assert (weekly["mode"], scores["mode"]) == ("DISABLE", "ENABLE")
    assert (weekly["max_concurrency"], scores["max_concurrency"]) == ("1", "2")
    assert weekly["no_catchup"] is True
    assert weekly["service_account"] == "kubeloop-pipeline"
    assert weekly["runtime_config"]["parameters"] == {"reason": "recurring run weekly"}
    pipeline = versions["training"].pipeline_id
    assert weekly["pipeline_version_reference"] == {"pipeline_id": pipeline}, "runs of a fixed version have no name"
    assert reconcile(api, case, versions) == [], "the second time there is nothing to do"


@pytest.mark.parametrize("many", [False, True])
def test_a_token_and_a_namespace_do_for_one_user_and_for_many(
    server: Any, place: Settings, case: Loop, packages: dict[str, Package], tmp_path: Path, many: bool
) -> None:
    server.store.multi_user, server.tokens = many, {"token"}
    (tmp_path / "token").write_text("token")
    ours = Api.open(place.model_copy(update={"kfp_token_file": tmp_path / "token"}))
    versions = {name: upload(ours, case, package) for name, package in packages.items()}
    assert len(reconcile(ours, case, versions)) == 3
    assert reconcile(ours, case, versions) == []


@pytest.mark.parametrize("values", [{"cron": "0 0 4 * * *"}, {"enabled": False}, {"max_concurrency": 3}])
def test_a_changed_one_is_replaced(
    server: Any, api: Api, case: Loop, versions: dict[str, Version], values: dict[str, Any]
) -> None:
    reconcile(api, case, versions)
    before = set(server.store.recurring)
    expected = [("delete", "flight-delay-nightly", "changed"), ("create", "flight-delay-nightly", "changed")]
    assert reconcile(api, changed(case, "nightly", **values), versions) == expected
    assert len(before & set(server.store.recurring)) == 2, "the others do not change"
    assert reconcile(api, changed(case, "nightly", **values), versions) == []


def test_another_version_of_the_pipeline_replaces_it(api: Api, case: Loop, versions: dict[str, Version]) -> None:
    reconcile(api, case, versions)
    newer = versions | {"training": Version(versions["training"].pipeline_id, "other", "ffffffffffff")}
    assert [(c.action, c.name) for c in recurring.plan(api, case, newer)] == [
        ("delete", "flight-delay-weekly"),
        ("create", "flight-delay-weekly"),
    ]


def test_one_that_is_gone_is_deleted_and_others_are_left_alone(
    server: Any, api: Api, case: Loop, versions: dict[str, Version]
) -> None:
    reconcile(api, case, versions)
    reconcile(api, case.model_copy(update={"name": "flight"}), versions)
    template = next(iter(server.store.recurring.values()))
    foreign = {
        "by-hand": {**template, "recurring_run_id": "by-hand", "display_name": "by hand", "description": "mine"},
        # Cloned in the Kubeflow UI from one of ours: the clone has its description, but another name.
        "copy": {**template, "recurring_run_id": "copy", "display_name": "a copy"},
    }
    server.store.recurring.update(foreign)
    assert {action for action, _, _ in reconcile(api, with_items(case, []), versions)} == {"delete"}
    left = sorted(item["display_name"] for item in server.store.recurring.values())
    assert left == ["a copy", "by hand", "flight-nightly", "flight-scores", "flight-weekly"]


def test_a_deletion_leaves_the_runs_that_go_on(server: Any, api: Api, case: Loop, versions: dict[str, Version]) -> None:
    reconcile(api, case, versions)
    policies = []
    delete = server.store.recurring_run_service_delete_recurring_run
    server.store.recurring_run_service_delete_recurring_run = lambda recurring_run_id, query: (
        policies.append(query["propagation_policy"]) or delete(recurring_run_id, query)
    )
    reconcile(api, with_items(case, []), versions)
    assert policies == ["ORPHAN"] * 3


def test_a_lost_creation_is_found_by_the_next_look(
    server: Any, api: Api, case: Loop, versions: dict[str, Version], fault: Any
) -> None:
    server.fault = lambda name: fault("lost after") if name.endswith("create_recurring_run") else None
    with pytest.raises(NoAnswerError):
        reconcile(api, case, versions)
    server.fault = lambda _: None
    assert [name for _, name, _ in reconcile(api, case, versions)] == ["flight-delay-weekly", "flight-delay-scores"]


@pytest.mark.parametrize("seed", range(20))
def test_with_answers_lost_at_random_each_is_there_once(
    server: Any, api: Api, case: Loop, versions: dict[str, Version], fault: Any, seed: int
) -> None:
    chance = random.Random(seed)
    kinds = ["late", "lost before", "lost after", "status"]

    def decide(name: str) -> Any:
        change = name.endswith(("create_recurring_run", "delete_recurring_run"))
        return fault(chance.choice(kinds if change else kinds[1:])) if chance.random() < 0.4 else None

    server.fault = decide
    for _ in range(10):
        wanted = chance.choice([case, changed(case, "nightly", cron="0 0 4 * * *"), with_items(case, [])])
        try:
            reconcile(api, wanted, versions)
        except KfpError:
            continue
    server.fault = lambda _: None
    server.release()
    reconcile(api, case, versions)
    names = sorted(item["display_name"] for item in server.store.recurring.values())
    assert names == ["flight-delay-nightly", "flight-delay-scores", "flight-delay-weekly"]
    assert reconcile(api, case, versions) == []
