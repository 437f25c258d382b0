"""Who may ask the services of one machine: predictions and state are open to everyone, all else only to their owner."""

import json
import subprocess
import textwrap
from typing import Any

import pytest

from kubeloop import access, names
from tests.hostile.conftest import BODY, HTTP, INFER, OBJECT, STRANGER, Laptop

JSON = {"content-type": "application/json"}
EVENT = {
    "ce-specversion": "1.0",
    "ce-id": "theirs-1",
    "ce-source": "theirs",
    "ce-inferenceservicename": "flights",
    "ce-namespace": "kubeloop",
    **JSON,
}
LABELS = json.dumps({"labels": [{"event_id": "theirs", "label": 1, "observed_at": "2013-04-02T00:00:00Z"}]})
DRIFT = {
    "service": "flights",
    "episode": "theirs-1",
    "opened_at": "2013-04-01T00:00:00Z",
    "as_of": "2013-04-01T00:00:00Z",
    "kind": "manual",
    "features": [],
    "reason": "theirs",
}
CONTROLS = {
    "a manifest": ("node", "PUT", OBJECT, JSON, "{}"),
    "its removal": ("node", "DELETE", OBJECT, {}, ""),
    "a path that is none": ("node", "POST", "/nothing", JSON, "{}"),
    "a label": ("collector", "POST", "/", {**EVENT, "ce-type": names.LABEL_EVENT}, LABELS),
    "a payload": ("collector", "POST", "/", {**EVENT, "ce-type": names.REQUEST_EVENT}, json.dumps(BODY)),
    "a flush": ("collector", "POST", "/flush", {}, ""),
    "the clock": ("monitor", "POST", "/advance", JSON, '{"until": "2099-01-01T00:00:00Z"}'),
    "a run": ("trigger", "POST", "/events", {**EVENT, "ce-type": names.DRIFT_EVENT}, json.dumps(DRIFT)),
}


def ask(laptop: Laptop, control: str, headers: dict[str, str]) -> int:
    name, method, path, own, body = CONTROLS[control]
    return HTTP.request(method, laptop.urls[name] + path, content=body, headers={**own, **headers}).status_code


@pytest.mark.parametrize("control", CONTROLS)
def test_what_changes_something_takes_the_token(laptop: Laptop, control: str) -> None:
    before = laptop.state()
    for login in ({}, {"authorization": "Bearer"}, access.bearer("guessed"), {"authorization": "Basic eDp5"}):
        assert ask(laptop, control, login) == 401
    token = access.read(laptop.settings.token_file)
    assert ask(laptop, control, {"authorization": token}) == 401
    assert laptop.state() == before


def test_the_owner_gets_through(laptop: Laptop) -> None:
    """The same requests, with the token. The service then judges their content; it accepts the flush."""
    login = access.header(laptop.settings.token_file)
    assert ask(laptop, "a flush", login) == 200
    assert ask(laptop, "a path that is none", login) == 404
    assert ask(laptop, "a manifest", login) == 400


def test_predictions_and_state_are_open(laptop: Laptop) -> None:
    assert HTTP.post(laptop.urls["node"] + INFER, json=BODY).json()["outputs"][0]["data"] == [1.0, 2.0]
    for name, url in laptop.urls.items():
        assert HTTP.get(f"{url}/status").status_code == 200, name
        assert HTTP.get(f"{url}/metrics").status_code == 200, name


def test_events_reach_the_log_with_the_token(laptop: Laptop) -> None:
    laptop.settle()
    before = HTTP.get(f"{laptop.urls['collector']}/status").json()["received"]
    HTTP.post(laptop.urls["node"] + INFER, json=BODY).raise_for_status()
    laptop.settle()
    assert HTTP.get(f"{laptop.urls['collector']}/status").json()["received"] == before + 2
    assert HTTP.get(f"{laptop.urls['node']}/status").json()["dropped"]["events"] == 0


