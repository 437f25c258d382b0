"""KServe accepts every InferenceService that we build, and the rules refuse what KServe refuses, in its words."""

import copy
from collections.abc import Callable
from typing import Any

import pytest

from tests.kserve import cases, rules, runtimes
from tests.kserve.defaults import MODEL_FORMAT, defaulted
from tests.kserve.rules import RefusedError

BUILT = dict(cases.services())
KEDA = "keda"


@pytest.mark.parametrize("case", BUILT)
def test_what_we_build_is_accepted_as_sent_and_as_stored(case: str) -> None:
    service = BUILT[case]
    rules.validate(service)
    stored = defaulted(service)
    rules.validate(stored, stored | {"status": {"deploymentMode": "Standard"}})


@pytest.mark.parametrize("case", BUILT)
def test_defaults_change_nothing_that_we_said(case: str) -> None:
    service, stored = BUILT[case], defaulted(BUILT[case])
    added = stored["metadata"]["annotations"].keys() - service["metadata"]["annotations"].keys()
    assert added == {MODEL_FORMAT}
    spec = copy.deepcopy(stored["spec"])
    if "plain" not in case or "laptop" not in case:
        assert spec == service["spec"], "our limit equals the processor's"
    assert defaulted(stored) == stored


def test_a_cluster_may_take_the_token_from_pods() -> None:
    spec = defaulted(BUILT["plain"], token=False)["spec"]
    assert {part: spec[part]["automountServiceAccountToken"] for part in ("predictor", "transformer")} == {
        "predictor": False,
        "transformer": False,
    }


Change = Callable[[dict[str, Any]], Any]


def annotate(**texts: str) -> Change:
    return lambda m: m["metadata"]["annotations"].update({f"serving.kserve.io/{key}": v for key, v in texts.items()})


def predictor(**fields: Any) -> Change:
    return lambda m: m["spec"]["predictor"].update(fields)


def model(**fields: Any) -> Change:
    return lambda m: m["spec"]["predictor"]["model"].update(fields)


def container(**fields: Any) -> Change:
    return lambda m: m["spec"]["transformer"]["containers"][0].update(fields)


def canary(**fields: Any) -> Change:
    return lambda m: m["spec"]["canary"][0]["predictor"].update(fields)


def metric(**fields: Any) -> Change:
    return predictor(autoScaling={"metrics": [fields]})


PYTHONPATH = [{"name": "PYTHONPATH", "value": "/elsewhere"}]


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        ("plain", model(name="kserve-container"), "the 'name' field is not allowed in standard predictor"),
        ("plain", lambda m: m["metadata"].update(name="9flights"), 'InferenceService "9flights" is invalid: a'),
        ("plain", annotate(autoscalerClass="kpa"), "[kpa] is not a supported autoscaler class type"),
        ("plain", model(env=PYTHONPATH), "setting PYTHONPATH in container"),
        ("plain", container(env=PYTHONPATH), 'setting PYTHONPATH in container "kserve-container" is not allowed'),
        ("plain", predictor(model=None), "must be specified in PredictorSpec"),
        ("plain", predictor(onnx={"storageUri": "s3://x"}), "must be specified in PredictorSpec"),
        ("plain", lambda m: m["spec"].update(transformer={"timeout": 1}), "must be specified in TransformerSpec"),
        ("plain", predictor(logger={"mode": "some"}), "invalid logger type"),
        ("plain", predictor(logger={"mode": "all", "storage": {"path": "/"}}), "invalid logger storage configuration"),
        ("plain", predictor(minReplicas=5), "'MinReplicas' cannot be greater than MaxReplicas"),
        ("plain", predictor(minReplicas=-1), "'MinReplicas' cannot be less than 0"),
        ("plain", predictor(maxReplicas=-1), "'MaxReplicas' cannot be less than 0"),
        ("plain", predictor(containerConcurrency=-1), "parallelism cannot be less than 0"),
        ("plain", predictor(scaleTarget=101), "the target utilization percentage should be a [1-100] integer"),
        ("plain", predictor(scaleMetric="rps"), "[rps] is not a supported metric"),
        ("plain", predictor(scaleMetric="memory", scaleTarget=0), "greater than 1 MiB"),
        ("plain", metric(type="External"), "invalid HPA metric source type with value [External]"),
        ("plain", metric(type="Resource"), "metricSpec.Resource is not set"),
        ("plain", predictor(storageUris=[{"uri": "s3://x", "mountPath": "/m"}]), "Setting both StorageURI and"),
        ("plain", annotate(deploymentMode="Knative"), "[cpu] is not a supported metric"),
        (KEDA, predictor(scaleMetric="cpu"), "ScaleMetric is not supported for KEDA"),
        (KEDA, metric(type="Resource", resource={"name": "cpu", "target": {"type": "Value"}}), "should be Utilization"),
        (
            KEDA,
            metric(type="Resource", resource={"name": "cpu", "target": {"type": "Utilization"}}),
            "the AverageUtilization type should be set",
        ),
        (KEDA, metric(type="External", external={"metric": {}, "target": {}}), "the query should not be empty"),
        (KEDA, metric(type="PodMetric"), "metricSpec.PodMetric is not set for pod metric source type"),
        ("plain, 10 %", canary(maxReplicas=4), 'canary "canary" must not set maxReplicas (canary uses fixed'),
        ("plain, 10 %", canary(scaleTarget=70), 'canary "canary" must not set scaleTarget'),
        ("plain, 10 %", canary(scaleMetric="cpu"), 'canary "canary" must not set scaleMetric'),
        ("plain, 10 %", canary(autoScaling={"metrics": []}), 'canary "canary" must not set autoScaling'),
        ("plain, 10 %", canary(minReplicas=2), "minReplicas (2) must not exceed stable predictor minReplicas (1)"),
        ("plain, 10 %", canary(name=""), "canary[0] predictor.name is required"),
        ("plain, 10 %", predictor(name="canary"), 'canary predictor.name "canary" conflicts with stable'),
        ("plain, 10 %", canary(model=None), 'canary "canary" predictor: exactly one of'),
        ("plain, 10 %", lambda m: m["spec"]["canary"][0].update(trafficPercent=101), "between 0 and 100, got 101"),
        ("plain, 10 %", lambda m: m["spec"]["canary"].append(m["spec"]["canary"][0]), '"canary" is duplicated'),
        ("plain, 10 %, as a laptop gets it", annotate(deploymentMode="Knative"), "only supported in Standard"),
    ],
)
def test_what_kserve_refuses_is_refused_in_its_words(case: str, change: Change, message: str) -> None:
    service = copy.deepcopy(BUILT[case])
    change(service)
    with pytest.raises(RefusedError) as error:
        rules.validate(service)
    assert message in str(error.value)


