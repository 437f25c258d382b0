"""Real parts break under a real Prometheus, and exactly the expected alerts reach Alertmanager.

One Prometheus watches several releases, each with the chart's rules for its own namespace. The releases share the
healthy parts, and each has its own copy of the parts that break. Time runs faster: durations in the rules are divided
by `KUBELOOP_ALERTS_FACTOR` (`make alerts` uses a smaller factor) and cut to `prometheus.MOST_MINUTES`.
"""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop.config import Loop
from kubeloop.names import REQUEST_EVENT, RESPONSE_EVENT
from tests.alerts.prometheus import Prometheus, Target, scrapes, serve, shortened
from tests.charts.conftest import LOOP, Render, kinds
from tests.hostile.front import servers
from tests.unit.serving.conftest import models

__all__ = ["models"]

FACTOR = float(os.environ.get("KUBELOOP_ALERTS_FACTOR", "120"))
MINUTE = 60 / FACTOR
INTERVAL_S = 2 * MINUTE

TRANSFORMER = Path(servers.__file__).with_name("transformer.py")
NAME = "flights"
NOBODY = "http://127.0.0.1:9"
PARTS = ("collector", "monitor", "trigger", "transformer", "predictor")

OWN = {
    "well": PARTS,
    "killed": PARTS,
    "missing": (),
    "stopped": ("transformer", "predictor"),
    "failing": ("transformer",),
    "full": ("collector",),
    "broken": ("collector",),
}
"""The releases by outage, with the parts that each has of its own; it takes the other parts from `well`.

In `missing` no part was ever started.
"""

EXPECTED = {
    *(("killed", "KubeloopPartDown", f"{part}-killed") for part in PARTS),
    *(("killed", "KubeloopServingDown", part) for part in ("transformer", "predictor")),
    ("missing", "KubeloopPartMissing", "kubeloop-collector"),
    *(("missing", "KubeloopPartMissing", f"kubeloop-{part}-{NAME}") for part in ("monitor", "trigger")),
    *(("missing", "KubeloopServingDown", part) for part in ("transformer", "predictor")),
    ("stopped", "KubeloopTrafficStopped", NAME),
    ("failing", "KubeloopServingErrors", "transformer"),
    ("failing", "KubeloopRequestsRefused", "transformer"),
    ("full", "KubeloopCollectorDropping", "disk_full"),
    ("full", "KubeloopEventsLost", ""),
    ("broken", "KubeloopEventsUnreadable", "bad_event"),
    ("broken", "KubeloopLogNotWritten", ""),
    ("broken", "KubeloopEventsLost", ""),
}
"""The expected alerts: release, alert, and the label that tells similar alerts apart."""


def inputs(**values: Any) -> dict[str, Any]:
    """Return a V2 request of one row."""
    return {
        "inputs": [
            {"name": name, "datatype": "BYTES" if isinstance(value, str) else "FP32", "shape": [1], "data": [value]}
            for name, value in values.items()
        ]
    }


class Client:
    """Asks for predictions, and logs them as KServe's agent does."""

    def __init__(self, transformer: str, collector: str) -> None:
        self._infer = f"{transformer}/v2/models/{NAME}/infer"
        self._collector = collector
        self._http = httpx.Client(timeout=20, trust_env=False)

    def ask(self, body: dict[str, Any]) -> httpx.Response:
        """Ask for a prediction."""
        return self._http.post(self._infer, json=body)

    def tell(self, kind: str, body: dict[str, Any], **more: str) -> int:
        """Send an event, and return the status of the answer."""
        attributes = {
            "specversion": "1.0",
            "type": kind,
            "source": "test",
            "time": datetime.now(UTC).isoformat(),
            "inferenceservicename": NAME,
            "namespace": "well",
            "component": "predictor",
            "endpoint": "default",
        } | more
        headers = {f"ce-{name}": value for name, value in attributes.items()}
        return self._http.post(self._collector, headers=headers, json=body).status_code

    def predict(self) -> None:
        """Ask for a prediction, and log the request and the response."""
        answer = self.ask(inputs(hour=5.0)).raise_for_status().json()
        name = str(time.time_ns())
        asked = inputs(distance=10.0, hour=5.0, carrier="AA")
        assert self.tell(REQUEST_EVENT, asked, id=name) == 202
        assert self.tell(RESPONSE_EVENT, answer, id=name) == 202


