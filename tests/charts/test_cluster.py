"""The chart on a real API server: installed, upgraded, rolled back, uninstalled; accepted, admitted, authorized."""

import json
import shlex
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from kubeloop.config import Loop
from kubeloop.delivery import installed as releases
from kubeloop.delivery import pods as serving_pods
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.charts.conftest import CHART, LOOP, RELEASE, SECOND, VALUES, Object, kinds, named, pods
from tests.control_plane.plane import SERVICE_ACCOUNT, CommandError, ControlPlane

NO_HOOKS = ("--no-hooks",)
"""No controller runs Jobs here; `test_an_upgrade_waits_for_the_migration` plays the Job controller."""
SETS = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


@pytest.fixture
def elsewhere(control_plane: ControlPlane) -> Iterator[str]:
    """A second namespace, in which `SECOND` is served."""
    with control_plane.namespace("models") as name:
        yield name


@pytest.fixture
def values_file(tmp_path: Path):
    """Write values to a file, with the namespace of the second loop."""

    def write(values: Object, elsewhere: str) -> str:
        path = tmp_path / f"values-{len(list(tmp_path.iterdir()))}.yaml"
        path.write_text(placed(values, elsewhere))
        return str(path)

    return write


def placed(values: Object, elsewhere: str) -> str:
    found = json.loads(json.dumps(values))
    for name in found.get("loops", {}):
        if name == "fraud":
            found["loops"][name]["config"]["delivery"] = {"namespace": elsewhere}
    return yaml.safe_dump(found)


def present(plane: ControlPlane, namespace: str, kinds: str) -> set[str]:
    found = plane.kubectl("get", kinds, "-n", namespace, "-o", "name", "--ignore-not-found")
    return set(found.split())


EVERYTHING = "deploy,sts,svc,cm,sa,role,rolebinding,netpol,pdb,hpa,servingruntimes,httproutes,scaledobjects,podmonitors"


def test_install_upgrade_rollback_uninstall(control_plane, namespace, elsewhere, values_file, monkeypatch):
    plane = control_plane
    before = present(plane, namespace, EVERYTHING)
    # A volume claim's storage class cannot change, so the collector keeps its values.
    more = {name: part for name, part in VALUES["everything"].items() if name != "collector"}
    one, all_ = (values_file(values, elsewhere) for values in (VALUES["one loop"], more))
    began = time.monotonic()
    told = plane.helm("install", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", one)
    took = time.monotonic() - began
    assert took < 30
    assert "kubeloop submit" in told
    (asks,) = (line for line in told.splitlines() if "kubeloop schedule" in line)
    program, *arguments = shlex.split(asks)
    assert (program, arguments) == ("kubeloop", ["schedule", "--release", RELEASE, "--namespace", namespace])
    # The client reads KUBECONFIG only once, when it is imported.
    monkeypatch.setattr("kubernetes.config.kube_config.KUBE_CONFIG_DEFAULT_LOCATION", str(plane.kubeconfig()))
    loop = Loop.parse(releases.loop(RELEASE, namespace))
    assert (loop.name, loop.delivery.applier) == ("flight-delay", "cluster")
    for secret in ("kubeloop-ledger", "kubeloop-monitor", "kubeloop-mlflow", "kubeloop-features"):
        assert secret in told
    first = present(plane, namespace, EVERYTHING)
    assert f"deployment.apps/{RELEASE}-monitor-flight-delay" in first

    plane.helm("upgrade", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", all_)
    second = present(plane, namespace, EVERYTHING)
    assert f"deployment.apps/{RELEASE}-monitor-fraud" in second
    assert f"scaledobject.keda.sh/{RELEASE}-mlflow" in second
    assert present(plane, elsewhere, "servingruntimes") >= {"servingruntime.serving.kserve.io/kubeloop-onnx-gpu"}

    plane.helm("rollback", RELEASE, "1", *NO_HOOKS, "-n", namespace)
    assert present(plane, namespace, EVERYTHING) == first
    assert present(plane, elsewhere, "servingruntimes,roles") == set()

    plane.helm("uninstall", RELEASE, "-n", namespace)
    assert present(plane, namespace, EVERYTHING) == before


@pytest.mark.parametrize("end", ["Complete", "Failed"])
def test_an_upgrade_waits_for_the_migration(control_plane, namespace, elsewhere, values_file, end):
    """The test writes the end of the Job by hand, as the Job controller would."""
    plane = control_plane
    one = values_file(VALUES["one loop"], elsewhere)
    jobs = f"/apis/batch/v1/namespaces/{namespace}/jobs"
    seen: list[set[str]] = []

    def controller() -> None:
        deadline = time.monotonic() + 30
        while not plane.request("GET", jobs)["items"] and time.monotonic() < deadline:
            time.sleep(0.1)
        seen.append(present(plane, namespace, "deploy,netpol"))
        now = "2026-01-01T00:00:00Z"
        first = {"Complete": "SuccessCriteriaMet", "Failed": "FailureTarget"}[end]
        conditions = [
            {"type": kind, "status": "True", "reason": "Test", "message": "", "lastTransitionTime": now}
            for kind in (first, end)
        ]
        done = {"succeeded": 1, "completionTime": now} if end == "Complete" else {"failed": 4}
        told = {"status": {"startTime": now, "conditions": conditions, **done}}
        headers = {"content-type": "application/merge-patch+json"}
        plane.request("PATCH", f"{jobs}/{RELEASE}-migrations/status", told, headers=headers)

    played = threading.Thread(target=controller)
    played.start()
    if end == "Complete":
        plane.helm("install", RELEASE, str(CHART), "-n", namespace, "-f", one)
    else:
        with pytest.raises(CommandError, match="migrations"):
            plane.helm("install", RELEASE, str(CHART), "-n", namespace, "-f", one)
    played.join()
    assert seen == [{f"networkpolicy.networking.k8s.io/{RELEASE}-migrations"}], "nothing else was there yet"
    assert bool(plane.request("GET", jobs)["items"]) == (end == "Failed"), "a failed Job stays, with its log"
    assert (f"deployment.apps/{RELEASE}-trigger-flight-delay" in present(plane, namespace, "deploy")) == (
        end == "Complete"
    )


@SETS
def test_every_object_is_accepted_as_it_is(control_plane, render, namespace, elsewhere, values):
    objects = render(yaml.safe_load(placed(values, elsewhere)), namespace=namespace)
    assert objects
    apply = ("apply", "--server-side", "--validate=strict", "-f", "-")
    # A pod is accepted only if its service account exists.
    control_plane.kubectl(*apply, input=yaml.safe_dump_all(kinds(objects, "ServiceAccount")))
    control_plane.kubectl(*apply, "--dry-run=server", input=yaml.safe_dump_all(objects))


def test_strict_means_strict(control_plane, namespace):
    wrong = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "x", "namespace": namespace}, "dta": {}}
    with pytest.raises(CommandError, match="dta"):
        control_plane.kubectl(
            "apply", "--server-side", "--validate=strict", "--dry-run=server", "-f", "-", input=yaml.safe_dump(wrong)
        )


