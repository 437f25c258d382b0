"""The cluster applier against a real API server; the test plays KServe's controller."""

import json
import os
import re
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from kubeloop import names
from kubeloop.delivery import DeliveryError, cluster
from kubeloop.delivery.patch import LINEAGE
from tests.cluster.conftest import MERGE, NAME, build, meanwhile

PROJECT = Path(__file__).parents[2]
TARGET = {"apiVersion": "apps/v1", "kind": "Deployment", "name": f"{NAME}-predictor"}


def hpa(namespace: str) -> dict:
    spec = {"scaleTargetRef": TARGET, "minReplicas": 1, "maxReplicas": 3}
    metadata = {"name": NAME, "namespace": namespace}
    return {"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}


def budget(namespace: str, **spec) -> dict:
    metadata = {"name": NAME, "namespace": namespace}
    spec = {"maxUnavailable": 1, "selector": {"matchLabels": {"app": f"{NAME}-predictor"}}} | spec
    return {"apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": metadata, "spec": spec}


@pytest.fixture
def admin(control_plane):
    return control_plane.client()


def exists(control_plane, namespace) -> bool:
    return NAME in control_plane.kubectl("get", "inferenceservices,hpa,pdb", "-n", namespace, "-o", "name")


def test_it_waits_until_all_is_served_and_says_what_is(control_plane, namespace, kserve, admin):
    with meanwhile(kserve.serve):
        applied = cluster.apply([hpa(namespace), build(namespace), budget(namespace)], 20, admin)
    assert (applied.name, applied.namespace, applied.generation) == (NAME, namespace, 1)
    assert applied.storage_uri == "s3://models/7"
    # The other address in the status is in KServe's own domain, where only a gateway would answer.
    assert kserve.service()["status"]["url"] == f"http://{NAME}-{namespace}.example.com"
    assert applied.url == f"http://{NAME}-transformer.{namespace}.svc.cluster.local"
    assert applied.seconds < 20
    for kind in ("inferenceservice", "hpa", "pdb"):
        found = json.loads(
            control_plane.kubectl("get", kind, NAME, "-n", namespace, "-o", "json", "--show-managed-fields")
        )
        managers = {(entry["manager"], entry["operation"]) for entry in found["metadata"]["managedFields"]}
        assert ("kubeloop", "Apply") in managers


def test_the_same_manifest_again_changes_nothing(namespace, kserve, admin):
    with meanwhile(kserve.serve):
        cluster.apply([build(namespace)], 20, admin)
    before = kserve.service()["metadata"]
    applied = cluster.apply([build(namespace)], 20, admin)
    assert applied.generation == before["generation"]
    assert kserve.service()["metadata"]["resourceVersion"] == before["resourceVersion"]


def test_what_an_older_release_wrote_goes_with_the_next_promotion(namespace, kserve, admin):
    """Lineage on the service itself would replace the transformer's pods; KServe refuses the metric next to KEDA."""
    old = build(namespace)
    old["metadata"]["annotations"] |= old["spec"]["predictor"]["annotations"]
    old["spec"]["predictor"]["scaleMetric"] = "cpu"
    with meanwhile(kserve.serve):
        cluster.apply([old], 20, admin)

    def roll() -> None:
        kserve.service("s3://models/8")
        kserve.serve()

    with meanwhile(roll):
        cluster.apply([build(namespace, "8")], 20, admin)
    found = kserve.service()
    assert not set(LINEAGE) & found["metadata"]["annotations"].keys()
    assert found["spec"]["predictor"]["annotations"][names.VERSION] == "8"
    assert "scaleMetric" not in found["spec"]["predictor"]


def test_a_new_version_is_not_ready_while_the_old_pods_serve(namespace, kserve, admin):
    """KServe's own Ready condition stays True throughout, left over from the previous generation."""
    with meanwhile(kserve.serve):
        cluster.apply([build(namespace)], 20, admin)
    moments = []

    def roll() -> None:
        kserve.service("s3://models/8")
        for updated, total in ((0, 1), (1, 2), (1, 1)):
            time.sleep(0.3)
            moments.append(time.monotonic())
            kserve.deployment("predictor", updated=updated, total=total)
        time.sleep(0.3)
        moments.append(time.monotonic())
        kserve.deployment("transformer")

    with meanwhile(roll):
        applied = cluster.apply([build(namespace, "8")], 20, admin)
        assert time.monotonic() > moments[-1]
    assert len(moments) == 4
    assert (applied.storage_uri, applied.generation) == ("s3://models/8", 2)


def test_what_a_manifest_leaves_out_is_taken_back(namespace, kserve, admin):
    manifest = build(namespace)
    manifest["spec"]["predictor"]["minReplicas"] = 2
    with meanwhile(kserve.serve):
        cluster.apply([manifest], 20, admin)
    cluster.apply([build(namespace)], 20, admin)
    assert "minReplicas" not in kserve.service()["spec"]["predictor"]


def test_a_model_that_ends_its_server_fails_with_its_last_words(namespace, kserve, admin):
    words = "digest mismatch: model.onnx is bbbb, the manifest says aaaa.\n"
    ended = {"exitCode": 3, "reason": "Error", "message": f"a line of the log\n{words}\n"}
    waiting = {"reason": "CrashLoopBackOff", "message": "back-off 10s"}

    def play() -> None:
        kserve.deployment("predictor", available=0)
        kserve.status("False", "MinimumReplicasUnavailable")
        kserve.pod("predictor", {"restartCount": 1, "state": {"waiting": waiting}, "lastState": {"terminated": ended}})

    with meanwhile(play), pytest.raises(DeliveryError) as error:
        cluster.apply([build(namespace)], 20, admin)
    assert str(error.value) == (
        "flights is not ready: kserve-container of pod flights-predictor-x ends each time it starts: digest mismatch: "
        "model.onnx is bbbb, the manifest says aaaa; fix that and deploy again"
    )


def test_neither_a_first_hiccup_nor_a_broken_predecessor_is_a_failure(namespace, kserve, admin):
    ended = {"terminated": {"exitCode": 3, "reason": "Error", "message": "the store is away"}}

    def fail() -> None:
        kserve.deployment("predictor", available=0)
        kserve.pod("predictor", {"restartCount": 4, "state": ended})

    with meanwhile(fail), pytest.raises(DeliveryError, match="the store is away"):
        cluster.apply([build(namespace)], 20, admin)

    def mend() -> None:
        kserve.service("s3://models/8")
        kserve.status("False", modelStatus={"transitionStatus": "BlockedByFailedLoad"})
        kserve.plane.kubectl("delete", "pod", f"{NAME}-predictor-x", "-n", namespace, "--force", "--grace-period=0")
        kserve.pod("predictor", {"restartCount": 0, "state": ended})
        time.sleep(0.5)
        kserve.serve()

    with meanwhile(mend):
        assert cluster.apply([build(namespace, "8")], 20, admin).storage_uri == "s3://models/8"


def test_a_runtime_that_is_missing_fails_as_soon_as_kserve_has_looked(namespace, kserve, admin, monkeypatch):
    monkeypatch.setattr(cluster, "SETTLE_S", 0.5)
    info = {"reason": "RuntimeNotRecognized", "message": "No ServingRuntimes or ClusterServingRuntimes with the name"}
    model = {"transitionStatus": "InvalidSpec", "lastFailureInfo": info}
    with (
        meanwhile(lambda: kserve.service() and kserve.status("False", modelStatus=model)),
        pytest.raises(DeliveryError, match="cannot serve the manifest: RuntimeNotRecognized: No ServingRuntimes"),
    ):
        cluster.apply([build(namespace)], 20, admin)


def test_a_rollout_that_kubernetes_gives_up_fails(namespace, kserve, admin):
    with (
        meanwhile(lambda: kserve.deployment("predictor", updated=0, progressing="ProgressDeadlineExceeded")),
        pytest.raises(DeliveryError, match="ProgressDeadlineExceeded: flights-predictor takes too long"),
    ):
        cluster.apply([build(namespace)], 20, admin)


def test_what_never_gets_ready_ends_with_what_conditions_and_pods_say(namespace, kserve, admin):
    waiting = {"reason": "ImagePullBackOff", "message": 'Back-off pulling image "example.org/server:1.0.0"'}

    def play() -> None:
        kserve.deployment("predictor", available=0)
        kserve.status("False", "MinimumReplicasUnavailable", "Deployment does not have minimum availability.")
        kserve.pod("predictor", {"state": {"waiting": waiting}})

    with meanwhile(play), pytest.raises(DeliveryError) as error:
        cluster.apply([build(namespace)], 2, admin)
    for part in (
        "flights was not ready within 2 s: 0 of 1 new pods of the predictor are available",
        "PredictorReady is False (MinimumReplicasUnavailable: Deployment does not have minimum availability)",
        'pod flights-predictor-x: kserve-container ImagePullBackOff: Back-off pulling image "example.org/server:1.0.0"',
        "delivery.ready_timeout",
    ):
        assert part in str(error.value)


def test_without_kserves_controller_the_missing_deployment_is_named(namespace, admin):
    with pytest.raises(DeliveryError, match=r"KServe .* Deployment of the predictor"):
        cluster.apply([build(namespace)], 0.5, admin)


def test_a_failed_version_says_that_the_one_before_still_serves(namespace, kserve, admin):
    with meanwhile(kserve.serve):
        cluster.apply([build(namespace)], 20, admin)
    with pytest.raises(DeliveryError, match="earlier version is still served"):
        cluster.apply([build(namespace, "8")], 0.5, admin)


@pytest.mark.parametrize("versions", [("8", "9"), ("8", "8")], ids=["different", "same"])
def test_two_appliers_race(control_plane, namespace, kserve, versions):
    outcomes: dict[int, object] = {}

    def deliver(number: int, version: str) -> None:
        try:
            outcomes[number] = cluster.apply([build(namespace, version)], 20, control_plane.client())
        except DeliveryError as error:
            outcomes[number] = str(error)

    threads = [threading.Thread(target=deliver, args=pair) for pair in enumerate(versions)]
    for thread in threads:
        thread.start()
    kserve.service()
    time.sleep(1)
    kserve.serve()
    for thread in threads:
        thread.join()
    served = kserve.service()["spec"]["predictor"]["model"]["storageUri"]
    for number, version in enumerate(versions):
        if f"s3://models/{version}" == served:
            assert outcomes[number].storage_uri == served
        else:
            assert "another manifest was applied while this one was being rolled out" in outcomes[number]


def test_a_field_of_another_manager_is_left_to_it(control_plane, namespace, kserve, admin):
    with meanwhile(kserve.serve):
        cluster.apply([build(namespace)], 20, admin)
    patch = {"spec": {"predictor": {"model": {"storageUri": "s3://by/hand"}}}}
    control_plane.request("PATCH", f"{kserve.path}?fieldManager=kubectl-edit", patch, headers=MERGE)
    with pytest.raises(DeliveryError) as error:
        cluster.apply([build(namespace, "8"), hpa(namespace)], 20, admin)
    assert ".spec.predictor.model.storageUri is owned by kubectl-edit" in str(error.value)
    (section,) = re.findall(r'docs/operations.md says under "(.+)"', str(error.value))
    assert kserve.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://by/hand"
    assert not control_plane.kubectl("get", "hpa", "-n", namespace, "-o", "name")
    hand_over(control_plane, namespace, section, "kubectl-edit")
    assert kserve.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://by/hand"

    def roll() -> None:
        kserve.service("s3://models/8")
        kserve.serve()

    with meanwhile(roll):
        assert cluster.apply([build(namespace, "8")], 20, admin).storage_uri == "s3://models/8"


def hand_over(control_plane, namespace: str, section: str, manager: str) -> None:
    """Do what docs/operations.md says, with an editor that deletes a manager's entries."""
    text = (PROJECT / "docs" / "operations.md").read_text().partition(f"## {section}\n")[2].partition("\n## ")[0]
    read, write = re.findall(r"^    kubectl (.+?)(?: > served.yaml)?$", text, re.MULTILINE)
    read = read.replace("-n kubeloop", f"-n {namespace}").replace("flight-delay", NAME)
    found = yaml.safe_load(control_plane.kubectl(*read.split()))
    fields = found["metadata"]["managedFields"]
    found["metadata"]["managedFields"] = [item for item in fields if item["manager"] != manager]
    assert found["metadata"]["managedFields"] != fields
    control_plane.kubectl(*write.replace("served.yaml", "-").split(), input=yaml.safe_dump(found))


def test_a_version_that_a_person_brought_back_gives_way_to_the_next_promotion(control_plane, namespace, kserve, admin):
    """docs/operations.md, Roll a model back: the person applies with our own field manager."""
    with meanwhile(kserve.serve):
        cluster.apply([build(namespace, "8")], 20, admin)
    page = (PROJECT / "docs" / "operations.md").read_text()
    (command,) = re.findall(r"kubectl (apply .*--field-manager=\S+ -f )served.yaml", page)
    served = control_plane.kubectl("get", "inferenceservice", NAME, "-n", namespace, "-o", "yaml")
    control_plane.kubectl(*command.split(), "-", input=served.replace("models/8", "models/7"))
    assert kserve.service()["spec"]["predictor"]["model"]["storageUri"] == "s3://models/7"

    def roll() -> None:
        kserve.service("s3://models/9")
        kserve.serve()

    with meanwhile(roll):
        assert cluster.apply([build(namespace, "9")], 20, admin).storage_uri == "s3://models/9"


def test_deleted_meanwhile(namespace, kserve, admin):
    with (
        meanwhile(lambda: kserve.service() and kserve.plane.request("DELETE", kserve.path)),
        pytest.raises(DeliveryError, match="flights was deleted "),
    ):
        cluster.apply([build(namespace)], 20, admin)


def grant(control_plane, namespace, *rules: str) -> str:
    """Create a service account with rights such as `get,create:inferenceservices.serving.kserve.io`."""
    control_plane.kubectl("create", "serviceaccount", "step", "-n", namespace)
    user = f"system:serviceaccount:{namespace}:step"
    for number, (verbs, resource) in enumerate(rule.split(":") for rule in rules):
        name = f"step-{number}"
        control_plane.kubectl("create", "role", name, "-n", namespace, f"--verb={verbs}", f"--resource={resource}")
        control_plane.kubectl(
            "create", "rolebinding", name, "-n", namespace, f"--role={name}", f"--serviceaccount={namespace}:step"
        )
        assert control_plane.may(user, verbs.split(",")[-1], resource, namespace)
    return user


ENOUGH = ("get,create,patch:inferenceservices.serving.kserve.io", "list:deployments.apps")


def test_the_rights_that_it_says_it_needs_are_enough(control_plane, namespace, kserve):
    user = grant(control_plane, namespace, *ENOUGH)
    with meanwhile(kserve.serve):
        assert cluster.apply([build(namespace)], 20, control_plane.client(user)).generation == 1


def test_without_the_right_to_see_pods_kserve_says_why_a_model_does_not_load(control_plane, namespace, kserve):
    user = grant(control_plane, namespace, *ENOUGH)
    model = {
        "transitionStatus": "BlockedByFailedLoad",
        "lastFailureInfo": {"reason": "ModelLoadFailed", "message": "digest mismatch", "exitCode": 3},
    }

    def play() -> None:
        kserve.deployment("predictor", available=0)
        kserve.status("False", modelStatus=model)

    with meanwhile(play), pytest.raises(DeliveryError, match="model does not load: ModelLoadFailed: digest mismatch"):
        cluster.apply([build(namespace)], 20, control_plane.client(user))


@pytest.mark.parametrize(
    ("rules", "lacks"),
    [
        (ENOUGH[1:], "patch on inferenceservices.serving.kserve.io"),
        (("get,patch:inferenceservices.serving.kserve.io", ENOUGH[1]), "create on inferenceservices.serving.kserve.io"),
        (ENOUGH[:1], "list on deployments.apps"),
        (("create,patch:inferenceservices.serving.kserve.io", ENOUGH[1]), "get on inferenceservices.serving.kserve.io"),
    ],
    ids=["patch", "create", "deployments", "get"],
)
def test_a_right_that_is_missing_is_named(control_plane, namespace, rules, lacks):
    user = grant(control_plane, namespace, *rules)
    with pytest.raises(DeliveryError) as error:
        cluster.apply([build(namespace)], 5, control_plane.client(user))
    assert f"{user} may not" in str(error.value)
    assert f"it lacks {lacks}; grant it in a Role" in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m["spec"]["predictor"].update(modell={}), "modell"),
        (lambda m: m["spec"]["predictor"].update(minReplicas="two"), "minReplicas"),
        (lambda m: m["spec"].pop("predictor"), "predictor"),
        (lambda m: m["metadata"].update(name="Flights"), "Flights"),
        (lambda m: m["metadata"].update(namespace="nowhere"), 'namespaces "nowhere" not found; create it first'),
        (lambda m: m.update(kind="InferenceServices"), "needs one InferenceService"),
    ],
    ids=["unknown field", "wrong type", "nothing to serve", "name", "namespace", "kind"],
)
def test_a_wrong_manifest_is_refused_with_the_servers_words(control_plane, namespace, admin, change, message):
    manifest = build(namespace)
    change(manifest)
    began = time.monotonic()
    with pytest.raises(DeliveryError, match=message):
        cluster.apply([manifest], 20, admin)
    assert time.monotonic() - began < cluster.AWAY_S / 2
    assert not exists(control_plane, namespace)


