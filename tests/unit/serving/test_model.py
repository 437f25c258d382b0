"""Loading a model: what is served, and what is refused with a reason."""

import hashlib
import json
import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from kubeloop.serving.model import ModelError, load
from kubeloop.serving.tensors import ProtocolError


def test_a_model_folder_is_loaded_checked_and_warm(models: Path) -> None:
    folder = models / "columns"
    digest = hashlib.sha256((folder / "model.onnx").read_bytes()).hexdigest()
    model = load(folder.as_uri(), sha256=digest.upper(), threads=2)
    assert model.sha256 == digest
    assert 0 < model.call_s < 1
    assert [spec.metadata() for spec in model.inputs.values()] == [
        {"name": "distance", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "hour", "datatype": "FP32", "shape": [-1, 1]},
        {"name": "carrier", "datatype": "BYTES", "shape": [-1, 1]},
    ]
    assert [spec.metadata() for spec in model.outputs.values()] == [
        {"name": "probability", "datatype": "FP32", "shape": [-1]}
    ]
    got = model.predict(
        {
            "distance": np.float32([[1000], [np.nan]]),
            "hour": np.float32([[1], [1]]),
            "carrier": np.array([["AA"], ["AA"]], object),
        }
    )
    assert got["probability"] == pytest.approx([1 / (1 + math.exp(-2)), math.nan], nan_ok=True)


def test_only_the_outputs_asked_for_are_computed(models: Path) -> None:
    model = load(models / "matrix")
    row = {"input": np.ones((1, 30), np.float32)}
    assert list(model.predict(row)) == ["total", "positive"]
    assert model.predict(row, ("positive",))["positive"].tolist() == [True]


def test_a_url_with_spaces_names_its_folder(models: Path, tmp_path: Path) -> None:
    folder = tmp_path / "a model"
    shutil.copytree(models / "matrix", folder)
    assert "%20" in folder.as_uri()
    assert load(folder.as_uri()).inputs


def _card(folder: Path, **changes: Any) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


BREAKAGES: dict[str, tuple[Any, str]] = {
    "no file": (lambda folder: (folder / "model.onnx").unlink(), "--model-dir names a folder with model.onnx"),
    "no model": (lambda folder: (folder / "model.onnx").write_bytes(b"not a model"), "cannot load"),
    "card of another model": (lambda folder: _card(folder, sha256="0" * 64), "describes a model with SHA-256 000"),
    "card without features": (lambda folder: _card(folder, features=None), "is not a model card"),
    "card with an unknown kind": (
        lambda folder: _card(folder, features=[{"name": "hour", "kind": "?"}]),
        "is not a model card",
    ),
    "card no JSON": (lambda folder: (folder / "model.json").write_text("{"), "model.json is damaged: it is not JSON"),
    "features differ": (
        lambda folder: _card(
            folder, features=[{"name": "distance", "kind": "numeric"}, {"name": "carrier", "kind": "numeric"}]
        ),
        "disagree on carrier, hour",
    ),
}


@pytest.mark.parametrize(("damage", "words"), BREAKAGES.values(), ids=BREAKAGES)
def test_a_broken_folder_is_refused(models: Path, tmp_path: Path, damage: Any, words: str) -> None:
    shutil.copytree(models / "columns", tmp_path / "m")
    damage(tmp_path / "m")
    with pytest.raises(ModelError) as caught:
        load(tmp_path / "m")
    assert words in str(caught.value)


def test_another_digest_than_demanded_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match="not the requested abc; refusing"):
        load(models / "columns", sha256="abc")


@pytest.mark.parametrize("uri", ["s3://bucket/model", "mlflow://model", "file://elsewhere/model"])
def test_a_model_elsewhere_is_refused(uri: str) -> None:
    with pytest.raises(ModelError, match="is not on this machine"):
        load(uri)


def _save(folder: Path, node: onnx.NodeProto, inputs: list[Any], outputs: list[Any]) -> Path:
    graph = helper.make_graph([node], "g", inputs, outputs)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx"
    )
    return folder


def test_an_output_that_json_cannot_carry_is_refused(tmp_path: Path) -> None:
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n"])
    y = helper.make_tensor_sequence_value_info("y", TensorProto.FLOAT, None)
    _save(tmp_path, helper.make_node("SequenceConstruct", ["x"], ["y"]), [x], [y])
    with pytest.raises(ModelError, match="zipmap=False"):
        load(tmp_path)


def test_a_model_that_cannot_run_is_refused(tmp_path: Path) -> None:
    inputs = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("a", 2), ("b", 3))
    ]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    _save(tmp_path, helper.make_node("Add", ["a", "b"], ["y"]), inputs, [out])
    with pytest.raises(ModelError, match=r"cannot load|not run on one row"):
        load(tmp_path)


def test_free_inner_dimensions_are_checked_by_the_model(tmp_path: Path) -> None:
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", f"{name}s"]) for name in ("a", "b")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    _save(tmp_path, helper.make_node("Add", ["a", "b"], ["y"]), inputs, [out])
    model = load(tmp_path)
    with pytest.raises(ProtocolError, match="cannot run on these inputs") as caught:
        model.predict({"a": np.ones((1, 2), np.float32), "b": np.ones((1, 3), np.float32)})
    assert caught.value.status == 400


@pytest.mark.parametrize("device", ["cuda", "tensorrt"])
def test_an_accelerator_that_is_not_there_is_an_error(models: Path, device: Any) -> None:
    """Never a silent fallback to the processor: a pod with a GPU would waste it."""
    with pytest.raises(ModelError, match=rf"ExecutionProvider for --device {device}, only .*CPU.*; use the image"):
        load(models / "matrix", device=device)
