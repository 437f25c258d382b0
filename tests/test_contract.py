"""Promises about the whole project: imports have no side effects, and each environment suffices for its modules."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PYTHON = {
    "core": ROOT / ".venv/bin/python",
    "runtime": ROOT / ".venv-runtime/bin/python",
    "detector": ROOT / ".venv-detector/bin/python",
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
RUNTIME_MODULES = (
    "kubeloop.serving.server",
    "kubeloop.node.server",
    "kubeloop.payloads.collector",
    "kubeloop.monitoring.monitor",
    "kubeloop.trigger.server",
)
MODULES = sorted(
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in (ROOT / "src").rglob("*.py")
    # These run by path in another environment, where kubeloop is not imported, or in Alembic, which passes the
    # connection.
    if path.name not in ("worker.py", "env.py")
)

# What libraries do at import is out of scope.
LIBRARIES = (
    *(
        "aiohttp",
        "alembic.op",
        "asyncio",
        "concurrent.futures.thread",
        "ctypes.util",
        "duckdb",
        "email.parser",
        "feast.infra.offline_stores.duckdb",
        "http.server",
        "httpx",
        "kubernetes",
    ),
    *("jinja2", "lightgbm", "matplotlib", "multiprocessing", "numpy", "onnx", "onnxruntime", "optuna", "orjson"),
    *("pandas", "prometheus_client.core", "pyarrow.parquet", "pydantic", "rich.progress", "scipy.special"),
    *("scipy.stats", "sklearn.base", "sqlalchemy", "starlette.applications", "tempfile", "typer", "uvicorn"),
    *("uvicorn.protocols.http.httptools_impl", "uvloop", "yaml"),
)
WATCH = """
import importlib, os, sys
libraries, modules = (argument.split(",") for argument in sys.argv[1:])
for library in libraries:
    importlib.import_module(library)
seen, watching = [], False

def hook(event, arguments):
    if not watching:
        return
    if event == "open" and isinstance(arguments[1], str) and set(arguments[1]) & set("wax+"):
        seen.append(f"writes {arguments[0]}")
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "sqlite3.connect")):
        seen.append(event)

def reading(self, key, read=type(os.environ).__getitem__):
    frame = sys._getframe(1)
    while frame.f_back and frame.f_globals["__name__"] in ("os", "collections.abc", "_collections_abc"):
        frame = frame.f_back
    if watching and frame.f_globals["__name__"].startswith("kubeloop"):
        seen.append(f"reads {key}")
    return read(self, key)

sys.addaudithook(hook)
type(os.environ).__getitem__ = reading
watching = True
for module in modules:
    importlib.import_module(module)
watching = False
print("\\n".join(seen))
"""


def test_importing_anything_reads_no_environment_and_does_no_io() -> None:
    done = subprocess.run(
        [PYTHON["core"], "-c", WATCH, ",".join(LIBRARIES), ",".join(MODULES)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "\n"


@pytest.mark.parametrize("module", RUNTIME_MODULES)
def test_what_stays_up_needs_only_the_runtime_environment(module: str) -> None:
    done = subprocess.run(
        [PYTHON["runtime"], "-m", module, "--help"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "--port" in done.stdout


def bounds(extra: str) -> dict[str, str]:
    """Return the lower bound of each package that an extra names."""
    found = {}
    for line in PROJECT["project"]["optional-dependencies"][extra]:
        match = re.match(r"([A-Za-z0-9._-]+)(\[[^]]*\])?\s*(?:(==|>=)([0-9][^,;\s]*))?", line)
        assert match, line
        if match[1] != "kubeloop":
            assert match[4], f"{line} in extra {extra} has no lower bound"
            found[match[1]] = match[4]
    return found


@pytest.mark.parametrize("extra", sorted(PYTHON))
def test_every_package_is_at_or_above_its_floor(extra: str) -> None:
    floors = bounds(extra)
    code = (
        "import importlib.metadata, json, sys; "
        "print(json.dumps({name: importlib.metadata.version(name) for name in json.loads(sys.argv[1])}))"
    )
    done = subprocess.run(
        [PYTHON[extra], "-c", code, json.dumps(list(floors))], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    old = {name: (found[name], floor) for name, floor in floors.items() if parts(found[name]) < parts(floor)}
    assert not old


def parts(version: str) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", version)[:3]))


def test_development_tools_have_lower_bounds() -> None:
    for line in PROJECT["dependency-groups"]["dev"]:
        assert ">=" in line, line


def test_the_detector_shares_nothing_that_conflicts() -> None:
    code = "import numpy, pydantic; print(numpy.__version__, pydantic.VERSION)"
    done = subprocess.run([PYTHON["detector"], "-c", code], capture_output=True, text=True, check=True, timeout=60)
    numpy, pydantic = done.stdout.split()
    assert numpy.startswith("1.")
    assert pydantic.startswith("1.")


def test_no_environment_pulls_torch_or_cuda() -> None:
    code = "import importlib.metadata as m; print(' '.join(d.metadata['Name'].lower() for d in m.distributions()))"
    for python in PYTHON.values():
        done = subprocess.run([python, "-c", code], capture_output=True, text=True, check=True, timeout=60)
        names = set(done.stdout.split())
        assert not [name for name in names if name in ("torch", "tensorflow", "jax") or name.startswith("nvidia-")]


def test_the_lock_names_public_indexes_only() -> None:
    hosts = set(re.findall(r"https://([^/\"]+)", (ROOT / "uv.lock").read_text()))
    assert hosts == {"pypi.org", "files.pythonhosted.org"}


def test_the_lock_is_in_step_with_the_project() -> None:
    # If `make setup` found no uv, it installed one.
    uv = shutil.which("uv") or ROOT / ".uv/bin/uv"
    done = subprocess.run(
        [uv, "lock", "--check", "--offline"], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60
    )
    assert done.returncode == 0, f"{done.stderr}run `uv lock`"


def test_this_suite_runs_in_the_core_environment() -> None:
    assert Path(sys.prefix) == ROOT / ".venv"
