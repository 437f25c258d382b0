from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from kubeloop import names
from kubeloop.delivery.manifest import ModelRef, inference_service
from kubeloop.monitoring import versions
from kubeloop.monitoring.store import Store
from kubeloop.monitoring.versions import NodeError, VersionError, Versions

ADDRESS = "/apis/serving.kserve.io/v1beta1/namespaces/kubeloop/inferenceservices/flights"


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    found = Store(f"sqlite:///{tmp_path / 'monitor.db'}")
    yield found
    found.close()


def manifest(world: ModuleType, stable: str, canary: str | None = None, folder: Path = Path("/models")) -> Any:
    def model(version: str) -> ModelRef:
        return ModelRef(version, (folder / version).as_uri(), "0" * 64, "run")

    return inference_service(
        world.loop(),
        model(stable),
        logger_url="http://collector",
        feature_dir="features",
        canary=model(canary) if canary else None,
        canary_percent=10 if canary else 0,
    )


def test_a_manifest_names_the_model_and_its_canary(world: ModuleType) -> None:
    found = versions.served(manifest(world, "3", "4"))
    assert found == {"3": "file:///models/3", "4": "file:///models/4"}


@pytest.mark.parametrize("keep", ["annotation", "argument", "service"])
def test_the_version_is_found_wherever_it_is_said(world: ModuleType, keep: str) -> None:
    found = manifest(world, "3")
    predictor = found["spec"]["predictor"]
    if keep != "annotation":
        predictor.pop("annotations")
    if keep != "argument":
        predictor["model"].pop("args")
    if keep == "service":  # as an older release wrote it
        found["metadata"]["annotations"][names.VERSION] = "3"
    assert versions.served(found) == {"3": "file:///models/3"}


def test_a_version_that_is_gone_is_remembered(world: ModuleType, store: Store, references: Path, server: Any) -> None:
    server.replies[ADDRESS] = (200, manifest(world, "1", folder=references))
    found = Versions(store, "flights", "kubeloop", node_url=server.url)
    found.meet({"1"})
    found.meet({"1"})
    assert len(server.received) == 1
    server.replies[ADDRESS] = (200, manifest(world, "2", folder=references))
    assert found.reference("1").model_version == "1"
    assert found.reference("2").model_version == "2"
    found.close()
    server.replies[ADDRESS] = (500, {})
    again = Versions(store, "flights", "kubeloop", node_url=server.url)
    assert again.reference("1").model_version == "1"
    with pytest.raises(NodeError, match="check --node-url"):
        again.reference("3")
    again.close()


@pytest.mark.parametrize("version", ["9", "..", "", "../1", "unknown"])
def test_a_version_that_nobody_knows_is_named(store: Store, references: Path, version: str) -> None:
    found = Versions(store, "flights", "kubeloop", references=references)
    with pytest.raises(VersionError, match=r"pass --node-url or --references"):
        found.reference(version)
    found.close()


@pytest.mark.parametrize(
    ("uri", "message"), [("s3://bucket/model", "not on this machine"), ("file:///nowhere", "does not exist")]
)
def test_a_reference_that_cannot_be_read_says_what_to_do(store: Store, uri: str, message: str) -> None:
    store.remember("flights", "1", uri)
    found = Versions(store, "flights", "kubeloop")
    with pytest.raises(VersionError, match=message):
        found.reference("1")
    found.close()


def test_a_storage_uri_is_a_path_or_a_file(tmp_path: Path) -> None:
    odd = tmp_path / "a b"
    assert versions.folder(odd.as_uri()) == versions.folder(str(odd)) == odd
