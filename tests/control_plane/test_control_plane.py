"""The control plane that other tests use: rights, admission, and that it ends with pytest."""

import json
import subprocess
import sys
import textwrap
from pathlib import Path

import psutil
import pytest
from kubernetes import client

from tests.control_plane.plane import CommandError

POD = """
apiVersion: v1
kind: Pod
metadata: {name: plain}
spec: {containers: [{name: main, image: "example.org/main:1.0.0"}]}
"""
SAFE_POD = """
apiVersion: v1
kind: Pod
metadata: {name: safe}
spec:
  securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
  containers:
  - name: main
    image: example.org/main:1.0.0
    securityContext: {allowPrivilegeEscalation: false, capabilities: {drop: [ALL]}}
"""


def test_every_upstream_crd_is_served(control_plane, crds, flux_crds):
    files = [path for folder in (crds, flux_crds) for path in folder.rglob("*.yaml")]
    kinds = json.loads(control_plane.kubectl("get", "crd", "-o", "json"))["items"]
    assert len(kinds) == sum(path.read_text().count("kind: CustomResourceDefinition") for path in files)
    assert "inferenceservices" in control_plane.kubectl("api-resources", "--api-group=serving.kserve.io")


def test_the_tools_work_on_it(control_plane, namespace, tmp_path):
    (tmp_path / "Chart.yaml").write_text("{apiVersion: v2, name: tiny, version: 1.0.0}")
    (tmp_path / "templates").mkdir()
    (tmp_path / "templates" / "map.yaml").write_text("{apiVersion: v1, kind: ConfigMap, metadata: {name: tiny}}")
    control_plane.helm("install", "tiny", str(tmp_path), "--namespace", namespace)
    assert "deployed" in control_plane.helm("list", "--namespace", namespace)
    (tmp_path / "kustomization.yaml").write_text(f"{{resources: [templates/map.yaml], namespace: {namespace}}}")
    applied = control_plane.kubectl(
        "apply", "-f", "-", "--dry-run=server", input=control_plane.kustomize("build", str(tmp_path))
    )
    assert "configmap/tiny" in applied


def test_pod_security_refuses_what_is_not_restricted(control_plane, namespace, restricted_namespace):
    control_plane.kubectl("apply", "-n", namespace, "-f", "-", input=POD)
    control_plane.kubectl("apply", "-n", restricted_namespace, "-f", "-", input=SAFE_POD)
    with pytest.raises(CommandError, match='violates PodSecurity "restricted'):
        control_plane.kubectl("apply", "-n", restricted_namespace, "-f", "-", input=POD)


def test_users_and_service_accounts_may_do_what_roles_say(control_plane, namespace):
    account = f"system:serviceaccount:{namespace}:default"
    for user in ("jane", account):
        with pytest.raises(CommandError, match=f'User "{user}" cannot list resource "pods"'):
            control_plane.kubectl("get", "pods", "-n", namespace, user=user)
    control_plane.kubectl("create", "role", "see", "-n", namespace, "--verb=list", "--resource=pods")
    control_plane.kubectl(
        "create", "rolebinding", "r", "-n", namespace, "--role=see", f"--serviceaccount={namespace}:default"
    )
    control_plane.kubectl("create", "rolebinding", "g", "-n", namespace, "--role=see", "--group=readers")
    assert control_plane.may(account, "list", "pods", namespace)
    assert control_plane.may("jane", "list", "pods", namespace, groups=["readers"])
    assert not control_plane.may(account, "list", "secrets", namespace, within_s=0)
    for api in (control_plane.client(account), control_plane.client("jane", ["readers"])):
        assert client.CoreV1Api(api).list_namespaced_pod(namespace).items == []
        with pytest.raises(client.ApiException, match="403"):
            client.CoreV1Api(api).list_namespaced_secret(namespace)


def test_a_namespace_goes_with_all_that_is_in_it(control_plane):
    with control_plane.namespace("gone") as name:
        control_plane.kubectl("create", "configmap", "kept", "-n", name)
    assert name not in control_plane.kubectl("get", "namespaces")
    assert "kept" not in control_plane.kubectl("get", "configmaps", "-A")


def test_it_keeps_its_data_and_address_over_a_restart(control_plane, namespace):
    control_plane.stop_api_server()
    control_plane.start_api_server()
    assert namespace in control_plane.kubectl("get", "namespaces")


def test_it_ends_when_its_program_is_killed(assets, tmp_path):
    script = textwrap.dedent("""
        import sys, time
        from pathlib import Path
        from tests.control_plane.plane import ControlPlane
        ControlPlane(Path(sys.argv[1]), Path(sys.argv[2])).start()
        print("up", flush=True)
        time.sleep(60)
    """)
    arguments = [sys.executable, "-c", script, str(assets), str(tmp_path)]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, cwd=Path(__file__).parents[2]) as program:
        assert program.stdout is not None
        assert program.stdout.readline() == b"up\n"
        servers = psutil.Process(program.pid).children()
        assert {server.name() for server in servers} == {"etcd", "kube-apiserver"}
        program.kill()
    _, alive = psutil.wait_procs(servers, timeout=10)
    assert not alive
