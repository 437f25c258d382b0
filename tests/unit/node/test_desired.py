"""Reading a manifest: the result, and every way in which a manifest can be wrong."""

from pathlib import Path
from typing import Any

import pytest

from kubeloop.node.desired import Commands, Desired, ManifestError, read

COMMANDS = Commands(predictor=("py", "serve"), transformer=("py", "transform"), features=Path("features"))


def plan(manifest: Any) -> Desired:
    return read(manifest, COMMANDS, "http://127.0.0.1:1/_predictor")


def test_commands_carry_the_arguments_and_what_only_this_machine_knows(kit):
    desired = plan(kit.manifest(kit.model("v1"), serving={"timeout_s": 1.5}))
    predictor, transformer = desired.programs()
    assert predictor.command[:2] == ("py", "serve")
    assert predictor.command[-6:] == ("--model-dir", str(kit.folder / "models/v1"), "--port", "0", "--drain-s", "0")
    assert "--version=v1" in predictor.command
    assert (predictor.version, predictor.storage_uri, predictor.grace_s) == ("v1", kit.model("v1").uri, 5.0)
    assert transformer.command[:2] == ("py", "transform")
    assert transformer.command[-6:-4] == ("--predictor-url", "http://127.0.0.1:1/_predictor")
    assert (desired.logger_url, desired.timeout_s) == (kit.collector.url, 2.0)


def test_the_node_decides_where_a_program_listens(kit):
    manifest = kit.manifest(kit.model("v1"))
    for part in (manifest["spec"]["predictor"]["model"], manifest["spec"]["transformer"]["containers"][0]):
        part["args"] += ["--host=0.0.0.0", "--port=8080", "--drain-s=5"]
        part["env"] = [{"name": "PYTHONPATH", "value": "/theirs"}]
    assert plan(manifest).programs() == plan(kit.manifest(kit.model("v1"))).programs()


def test_the_default_gets_what_the_canary_leaves(kit):
    desired = plan(kit.manifest(kit.model("v1"), canary=kit.model("v2"), canary_percent=30))
    assert [(s.endpoint, s.percent, s.program.version) for s in desired.predictors] == [
        ("default", 70, "v1"),
        ("canary", 30, "v2"),
    ]


def test_a_plain_path_and_a_uri_name_the_same_folder(kit):
    manifest = kit.manifest(kit.model("with space/v1"))
    uri = manifest["spec"]["predictor"]["model"]["storageUri"]
    assert "%20" in uri
    first = plan(manifest).programs()[0].command
    manifest["spec"]["predictor"]["model"]["storageUri"] = str(kit.folder / "models" / "with space" / "v1")
    assert plan(manifest).programs()[0].command == first


CANARY = ("spec", "canary", 0)
MODEL = ("spec", "predictor", "model")
CONTAINER = ("spec", "transformer", "containers", 0)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("apiVersion",), "serving.kserve.io/v1alpha1", "apiVersion: "),
        (("metadata", "name"), "Flights!", "metadata.name: "),
        (("metadata", "namespace"), None, "metadata.namespace: "),
        ((*MODEL, "modelFormat", "name"), "sklearn", "modelFormat.name: Input should be 'onnx'"),
        ((*MODEL, "runtime"), "kserve-mlserver", "the local node runs kubeloop-onnx, not kserve-mlserver"),
        ((*MODEL, "storageUri"), "s3://bucket/7", "is not on this machine"),
        ((*MODEL, "storageUri"), "models/7", "is not on this machine"),
        ((*MODEL, "storageUri"), "file://elsewhere/7", "is not on this machine"),
        ((*MODEL, "storageUri"), "", "storageUri: "),
        ((*MODEL, "args"), [1], "args.0: "),
        ((*MODEL, "args"), ["--model-dir=/root"], "'--model-dir=/root' is not one of --device=…, --max-body-bytes=…"),
        ((*MODEL, "args"), ["--sha256"], "'--sha256' is not one of "),
        ((*MODEL, "args"), ["--thr=1"], "'--thr=1' is not one of "),
        ((*MODEL, "args"), ["--name=other"], "--name may not be 'other' on this machine"),
        ((*MODEL, "args"), ["--threads=many"], "--threads may not be 'many'"),
        ((*MODEL, "args"), ["--sha256=0"], "--sha256 may not be '0'"),
        (("spec", "predictor", "annotations", "kubeloop.io/model-version"), "../../x", "is not a name"),
        ((*CANARY, "predictor", "annotations", "kubeloop.io/model-version"), "a/b", "is not a name"),
        ((*CANARY, "predictor", "model", "args"), ["--version=../1"], "--version may not be '../1'"),
        ((*CONTAINER, "args"), ["--feature-dir=/tmp/theirs"], "--feature-dir may not be '/tmp/theirs'"),
        ((*CONTAINER, "args"), ["--feature-dir=features/../theirs"], "--feature-dir may not be"),
        ((*CONTAINER, "args"), ["--predictor-url=http://elsewhere"], "-url=http://elsewhere' is not one of"),
        ((*CONTAINER, "args"), ["--feature-service=--x"], "--feature-service may not be '--x'"),
        (("spec", "predictor", "logger", "url"), "collector", "logger.url: "),
        (("spec", "predictor", "logger", "mode"), "request", "logger.mode: Input should be 'all'"),
        (("spec", "predictor", "timeout"), 0, "timeout: "),
        ((*CONTAINER, "command"), ["sh", "-c", "true"], "the local node runs ['python'"),
        ((*CONTAINER, "command"), ["python", "-m", "pip"], "the local node runs ['python'"),
        (("spec", "transformer", "containers"), [], "containers: "),
        ((*CANARY, "trafficPercent"), 101, "trafficPercent: "),
        ((*CANARY, "predictor", "name"), "", "every canary needs its own predictor.name"),
        (("spec", "predictor", "name"), "canary", "every canary needs its own predictor.name"),
    ],
)
def test_what_it_does_not_understand_is_refused(kit, path, value, message):
    manifest = kit.manifest(kit.model("v1"), canary=kit.model("v2"), canary_percent=30)
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    with pytest.raises(ManifestError) as caught:
        plan(manifest)
    assert message in str(caught.value)


def test_canaries_may_not_ask_for_more_than_everything(kit):
    manifest = kit.manifest(kit.model("v1"), canary=kit.model("v2"), canary_percent=60)
    second = manifest["spec"]["canary"][0] | {"predictor": manifest["spec"]["canary"][0]["predictor"] | {"name": "two"}}
    manifest["spec"]["canary"].append(second)
    with pytest.raises(ManifestError, match="add up to 120, more than 100"):
        plan(manifest)
