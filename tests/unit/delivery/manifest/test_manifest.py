"""The InferenceService against KServe's own schema, and what it contains about the model."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from kubeloop import names
from kubeloop.config import Loop
from kubeloop.delivery.manifest import ModelRef, inference_service

V1 = ModelRef("7", "file:///models/7", "a" * 64, "run-7")
V2 = ModelRef("8", "s3://models/8", "b" * 64, "run-8")


def loop(**changes: Any) -> Loop:
    base = {
        "name": "flights",
        "source": {"tables": {"events": {"available_at": "at"}}},
        "features": {"service": "flights_v1"},
        "delivery": {"namespace": "ml", "drain_s": 2.5},
        "serving": {"max_rows": 77, "max_body_bytes": 2048, "timeout_s": 1.5},
    }
    return Loop.model_validate(base | changes)


def build(**kwargs: Any) -> dict[str, Any]:
    return inference_service(loop(), V1, **({"logger_url": "http://collector:8080/", "feature_dir": "/f"} | kwargs))


@pytest.mark.parametrize(
    "kwargs",
    [
        {},
        {"canary": V2},
        {"canary": V2, "canary_percent": 10},
        {"feature_dir": Path("/x")},
    ],
    ids=["plain", "dark canary", "canary", "path"],
)
def test_kserve_accepts_it(check, kwargs):
    assert check(build(**kwargs)) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("spec", "predictor", "canaryPercent"), 5),
        (("spec", "predictor", "model", "storageURI"), "x"),
        (("spec", "transformer", "containers", 0, "cmd"), "x"),
        (("spec", "predictor", "logger", "mode"), "everything"),
        (("spec", "predictor", "timeout"), "soon"),
    ],
)
def test_the_schema_check_would_notice(check, path, value):
    manifest = build()
    part = manifest
    for key in path[:-1]:
        part = part[key]
    part[path[-1]] = value
    assert len(check(manifest)) == 1


def test_the_model_is_named_by_version_digest_and_run():
    manifest = build(canary=V2, canary_percent=25)
    predictor, canary = manifest["spec"]["predictor"], manifest["spec"]["canary"][0]
    for part, ref in ((predictor, V1), (canary["predictor"], V2)):
        assert part["model"]["storageUri"] == ref.uri
        assert part["annotations"] == {names.VERSION: ref.version, names.DIGEST: ref.sha256, names.RUN: ref.run}
        assert {f"--version={ref.version}", f"--sha256={ref.sha256}", "--name=flights"} <= set(part["model"]["args"])
        assert part["model"]["runtime"] == names.RUNTIME
        assert part["logger"] == {"mode": "all", "url": "http://collector:8080/"}
    # KServe refuses a canary without a name, and one with its predictor's name.
    assert canary["predictor"]["name"] != predictor.get("name")
    assert canary["trafficPercent"] == 25
    # KServe also copies the service's own annotations to the transformer's pods, which a promotion must not replace.
    assert not manifest["metadata"]["annotations"].keys() & predictor["annotations"].keys()


def test_the_limits_of_the_use_case_reach_both_programs():
    spec = build()["spec"]
    container = spec["transformer"]["containers"][0]
    limits = {"--max-rows=77", "--timeout-s=1.5"}
    # A client's few keys become all of the model's features on the way.
    assert limits | {"--max-body-bytes=8192"} <= set(spec["predictor"]["model"]["args"])
    assert limits | {"--max-body-bytes=2048"} <= set(container["args"])
    assert {"--feature-dir=/f", "--feature-service=flights_v1"} <= set(container["args"])
    for part in (spec["predictor"], spec["transformer"]):
        assert (part["timeout"], part["terminationGracePeriodSeconds"]) == (2, 3)


def test_standard_mode_and_its_own_way_to_split_traffic():
    manifest = build(canary=V2, canary_percent=10)
    assert manifest["metadata"]["annotations"]["serving.kserve.io/deploymentMode"] == "Standard"
    assert (manifest["metadata"]["name"], manifest["metadata"]["namespace"]) == ("flights", "ml")
    assert "canaryTrafficPercent" not in yaml.safe_dump(manifest)


def test_it_survives_yaml_and_is_new_each_time():
    first, second = build(), build()
    first["spec"]["predictor"]["model"]["modelFormat"]["version"] = "9"
    assert second == build()
    assert yaml.safe_load(yaml.safe_dump(second)) == second


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"canary": V2, "canary_percent": 101}, "between 0 and 100, not 101"),
        ({"canary": V2, "canary_percent": -1}, "between 0 and 100, not -1"),
        ({"canary_percent": 5}, "no canary version was given"),
    ],
)
def test_nonsense_is_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        build(**kwargs)
