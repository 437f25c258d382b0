"""What holds for every rendered object: least privilege, no secrets in the chart, no open network."""

import ipaddress
import re

import pytest
import yaml

from tests.charts.conftest import RELEASE, SECOND, VALUES, containers, kinds, named, pods, values_of
from tests.kfp import argo

ALL = VALUES["everything"]
EVERY = pytest.mark.parametrize("values", VALUES.values(), ids=VALUES.keys())


def all_containers(objects):
    for name, pod in pods(objects).items():
        for container in containers(pod["spec"]).values():
            yield f"{name}/{container['name']}", container
    for item in objects:
        if item["kind"].endswith("ServingRuntime"):
            for container in item["spec"]["containers"]:
                yield f"{item['metadata']['name']}/{container['name']}", container


@EVERY
def test_containers(render, values):
    for name, container in all_containers(render(values)):
        security = container["securityContext"]
        assert security["runAsNonRoot"], name
        assert security["runAsUser"] == 65532, name
        assert security["readOnlyRootFilesystem"], name
        assert security["allowPrivilegeEscalation"] is False, name
        assert security["capabilities"] == {"drop": ["ALL"]}, name
        assert security["seccompProfile"] == {"type": "RuntimeDefault"}, name
        resources = container["resources"]
        assert {"cpu", "memory"} <= resources["requests"].keys(), name
        assert "memory" in resources["limits"], name
        tag = container["image"].rpartition("/")[2].partition(":")[2]
        assert tag not in ("", "latest"), name
        assert {"name": "tmp", "mountPath": "/tmp"} in container["volumeMounts"], name  # noqa: S108 - in the pod
        assert values_of(container)["HOME"] == "/tmp", name  # noqa: S108 - in the pod


@EVERY
def test_what_stays_up_is_probed(render, values):
    ends = (f"{RELEASE}-test", f"{RELEASE}-migrations")
    for name, container in all_containers(render(values)):
        if not name.startswith(ends):
            assert {"startupProbe", "livenessProbe"} <= container.keys(), name
        # A sidecar without a readiness probe cannot take its pod out of the Service when a store or the detector is
        # away.
        sidecar = container.get("restartPolicy") == "Always"
        assert ("readinessProbe" in container) == (not sidecar and not name.startswith(ends)), name


@EVERY
def test_pods(render, values):
    objects = render(values)
    accounts = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in kinds(objects, "ServiceAccount")}
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        # A hook runs before the release's accounts exist.
        hook = name == f"{RELEASE}-migrations"
        assert hook or ("kubeloop", spec["serviceAccountName"]) in accounts, name
        # Only the monitor uses the API server.
        assert spec["automountServiceAccountToken"] == ("-monitor-" in name), name
        assert spec["enableServiceLinks"] is False, name
        assert spec["securityContext"]["runAsNonRoot"], name
        assert "hostPath" not in str(spec["volumes"]), name


@EVERY
def test_only_the_pipelines_account_gives_its_token_to_pods_that_others_make(render, values):
    """Argo's executor needs the token in every pod of a run; the pods of KServe and Kubeflow Trainer need none.

    Source: tests/kfp/argo.py, has_token. KServe's storage initializer and agent get all that they need from the
    webhook.
    """
    found = {item["metadata"]["name"]: item for item in kinds(render(values), "ServiceAccount")}
    assert [name for name, account in found.items() if argo.has_token(account)] == ["kubeloop-pipeline"]


def test_a_steps_account_has_only_the_rights_that_argo_and_kubeflow_need(render):
    """Source: argo-workflows v4.0.5, docs/workflow-rbac.md; kubeflow/pipelines 2.17.0, backend/src/v2: config/env.go
    (kfp-launcher), objectstore/object_store.go (the Secret), component/launcher_v2.go (its own pod)."""
    rules = named(render({}), "Role", "kubeloop-pipeline-executor")["rules"]
    found = {rule["resources"][0]: (rule["verbs"], rule.get("resourceNames")) for rule in rules}
    assert found == {
        "workflowtaskresults": (["create", "patch"], None),
        "configmaps": (["get"], ["kfp-launcher"]),
        "pods": (["get"], None),
        "secrets": (["get"], ["mlpipeline-minio-artifact"]),
    }


@EVERY
def test_secrets_come_only_by_name(render, values):
    objects = render(values)
    assert kinds(objects, "Secret") == []
    for name, container in all_containers(objects):
        for variable, value in values_of(container).items():
            if re.search(r"_DB$|_KEY|STORE_URI|REGISTRY$|ONLINE_STORE$", variable):
                assert "secretKeyRef" in value, f"{name}: {variable}"