def test_the_token_is_only_for_the_owner(laptop: Laptop) -> None:
    assert laptop.settings.state.stat().st_mode & 0o777 == 0o700
    assert laptop.settings.token_file.stat().st_mode & 0o777 == 0o600
    assert len(access.read(laptop.settings.token_file)) >= 43
    for name in laptop.urls:
        assert access.read(laptop.settings.token_file) not in (laptop.settings.logs / f"{name}.log").read_text()


PROGRAM = """
    import json, os, sys, urllib.error, urllib.request
    given = json.load(sys.stdin)
    found = {"uid": os.getuid(), "files": {}, "answers": {}, "command_lines": ""}
    for path in given["files"]:
        try:
            found["files"][path] = os.listdir(path) if os.path.isdir(path) else open(path).read()
        except OSError as error:
            found["files"][path] = type(error).__name__
    for pid in filter(str.isdigit, os.listdir("/proc")):
        for name in ("cmdline", "environ"):
            try:
                found["command_lines"] += open(f"/proc/{pid}/{name}").read()
            except OSError:
                pass
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for name, (url, method, headers, body) in given["requests"].items():
        request = urllib.request.Request(url, body.encode() or None, headers, method=method)
        try:
            found["answers"][name] = opener.open(request, timeout=20).status
        except urllib.error.HTTPError as error:
            found["answers"][name] = error.code
    print(json.dumps(found))
"""


def test_another_user_gets_nowhere(laptop: Laptop, stranger: str) -> None:
    before = laptop.state()
    requests = {
        control: (laptop.urls[name] + path, method, headers, body)
        for control, (name, method, path, headers, body) in CONTROLS.items()
    }
    requests["a prediction"] = (laptop.predictor + INFER, "POST", JSON, json.dumps(BODY))
    state = laptop.settings.state
    files = [str(path) for path in (state, laptop.settings.token_file, laptop.settings.services_file, state / "logs")]
    done = subprocess.run(
        [stranger, "-I", "-c", textwrap.dedent(PROGRAM)],
        input=json.dumps({"files": files, "requests": requests}),
        capture_output=True,
        text=True,
        check=True,
        user=STRANGER,
        group=STRANGER,
        extra_groups=[],
        cwd="/",
        env={},
        timeout=60,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["uid"] == STRANGER
    assert set(found["files"].values()) == {"PermissionError"}
    assert access.read(laptop.settings.token_file) not in found["command_lines"]
    assert str(laptop.settings.token_file) in found["command_lines"]
    assert found["answers"].pop("a prediction") == 200
    assert found["answers"] == dict.fromkeys(CONTROLS, 401)
    assert laptop.state() == before


def test_what_the_owner_may_ask_runs_nothing_of_others(laptop: Laptop) -> None:
    """Even a manifest with the token cannot name a folder whose source code Feast would run, or a log elsewhere."""
    before = laptop.state()
    known = HTTP.get(laptop.urls["node"] + OBJECT).json()
    made = {key: known[key] for key in ("apiVersion", "kind", "metadata", "spec")}
    login = access.header(laptop.settings.token_file)
    container = {"command": ["python", "-m", "kubeloop.serving.transformer"], "args": ["--feature-dir=/tmp/theirs"]}
    theirs = made["spec"] | {"transformer": {"containers": [container]}}
    answer = HTTP.put(laptop.urls["node"] + OBJECT, json=made | {"spec": theirs}, headers=login)
    assert (answer.status_code, "--feature-dir may not be '/tmp/theirs'" in answer.text) == (400, True)
    predictor = made["spec"]["predictor"] | {"annotations": {names.VERSION: "/../../../outside"}}
    answer = HTTP.put(laptop.urls["node"] + OBJECT, json=made | {"spec": {"predictor": predictor}}, headers=login)
    assert (answer.status_code, "is not a name" in answer.text) == (400, True)
    assert laptop.state() == before