def test_more_than_all_traffic_is_refused() -> None:
    service = copy.deepcopy(BUILT["plain, 100 %"])
    other = copy.deepcopy(service["spec"]["canary"][0])
    other["predictor"]["name"] = "second"
    service["spec"]["canary"].append(other)
    with pytest.raises(RefusedError, match=r"sum of canary trafficPercent values \(200\) must be <= 100"):
        rules.validate(service)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (annotate(deploymentMode="Knative"), "deploymentMode cannot be changed from 'Standard' to 'Knative'"),
        (predictor(name="v2"), "predictor.name change requires a model change"),
    ],
)
def test_what_may_not_change_stays(change: Change, message: str) -> None:
    old = BUILT["plain"] | {"status": {"deploymentMode": "Standard"}}
    new = copy.deepcopy(old)
    change(new)
    with pytest.raises(RefusedError) as error:
        rules.validate(new, old)
    assert message in str(error.value)


def runtime(name: str = "ours", kind: str = "ServingRuntime", **formats: Any) -> dict[str, Any]:
    item = {"name": "onnx", "version": "1", "autoSelect": True, "priority": 2} | formats
    spec = {"protocolVersions": ["v2"], "supportedModelFormats": [item], "containers": [{"name": "c"}]}
    return {"kind": kind, "metadata": {"name": name, "namespace": "ml"}, "spec": spec}


def test_runtimes_share_a_format_where_only_one_is_taken_first() -> None:
    there = [runtime("theirs", priority=1), runtime("third", autoSelect=False), runtime()]
    runtimes.validate(runtime(), there)
    with pytest.raises(RefusedError, match=r"same priority assigned .* onnx .*servingruntimes"):
        runtimes.validate(runtime(priority=1), there)
    disabled = runtime("theirs")
    disabled["spec"]["disabled"] = True
    runtimes.validate(runtime(), [disabled])


def test_a_runtime_is_refused_in_kserves_words() -> None:
    twice = runtime()
    twice["spec"]["supportedModelFormats"].append({"name": "onnx", "autoSelect": True, "priority": 3})
    runtimes.validate(twice)
    with pytest.raises(RefusedError, match=r"different priorities assigned .* onnx "):
        runtimes.validate(twice, [runtime("theirs")])
    blocked = runtime()
    blocked["spec"]["containers"][0]["env"] = PYTHONPATH
    with pytest.raises(RefusedError, match='the ServingRuntime "ours" is invalid: setting PYTHONPATH'):
        runtimes.validate(blocked)
