"""A wheel installed as a tool on a machine without a clone: an empty home, an empty folder, no variables."""

import json
import os
import random
import signal
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from tests import outside

KEPT = ("LANG", "SSL_CERT_FILE", "UV_DEFAULT_INDEX", "UV_INDEX_URL", "HTTPS_PROXY", "NO_PROXY")
"""Variables that are needed to reach a network."""


@pytest.fixture(scope="session")
def wheel(project: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built through a source distribution as in a release."""
    folder = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [outside.uv(), "build", "--quiet", "--out-dir", str(folder)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = folder.glob("*.whl")
    return found


class Newcomer:
    """A user with a home, a folder and the installed tool."""

    def __init__(self, root: Path) -> None:
        self.home = root / "home"
        self.work = root / "work"
        self.work.mkdir(parents=True)
        found = subprocess.run([outside.uv(), "cache", "dir"], capture_output=True, text=True, check=True)
        self.environ = {
            **{name: os.environ[name] for name in KEPT if name in os.environ},
            "HOME": str(self.home),
            "PATH": f"{self.home}/.local/bin:/usr/bin:/bin",
            # This machine's own cache of uv: with an empty one, each run of this test would fetch two gigabytes.
            "UV_CACHE_DIR": found.stdout.strip(),
        }

    def run(self, *command: str, folder: str = "", code: int = 0) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run(
            command,
            cwd=self.work / folder,
            env=self.environ,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done

    def environments(self) -> set[str]:
        """Return the names of the existing environments, without their digests."""
        folder = self.home / ".cache/kubeloop/environments"
        return {path.name.partition("-")[0] for path in folder.glob("*/") if path.suffix != ".unfinished"}


@pytest.fixture(scope="session")
def newcomer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Newcomer:
    """A user who has installed the wheel."""
    found = Newcomer(tmp_path_factory.mktemp("newcomer"))
    found.run(outside.uv(), "tool", "install", "--quiet", "--python", "3.11", str(wheel))
    return found


@pytest.fixture(scope="session")
def visits(newcomer: Newcomer) -> str:
    """The name of the folder that `kubeloop init` makes from a small table."""
    chance = random.Random(7)
    lines = ["seen_at,customer,pages,bought"]
    for hour in range(2400):
        moment = datetime(2024, 1, 1, tzinfo=UTC) + timedelta(hours=hour)
        pages = chance.randint(1, 20)
        lines.append(f"{moment:%Y-%m-%d %H:%M},c{chance.randint(1, 50)},{pages},{int(chance.random() < pages / 20)}")
    (newcomer.work / "visits.csv").write_text("\n".join(lines) + "\n")
    newcomer.run("kubeloop", "init", "visits.csv", "--label", "bought", "--yes")
    return "visits"


def test_it_says_what_to_do_in_an_empty_folder(newcomer: Newcomer) -> None:
    assert "init" in newcomer.run("kubeloop", "--help").stdout
    said = newcomer.run("kubeloop", "run", code=65).stderr
    assert "kubeloop init TABLE" in said
    assert "kubeloop demo" in said
    assert not newcomer.environments()


@pytest.mark.timeout(1500)
def test_the_loop_closes_with_environments_made_on_the_way(newcomer: Newcomer, visits: str) -> None:
    said = newcomer.run("kubeloop", "doctor", folder=visits).stdout
    assert said.count("is made when it is first needed") == 2

    # If it is killed half-way, it leaves complete environments and uses no partial one.
    command = ["kubeloop", "run", "--fast"]
    killed = subprocess.Popen(
        command,
        cwd=newcomer.work / visits,
        env=newcomer.environ,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert killed.stderr
    heard = []
    for line in killed.stderr:
        heard.append(line)
        if line.startswith("Making the detector environment"):
            break
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert heard[0].startswith("Making the runtime environment, once: "), heard
    assert newcomer.environments() == {"runtime"}

    done = newcomer.run(*command, "--json", folder=visits)
    assert "runtime environment" not in done.stderr
    assert "Made the detector environment" in done.stderr
    summary = json.loads(done.stdout)
    assert summary["predictions"]["served"] == summary["predictions"]["logged"] > 0
    assert newcomer.environments() == {"runtime", "detector"}

    said = newcomer.run("kubeloop", "doctor", folder=visits).stdout
    for package in ("feast", "onnxruntime", "alibi-detect 0.11.4"):
        assert package in said
    assert "Making" not in newcomer.run("kubeloop", "retrain", folder=visits).stderr


def test_what_goes_to_kubeflow_compiles(newcomer: Newcomer) -> None:
    newcomer.run("kubeloop", "demo", "--into", "cluster")
    with (newcomer.work / "cluster/loop.yaml").open("a") as loop:
        loop.write("  images: {core: registry.example/kubeloop-core:1.0.0}\ndelivery: {applier: cluster}\n")
    said = newcomer.run("kubeloop", "pipelines", "objects", folder="cluster").stdout
    assert said.count("kind: PipelineVersion") == 4
    assert "registry.example/kubeloop-core:1.0.0" in said
    assert "KUBELOOP_KFP_URL is not set" in newcomer.run("kubeloop", "submit", folder="cluster", code=65).stderr