@EVERY
def test_roles_are_small(render, values):
    objects = render(values)
    assert kinds(objects, "ClusterRole") == kinds(objects, "ClusterRoleBinding") == []
    for role in kinds(objects, "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["verbs"], *rule["resources"], *rule["apiGroups"]]
            assert not {"deletecollection", "escalate", "impersonate"} & set(rule["verbs"])
            assert "delete" not in rule["verbs"]
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["get"]
                assert rule["resourceNames"] == ["mlpipeline-minio-artifact"]


@pytest.mark.parametrize(
    ("appliers", "verbs"),
    [
        ([], ["get", "create", "patch"]),
        (["cluster"], ["get", "create", "patch"]),
        (["gitops"], ["get"]),
        (["gitops", "gitops"], ["get"]),
        (["gitops", "cluster"], ["get", "create", "patch"]),
    ],
)
def test_pipelines_change_nothing_where_all_is_promoted_by_gitops(render, appliers, verbs):
    git = {"repository": "https://git.acme.io/loops"}
    loops = {
        f"loop-{number}": {"config": SECOND | {"name": f"loop-{number}", "delivery": {"applier": applier, "git": git}}}
        for number, applier in enumerate(appliers)
    }
    role = named(render({"loops": loops}), "Role", "kubeloop-pipeline")
    found = {rule["resources"][0]: rule["verbs"] for rule in role["rules"]}
    assert found == {"inferenceservices": verbs, "deployments": ["list"], "pods": ["list"]}


@EVERY
def test_bindings_name_accounts_that_exist(render, values):
    objects = render(values)
    accounts = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in kinds(objects, "ServiceAccount")}
    roles = {(item["metadata"]["namespace"], item["metadata"]["name"]) for item in kinds(objects, "Role")}
    for binding in kinds(objects, "RoleBinding"):
        assert (binding["metadata"]["namespace"], binding["roleRef"]["name"]) in roles
        assert {(subject["namespace"], subject["name"]) for subject in binding["subjects"]} <= accounts


@EVERY
def test_what_is_mounted_or_named_exists(render, values):
    objects = render(values)
    maps = {item["metadata"]["name"] for item in kinds(objects, "ConfigMap")}
    for name, pod in pods(objects).items():
        spec = pod["spec"]
        claims = {"data"} if name == f"{RELEASE}-collector" else set()
        volumes = {volume["name"] for volume in spec["volumes"]} | claims
        for volume in spec["volumes"]:
            assert volume.get("configMap", {"name": "kubeloop-env"})["name"] in maps, name
        for container in containers(spec).values():
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes, name


@EVERY
def test_budgets_and_spread(render, values):
    objects = render(values)
    replicated = {
        item["metadata"]["name"] for item in kinds(objects, "Deployment") if "-monitor-" not in item["metadata"]["name"]
    }
    budgets = {item["metadata"]["name"] for item in kinds(objects, "PodDisruptionBudget")}
    if values.get("podDisruptionBudgets", {"enabled": True})["enabled"]:
        assert replicated <= budgets
    for name in replicated:
        assert "topologySpreadConstraints" in pods(objects)[name]["spec"], name


def selects(policy, labels) -> bool:
    selector = policy["spec"]["podSelector"]
    asked = all(expression["key"] in labels for expression in selector.get("matchExpressions", ()))
    return asked and selector.get("matchLabels", {}).items() <= labels.items()


def test_every_pod_is_denied_what_no_policy_allows(render):
    objects = render(ALL)
    policies = kinds(objects, "NetworkPolicy")
    for policy in policies:
        assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]
    for name, pod in pods(objects).items():
        over = [item["metadata"]["name"] for item in policies if selects(item, pod["metadata"]["labels"])]
        assert f"{RELEASE}-default-deny" in over, name
        assert len(over) >= 2, name
    denial = named(objects, "NetworkPolicy", f"{RELEASE}-default-deny", "kubeloop")["spec"]
    assert "ingress" not in denial
    assert [port["port"] for rule in denial["egress"] for port in rule["ports"]] == [53, 53]