def admit(plane: ControlPlane, namespace: str, name: str, spec: Object) -> None:
    metadata = {"name": name, "namespace": namespace}
    body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    account = {"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": spec["serviceAccountName"]}}
    response = plane.http.post(f"/api/v1/namespaces/{namespace}/serviceaccounts", json=account)
    assert response.status_code in (201, 409)
    plane.request("POST", f"/api/v1/namespaces/{namespace}/pods?dryRun=All&fieldValidation=Strict", body)


@SETS
def test_pods_are_admitted_where_restricted_is_enforced(control_plane, restricted_namespace, render, values):
    for name, pod in pods(render(values)).items():
        spec = pod["spec"]
        if name == f"{RELEASE}-collector":
            spec = spec | {"volumes": [*spec["volumes"], {"name": "data", "emptyDir": {}}]}
        admit(control_plane, restricted_namespace, name, spec)


@pytest.mark.parametrize("name", ["kubeloop-onnx", "kubeloop-onnx-gpu", "kubeloop-triton", "kubeloop-vllm"])
def test_predictors_are_admitted_too(control_plane, restricted_namespace, render, name):
    """The pod that KServe makes: the runtime's containers and volumes with the InferenceService's own fields."""
    objects = render(VALUES["everything"])
    runtime = named(objects, "ServingRuntime", name, "kubeloop")["spec"]
    predictor = service(objects)["predictor"]
    spec = {key: runtime[key] for key in ("containers", "volumes", "tolerations", "nodeSelector") if key in runtime}
    for key in ("securityContext", "serviceAccountName"):
        spec[key] = predictor[key]
    admit(control_plane, restricted_namespace, "predictor", spec)


def test_transformers_are_admitted_too(control_plane, restricted_namespace, render):
    transformer = service(render(VALUES["everything"]))["transformer"]
    keys = ("containers", "volumes", "securityContext", "serviceAccountName")
    admit(control_plane, restricted_namespace, "transformer", {key: transformer[key] for key in keys})


