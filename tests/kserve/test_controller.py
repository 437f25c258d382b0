"""What KServe makes of our objects: only the expected Services, and pods as we intend them."""

import copy
from typing import Any

import pytest

from kubeloop.delivery import rollout
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.kserve import cases, controller
from tests.kserve.controller import UnservableError
from tests.kserve.defaults import defaulted

RUNTIME = {
    "supportedModelFormats": [{"name": "onnx", "version": "1"}],
    "protocolVersions": ["v2"],
    "annotations": {"prometheus.kserve.io/port": "8080"},
    "containers": [
        {
            "name": "kserve-container",
            "image": "server:1",
            "args": ["--name-of={{.Name}}"],
            "resources": {"limits": {"memory": "9Gi"}, "requests": {"cpu": "7"}},
            "ports": [{"name": "http1", "containerPort": 8080, "protocol": "TCP"}],
        }
    ],
    "volumes": [{"name": "tmp", "emptyDir": {}}],
}
BUILT = dict(cases.services())


def made(service: dict[str, Any], **options: Any) -> dict[tuple[str, str], Any]:
    found = controller.objects(defaulted(service), RUNTIME, **options)
    return {(item["kind"], item["metadata"]["name"]): item for item in found}


def test_there_is_a_service_for_each_component_and_none_of_the_services_own_name() -> None:
    found = made(BUILT["plain, 10 %"])
    assert {name for kind, name in found if kind == "Service"} == {
        "flights-predictor",
        "flights-canary-predictor",
        "flights-transformer",
    }
    assert controller.addresses(BUILT["plain"])["address"]["url"] == "http://flights-transformer.ml.svc.cluster.local"
    (port,) = found["Service", "flights-predictor"]["spec"]["ports"]
    assert (port["port"], port["targetPort"]) == (80, controller.AGENT_PORT), "what is logged goes through the agent"


def test_grpc_has_a_port_at_the_transformers_service_but_none_that_bypasses_the_agent() -> None:
    found = made(BUILT["grpc"])
    ports = {
        name: [port["port"] for port in item["spec"]["ports"]]
        for (kind, name), item in found.items()
        if kind == "Service"
    }
    assert ports == {"flights-predictor": [80], "flights-transformer": [80, 9000]}
    (_, grpc) = found["Service", "flights-transformer"]["spec"]["ports"]
    assert "grpc" in grpc["name"], "KServe reads HTTP/2 from the name"


def test_a_model_extends_its_runtime() -> None:
    service = copy.deepcopy(BUILT["gpu"])
    service["spec"]["predictor"]["model"]["name"] = ""  # as the API server stores it
    pod = made(service)["Deployment", "flights-predictor"]["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    assert container["name"] == "kserve-container"
    assert container["args"][:2] == ["--name-of=flights", "--name=flights"]
    assert container["resources"]["limits"] == {"memory": "8Gi", "nvidia.com/gpu": "2"}
    assert pod["spec"]["nodeSelector"] == {"pool": "gpu"}
    assert pod["spec"]["volumes"] == [{"name": "tmp", "emptyDir": {}}]
    assert pod["metadata"]["annotations"]["prometheus.kserve.io/port"] == "8080"


@pytest.mark.parametrize("case", [case for case in BUILT if case != "language model"])
def test_no_container_asks_for_more_than_its_limit(case: str) -> None:
    def cores(text: str) -> float:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)

    for (kind, _), item in made(BUILT[case]).items():
        for container in item["spec"]["template"]["spec"]["containers"] if kind == "Deployment" else ():
            resources = container["resources"]
            if limit := resources["limits"].get("cpu"):
                assert cores(resources["requests"]["cpu"]) <= cores(limit)


@pytest.mark.parametrize("scaler", ["plain", "keda", "no scaler"])
def test_a_canary_has_fixed_replicas_and_leaves_nothing_behind(scaler: str) -> None:
    """KServe deletes the Deployment and Service of a deleted canary, but not its HPA; a ScaledObject needs triggers."""
    found = made(BUILT[f"{scaler}, dark"])
    assert found["Deployment", "flights-canary-predictor"]["spec"]["replicas"] == 1
    assert not {kind for kind, name in found if name == "flights-canary-predictor"} - {"Deployment", "Service"}
    scalers = [item for (kind, _), item in found.items() if kind in ("HorizontalPodAutoscaler", "ScaledObject")]
    assert len(scalers) == {"plain": 2, "keda": 2, "no scaler": 0}[scaler]
    assert all(item["spec"].get("triggers", True) for item in scalers)


def test_a_serving_canary_lowers_its_predictors_minimum() -> None:
    service = BUILT["replicas, 10 %"]
    before, after = (made(service, ready={"canary": ready}) for ready in (False, True))
    least = ["HorizontalPodAutoscaler", "flights-predictor"]
    assert [found[tuple(least)]["spec"]["minReplicas"] for found in (before, after)] == [3, 2]


def templates(version: str) -> dict[str, Any]:
    found = cases.loop({})
    model = ModelRef(version, f"s3://models/{version}", version * 64, f"run-{version}")
    plain = inference_service(found, model, logger_url="http://c/", feature_dir="/project")
    built = made(rollout.stamped(cases.pods.place(found, plain)))
    return {name: item["spec"]["template"] for (kind, name), item in built.items() if kind == "Deployment"}


def test_a_promotion_replaces_only_the_predictors_pods() -> None:
    before, after = templates("7"), templates("8")
    assert before["flights-predictor"] != after["flights-predictor"]
    assert before["flights-transformer"] == after["flights-transformer"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "RuntimeNotRecognized"),
        ({"disabled": True}, "RuntimeDisabled"),
        ({"protocolVersions": ["v1"]}, "not support specified protocol version"),
        ({"supportedModelFormats": [{"name": "onnx", "version": "2"}]}, "does not support specified framework/version"),
        ({"containers": [{"name": "server"}]}, "failed to find kserve-container"),
    ],
)
def test_a_runtime_that_does_not_fit_makes_nothing(change: Any, message: str) -> None:
    with pytest.raises(UnservableError, match=message):
        list(controller.objects(BUILT["plain"], None if change is None else copy.deepcopy(RUNTIME) | change))
