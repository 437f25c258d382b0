"""SIGTERM, a closed terminal and Ctrl-C end the services in order: accepted requests are answered and logged."""

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from kubeloop import access, config
from kubeloop.config import Loop, Settings
from kubeloop.payloads import decode
from kubeloop.tasks.binary.task import BINARY
from tests.hostile.conftest import BODY, INFER, NAME, model

PROGRAM = """
    import json, os, signal, sys, time
    from pathlib import Path
    # Tests may run under nohup, which has it ignored; a program keeps to that.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    from kubeloop import config
    from kubeloop.delivery import apply
    from kubeloop.session.services import Services
    from kubeloop.delivery.manifest import ModelRef
    from tests.hostile.conftest import manifest

    settings = config.settings(Path(sys.argv[1]), Path(sys.argv[2]))
    loop = config.load(settings.loop_file)
    try:
        with Services(loop, settings, os.environ, lambda text: print(text, file=sys.stderr)) as services:
            if sys.argv[4] == "all":
                services.start_all("2013-04-01T00:00:00+00:00")
            else:
                services.start("collector", ["kubeloop.payloads.collector", "--dir", str(settings.payloads)])
                node = ["kubeloop.node.server", "--state", str(settings.state)]
                services.start("node", [*node, "--collector-url", services.url("collector")])
            ref = ModelRef(**json.loads(sys.argv[3]))
            apply.apply(loop, manifest(loop, ref, services.url("collector")), settings)
            print(services.url("node"), flush=True)
            while True:
                services.check()
                time.sleep(0.1)
    except KeyboardInterrupt:
        print("ended in order", flush=True)
"""


@dataclass
class Program:
    """What `kubeloop serve` runs, with a model that is slow if a test needs it."""

    settings: Settings
    process: "subprocess.Popen[str]"
    url: str

    def children(self) -> list[int]:
        return [item["pid"] for item in access.services(self.settings.services_file).values()]


@pytest.fixture
def start(case: Loop, repo: Path, tmp_path: Path) -> Iterator:
    started: list[Program] = []

    def start(products: int = 0, which: str = "few") -> Program:
        home = tmp_path / "home"
        home.mkdir()
        (home / "loop.yaml").write_text(case.dump())
        shutil.copytree(repo, home / "feature_repo", ignore=shutil.ignore_patterns("__pycache__"))
        settings = config.settings(home, home / "state")
        ref = model(home / "model", products)
        command = [sys.executable, "-c", textwrap.dedent(PROGRAM), str(home), str(settings.state)]
        command.append(json.dumps({"version": ref.version, "uri": ref.uri, "sha256": ref.sha256, "run": ref.run}))
        command.append(which)
        process = subprocess.Popen(
            command,
            cwd=Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=(tmp_path / "stderr").open("w"),
            text=True,
            start_new_session=True,
        )
        assert process.stdout
        url = process.stdout.readline().strip()
        assert url, (tmp_path / "stderr").read_text()
        started.append(Program(settings, process, url))
        return started[-1]

    yield start
    for program in started:
        program.process.kill()
        program.process.wait()


@dataclass
class Clients:
    """Clients on kept connections; a request counts as accepted once its first byte could be sent."""

    url: str
    answers: Counter[int] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        parts = urlsplit(self.url)
        body = json.dumps(BODY)
        while not self.stop.is_set():
            connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
            try:
                connection.connect()
            except OSError:
                return  # nobody listens: the request was not accepted
            while not self.stop.is_set():
                try:
                    connection.request("POST", INFER, body, {"content-type": "application/json"})
                    answer = connection.getresponse()
                    answer.read()
                except (OSError, http.client.HTTPException) as error:
                    self.failures.append(repr(error))
                    return
                self.answers[answer.status] += 1
                if answer.status == 503:
                    return
                if answer.will_close:
                    break
            connection.close()


def served(settings: Settings) -> int:
    """Return the predictions in the payload log."""
    table, _ = decode.read(settings.payloads, after=0)
    return decode.decode(BINARY, table, service=NAME).predictions.num_rows


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(("how", "which"), [(signal.SIGTERM, "all"), (signal.SIGHUP, "few")])
def test_what_was_accepted_is_answered_and_logged(start, how: signal.Signals, which: str) -> None:
    program = start(3, which)
    clients = Clients(program.url)
    threads = [threading.Thread(target=clients.run, daemon=True) for _ in range(6)]
    for thread in threads:
        thread.start()
    deadline = time.monotonic() + 30
    while clients.answers[200] < 30:
        assert time.monotonic() < deadline, clients
        time.sleep(0.01)
    children = program.children()
    program.process.send_signal(how)
    assert program.process.wait(60) == 0
    assert program.process.stdout
    assert program.process.stdout.read() == "ended in order\n"
    clients.stop.set()
    for thread in threads:
        thread.join(10)
    assert not clients.failures
    assert set(clients.answers) <= {200, 503}
    assert served(program.settings) == 2 * clients.answers[200]
    assert not any(map(alive, children))
    assert not program.settings.token_file.exists()
    assert not list(program.settings.payloads.glob("wal-*.log")) or all(
        path.stat().st_size < 64 for path in program.settings.payloads.glob("wal-*.log")
    )


def test_a_second_signal_ends_everything_at_once(start) -> None:
    """A prediction of several seconds would delay the end; what was acknowledged before is kept."""
    program = start(60)
    httpx.post(program.url + INFER, json=BODY, timeout=60, trust_env=False).raise_for_status()
    while httpx.get(f"{program.url}/status", trust_env=False).json()["queued"]:
        time.sleep(0.01)
    waiting = [threading.Thread(target=_ask, args=(program.url,), daemon=True) for _ in range(8)]
    for thread in waiting:
        thread.start()
    time.sleep(0.5)
    children = program.children()
    program.process.send_signal(signal.SIGTERM)
    time.sleep(1.5)
    assert program.process.poll() is None, "the first signal waits for requests under way"
    began = time.monotonic()
    program.process.send_signal(signal.SIGTERM)
    assert program.process.wait(10) == 0
    assert time.monotonic() - began < 3
    deadline = time.monotonic() + 5
    while any(map(alive, children)):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    # The write-ahead file has what the collector had acknowledged, and the next collector writes it to the log.
    command = [str(program.settings.runtime_python), "-m", "kubeloop.payloads.collector", "--port", "0"]
    with subprocess.Popen(
        [*command, "--dir", str(program.settings.payloads)], stdout=subprocess.PIPE, text=True, env=dict(os.environ)
    ) as collector:
        assert collector.stdout
        assert collector.stdout.readline().startswith("ready ")
        collector.terminate()
    assert served(program.settings) >= 2


def _ask(url: str) -> None:
    try:
        httpx.post(url + INFER, json=BODY, timeout=60, trust_env=False)
    except httpx.HTTPError:
        return