def service(objects: list[Object]) -> Object:
    loop = Loop.parse(named(objects, "ConfigMap", f"{RELEASE}-loop-flight-delay")["data"]["loop.yaml"])
    model = ModelRef("1", "s3://models/1", "a" * 64, "first")
    plain = inference_service(loop, model, logger_url="http://collector/", feature_dir="/project/feature_repo")
    found: Object = serving_pods.place(loop, plain)["spec"]
    return found


def test_restricted_means_restricted(control_plane, restricted_namespace):
    spec = {"serviceAccountName": "default", "containers": [{"name": "root", "image": "x:1"}]}
    with pytest.raises(CommandError, match="violates PodSecurity"):
        admit(control_plane, restricted_namespace, "root", spec)


class Account:
    """Sends requests as a service account and returns their status codes."""

    def __init__(self, plane: ControlPlane, namespace: str, name: str) -> None:
        token = plane.token(f"{SERVICE_ACCOUNT}{namespace}:{name}")
        tls = ssl.create_default_context(cafile=plane.authority.certificate)
        headers = {"authorization": f"Bearer {token}"}
        self._http = httpx.Client(base_url=plane.url, verify=tls, headers=headers, trust_env=False)

    def __call__(self, method: str, path: str, body: Any = None, **headers: str) -> int:
        deadline = time.monotonic() + 3
        while True:
            content = None if body is None else json.dumps(body)
            found = self._http.request(method, path, content=content, headers=headers).status_code
            # New roles take a moment to apply.
            if found != 403 or time.monotonic() > deadline:
                return found
            time.sleep(0.05)

    def refused(self, method: str, path: str) -> bool:
        return self._http.request(method, path, content=b"{}").status_code == 403


KSERVE = "/apis/serving.kserve.io/v1beta1/namespaces"
APPLY = {"content-type": "application/apply-patch+yaml"}


@pytest.fixture
def installed(control_plane, namespace, elsewhere, values_file) -> str:
    values = {"loops": {"flight-delay": {"config": LOOP}, "fraud": {"config": SECOND}}}
    told = values_file(values, elsewhere)
    control_plane.helm("install", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", told)
    return str(namespace)


def test_the_pipelines_account(control_plane, installed, elsewhere):
    act = Account(control_plane, installed, "kubeloop-pipeline")
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "flight-delay"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://m/1"}}},
    }
    for namespace in (installed, elsewhere):
        path = f"{KSERVE}/{namespace}/inferenceservices/flight-delay"
        assert act("PATCH", f"{path}?fieldManager=kubeloop", manifest, **APPLY) == 201
        assert act("PATCH", f"{path}?fieldManager=kubeloop", manifest, **APPLY) == 200
        assert act("GET", path) == 200
        assert act("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments") == 200
        assert act("GET", f"/api/v1/namespaces/{namespace}/pods") == 200
        assert act.refused("DELETE", path)
        assert act.refused("GET", f"{KSERVE}/{namespace}/inferenceservices")
        assert act.refused("POST", f"/apis/apps/v1/namespaces/{namespace}/deployments")
        assert act.refused("GET", f"/api/v1/namespaces/{namespace}/secrets")
        assert act.refused("GET", f"/api/v1/namespaces/{namespace}/secrets/kubeloop-ledger")
    # 404 means allowed: the launcher may read its own ConfigMap and Secret, which do not exist here.
    assert act("GET", f"/api/v1/namespaces/{installed}/configmaps/kfp-launcher") == 404
    assert act("GET", f"/api/v1/namespaces/{installed}/secrets/mlpipeline-minio-artifact") == 404
    assert act.refused("GET", f"/api/v1/namespaces/{installed}/configmaps/kubeloop-env")
    # The launcher reads its own pod to find out which attempt it is.
    assert act("GET", f"/api/v1/namespaces/{installed}/pods/step") == 404
    assert act.refused("GET", "/api/v1/secrets")
    for verb in ("create", "patch"):
        user = f"{SERVICE_ACCOUNT}{installed}:kubeloop-pipeline"
        assert control_plane.may(user, verb, "workflowtaskresults.argoproj.io", installed)
    assert not control_plane.may(user, "create", "workflows.argoproj.io", installed, within_s=0)
    assert not control_plane.may(user, "create", "trainjobs.trainer.kubeflow.org", installed, within_s=0)


