"""What the chart renders: each branch on and off, the loops' configuration, and the contract with the programs."""

import re

import pytest
import yaml

from kubeloop import config, names
from kubeloop.config import Loop
from kubeloop.config.cluster import Delivery, Pipelines
from kubeloop.delivery import pods as serving_pods
from kubeloop.delivery.containers import LEAN
from kubeloop.delivery.manifest import ModelRef, inference_service
from tests.charts.conftest import (
    CHART,
    EXTRA,
    LOOP,
    PROJECT,
    RELEASE,
    SECOND,
    VALUES,
    containers,
    helm,
    kinds,
    merged,
    named,
    pods,
    values_of,
)

ONE = VALUES["one loop"]
ALL = VALUES["everything"]


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_lints(assets, values):
    done = helm(
        assets, "lint", "--strict", str(CHART), "--kube-version", "1.36", "-f", "-", text=yaml.safe_dump(values)
    )
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    "values",
    [
        {"colector": {}},
        {"loops": {"fraud": {"config": SECOND | {"drfit": {}}}}},
        # Both ran Feast's own server, which accepts writes from every client.
        {"features": {"server": {"enabled": True}}},
        {"features": {"operator": {"enabled": True}}},
    ],
)
def test_helm_refuses_unknown_values(assets, values):
    text = yaml.safe_dump(values)
    done = helm(assets, "template", RELEASE, str(CHART), "--kube-version", "1.36", "-f", "-", text=text)
    assert done.returncode != 0
    assert re.search(r"colector|drfit|server|operator", done.stderr), done.stderr


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"loops": {"flights": {"config": SECOND}}}, r"call the entry loops\.fraud"),
        ({"loops": {"fraud": {"config": "a: ["}}}, "not valid YAML"),
        ({"loops": {"fraud": {"config": "name: fraud"}}}, "has no `source`.*--set-file"),
        ({"mlflow": {"enabled": False}}, "mlflow.uri is empty"),
    ],
)
def test_values_that_cannot_work_are_refused(assets, values, message):
    text = yaml.safe_dump(values)
    done = helm(assets, "template", RELEASE, str(CHART), "--kube-version", "1.36", "-f", "-", text=text)
    assert done.returncode != 0
    assert re.search(message, done.stderr), done.stderr


def test_a_name_that_does_not_fit_is_refused(assets):
    text = yaml.safe_dump({"loops": {"l" * 42: {"config": SECOND | {"name": "l" * 42}}}})
    done = helm(assets, "template", "r" * 40, str(CHART), "--kube-version", "1.36", "-f", "-", text=text)
    assert "fullnameOverride" in done.stderr


def test_a_loop_may_be_a_file(render):
    told = render({}, "--set-file", f"loops.flight-delay.config={PROJECT / 'loop.yaml'}")
    name = f"{RELEASE}-loop-flight-delay"
    found, mapping = (named(objects, "ConfigMap", name)["data"]["loop.yaml"] for objects in (told, render(ONE)))
    assert Loop.parse(found) == Loop.parse(mapping)