@pytest.fixture(scope="module")
def running(models: Path, demo: Loop, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, servers.Server]]:
    """Every server by part and release, e.g. `monitor-well`."""
    loop = demo.model_copy(update={"name": NAME, "drift": demo.drift.model_copy(update={"engine": "builtin"})})
    found: dict[str, servers.Server] = {}
    with contextlib.ExitStack() as stack, ThreadPoolExecutor(4) as pool:

        def start(part: str, release: str) -> None:
            file, payloads = folders[release] / "loop.yaml", folders[release] / "state" / "payloads"
            module: str | Path
            if part == "collector":
                # One byte is too small for any event.
                most = ("--max-disk-bytes=1",) if release == "full" else ()
                module, flags = "kubeloop.payloads.collector", ("--dir", payloads, "--port=0", *most)
            elif part == "monitor":
                module, flags = "kubeloop.monitoring.monitor", ("--loop", file, "--port=0")
            elif part == "trigger":
                module, flags = "kubeloop.trigger.server", ("--loop", file, "--port=0")
            elif part == "predictor":
                module = "kubeloop.serving.server"
                flags = ("--model-dir", models / "columns", f"--name={NAME}", "--port=0", "--drain-s=0.05")
            else:
                url = NOBODY if release == "failing" else found[f"predictor-{release}"].url
                module, flags = TRANSFORMER, ("--predictor-url", url)
            name = f"{part}-{release}"
            found[name] = stack.enter_context(servers.serve(name, module, *flags, folder=folders[release], limits={}))

        folders = {release: tmp_path_factory.mktemp(release) for release in OWN}
        for folder in folders.values():
            (folder / "state" / "payloads").mkdir(parents=True)
            (folder / "loop.yaml").write_text(loop.dump())
        own = [(part, release) for release, parts in OWN.items() for part in parts]
        own.sort(key=lambda each: each[0] == "transformer")
        waits = [each for each in own if each[0] == "transformer"]
        list(pool.map(lambda each: start(*each), [each for each in own if each not in waits]))
        list(pool.map(lambda each: start(*each), waits))
        yield found


@pytest.fixture
def prometheus(running: dict[str, servers.Server], render: Render, tmp_path: Path) -> Iterator[Prometheus]:
    """A Prometheus that has seen all parts healthy for a while."""
    rules, jobs, pods = {}, [], 0
    for release, own in OWN.items():
        config = LOOP | {"name": NAME, "delivery": {"namespace": release}}
        values = {"loops": {NAME: {"config": config}}, "metrics": {"enabled": True}, "alerts": {"enabled": True}}
        objects = render(values, namespace=release)
        (rule,) = kinds(objects, "PrometheusRule")
        rules[release] = shortened(rule["spec"], FACTOR)
        if not own:
            continue
        names = {part: f"{part}-{release if part in own else 'well'}" for part in PARTS}
        targets = [Target(part, name, running[name].url) for part, name in names.items()]
        jobs += scrapes(objects, release, NAME, targets)
        pods += len(targets)
    with serve(tmp_path, INTERVAL_S, rules, jobs) as found:
        until(lambda: found.query("count(up == 1)")[0]["value"][1] == str(pods))
        yield found


@contextlib.contextmanager
def traffic(client: Client, every_s: float = 0.2) -> Iterator[None]:
    """Let a client ask for predictions in the background."""
    over = threading.Event()

    def work() -> None:
        while not over.wait(every_s):
            client.predict()

    with ThreadPoolExecutor(1) as pool:
        done = pool.submit(work)
        try:
            yield
        finally:
            over.set()
            done.result(30)


def until(reached: Callable[[], bool], minutes: float = 60) -> None:
    """Wait up to so many minutes of the rules' time, plus half a minute of real time."""
    deadline = time.monotonic() + minutes * MINUTE + 30
    while time.monotonic() < deadline:
        with contextlib.suppress(IndexError):
            if reached():
                return
        time.sleep(min(1.0, MINUTE))


def which(labels: dict[str, str]) -> tuple[str, str, str]:
    said = [labels[name] for name in ("reason", "pod", "component", "job", "service") if name in labels]
    return labels["namespace"], labels["alertname"], next(iter(said), "")


def test_each_outage_fires_its_alert_and_no_other(running: dict[str, servers.Server], prometheus: Prometheus) -> None:
    seen: dict[tuple[str, str, str], str] = {}

    def complete() -> bool:
        seen.update({which(alert["labels"]): alert["annotations"]["summary"] for alert in prometheus.alerts()})
        return seen.keys() >= EXPECTED

    url = {name: server.url for name, server in running.items()}
    failing, full = Client(url["transformer-failing"], ""), Client("", url["collector-full"])
    broken = Client("", url["collector-broken"])
    with traffic(Client(url["transformer-well"], url["collector-well"])):
        with traffic(Client(url["transformer-stopped"], url["collector-well"])):
            time.sleep(12 * MINUTE)
            complete()
            assert {release for release, _, _ in seen} <= {"missing"}
        for part in PARTS:
            running[f"{part}-killed"].process.kill()
        assert [failing.ask(inputs(minute=1.0)).status_code for _ in range(15)] == [400] * 15
        assert full.tell(REQUEST_EVENT, {}, id="a") == 503
        assert broken.tell(REQUEST_EVENT, {}) == 400
        assert broken.tell(REQUEST_EVENT, {}, id="a") == 202
        shutil.rmtree(running["collector-broken"].log.parent / "state")
        for _ in range(3):
            assert failing.ask(inputs(hour=5.0)).status_code == 503
            time.sleep(2 * MINUTE)
        until(complete)
        time.sleep(6 * MINUTE)
        complete()
    assert set(seen) == EXPECTED
    assert not [summary for summary in seen.values() if "<" in summary]
