"""The serving runtimes: an InferenceService for each is accepted, and Triton's start lays out the model folder."""

import hashlib
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.delivery import pods as serving_pods
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.charts.conftest import PROJECT, VALUES, Object, Render, named
from tests.control_plane.plane import CommandError, ControlPlane
from tests.kserve import cases, controller
from tests.kserve.defaults import defaulted

EXAMPLE = PROJECT / "manifests" / "examples" / "language-model.yaml"
MODEL = b"an ONNX graph"
DIGEST = hashlib.sha256(MODEL).hexdigest()
PROGRAM = """#!/bin/sh
echo "$@"
cd "$(dirname "$0")/../tmp/repository" && find . -name model.onnx -exec sh -c 'echo "$1 $(cat "$1")"' - {} ';'
"""
"""Runs in place of `tritonserver`: it records its arguments, and the repository as Triton would read it."""


def service(runtime: str | None, namespace: str = "kubeloop", sha256: str = DIGEST, **delivery: Any) -> Object:
    loop = Loop.model_validate(
        {
            "name": "flights",
            "source": {"tables": {"events": {"available_at": "at"}}},
            "features": {"service": "flights_v1"},
            "delivery": {"namespace": namespace, "applier": "cluster", "runtime": runtime} | delivery,
        }
    )
    model = ModelRef("7", "s3://models/7", sha256, "run-7")
    return serving_pods.place(loop, inference_service(loop, model, logger_url="http://c/", feature_dir="/project"))


def accepted(plane: ControlPlane, manifest: Object) -> None:
    apply = ("apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-")
    plane.kubectl(*apply, input=yaml.safe_dump(manifest))


@pytest.mark.parametrize(
    "runtime",
    [
        None,
        names.RUNTIME,
        names.runtime(names.RUNTIMES, "onnx-gpu"),
        names.runtime(names.RUNTIMES, "triton"),
        "kserve-mlserver",
    ],
)
def test_a_service_on_each_runtime_is_accepted(control_plane: ControlPlane, namespace: str, runtime: str) -> None:
    manifest = service(runtime, namespace, predictor={"gpu": {}})
    accepted(control_plane, manifest)
    manifest["spec"]["predictor"]["model"]["flags"] = []
    with pytest.raises(CommandError, match="flags"):
        accepted(control_plane, manifest)


def test_a_runtime_supports_what_its_services_ask_for(render: Render) -> None:
    """What KServe's webhook looks up: the model format, its version and the protocol."""
    objects = render(VALUES["everything"])
    asking = [
        service(name)
        for name in (names.RUNTIME, names.runtime(names.RUNTIMES, "onnx-gpu"), names.runtime(names.RUNTIMES, "triton"))
    ]
    for manifest in (*asking, yaml.safe_load(EXAMPLE.read_text())):
        model = manifest["spec"]["predictor"]["model"]
        spec = named(objects, "ServingRuntime", model["runtime"], "kubeloop")["spec"]
        assert model["modelFormat"] in [
            {"name": item["name"], "version": item["version"]} for item in spec["supportedModelFormats"]
        ]
        assert model.get("protocolVersion", "v1") in spec["protocolVersions"]


def test_the_example_of_a_language_model_is_accepted(
    control_plane: ControlPlane, namespace: str, restricted_namespace: str, render: Render
) -> None:
    example = yaml.safe_load(EXAMPLE.read_text())
    accepted(control_plane, example | {"metadata": example["metadata"] | {"namespace": namespace}})
    predictor = example["spec"]["predictor"]
    runtime = named(render(VALUES["everything"]), "ServingRuntime", names.runtime(names.RUNTIMES, "vllm"), "kubeloop")[
        "spec"
    ]
    pod = {"containers": runtime["containers"], "volumes": runtime["volumes"]}
    pod["securityContext"] = predictor["securityContext"]
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "assistant"}, "spec": pod}
    path = f"/api/v1/namespaces/{restricted_namespace}/pods?dryRun=All&fieldValidation=Strict"
    control_plane.request("POST", path, body)


# The chart has no runtime for "another server".
@pytest.mark.parametrize(
    "case", [case for case, _ in cases.services() if "laptop" not in case and "another server" not in case]
)
def test_what_kserve_makes_of_a_service_is_admitted(
    control_plane: ControlPlane, restricted_namespace: str, render: Render, case: str
) -> None:
    """Deployments, Services and autoscalers pass their schemas, and each pod passes Pod Security "restricted"."""
    manifest = defaulted(dict(cases.services(restricted_namespace))[case])
    runtime = manifest["spec"]["predictor"]["model"]["runtime"]
    control_plane.kubectl("-n", restricted_namespace, "create", "serviceaccount", "kubeloop-serving")
    spec = named(render(VALUES["everything"]), "ServingRuntime", runtime, "kubeloop")["spec"]
    for item in controller.objects(manifest, spec):
        accepted(control_plane, item)
        if item["kind"] == "Deployment":
            template = item["spec"]["template"]
            body = {"apiVersion": "v1", "kind": "Pod"} | template
            body["metadata"] = template["metadata"] | {"name": item["metadata"]["name"]}
            path = f"/api/v1/namespaces/{restricted_namespace}/pods?dryRun=All&fieldValidation=Strict"
            control_plane.request("POST", path, body)