@pytest.mark.parametrize("name", ["one loop", "everything"])
def test_no_policy_lets_the_metadata_address_through(render, name):
    policies = kinds(render(VALUES[name]), "NetworkPolicy")
    blocks = [
        peer["ipBlock"]
        for policy in policies
        for rule in policy["spec"].get("egress") or ()
        for peer in rule.get("to", ())
        if "ipBlock" in peer
    ]
    assert blocks
    for block in blocks:
        network = ipaddress.ip_network(block["cidr"])
        address = ipaddress.ip_address("169.254.169.254" if network.version == 4 else "fd00:ec2::254")
        excepted = any(address in ipaddress.ip_network(item) for item in block.get("except", ()))
        assert address not in network or excepted, block


def test_rules_without_peers_let_everyone_in_so_there_are_none(render):
    for policy in kinds(render(ALL), "NetworkPolicy"):
        for direction, peers in (("ingress", "from"), ("egress", "to")):
            for rule in policy["spec"].get(direction) or ():
                assert rule[peers], policy["metadata"]["name"]


def test_the_steps_kserves_pods_and_ours_may_reach_the_collector(render):
    rules = named(render(ALL, namespace="ml"), "NetworkPolicy", f"{RELEASE}-collector")["spec"]["ingress"]
    peers = [peer for rule in rules for peer in rule["from"] if "podSelector" in peer]
    found = {(peer["podSelector"]["matchLabels"]["app.kubernetes.io/component"], namespace_of(peer)) for peer in peers}
    assert found == {("predictor", "ml"), ("predictor", "kubeloop"), ("pipeline", "ml"), ("test", None)}


METRICS = {8081, 8082}
"""The only port of the mirror, and the second port of every other part: serving.metrics_port."""


@EVERY
def test_who_reads_metrics_can_change_nothing(render, values):
    """Checked by port, since policies cannot see paths.

    Triton has a port for metrics; vLLM has only the one for clients.
    """
    found = 0
    for policy in kinds(render(values), "NetworkPolicy"):
        name = policy["metadata"]["name"]
        theirs = {8002, 8080} if name == f"{RELEASE}-predictor" and values is ALL else set()
        for rule in policy["spec"].get("ingress") or ():
            peers = str(rule["from"])
            if "'monitoring'" in peers or '"monitoring"' in peers or "'test'" in peers:
                found += 1
                ports = {port["port"] for port in rule["ports"]}
                assert ports - theirs <= METRICS or "-mlflow" in name, name
    assert found or not kinds(render(values), "NetworkPolicy")


def test_what_a_policy_lets_prometheus_reach_is_what_it_is_told_to_read(render):
    objects = render(ALL)
    monitored = {end["port"] for end in named(objects, "ServiceMonitor", RELEASE)["spec"]["endpoints"]}
    for part in ("collector", "monitor-fraud", "trigger-fraud"):
        rules = named(objects, "NetworkPolicy", f"{RELEASE}-{part}")["spec"]["ingress"]
        reached = {port["port"] for rule in rules if "'monitoring'" in str(rule["from"]) for port in rule["ports"]}
        service = named(objects, "Service", f"{RELEASE}-{part}")["spec"]["ports"]
        every = containers(pods(objects)[f"{RELEASE}-{part}"]["spec"]).values()
        listens = {port["name"]: port["containerPort"] for each in every for port in each.get("ports", ())}
        assert {listens[port["targetPort"]] for port in service if port["name"] in monitored} <= reached, part
    runtime = named(objects, "ServingRuntime", f"{RELEASE}-onnx")["spec"]
    assert runtime["annotations"]["prometheus.kserve.io/port"] == "8082"
    assert "--metrics-port=8082" in runtime["containers"][0]["args"]


def destination(render, values):
    return named(render(values), "NetworkPolicy", f"{RELEASE}-collector")["spec"]["egress"][0]


def namespaces(*names):
    key = "kubernetes.io/metadata.name"
    return {"namespaceSelector": {"matchExpressions": [{"key": key, "operator": "In", "values": list(names)}]}}


@pytest.mark.parametrize(
    ("endpoint", "namespace", "port"),
    [
        ("http://minio.store.svc:9000", "store", 9000),
        ("http://minio.store.svc.cluster.local", "store", 80),
        ("http://minio.store:9001/", "store", 9001),
        ("https://minio:9443", "kubeloop", 9443),
    ],
)
def test_the_store_is_where_its_address_says(render, endpoint, namespace, port):
    rule = destination(render, {"storage": {"endpoint": endpoint}})
    assert rule["to"] == [namespaces(namespace)]
    ports = [each["port"] for each in rule["ports"]]
    assert port in ports
    assert len(ports) == len(set(ports))