def test_nothing_is_changed_when_one_object_of_many_is_refused(control_plane, namespace, admin):
    wrong = budget(namespace, minAvailable=1)
    with pytest.raises(
        DeliveryError, match=r"refuses PodDisruptionBudget flights: .*maxUnavailable.*; correct the manifest"
    ):
        cluster.apply([build(namespace), hpa(namespace), wrong], 20, admin)
    assert not exists(control_plane, namespace)


def test_admission_refuses(control_plane, namespace, admin):
    rule = {"apiGroups": ["serving.kserve.io"], "apiVersions": ["*"], "operations": ["*"], "resources": ["*"]}
    validation = {"expression": "object.metadata.name != 'flights'", "message": "no flights before the freeze ends"}
    group = "admissionregistration.k8s.io/v1"
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    objects = [
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicy",
            "metadata": {"name": namespace},
            "spec": {"matchConstraints": {"resourceRules": [rule]}, "validations": [validation]},
        },
        {
            "apiVersion": group,
            "kind": "ValidatingAdmissionPolicyBinding",
            "metadata": {"name": namespace},
            "spec": {
                "policyName": namespace,
                "validationActions": ["Deny"],
                "matchResources": {"namespaceSelector": selector},
            },
        },
    ]
    control_plane.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))
    try:
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline:  # the API server takes a moment to compile the policy
            with pytest.raises(DeliveryError) as error:
                cluster.apply([build(namespace)], 0, admin)
            if "freeze" in str(error.value):
                break
        assert "no flights before the freeze ends; correct the manifest" in str(error.value)
    finally:
        control_plane.kubectl("delete", "validatingadmissionpolicies,validatingadmissionpolicybindings", namespace)