@pytest.mark.parametrize(
    ("delivery", "limits"),
    [
        ({"gpu": {}}, {"nvidia.com/gpu": "1"}),
        ({"gpu": {"count": 2}}, {"nvidia.com/gpu": "2"}),
        ({"gpu": {"resource": "nvidia.com/mig-1g.10gb"}}, {"nvidia.com/gpu": "0", "nvidia.com/mig-1g.10gb": "1"}),
    ],
)
@pytest.mark.parametrize(
    "runtime", [names.runtime(names.RUNTIMES, "onnx-gpu"), names.runtime(names.RUNTIMES, "triton")]
)
def test_a_pod_asks_for_the_accelerators_that_the_loop_names(
    render: Render, runtime: str, delivery: Object, limits: Object
) -> None:
    manifest = defaulted(service(runtime, predictor={"memory": "8Gi"} | delivery))
    spec = named(render(VALUES["everything"]), "ServingRuntime", runtime, "kubeloop")["spec"]
    made = {(item["kind"], item["metadata"]["name"]): item for item in controller.objects(manifest, spec)}
    (container,) = made["Deployment", "flights-predictor"]["spec"]["template"]["spec"]["containers"]
    assert container["resources"]["limits"] == {"memory": "8Gi"} | limits
    if runtime == names.runtime(names.RUNTIMES, "triton"):
        assert container["args"][-3:] == ["--name=flights", "--version=7", f"--sha256={DIGEST}"]


class Triton:
    """The container of Triton's runtime, with `/mnt` and `/tmp` in a folder and another program in place of Triton."""

    def __init__(self, container: Object, root: Path) -> None:
        self.container = container
        self.root = root
        for part in ("bin", "mnt/models", "tmp"):
            (root / part).mkdir(parents=True)
        (root / "mnt/models/model.onnx").write_bytes(MODEL)
        (root / "bin/tritonserver").write_text(PROGRAM)
        (root / "bin/tritonserver").chmod(0o755)

    def start(self, args: list[str]) -> "subprocess.CompletedProcess[str]":
        """Run the container's command with the runtime's arguments, then the service's, as KServe joins them."""
        command = [*self.container["command"], *self.container["args"], *args]
        moved = [re.sub(r"/(?=(mnt|tmp)/)", f"{self.root}/", part) for part in command]
        env = {"PATH": f"{self.root / 'bin'}:{os.environ['PATH']}"}
        return subprocess.run(moved, env=env, capture_output=True, text=True, timeout=20, check=False)


@pytest.fixture
def triton(render: Render, tmp_path: Path) -> Triton:
    runtime = named(render(VALUES["everything"]), "ServingRuntime", names.runtime(names.RUNTIMES, "triton"), "kubeloop")
    (container,) = runtime["spec"]["containers"]
    return Triton(container, tmp_path)


def test_triton_finds_the_model_where_it_looks(triton: Triton) -> None:
    args = service(names.runtime(names.RUNTIMES, "triton"))["spec"]["predictor"]["model"]["args"]
    told = [f"--model-repository={triton.root / 'tmp' / 'repository'}", *triton.container["args"]]
    for _ in range(2):  # a container that restarts finds the folder it laid out before
        done = triton.start(args)
        assert (done.returncode, done.stderr) == (0, "")
        flags, tree = done.stdout.splitlines()[-2:]
        assert flags.split() == told
        # Otherwise Triton reads the rows as a batch of at most 4 and expects each input as [rows, 1].
        assert "--backend-config=default-max-batch-size=0" in told
        assert tree == f"./flights/7/model.onnx {MODEL.decode()}"


@pytest.mark.parametrize(
    ("args", "why"),
    [
        (["--name=flights", "--version=7", f"--sha256={'0' * 64}"], "did NOT match"),
        (["--name=flights", "--version=7"], "sha256: is missing in the InferenceService's predictor.model.args"),
        (["--name=flights", f"--sha256={DIGEST}"], "version: is missing"),
        ([f"--sha256={DIGEST}", "--version=7"], "name: is missing"),
    ],
)
def test_triton_serves_no_other_model_and_none_without_a_name(triton: Triton, args: list[str], why: str) -> None:
    done = triton.start(args)
    assert done.returncode != 0
    assert why in done.stderr
    assert not (triton.root / "tmp" / "repository").exists()


def test_kubernetes_and_kserve_leave_the_start_as_it_is(triton: Triton) -> None:
    """Kubernetes replaces $(VARIABLE), and KServe replaces text in double braces."""
    text = "\n".join([*triton.container["command"], *triton.container["args"]])
    assert "$(" not in text
    assert "{{" not in text
