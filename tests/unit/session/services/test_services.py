import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from kubeloop import access, addresses
from kubeloop.addresses import ServiceError
from kubeloop.config import Loop, Settings
from kubeloop.session import services
from kubeloop.session.services import Services
from kubeloop.stores import kept

COLLECTOR = "kubeloop.payloads.collector"


@pytest.fixture
def settings(demo: Loop, repo: Path, tmp_path: Path) -> Settings:
    from kubeloop import config

    (tmp_path / "loop.yaml").write_text(demo.dump())
    (tmp_path / "feature_repo").symlink_to(repo)
    found = config.settings(tmp_path, tmp_path / "state")
    found.state.mkdir()
    return found


def collect(running: Services, settings: Settings) -> str:
    return running.start("collector", [COLLECTOR, "--dir", str(settings.payloads)])


def alive(pid: int) -> bool:
    try:
        return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def until(condition: Callable[[], Any]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_service_is_up_until_the_end(demo: Loop, settings: Settings) -> None:
    with Services(demo, settings, os.environ) as running:
        url = collect(running, settings)
        assert url == running.url("collector") == addresses.address(settings, "collector")
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/status", trust_env=False).status_code == 200
        known = access.services(settings.services_file)
        assert known["collector"]["url"] == url
        assert alive(known["collector"]["pid"])
        assert (settings.logs / "collector.log").is_file()
        running.check()
    assert not alive(known["collector"]["pid"])
    assert not settings.services_file.exists()


def test_all_four_answer_and_the_first_ends_last(demo: Loop, settings: Settings, tmp_path: Path) -> None:
    # Feast leaves this variable behind in the process that starts the services.
    counts = tmp_path / "counts"
    counts.mkdir()
    left = dict.fromkeys(("PROMETHEUS_MULTIPROCESS_DIR", "PROMETHEUS_MULTIPROC_DIR"), str(counts))
    with Services(demo, settings, os.environ | left) as running:
        running.start_all("2013-04-01T00:00:00+00:00")
        known = access.services(settings.services_file)
        assert list(known) == ["collector", "node", "trigger", "monitor"]
        for name, item in known.items():
            assert httpx.get(f"{item['url']}/status", trust_env=False).status_code == 200, name
        assert not list(counts.iterdir())
    assert not any(alive(item["pid"]) for item in known.values())


def test_an_error_inside_ends_the_services_too(demo: Loop, settings: Settings) -> None:
    pids = []

    def work() -> None:
        with Services(demo, settings, os.environ) as running:
            collect(running, settings)
            pids.append(json.loads(settings.services_file.read_text())["collector"]["pid"])
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        work()
    assert not alive(pids[0])
    assert not settings.services_file.exists()


def test_a_state_folder_has_one_owner(demo: Loop, settings: Settings) -> None:
    with Services(demo, settings, os.environ) as running:
        collect(running, settings)
        with pytest.raises(ServiceError, match=r"another kubeloop uses .*end it first, or set KUBELOOP_STATE"):
            Services(demo, settings, os.environ).__enter__()
        assert addresses.address(settings, "collector")
    with Services(demo, settings, os.environ) as running:
        assert collect(running, settings)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["kubeloop.node.server"], r"(?s)the node did not start:.*--state.*The whole log is .*node\.log"),
        (["kubeloop.nothing"], r"(?s)the node did not start:.*No module named"),
        (["json.tool", "--help"], "the node did not start"),
    ],
)
def test_a_service_that_does_not_start_says_why(
    demo: Loop, settings: Settings, arguments: list[str], message: str
) -> None:
    with Services(demo, settings, os.environ) as running:
        collect(running, settings)
        with pytest.raises(ServiceError, match=message):
            running.start("node", arguments)
        assert list(access.services(settings.services_file)) == ["collector"]


def test_a_service_that_never_gets_ready_is_ended(
    demo: Loop, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(services, "READY_S", 0.5)
    (settings.home / "slow.py").write_text(
        "import os, time\nopen('pid', 'w').write(str(os.getpid()))\nprint('not yet', flush=True)\ntime.sleep(60)\n"
    )
    with Services(demo, settings, os.environ) as running, pytest.raises(ServiceError, match="the slow did not start"):
        running.start("slow", ["slow"])
    assert not alive(int((settings.home / "pid").read_text()))


def test_a_missing_interpreter_is_named(demo: Loop, settings: Settings) -> None:
    missing = settings.model_copy(update={"runtime_python": Path("/nowhere/python")})
    with (
        Services(demo, missing, os.environ) as running,
        pytest.raises(ServiceError, match=r"cannot start the collector \(.*/nowhere/python.*run `kubeloop doctor`"),
    ):
        collect(running, missing)


def test_a_service_that_ended_by_itself_is_noticed(demo: Loop, settings: Settings) -> None:
    with Services(demo, settings, os.environ) as running:
        collect(running, settings)
        running.check()
        os.kill(json.loads(settings.services_file.read_text())["collector"]["pid"], signal.SIGKILL)

        def watch() -> None:
            # The kernel takes a moment to end all threads of a process.
            until(running.check)

        with pytest.raises(ServiceError, match=r"(?s)collector ended with code -9:.*The whole log is .*collector\.log"):
            watch()


@pytest.mark.parametrize("content", [None, "{}", '{"collector": {"url": "http://x"}}'])
def test_an_unknown_address_is_an_error(settings: Settings, content: str | None) -> None:
    if content is not None:
        settings.services_file.write_text(content)
    with pytest.raises(ServiceError, match=r"the node is not running; .*`kubeloop serve`"):
        addresses.address(settings, "node")


@pytest.mark.parametrize("content", ["", "[]", '{"node": {}}', '{"node": {"url": "http'])
def test_addresses_that_are_damaged_are_named(settings: Settings, content: str) -> None:
    settings.services_file.write_text(content)
    with pytest.raises(kept.DamagedError, match=r"services\.json is damaged: .*; remove it; `kubeloop serve`"):
        addresses.address(settings, "node")


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_no_service_survives_its_program(settings: Settings, tmp_path: Path, how: signal.Signals) -> None:
    program = """
        import os, sys, time
        from pathlib import Path
        from kubeloop import config
        from kubeloop.session.services import Services

        settings = config.settings(Path(sys.argv[1]), Path(sys.argv[2]))
        with Services(config.load(settings.loop_file), settings, os.environ) as running:
            running.start("collector", ["kubeloop.payloads.collector", "--dir", str(settings.payloads)])
            print("up", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(program), str(settings.home), str(settings.state)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        pid = json.loads(settings.services_file.read_text())["collector"]["pid"]
        assert alive(pid)
        process.send_signal(how)
    until(lambda: not alive(pid))
    # A killed program could not clean up; an interrupted one did.
    assert settings.services_file.exists() is (how == signal.SIGKILL)
    # In both cases, the folder is free again.
    with Services(Loop.parse(settings.loop_file.read_text()), settings, os.environ) as running:
        assert collect(running, settings)
