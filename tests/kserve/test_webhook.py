"""The stand-ins for KServe's webhooks in front of a real API server."""

import copy

import pytest
import yaml

from tests.control_plane.plane import CommandError, ControlPlane
from tests.kserve import cases
from tests.kserve.webhook import VALIDATOR

SERVER_SIDE = ("apply", "--server-side", "--validate=strict", "-f", "-")


def test_the_server_stores_what_we_build_with_kserves_defaults(control_plane: ControlPlane, namespace: str) -> None:
    for case, service in cases.services(namespace):
        control_plane.kubectl(*SERVER_SIDE, "--dry-run=server", input=yaml.safe_dump(service))
        print(case)
    plain = dict(cases.services(namespace))["plain, as a laptop gets it"]
    control_plane.kubectl(*SERVER_SIDE, input=yaml.safe_dump(plain))
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{namespace}/inferenceservices/{cases.NAME}"
    found = control_plane.request("GET", path)
    assert found["metadata"]["annotations"]["modelFormat"] == "onnx"
    (container,) = found["spec"]["transformer"]["containers"]
    assert container["resources"]["limits"] == {"cpu": "1", "memory": "2Gi"}


def test_the_server_refuses_in_kserves_words(control_plane: ControlPlane, namespace: str) -> None:
    service = copy.deepcopy(dict(cases.services(namespace))["plain"])
    service["spec"]["predictor"]["model"]["name"] = "kserve-container"
    told = rf'admission webhook "{VALIDATOR}" denied the request: the .name. field is not allowed in standard predictor'
    with pytest.raises(CommandError, match=told):
        control_plane.kubectl(*SERVER_SIDE, input=yaml.safe_dump(service))


def test_two_runtimes_of_one_priority_are_refused(control_plane: ControlPlane, namespace: str) -> None:
    def runtime(name: str) -> str:
        spec = {
            "protocolVersions": ["v2"],
            "supportedModelFormats": [{"name": "onnx", "version": "1", "autoSelect": True, "priority": 2}],
            "containers": [{"name": "kserve-container", "image": "server:1"}],
        }
        head = {"apiVersion": "serving.kserve.io/v1alpha1", "kind": "ServingRuntime"}
        return yaml.safe_dump(head | {"metadata": {"name": name, "namespace": namespace}, "spec": spec})

    control_plane.kubectl(*SERVER_SIDE, input=runtime("first"))
    control_plane.kubectl(*SERVER_SIDE, input=runtime("first"))
    with pytest.raises(CommandError, match=r"same priority assigned .* onnx .*servingruntimes"):
        control_plane.kubectl(*SERVER_SIDE, input=runtime("second"))