def test_a_loop_gets_what_the_cluster_has(render):
    objects = render(ALL, namespace="ml")
    loop = Loop.parse(named(objects, "ConfigMap", f"{RELEASE}-loop-flight-delay")["data"]["loop.yaml"])
    plain = config.load(PROJECT / "loop.yaml")
    assert loop.model_copy(update={"delivery": plain.delivery, "pipelines": plain.pipelines}) == plain
    assert loop.delivery.applier == "cluster"
    assert loop.delivery.namespace == "ml"
    assert loop.pipelines.images.core == "ghcr.io/acme/kubeloop-core:0.1.0"
    assert loop.pipelines.images.pull_secrets == ("registry",)
    variables = {name for secret in loop.pipelines.secrets for name in secret.env}
    features = {"KUBELOOP_FEATURE_REGISTRY", "KUBELOOP_ONLINE_STORE"}
    assert variables == features | {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
    assert {name for secret in loop.delivery.secrets for name in secret.env} == features


def test_what_a_loop_says_wins(render):
    git = {"repository": "https://git.acme.io/loops"}
    told = SECOND | {"delivery": {"applier": "gitops", "git": git, "namespace": "models"}}
    objects = render({"loops": {"fraud": {"config": told}}}, namespace="ml")
    loop = Loop.parse(named(objects, "ConfigMap", f"{RELEASE}-loop-fraud")["data"]["loop.yaml"])
    assert (loop.delivery.applier, loop.delivery.namespace) == ("gitops", "models")
    assert named(objects, "ServingRuntime", names.RUNTIME)["metadata"]["namespace"] == "models"
    assert named(objects, "Role", f"{RELEASE}-monitor-fraud")["metadata"]["namespace"] == "models"


def test_a_release_called_kubeloop_has_the_names_of_the_configuration(render):
    objects = render(ALL)
    assert named(objects, "ConfigMap", str(Pipelines().config_map))
    assert named(objects, "ServiceAccount", Pipelines().service_account)
    assert named(objects, "ServiceAccount", str(Delivery().service_account))
    runtimes = {item["metadata"]["name"] for item in kinds(objects, "ServingRuntime")}
    assert runtimes == {names.runtime(Delivery().runtimes, server) for server in ("onnx", "onnx-gpu", "triton", "vllm")}


@pytest.mark.parametrize("over", [{}, {"fullnameOverride": "acme"}])
@pytest.mark.parametrize("cluster_wide", [True, False])
def test_two_releases_share_no_object(assets, over, cluster_wide):
    """With everything on, in one Kubeflow namespace and one serving namespace."""
    shared = {"kubeflow": {"namespace": "steps"}, "runtimes": {"clusterWide": cluster_wide}}
    values = [merged(ALL, shared), merged(ALL, shared | over)]

    def keys(release, namespace, values):
        done = helm(
            assets,
            *("template", release, str(CHART), "-n", namespace, "--kube-version", "1.36", "-f", "-"),
            text=yaml.safe_dump(values),
        )
        assert done.returncode == 0, done.stderr
        found = [item for item in yaml.safe_load_all(done.stdout) if item]
        return {(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in found}

    other = RELEASE if over else "other"
    one, two = keys(RELEASE, "one", values[0]), keys(other, "two", values[1])
    assert {kind for kind, namespace, _ in one if namespace == "steps"} >= {"ConfigMap", "Role", "ServiceAccount"}
    assert one & two == set()
    assert len(one) == len(two)


def test_a_loop_is_told_the_names_of_its_release(assets):
    text = yaml.safe_dump({"loops": {"fraud": {"config": SECOND | {"delivery": {"predictor": {"gpu": {}}}}}}})
    command = ("template", "blue", str(CHART), "-n", "ml", "--kube-version", "1.36", "-f", "-")
    done = helm(assets, *command, "--set", "runtimes.onnxGpu.enabled=true", text=text)
    objects = [item for item in yaml.safe_load_all(done.stdout) if item]
    loop = Loop.parse(named(objects, "ConfigMap", "blue-kubeloop-loop-fraud")["data"]["loop.yaml"])
    assert loop.pipelines.config_map == loop.delivery.config_map == "blue-kubeloop-env"
    variables = named(objects, "ConfigMap", loop.delivery.config_map)["data"]
    assert variables["KUBELOOP_OWNER"] == "ml/blue-kubeloop"
    assert named(objects, "ServiceAccount", loop.pipelines.service_account)
    plain = inference_service(
        loop, ModelRef("1", "s3://m/1", "a" * 64, "r"), logger_url="http://c/", feature_dir="/project/feature_repo"
    )
    predictor = serving_pods.place(loop, plain)["spec"]["predictor"]
    assert named(objects, "ServiceAccount", predictor["serviceAccountName"])
    assert named(objects, "ServingRuntime", predictor["model"]["runtime"])
    assert "--drain-s=5" in predictor["model"]["args"], "it is known to be ours"


@pytest.mark.parametrize(("value", "owner"), [({}, "ml/kubeloop"), ({"storage": {"owner": "eu/prod"}}, "eu/prod")])
def test_every_program_on_the_bucket_knows_its_owner(render, value, owner):
    objects = render(merged(ONE, value), namespace="ml")
    found = [values_of(item) for pod in pods(objects).values() for item in containers(pod["spec"]).values()]
    opening = [variables for variables in found if "KUBELOOP_BUCKET" in variables]
    assert len(opening) == 4, "two mirrors, the trigger, MLflow"
    assert {variables["KUBELOOP_OWNER"] for variables in opening} == {owner}
    assert named(objects, "ConfigMap", "kubeloop-env", "ml")["data"]["KUBELOOP_OWNER"] == owner


@pytest.mark.parametrize("values", [ONE, ALL, VALUES["little"]])
def test_the_environment_of_the_steps_is_the_public_one(render, values):
    found = kinds(render(values), "ConfigMap")
    (data,) = (item["data"] for item in found if item["metadata"]["name"] == "kubeloop-env")
    loops = {key: data.pop(key) for key in [*data] if key.startswith("loop.")}
    assert data.pop("KUBELOOP_RELEASE") == "kubeloop/kubeloop"
    optional = {"AWS_ENDPOINT_URL"}
    assert set(config.PUBLIC) - optional <= set(data) <= set(config.PUBLIC)
    assert all(data.values())
    installed = {item["metadata"]["name"]: item["data"]["loop.yaml"] for item in found if "loop.yaml" in item["data"]}
    assert {f"kubeloop-loop-{key.removeprefix('loop.')}": text for key, text in loops.items()} == installed


def test_steps_know_the_loops_where_they_run_and_serving_pods_do_not(render):
    objects = render(merged(ONE, {"kubeflow": {"namespace": "steps"}}), namespace="ml")
    there = {ns: named(objects, "ConfigMap", "kubeloop-env", ns)["data"].keys() for ns in ("steps", "ml")}
    assert {"KUBELOOP_RELEASE", "loop.flight-delay"} <= there["steps"]
    assert not any(key.startswith("loop.") for key in there["ml"])


def test_addresses_lead_to_services(render):
    objects = render(ALL, namespace="ml")
    data = named(objects, "ConfigMap", "kubeloop-env", "ml")["data"]
    urls = [data[f"KUBELOOP_{name}_URL"].format(loop="fraud") for name in ("COLLECTOR", "MONITOR")]
    monitor = containers(pods(objects)[f"{RELEASE}-monitor-fraud"]["spec"])["monitor"]
    urls += [arg.partition("=")[2] for arg in monitor["args"] if arg.startswith("--trigger-url")]
    urls += [data["KUBELOOP_MLFLOW_URI"]]
    urls += [arg.rpartition("/")[0] for arg in pods(objects)[f"{RELEASE}-test"]["spec"]["containers"][0]["args"][1:]]
    assert len(urls) == 10
    for url in urls:
        host = re.fullmatch(r"http://([a-z-]+)\.ml\.svc(?::8082)?", url)
        assert host, url
        service = named(objects, "Service", host[1])
        targets = [pod for pod in pods(objects).values() if matches(service["spec"]["selector"], pod)]
        assert len(targets) == 1, url
        ports = {port["name"] for item in containers(targets[0]["spec"]).values() for port in item.get("ports", ())}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= ports


def matches(selector, pod) -> bool:
    return selector.items() <= pod["metadata"]["labels"].items()


@pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())
def test_selectors_select_one_workload(render, values):
    objects = render(values)
    for item in objects:
        if item["kind"] in ("Deployment", "StatefulSet"):
            selector = item["spec"]["selector"]["matchLabels"]
            assert [name for name, pod in pods(objects).items() if matches(selector, pod)] == [item["metadata"]["name"]]


def test_branches_are_off_by_default(render):
    found = {item["kind"] for item in render(ONE)}
    assert not found & {*EXTRA, "HorizontalPodAutoscaler", "ClusterServingRuntime"}


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"metrics": {"enabled": True}}, "ServiceMonitor"),
        ({"metrics": {"enabled": True}}, "PodMonitor"),
        ({"alerts": {"enabled": True}}, "PrometheusRule"),
        ({"gateway": {"enabled": True}}, "HTTPRoute"),
        ({"mlflow": {"autoscaling": {"enabled": True}}}, "HorizontalPodAutoscaler"),
        ({"mlflow": {"autoscaling": {"enabled": True}}, "keda": {"enabled": True}}, "ScaledObject"),
        ({"runtimes": {"clusterWide": True}}, "ClusterServingRuntime"),
    ],
)
def test_one_value_turns_a_branch_on(render, value, kind):
    assert kinds(render(value), kind)
    assert not kinds(render({}), kind)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ({"networkPolicy": {"enabled": False}}, "NetworkPolicy"),
        ({"podDisruptionBudgets": {"enabled": False}}, "PodDisruptionBudget"),
        ({"runtimes": {"onnx": {"enabled": False}}}, "ServingRuntime"),
    ],
)
def test_one_value_turns_a_branch_off(render, value, kind):
    assert kinds(render(ONE), kind)
    assert not kinds(render(ONE | value), kind)