def test_the_pipelines_account_only_looks_where_gitops_promotes(control_plane, namespace, tmp_path):
    git = {"repository": "https://git.acme.io/loops"}
    values = {"loops": {"fraud": {"config": SECOND | {"delivery": {"applier": "gitops", "git": git}}}}}
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    control_plane.helm("install", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", str(tmp_path / "values.yaml"))
    act = Account(control_plane, namespace, "kubeloop-pipeline")
    path = f"{KSERVE}/{namespace}/inferenceservices/fraud"
    assert act("GET", path) == 404
    assert act("GET", f"/apis/apps/v1/namespaces/{namespace}/deployments") == 200
    for method in ("PATCH", "PUT", "DELETE"):
        assert act.refused(method, path)
    assert act.refused("POST", path.rpartition("/")[0])


def test_steps_in_a_namespace_of_their_own(control_plane, namespace, elsewhere, tmp_path):
    """Kubeflow Pipelines runs the steps in its own namespace: account, roles and variables are there."""
    values = {
        "kubeflow": {"namespace": elsewhere},
        "loops": {"fraud": {"config": SECOND | {"pipelines": {"train_job": {}}, "delivery": {"namespace": namespace}}}},
    }
    (tmp_path / "values.yaml").write_text(yaml.safe_dump(values))
    control_plane.helm("install", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", str(tmp_path / "values.yaml"))
    act = Account(control_plane, elsewhere, "kubeloop-pipeline")
    manifest = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "fraud"},
        "spec": {"predictor": {"model": {"modelFormat": {"name": "onnx"}, "storageUri": "s3://m/1"}}},
    }
    path = f"{KSERVE}/{namespace}/inferenceservices/fraud"
    assert act("PATCH", f"{path}?fieldManager=kubeloop", manifest, **APPLY) == 201
    assert act.refused("PATCH", f"{KSERVE}/{elsewhere}/inferenceservices/fraud?fieldManager=kubeloop")
    found = control_plane.request("GET", f"/api/v1/namespaces/{elsewhere}/configmaps/kubeloop-env")["data"]
    assert found["KUBELOOP_COLLECTOR_URL"] == f"http://{RELEASE}-collector.{namespace}.svc"
    pipeline, trigger = (
        f"{SERVICE_ACCOUNT}{elsewhere}:kubeloop-pipeline",
        f"{SERVICE_ACCOUNT}{namespace}:{RELEASE}-trigger",
    )
    for user, verb, resource in (
        (pipeline, "create", "workflowtaskresults.argoproj.io"),
        (pipeline, "create", "trainjobs.trainer.kubeflow.org"),
        (trigger, "create", "runs.pipelines.kubeflow.org"),
    ):
        assert control_plane.may(user, verb, resource, elsewhere)
        assert not control_plane.may(user, verb, resource, namespace, within_s=0)


def test_two_tenants_side_by_side(control_plane, namespace, tmp_path):
    """Two releases run their steps in one Kubeflow namespace and serve their loops in one namespace."""
    plane = control_plane
    with plane.namespace("steps") as steps, plane.namespace("served") as served, plane.namespace("second") as second:
        tenants = {RELEASE: (namespace, "fraud"), "blue": (second, "churn")}
        for release, (own, loop) in tenants.items():
            # A volume claim's storage class cannot change, and each tenant has its own loop.
            config = SECOND | {"name": loop, "delivery": {"namespace": served}, "pipelines": {"train_job": {}}}
            values = VALUES["everything"] | {"loops": {loop: {"config": config}}, "kubeflow": {"namespace": steps}}
            (tmp_path / f"{release}.yaml").write_text(yaml.safe_dump(values))
            plane.helm("install", release, str(CHART), *NO_HOOKS, "-n", own, "-f", str(tmp_path / f"{release}.yaml"))

        def usable(release: str) -> None:
            own, name = tenants[release]
            full = release if release == RELEASE else f"{release}-kubeloop"
            found = plane.request("GET", f"/api/v1/namespaces/{own}/configmaps/{full}-loop-{name}")["data"]
            loop = Loop.parse(found["loop.yaml"])
            variables = plane.request("GET", f"/api/v1/namespaces/{steps}/configmaps/{loop.pipelines.config_map}")
            assert variables["data"]["KUBELOOP_OWNER"] == f"{own}/{full}"
            assert variables["data"]["KUBELOOP_COLLECTOR_URL"] == f"http://{full}-collector.{own}.svc"
            # A step deploys with its own account, and the names in what it deploys exist.
            model = ModelRef("1", "s3://models/1", "a" * 64, "first")
            plain = inference_service(loop, model, logger_url="http://collector/", feature_dir="/project/feature_repo")
            manifest = serving_pods.place(loop, plain)
            act = Account(plane, steps, loop.pipelines.service_account)
            path = f"{KSERVE}/{served}/inferenceservices/{name}?fieldManager=kubeloop"
            assert act("PATCH", path, manifest, **APPLY) in (200, 201)
            predictor = manifest["spec"]["predictor"]
            runtimes = f"/apis/serving.kserve.io/v1alpha1/namespaces/{served}/servingruntimes"
            assert plane.request("GET", f"{runtimes}/{predictor['model']['runtime']}")["metadata"]["annotations"][
                "meta.helm.sh/release-name"
            ] == release  # fmt: skip
            plane.request("GET", f"/api/v1/namespaces/{served}/serviceaccounts/{predictor['serviceAccountName']}")
            plane.request("GET", f"/api/v1/namespaces/{served}/configmaps/{loop.delivery.config_map}")
            trigger, pipeline = f"{own}:{full}-trigger", f"{steps}:{loop.pipelines.service_account}"
            for account, verb, resource in (
                (trigger, "create", "runs.pipelines.kubeflow.org"),
                (pipeline, "create", "workflowtaskresults.argoproj.io"),
                (pipeline, "create", "trainjobs.trainer.kubeflow.org"),
            ):
                assert plane.may(f"{SERVICE_ACCOUNT}{account}", verb, resource, steps)

        places = (steps, served, namespace, second)
        both = {place: present(plane, place, EVERYTHING) for place in places}
        for release in tenants:
            usable(release)
        plane.helm("uninstall", RELEASE, "-n", namespace)
        usable("blue")
        left = {place: present(plane, place, EVERYTHING) for place in places}
        assert left[second] == both[second]
        for place in (steps, served):
            assert {name for name in both[place] if "/blue-kubeloop-" in name} <= left[place]
            assert not {name for name in left[place] if "/kubeloop-" in name}, "nothing of the other release is left"
        plane.helm("install", RELEASE, str(CHART), *NO_HOOKS, "-n", namespace, "-f", str(tmp_path / f"{RELEASE}.yaml"))
        usable(RELEASE)
        plane.helm("uninstall", "blue", "-n", second)
        usable(RELEASE)


