"""The program of a group's pod with small steps: what it passes on, what it retries, how it ends."""

import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from kfp import compiler, dsl, kubernetes
from kfp.dsl.base_component import BaseComponent

from kubeloop import config, failures
from kubeloop.failures import Failure
from kubeloop.stores.bucket import Bucket
from pipelines import grouping
from pipelines.plan import Plan
from tests.pipelines.launcher import Cluster, Done, PodError

Object = dict[str, Any]

HEAD = """
from typing import NamedTuple
from kfp import dsl
step = lambda function: dsl.component(function, base_image="image:1", install_kfp_package=False)
"""
COMPONENTS = {
    "make_values": '''
@step
def make_values(name: str, text: dsl.OutputPath(str), flag: dsl.OutputPath(bool), table: dsl.Output[dsl.Dataset]
) -> NamedTuple("Outputs", number=int, share=float, items=list, known=dict):
    """Make a value of each type."""
    import logging
    from pathlib import Path
    logging.getLogger("kubeloop.steps.stages").info("six values and a table")
    logging.getLogger("great_expectations").info("skipping a closure")
    Path(text).write_text(f"hello {name}\\n")
    Path(flag).write_text("True")
    Path(table.path).mkdir()
    (Path(table.path) / "rows.txt").write_text(name)
    table.metadata["rows"] = 1
    return 3, 0.5, ["a", 1], {"b": {"c": None}}
''',
    "read_values": '''
@step
def read_values(
    text: str, flag: bool, number: int, share: float, items: list, known: dict, table: dsl.Input[dsl.Dataset],
    page: dsl.Output[dsl.HTML], limit: int = 7,
) -> str:
    """Say what came."""
    import json
    from pathlib import Path
    Path(page.path).write_text("<p>")
    rows = (Path(table.path) / "rows.txt").read_text()
    found = [text, flag, number, share, items, known, rows, table.metadata["rows"], limit]
    assert [type(item) for item in found[:6]] == [str, bool, int, float, list, dict], found
    return json.dumps(found)
''',
    "fall_over": '''
@step
def fall_over(folder: str, how: str, times: int, out: dsl.Output[dsl.Dataset]) -> bool:
    """Fail a number of times, in one of several ways."""
    import os, signal, time
    from pathlib import Path
    from kubeloop.config import ConfigError
    had = list(Path(out.path).parent.glob("out*")) + list(Path(out.path).parent.glob("*.part"))
    assert not had, f"an earlier attempt has left {had}"
    Path(out.path).mkdir()
    Path(out.path).with_name("rows.part").write_text("half")
    tries = Path(folder) / "tries"
    with tries.open("a") as file:
        file.write(f"{time.monotonic()}\\n")
    if len(tries.read_text().splitlines()) > times:
        Path(out.path).with_name("rows.part").unlink()
        return True
    match how:
        case "error": raise ConnectionError("MLflow is away")
        case "lasting": raise ConfigError("name: is missing")
        case "killed": os.kill(os.getpid(), signal.SIGKILL)
        case "exit": raise SystemExit(3)
        case "sleep": time.sleep(600)
''',
    "act_upon": '''
@step
def act_upon(folder: str) -> NamedTuple("Outputs", a=int, b=str, c=list, d=dict, e=float, f=bool):
    """Leave a mark."""
    from pathlib import Path
    (Path(folder) / "acted").touch()
    return 1, "x", [1], {"y": 1}, 1.5, True
''',
}


@pytest.fixture
def cluster(tmp_path: Path, project: Path) -> Cluster:
    """A cluster whose image contains the small steps."""
    home = tmp_path / "image"
    (home / "components").mkdir(parents=True)
    (home / "components" / "__init__.py").touch()
    for name, source in COMPONENTS.items():
        (home / "components" / f"{name}.py").write_text(HEAD + source)
    places = os.pathsep.join([str(home), str(project)])
    variables = os.environ | {
        "PYTHONPATH": places,
        "KUBELOOP_HOME": str(home),
        "KUBELOOP_STATE": str(tmp_path / "state"),
    }
    return Cluster(tmp_path, home, variables)


@pytest.fixture
def steps(cluster: Cluster) -> Object:
    """The small steps, as a pipeline imports them."""
    found: Object = {}
    for name in COMPONENTS:
        # kfp reads a component's source from its file.
        path = cluster._home / "components" / f"{name}.py"
        module: Object = {"__name__": f"small.{name}"}
        exec(compile(path.read_text(), str(path), "exec"), module)  # noqa: S102
        found[name] = module[name]
    return found


def grouped(pipeline: BaseComponent, folder: Path, how: str = "run") -> Object:
    """Compile a pipeline and group it."""
    path = folder / "pipeline.yaml"
    compiler.Compiler().compile(pipeline, str(path))
    spec, *platform = yaml.safe_load_all(path.read_text())
    return grouping.group(spec, platform[0], how, "whole")[0]