@pytest.mark.parametrize(
    ("endpoint", "port"),
    [("", 443), ("https://acme.io", 443), ("https://s3.acme.io", 443), ("http://s3.svc.acme.io:81", 81)],
)
def test_a_store_outside_the_cluster_is_not_a_pod(render, endpoint, port):
    rule = destination(render, {"storage": {"endpoint": endpoint}})
    assert all("ipBlock" in peer for peer in rule["to"])
    assert port in [each["port"] for each in rule["ports"]]


def test_a_store_that_is_an_address_is_that_address(render):
    rule = destination(render, {"storage": {"endpoint": "http://10.1.2.3:9000"}})
    assert rule["to"] == [{"ipBlock": {"cidr": "10.1.2.3/32"}}]


@pytest.mark.parametrize(("name", "ports"), [("database", [5432]), ("onlineStore", [6379, 5432])])
def test_databases_are_in_the_own_namespace_unless_named(render, name, ports):
    def peers(policy):
        values = {"loops": {"fraud": {"config": SECOND}}, "networkPolicy": policy}
        spec = named(render(values), "NetworkPolicy", f"{RELEASE}-transformer")["spec"]
        (found,) = (rule["to"] for rule in spec["egress"] if [each["port"] for each in rule["ports"]] == ports)
        return found

    address = {"ipBlock": {"cidr": "10.9.0.0/16"}}
    assert peers({}) == [namespaces("kubeloop")]
    assert peers({name: {"namespaces": ["data", "old"]}}) == [namespaces("data", "old")]
    assert peers({name: {"namespaces": ["data"], "to": [address]}}) == [namespaces("data"), address]


def test_steps_reach_anything_until_their_sources_are_named(render):
    def peers(policy):
        values = {"kubeflow": {"namespace": "ml"}, "networkPolicy": policy}
        spec = named(render(values), "NetworkPolicy", f"{RELEASE}-pipeline", "ml")["spec"]
        return [peer for rule in spec["egress"] for peer in rule["to"]]

    assert {"namespaceSelector": {}} in peers({})
    found = peers(
        {"sources": {"namespaces": ["warehouse"]}, "kubernetes": {"to": [{"ipBlock": {"cidr": "10.0.0.1/32"}}]}}
    )
    assert {"namespaceSelector": {}} not in found
    # The policy keeps what every step needs: Kubeflow, our own services, databases, the API server.
    for needed in ("'warehouse'", "'collector'", "'monitor'", "'mlflow'", "'kubeflow'", "'kubeloop'", "10.0.0.1/32"):
        assert needed in str(found), needed


def test_mlflow_asks_for_a_login_where_it_is_given_one(render):
    login = {"mlflow": {"login": {"server": "mlflow-login", "clients": "mlflow-steps"}}}
    (container,) = containers(pods(render(login))[f"{RELEASE}-mlflow"]["spec"]).values()
    assert "--app-name=basic-auth" in container["args"]
    (mount,) = (item for item in container["volumeMounts"] if item["name"] == "login")
    assert values_of(container)["MLFLOW_AUTH_CONFIG_PATH"] == f"{mount['mountPath']}/auth.ini"
    key = values_of(container)["MLFLOW_FLASK_SERVER_SECRET_KEY"]["secretKeyRef"]
    assert key == {"name": "mlflow-login", "key": "session-key"}
    loops = login | {"loops": {"fraud": {"config": SECOND}}}
    loop = yaml.safe_load(named(render(loops), "ConfigMap", f"{RELEASE}-loop-fraud")["data"]["loop.yaml"])
    wanted = {"MLFLOW_TRACKING_USERNAME": "username", "MLFLOW_TRACKING_PASSWORD": "password"}
    assert {"secret": "mlflow-steps", "env": wanted} in loop["pipelines"]["secrets"]
    assert "MLFLOW_TRACKING" not in str(loop["delivery"]), "a serving pod does not ask the registry"
    assert "basic-auth" not in str(pods(render({}))[f"{RELEASE}-mlflow"])


@pytest.mark.parametrize("grpc", [True, False])
def test_grpc_is_let_in_where_a_loop_speaks_it(render, grpc):
    loops = {"fraud": {"config": SECOND | {"serving": {"grpc": grpc}}}}
    policies = kinds(render({"loops": loops, "networkPolicy": {"clients": ["web"]}}), "NetworkPolicy")
    (policy,) = (item for item in policies if item["metadata"]["name"] == f"{RELEASE}-transformer")
    rule = policy["spec"]["ingress"][0]
    assert "web" in str(rule["from"])
    assert [port["port"] for port in rule["ports"]] == [8080, 9000][: 1 + grpc]


