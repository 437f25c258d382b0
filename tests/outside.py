"""What tests need from outside the clone: without it they are skipped, or fail if KUBELOOP_REQUIRE_* is set.

Only this module skips tests; tests/test_outside.py checks that. Fixtures call it. `tests/conftest.py` marks every test
that uses one of them as `outside` and prints each reason once. `.ci/bare` runs the marked tests with nothing from
outside.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, NoReturn

import pytest

PROJECT = Path(__file__).parents[1]

FIXTURES = frozenset(
    {
        *("archives", "assets", "browser", "builder", "crds", "flux_crds", "java"),
        *("postgres", "postgres_server", "prometheus", "promtool", "redis", "redis_server"),
        *("small_disk", "spark", "stranger", "wheel"),
    }
)
"""The fixtures that need something from outside; tests that use them are marked.

The S3 server comes with the environment.
"""

Group = Literal["BACKENDS", "CLIENTS", "CONTROL_PLANE", "IMAGES", "INSTALL", "NODE", "SPARK"]


def lack(what: str, advice: str, group: Group) -> NoReturn:
    """Skip the test, or fail it if KUBELOOP_REQUIRE_<group> is set.

    Args:
        what: what is missing: the subject and verb of a sentence.
        advice: the make target or the variable that brings it, as a sentence without its full stop.
        group: name of what is required together.
    """
    reason = f"{what}; {advice}"
    if os.environ.get(f"KUBELOOP_REQUIRE_{group}") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def wants(names: Iterable[str], parameters: Iterable[object]) -> bool:
    """Return whether a test needs something from outside, by its fixtures and by parameters that name one."""
    return not FIXTURES.isdisjoint({*names, *(each for each in parameters if isinstance(each, str))})


def backend(name: str, *folders: str) -> str:
    """Return the path of a database's program."""
    places = os.pathsep.join([*folders, os.environ["PATH"], str(Path(sys.executable).parent)])
    found = shutil.which(name, path=places)
    if not found:
        lack(f"{name} is not installed", "`make backends` installs it on Debian and Ubuntu", "BACKENDS")
    return found


def assets(programs: Iterable[str]) -> Path:
    """Return the folder with Kubernetes' programs."""
    folder = Path(os.environ.get("KUBEBUILDER_ASSETS") or PROJECT / ".control-plane" / "bin")
    missing = [program for program in programs if not (folder / program).is_file()]
    if missing:
        advice = "`make control-plane` builds what is missing, or KUBEBUILDER_ASSETS names a folder that has it"
        lack(f"{_shown(folder)} lacks {', '.join(missing)}", advice, "CONTROL_PLANE")
    return folder


def crds(folder: Path) -> Path:
    """Return the folder with the upstream CustomResourceDefinitions."""
    if not next(folder.rglob("*.yaml"), None):
        advice = "`make crds` fetches them, or KUBELOOP_CRDS names a folder that has them"
        lack(f"{_shown(folder)} has no CustomResourceDefinitions", advice, "CONTROL_PLANE")
    return folder


def flux_crds(folder: Path) -> Path:
    """Return the folder with Flux's CustomResourceDefinitions."""
    if not folder.is_dir():
        lack(f"{_shown(folder)} is missing", "`make control-plane` fills it", "CONTROL_PLANE")
    return folder


def image_tools(programs: Iterable[str]) -> None:
    """Check that images can be built."""
    missing = [program for program in programs if not shutil.which(program)]
    if missing:
        what = f"images cannot be built without {', '.join(missing)}"
        lack(what, "`make image-tools` installs what is missing on Debian and Ubuntu", "IMAGES")
    if os.getuid() != 0:
        lack("only root can make a Debian base for images", "run `make test` as root", "IMAGES")


def browser() -> str:
    """Return the path of Chromium."""
    found = shutil.which("chromium")
    if not found:
        lack("Chromium is not installed", "`make backends` installs it on Debian and Ubuntu", "BACKENDS")
    return found


def stranger() -> str:
    """Return a Python that another user of this machine can run; becoming that user needs root."""
    if os.getuid() != 0:
        lack("only root can become another user", "run `make test` as root", "IMAGES")
    # Not the environment's Python: its folder may be open only to root.
    found = shutil.which("python3", path="/usr/bin:/bin")
    if not found:
        lack("the system has no python3 of its own", "`make backends` installs it on Debian and Ubuntu", "IMAGES")
    return found


def node() -> None:
    """Check that this session may start a node."""
    if os.environ.get("KUBELOOP_NODE") != "1" or os.getuid() != 0:
        lack("a node takes root, KUBELOOP_NODE=1 and ten minutes", "run `make e2e-node`", "NODE")


def java() -> str:
    """Return the path of a Java that runs a source file."""
    found = shutil.which("java")
    if not found or not shutil.which("javac"):
        advice = "a JDK of 11 or newer brings it, on Debian default-jdk-headless"
        lack("the JDK's HTTP client is not installed", advice, "CLIENTS")
    return found


def spark() -> Path:
    """Return the folder from which PySpark can be imported."""
    folder = PROJECT / ".spark"
    if not (folder / "ready").is_file() or not shutil.which("java"):
        lack("PySpark or Java is not installed", "`make spark` installs both on Debian and Ubuntu", "SPARK")
    return folder


def uv() -> str:
    """Return the path of uv, if it reaches a package index."""
    found = shutil.which("uv", path=os.pathsep.join([os.environ["PATH"], str(PROJECT / ".uv" / "bin")]))
    if not found:
        lack("uv is not installed", "`make setup` installs it where it is missing", "INSTALL")
    ask = [found, "pip", "compile", "--quiet", "--no-cache", "-"]
    patience = {"UV_HTTP_TIMEOUT": "10", "UV_HTTP_RETRIES": "0"}
    done = subprocess.run(
        ask, input="packaging", env={**os.environ, **patience}, capture_output=True, text=True, check=False
    )
    if done.returncode:
        lack("no package index answers", "connect this machine to one, as `make setup` needs it", "INSTALL")
    return found


def _shown(path: Path) -> Path:
    return path.relative_to(PROJECT) if path.is_relative_to(PROJECT) else path