def test_without_kserve_it_says_so(control_plane, namespace, admin):
    path = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions/inferenceservices.serving.kserve.io"
    crd = control_plane.request("GET", path)
    control_plane.request("DELETE", path)
    try:
        control_plane.wait(lambda: control_plane.http.get("/apis/serving.kserve.io/v1beta1").status_code == 404)
        with pytest.raises(DeliveryError, match=r"no kind InferenceService .*; install KServe"):
            cluster.apply([build(namespace)], 20, admin)
    finally:
        control_plane.wait(lambda: control_plane.http.get(path).status_code == 404)
        metadata = {"name": crd["metadata"]["name"], "annotations": crd["metadata"]["annotations"]}
        control_plane.request("POST", path.rpartition("/")[0], crd | {"metadata": metadata, "status": {}})
        discovery = "/apis/serving.kserve.io/v1beta1"
        control_plane.wait(lambda: "inferenceservices/status" in control_plane.http.get(discovery).text)


def test_an_optional_kind_that_is_not_installed_is_named(control_plane, namespace, admin):
    other = {"apiVersion": "example.org/v1", "kind": "Scaler", "metadata": {"name": NAME, "namespace": namespace}}
    with pytest.raises(DeliveryError, match=r"no kind Scaler of example.org/v1; install .*, or leave the object out"):
        cluster.apply([build(namespace), other], 20, admin)
    assert not exists(control_plane, namespace)


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(control_plane, namespace, kserve, admin):
    with ThreadPoolExecutor() as pool:
        delivery = pool.submit(cluster.apply, [build(namespace)], 30, admin)
        kserve.service()
        control_plane.stop_api_server()
        time.sleep(0.5)
        control_plane.start_api_server()
        kserve.serve()
        assert delivery.result().generation == 1