def test_train_jobs_take_rights_only_where_a_loop_has_them(render):
    def resources(values):
        return {name for role in kinds(render(values), "Role") for rule in role["rules"] for name in rule["resources"]}

    assert "trainjobs" in resources(ALL)
    assert "trainjobs" not in resources(ONE)
    policy = named(render(ALL, namespace="ml"), "NetworkPolicy", f"{RELEASE}-train-job")
    assert policy["metadata"]["namespace"] == "ml"


def test_the_detector_is_left_out_with_the_builtin_engine(render):
    found = pods(render(ALL))
    alibi, builtin = (containers(found[f"{RELEASE}-monitor-{name}"]["spec"]) for name in ("flight-delay", "fraud"))
    assert set(alibi) == {"mirror", "detector", "monitor"}
    assert set(builtin) == {"mirror", "monitor"}
    assert not any(arg.startswith("--detector-url") for arg in builtin["monitor"]["args"])


def test_a_changed_loop_rolls_its_pods_and_no_others(render):
    def checksums(values):
        return {name: pod["metadata"].get("annotations") for name, pod in pods(render(values)).items()}

    changed = {"loops": {"flight-delay": {"config": LOOP | {"description": "another"}}, "fraud": {"config": SECOND}}}
    before = checksums({"loops": {"flight-delay": {"config": LOOP}, "fraud": {"config": SECOND}}})
    after = checksums(changed)
    different = {name for name in before if before[name] != after[name]}
    assert different == {f"{RELEASE}-monitor-flight-delay", f"{RELEASE}-trigger-flight-delay"}


def test_settings_of_pods(render):
    found = pods(render(ALL))
    collector, trigger = found[f"{RELEASE}-collector"]["spec"], found[f"{RELEASE}-trigger-fraud"]["spec"]
    assert collector["nodeSelector"] == {"pool": "ml"}
    assert trigger["nodeSelector"] == {"pool": "ml", "zone": "a"}
    assert collector["tolerations"] == [{"key": "ml", "operator": "Exists"}]
    assert values_of(containers(trigger)["trigger"])["HTTPS_PROXY"] == "http://proxy:3128"
    monitor = containers(found[f"{RELEASE}-monitor-flight-delay"]["spec"])["monitor"]
    assert monitor["resources"]["requests"] == {"cpu": 1, "memory": "1Gi"}
    assert trigger["topologySpreadConstraints"][0]["topologyKey"] == "kubernetes.io/hostname"


def test_what_stays_up_gives_freed_memory_back(render):
    """Every process of the chart's own images has the same malloc variables as the transformer's pod."""
    for name, pod in pods(render(ALL)).items():
        for container in containers(pod["spec"]).values():
            if "KUBELOOP_STATE" in values_of(container):
                assert LEAN.items() <= values_of(container).items(), (name, container["name"])