def test_a_monitors_account_sees_only_its_own_service(control_plane, installed, elsewhere):
    own, other = (Account(control_plane, installed, f"{RELEASE}-monitor-{name}") for name in ("fraud", "flight-delay"))
    path = f"{KSERVE}/{elsewhere}/inferenceservices/fraud"
    assert own("GET", path) == 404
    assert other.refused("GET", path)
    assert own.refused("GET", f"{KSERVE}/{elsewhere}/inferenceservices/flight-delay")
    assert own.refused("GET", f"{KSERVE}/{elsewhere}/inferenceservices")
    assert own.refused("GET", f"{KSERVE}/{installed}/inferenceservices/fraud")
    for method in ("PATCH", "PUT", "DELETE"):
        assert own.refused(method, path)
    assert own.refused("GET", f"/api/v1/namespaces/{installed}/secrets")


def test_the_triggers_account_may_start_runs_and_nothing_else(control_plane, installed):
    user = f"{SERVICE_ACCOUNT}{installed}:{RELEASE}-trigger"
    for verb in ("create", "get", "list", "terminate"):
        assert control_plane.may(user, verb, "runs.pipelines.kubeflow.org", installed)
    assert control_plane.may(user, "get", "pipelines.pipelines.kubeflow.org", installed)
    for verb, resource in (
        ("delete", "runs.pipelines.kubeflow.org"),
        ("create", "pipelines.pipelines.kubeflow.org"),
        ("get", "inferenceservices.serving.kserve.io"),
        ("get", "secrets"),
    ):
        assert not control_plane.may(user, verb, resource, installed, within_s=0), f"{verb} {resource}"


@pytest.mark.parametrize("name", [f"{RELEASE}-collector", f"{RELEASE}-mlflow", f"{RELEASE}-test", "kubeloop-serving"])
def test_the_other_accounts_have_no_rights(control_plane, installed, name):
    act = Account(control_plane, installed, name)
    for kind in ("secrets", "configmaps", "pods"):
        assert act.refused("GET", f"/api/v1/namespaces/{installed}/{kind}")
    assert act.refused("GET", f"{KSERVE}/{installed}/inferenceservices/flight-delay")


def test_nobody_reads_secrets_of_the_cluster(control_plane, installed):
    accounts = control_plane.request("GET", f"/api/v1/namespaces/{installed}/serviceaccounts")["items"]
    assert len(accounts) >= 8
    for account in accounts:
        user = f"{SERVICE_ACCOUNT}{installed}:{account['metadata']['name']}"
        for verb in ("get", "list", "watch"):
            assert not control_plane.may(user, verb, "secrets", "", within_s=0)
            assert not control_plane.may(user, verb, "secrets", installed, within_s=0)