def test_an_api_server_that_stays_away(control_plane, namespace, admin, monkeypatch):
    monkeypatch.setattr(cluster, "AWAY_S", 0.5)
    admin.configuration.host = "https://127.0.0.1:1"
    with pytest.raises(DeliveryError, match=r"the API server at https://127.0.0.1:1 does not answer .*KUBECONFIG"):
        cluster.apply([build(namespace)], 20, admin)


def test_credentials_that_are_no_longer_good(control_plane, namespace):
    api = control_plane.client(f"system:serviceaccount:{namespace}:default")
    api.configuration.api_key["authorization"] = "Bearer worn-out"
    with pytest.raises(DeliveryError, match=r"does not accept our credentials .*; renew"):
        cluster.apply([build(namespace)], 20, api)


def test_the_cluster_is_that_of_the_kubeconfig(control_plane, namespace, kserve, tmp_path):
    program = "import json, sys; from kubeloop.delivery import cluster; print(cluster.apply(json.load(sys.stdin), 20))"

    def deliver(kubeconfig: str) -> subprocess.CompletedProcess[str]:
        manifests = json.dumps([build(namespace)])
        env = os.environ | {"KUBECONFIG": kubeconfig}
        return subprocess.run([sys.executable, "-c", program], input=manifests, env=env, capture_output=True, text=True)

    with meanwhile(kserve.serve):
        done = deliver(str(control_plane.kubeconfig()))
    assert "storage_uri='s3://models/7'" in done.stdout, done.stderr
    assert "no cluster is known" in deliver(str(tmp_path / "none")).stderr