def plain(task: dsl.PipelineTask, **settings: Any) -> None:
    kubernetes.set_image_pull_policy(task, "Always")
    task.set_caching_options(False)
    if settings:
        task.set_retry(**settings)


def falling(steps: Object, folder: Path, how: str, times: int, retries: int, grouping: str = "run") -> Object:
    """A pipeline whose second step fails several times."""

    @dsl.pipeline(name="falling")
    def pipeline(name: str = "x"):
        first = steps["make_values"](name=name)
        second = steps["fall_over"](folder=str(folder), how=how, times=times).after(first)
        plain(first)
        plain(second, **({"num_retries": retries, "backoff_duration": "1s", "backoff_factor": 2.0} if retries else {}))

    return grouped(pipeline, folder, grouping)


def run(cluster: Cluster, spec: Object, **given: Any) -> Done:
    return cluster.run(spec, given, "job-1")


def tries(folder: Path) -> list[float]:
    return [float(line) for line in (folder / "tries").read_text().splitlines()]


@pytest.mark.parametrize("how", ["step", "run"])
def test_values_of_each_type_and_folders_go_from_step_to_step(
    cluster: Cluster, steps: Object, tmp_path: Path, how: str
) -> None:
    @dsl.pipeline(name="values")
    def pipeline(name: str = "Ann") -> str:
        made = steps["make_values"](name=name)
        names = ("text", "flag", "number", "share", "items", "known", "table")
        read = steps["read_values"](**{key: made.outputs[key] for key in names})
        plain(made)
        plain(read)
        return read.outputs["Output"]

    done = run(cluster, grouped(pipeline, tmp_path, how))
    found = ["hello Ann\n", True, 3, 0.5, ["a", 1], {"b": {"c": None}}, "Ann", 1, 7]
    assert json.loads(done.result["Output"]) == found
    if how == "step":
        assert list(done.states) == ["make-values", "read-values"]
        return
    assert done.parameters["whole"].keys() == {
        *(f"make-values-{name}" for name in ("text", "flag", "number", "share", "items", "known")),
        "read-values-Output",
    }
    artifacts = done.artifacts["whole"]
    assert artifacts["make-values-table"]["metadata"] == {"rows": 1}
    assert artifacts["read-values-page"]["type"]["schemaTitle"] == "system.HTML"
    assert cluster.path(artifacts["read-values-page"]).read_text() == "<p>"
    log = done.logs["whole"]
    assert "INFO six values and a table" in log
    assert "closure" not in log, "a reader of a run does not need a library's internal messages"
    assert [line for line in log.splitlines() if line.startswith("==== ") and "done" not in line] == [
        "==== make-values (1 of 2)",
        "==== read-values (2 of 2)",
    ]
    assert log.count(": done in ") == 2


@pytest.mark.parametrize("wanted", [True, False])
def test_a_step_that_is_not_wanted_leaves_outputs_that_the_launcher_takes(
    cluster: Cluster, steps: Object, tmp_path: Path, wanted: bool
) -> None:
    marks = tmp_path / "marks"
    marks.mkdir()

    @dsl.pipeline(name="choice")
    def pipeline(name: str = "x", go: bool = True):
        made = steps["make_values"](name=name)
        with dsl.If(go == True):  # noqa: E712
            acted = steps["act_upon"](folder=str(marks)).after(made)
        plain(made)
        plain(acted)

    spec = grouped(pipeline, tmp_path)
    assert list(spec["root"]["dag"]["tasks"]) == ["whole"]
    done = run(cluster, spec, go=wanted)
    made = {name.removeprefix("act-upon-"): value for name, value in done.parameters["whole"].items() if "act" in name}
    empty = {"a": 0, "b": "", "c": [], "d": {}, "e": 0.0, "f": False}
    assert made == ({"a": 1, "b": "x", "c": [1], "d": {"y": 1}, "e": 1.5, "f": True} if wanted else empty)
    assert (marks / "acted").exists() is wanted
    assert ("skipped" in done.logs["whole"]) is not wanted


def test_what_only_comes_after_another_step_stays_after_it(steps: Object, tmp_path: Path) -> None:
    @dsl.pipeline(name="order")
    def pipeline(name: str = "x", go: bool = True):
        made = steps["make_values"](name=name)
        with dsl.If(go == True):  # noqa: E712
            first = steps["act_upon"](folder="a")
            second = steps["act_upon"](folder="b").after(made)
            first.after(second)
        for task in (made, first, second):
            plain(task)

    spec = grouped(pipeline, tmp_path)
    plan = Plan.parse(spec["deploymentSpec"]["executors"]["exec-whole"]["container"]["args"][1])
    assert [member.step for member in plan.members] == ["make-values", "act-upon-2", "act-upon"]