def namespace_of(peer):
    return peer.get("namespaceSelector", {}).get("matchLabels", {}).get("kubernetes.io/metadata.name")


def test_a_destination_can_be_narrowed(render):
    spec = named(render(ALL), "NetworkPolicy", f"{RELEASE}-mlflow")["spec"]
    database = [rule["to"] for rule in spec["egress"] if rule["ports"][0]["port"] == 5432]
    assert database == [[{"ipBlock": {"cidr": "10.9.0.0/16"}}]]


def test_the_trigger_authenticates_only_to_kubeflow(render):
    spec = pods(render(ALL))[f"{RELEASE}-trigger-fraud"]["spec"]
    (volume,) = (item for item in spec["volumes"] if item["name"] == "token")
    (source,) = volume["projected"]["sources"]
    assert source["serviceAccountToken"]["audience"] == "pipelines.kubeflow.org"
    container = containers(spec)["trigger"]
    (mount,) = (item for item in container["volumeMounts"] if item["name"] == "token")
    token = f"{mount['mountPath']}/{source['serviceAccountToken']['path']}"
    assert values_of(container)["KUBELOOP_KFP_TOKEN_FILE"] == token
    steps = named(render(ALL), "RoleBinding", f"{RELEASE}-trigger")["metadata"]["namespace"]
    assert values_of(container)["KUBELOOP_NAMESPACE"] == steps, "it asks in the namespace where it has its rights"


def test_a_collector_that_refuses_is_still_found(render):
    assert named(render({}), "Service", f"{RELEASE}-collector")["spec"]["publishNotReadyAddresses"] is True


def test_programs_accept_their_flags(render):
    """Every flag in the pods' commands is listed by the program's --help."""
    import subprocess
    import sys

    found = pods(render(VALUES["one loop"]))
    for name in (f"{RELEASE}-collector", f"{RELEASE}-monitor-flight-delay", f"{RELEASE}-trigger-flight-delay"):
        for container in containers(found[name]["spec"]).values():
            if container["name"] == "detector":
                continue
            program = [sys.executable, *container["command"][1:], "--help"]
            told = subprocess.run(program, capture_output=True, text=True, check=True).stdout
            for arg in container["args"]:
                flag = arg.partition("=")[0]
                assert not flag.startswith("--") or flag in told, f"{container['name']}: {flag}"


def test_every_container_of_ours_leaves_its_last_words(render):
    for pod in pods(render(ALL)).values():
        for container in containers(pod["spec"]).values():
            assert container["terminationMessagePolicy"] == "FallbackToLogsOnError"


def test_databases_are_migrated_before_anything_else_changes(render):
    """A hook does it.

    It needs no object of the release, and it may reach the databases while everything else is denied.
    """
    objects = render(ALL)
    job, policy = (named(objects, kind, f"{RELEASE}-migrations") for kind in ("Job", "NetworkPolicy"))
    for item in (job, policy):
        assert item["metadata"]["annotations"]["helm.sh/hook"] == "pre-install,pre-upgrade"
    assert policy["metadata"]["annotations"]["helm.sh/hook-weight"] == "-1", "before the Job"
    assert "hook-succeeded" not in policy["metadata"]["annotations"]["helm.sh/hook-delete-policy"], (
        "it is deleted with the Job"
    )
    assert selects(policy, job["spec"]["template"]["metadata"]["labels"])
    assert [port["port"] for rule in policy["spec"]["egress"] for port in rule["ports"]] == [5432, 53, 53]
    spec = job["spec"]["template"]["spec"]
    assert spec["serviceAccountName"] == "default"
    assert "secretKeyRef" in str(spec["containers"][0]["env"])
    assert "configMap" not in str(spec)
    read = {
        name: containers(pods(objects)[name]["spec"])
        for name in (f"{RELEASE}-trigger-fraud", f"{RELEASE}-monitor-fraud")
    }
    ours = {item["name"]: item for item in spec["containers"][0]["env"]}
    for name, container, variable in (
        ("trigger", "trigger", "KUBELOOP_LEDGER_DB"),
        ("monitor", "monitor", "KUBELOOP_MONITOR_DB"),
    ):
        theirs = {item["name"]: item for item in read[f"{RELEASE}-{name}-fraud"][container]["env"]}
        assert ours[variable] == theirs[variable]
    assert kinds(render({}), "Job") == [], "without loops there is no database"
