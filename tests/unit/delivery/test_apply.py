"""How the applier is chosen, and what it says when it has no node to apply to."""

import json
import socket
from pathlib import Path

import pytest

from kubeloop import access, config
from kubeloop.config import Loop, Settings
from kubeloop.delivery import DeliveryError, local
from kubeloop.delivery import apply as choose
from tests.cluster.conftest import build


def settings(folder: Path) -> Settings:
    return config.settings(folder, folder)


def loop(applier: str, **delivery: object) -> Loop:
    return Loop.model_validate(
        {
            "name": "flights",
            "source": {"tables": {"events": {"available_at": "at"}}},
            "features": {"service": "v1"},
            "delivery": {"applier": applier} | delivery,
        }
    )


def test_applies_to_the_node_that_the_services_file_names(kit):
    node = kit.node()
    place = settings(kit.folder)
    place.services_file.write_text(json.dumps({"node": {"url": node.url, "pid": node.process.pid}}))
    place.token_file.write_text(access.read(node.state / "token"))
    applied = choose.apply(loop("local"), kit.manifest(kit.model("v1")), place)
    assert (applied.name, applied.namespace, applied.generation) == ("flights", "kubeloop", 1)
    assert 0 < applied.seconds < 30
    assert local.status("kubeloop", "flights", node.url)["status"]["url"] == node.url


def test_the_applier_that_was_named_gets_the_manifest(tmp_path):
    with pytest.raises(DeliveryError, match="a delivery needs one InferenceService"):
        choose.apply(loop("cluster"), {}, settings(tmp_path))
    git = {"repository": f"{tmp_path}/none.git", "wait": False}
    with pytest.raises(DeliveryError, match=f"there is no repository at {tmp_path}/none.git"):
        choose.apply(loop("gitops", git=git), build("ml"), settings(tmp_path))


@pytest.mark.parametrize("content", [None, "{}", '{"collector": {"url": "http://x"}}'])
def test_without_a_node_it_says_how_to_start_one(tmp_path, content):
    place = settings(tmp_path)
    if content is not None:
        place.services_file.write_text(content)
    with pytest.raises(DeliveryError, match=r"local node is not running .*`kubeloop serve`"):
        choose.apply(loop("local"), {}, place)


def test_a_node_that_has_gone_is_named(tmp_path):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(DeliveryError, match=f"{address} does not answer .*start it with `kubeloop serve`"):
            local.status("kubeloop", "flights", address)


def test_a_refusal_carries_the_reason(kit):
    node = kit.node()
    manifest = kit.manifest(kit.model("v1"))
    manifest["spec"]["predictor"]["model"]["storageUri"] = "s3://bucket/model"
    with pytest.raises(DeliveryError, match=r"refuses flights: .*'s3://bucket/model' is not on this machine"):
        node.apply(manifest)
    with pytest.raises(DeliveryError, match="there is no inference service 'elephants'"):
        local.status("kubeloop", "elephants", node.url)


def test_waiting_has_an_end(kit):
    node = kit.node()
    with pytest.raises(DeliveryError, match=r"flights was not ready within 0.3 s: Starting"):
        node.apply(kit.manifest(kit.model("v1", hang=True)), timeout_s=0.3)