@pytest.mark.parametrize(
    ("how", "way", "said", "times"),
    [
        ("step", "error", "MLflow is away", 1),
        ("run", "error", "MLflow is away", 2),
        ("run", "killed", "its process was ended by SIGKILL; does it need more memory?", 1),
        ("run", "exit", "its process ended with status", 1),
    ],
)
def test_a_passing_error_is_tried_again_and_nothing_is_left_of_it(
    cluster: Cluster, steps: Object, tmp_path: Path, way: str, said: str, how: str, times: int
) -> None:
    done = run(cluster, falling(steps, tmp_path, way, times=times, retries=times, grouping=how))
    task = "whole" if how == "run" else "fall-over"
    assert f"==== fall-over: attempt 1 of {times + 1} failed: {said}" in done.logs[task]
    began = tries(tmp_path)
    assert len(began) == times + 1
    for number, (before, after) in enumerate(itertools.pairwise(began)):
        assert f"trying again in {2**number} s" in done.logs[task], "the wait doubles"
        assert after - before > 2**number
    # The steps before it are not repeated.
    assert done.logs[task].count("==== make-values (1 of 2): done") == (how == "run")


@pytest.mark.parametrize("retries", [0, 1])
def test_the_last_error_ends_the_pod(cluster: Cluster, steps: Object, tmp_path: Path, retries: int) -> None:
    with pytest.raises(PodError, match=r"fall-over .2 of 2.: failed after .* MLflow is away") as caught:
        run(cluster, falling(steps, tmp_path, "error", times=9, retries=retries))
    assert len(tries(tmp_path)) == retries + 1
    assert "Traceback" in str(caught.value), "the log shows the traceback"


@pytest.fixture
def told(cluster: Cluster, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Failure | None]:
    """Give the pods a bucket, and return a function that reads the failure that they report."""
    monkeypatch.setenv("KUBELOOP_BUCKET", s3.bucket)
    monkeypatch.setenv("KUBELOOP_RUN_ID", "run-1")
    names = ("KUBELOOP_BUCKET", "KUBELOOP_RUN_ID", *s3.environ)
    cluster._variables = dict(cluster._variables) | {name: os.environ[name] for name in names}
    bucket = Bucket.open(config.settings(tmp_path))
    return lambda: failures.read(bucket, "run-1")


@pytest.mark.parametrize(
    ("way", "expected", "attempts"),
    [
        ("lasting", Failure("name: is missing", lasting=True, step="fall-over"), 1),
        ("error", Failure("MLflow is away", lasting=False, step="fall-over"), 2),
        ("killed", Failure("its process was ended by SIGKILL; does it need more memory?", False, "fall-over"), 2),
    ],
)
def test_the_trigger_is_told_and_a_lasting_error_is_not_tried_again(
    cluster: Cluster, steps: Object, tmp_path: Path, told: Any, way: str, expected: Failure, attempts: int
) -> None:
    with pytest.raises(PodError):
        run(cluster, falling(steps, tmp_path, way, times=9, retries=1))
    assert told() == expected
    assert len(tries(tmp_path)) == attempts


def test_a_failure_that_a_retry_fixed_is_not_reported(
    cluster: Cluster, steps: Object, tmp_path: Path, told: Any
) -> None:
    run(cluster, falling(steps, tmp_path, "error", times=1, retries=1))
    assert told() is None


@pytest.mark.parametrize("end", [signal.SIGTERM, signal.SIGKILL])
def test_a_pod_that_is_ended_ends_its_step_at_once(
    cluster: Cluster, steps: Object, tmp_path: Path, end: signal.Signals
) -> None:
    spec = falling(steps, tmp_path, "sleep", times=9, retries=3, grouping="step")
    container = spec["deploymentSpec"]["executors"]["exec-fall-over"]["container"]
    given = {
        "inputs": {"parameterValues": {"folder": str(tmp_path), "how": "sleep", "times": 9}},
        "outputs": {
            "parameters": {"Output": {"outputFile": str(tmp_path / "out/Output")}},
            "artifacts": {"out": {"artifacts": [{"uri": str(tmp_path / "made" / "out")}]}},
            "outputFile": str(tmp_path / "out.json"),
        },
    }
    command = [item.replace("{{$}}", json.dumps(given)) for item in (*container["command"], *container["args"])]
    pod = subprocess.Popen([sys.executable, *command[1:]], cwd=cluster._home, env=dict(cluster._variables))
    deadline = time.monotonic() + 60
    while not (tmp_path / "tries").is_file():
        assert time.monotonic() < deadline
        assert pod.poll() is None
        time.sleep(0.02)
    (child,) = children(pod.pid)
    began = time.monotonic()
    pod.send_signal(end)
    assert pod.wait(timeout=10) == -end
    while Path(f"/proc/{child}/stat").exists() and " Z " not in Path(f"/proc/{child}/stat").read_text():
        assert time.monotonic() < began + 5, "the step outlives its pod"
        time.sleep(0.02)
    assert len(tries(tmp_path)) == 1
    assert not (tmp_path / "out.json").exists()


def children(process: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
