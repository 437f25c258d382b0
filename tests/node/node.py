"""A control plane with one real node: controllers, scheduler, containerd, kubelet, kube-proxy and cluster DNS."""

import json
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml

from tests.control_plane.certificates import Authority
from tests.control_plane.plane import ControlPlane
from tests.control_plane.servers import POLL_S, StartError
from tests.node.ground import GATEWAY, PODS

PROGRAMS = ("kubelet", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns")
NAME = "node"
PAUSE = "localhost/kubeloop-pause:1.0.0"
DOMAIN = "cluster.local"
CNI = next(
    (path for path in map(Path, ("/usr/lib/cni", "/opt/cni/bin")) if (path / "bridge").exists()), Path("/opt/cni/bin")
)

_API_SERVICE = "10.0.0.1"
_LIMIT_S = 120.0


class Node(ControlPlane):
    """A running cluster of one node; everything runs in the caller's namespaces and ends with them."""

    def __init__(self, assets: Path, folder: Path, cgroup: str) -> None:
        super().__init__(_programs(assets, folder / "programs"), folder)
        self._cgroup = cgroup
        self._serving = _serve(self.authority)
        self._to_kubelet = self.authority.user("kube-apiserver", ["system:masters"], "to-kubelet")
        self._socket = folder / "containerd.sock"

    def start(self, data: Path | None = None) -> None:
        """Start everything and wait until the node is ready.

        Raises:
            StartError: a program ended, or the node was not ready in time.
        """
        super().start(data)
        kubeconfig = str(self.kubeconfig())
        self._spawn(
            "kube-controller-manager",
            f"--kubeconfig={kubeconfig}",
            f"--root-ca-file={self.authority.certificate}",
            f"--service-account-private-key-file={self._tokens_key}",
            "--leader-elect=false",
            "--bind-address=127.0.0.1",
        )
        self._spawn("kube-scheduler", f"--kubeconfig={kubeconfig}", "--leader-elect=false", "--bind-address=127.0.0.1")
        self._start_containerd()
        self._start_kubelet()
        self._start_proxy(kubeconfig)
        self._start_dns(kubeconfig)
        self.until(self._node_is_ready, "the node is ready")

    def load(self, archive: Path) -> None:
        """Load the images of a docker archive into containerd.

        Raises:
            StartError: containerd refuses.
        """
        self.ctr("images", "import", str(archive))

    def ctr(self, *args: str) -> str:
        """Run containerd's own client in the kubelet's containerd namespace."""
        command = ["ctr", "--address", str(self._socket), "--namespace", "k8s.io", *args]
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
        if done.returncode:
            raise StartError(f"{' '.join(command)}: {done.stderr}")
        return done.stdout

    def kill(self, namespace: str, pod: str, container: str) -> None:
        """Kill a container's first process, as the kernel does when memory runs out."""
        found = self.request("GET", f"/api/v1/namespaces/{namespace}/pods/{pod}")["status"]
        states = [*found.get("initContainerStatuses", ()), *found["containerStatuses"]]
        (running,) = (item["containerID"].rpartition("/")[2] for item in states if item["name"] == container)
        self.ctr("task", "kill", "--signal", "SIGKILL", running)

    def until(self, done: Callable[[], Any], what: str, limit_s: float = _LIMIT_S) -> None:
        """Wait until a check succeeds on the cluster.

        Raises:
            StartError: a program of the node ended, or it takes too long.
        """
        deadline = time.monotonic() + limit_s
        while not done():
            ended = next((name for name, process in self._processes.items() if process.poll() is not None), None)
            if ended:
                raise StartError(f"{ended} ended:\n{self.log(ended)}")
            if time.monotonic() > deadline:
                raise StartError(f"not within {limit_s:g} s: {what}")
            time.sleep(POLL_S * 4)

    def log(self, program: str) -> str:
        """Return the end of a program's log."""
        return (self._folder / f"{program}.log").read_text(errors="replace")[-4000:]

    def _spawn(self, program: str, *args: str) -> None:
        certificate, key = self._to_kubelet
        more = {
            "kube-apiserver": [
                "--bind-address=0.0.0.0",
                f"--advertise-address={GATEWAY}",
                "--endpoint-reconciler-type=lease",
                "--authorization-mode=Node",
                "--kubelet-preferred-address-types=InternalIP",
                "--enable-admission-plugins=NodeRestriction",
                f"--kubelet-client-certificate={certificate}",
                f"--kubelet-client-key={key}",
            ]
        }
        super()._spawn(program, *args, *more.get(program, ()))

    def _start_containerd(self) -> None:
        networks = self._folder / "cni"
        networks.mkdir()
        addresses = {"type": "host-local", "ranges": [[{"subnet": PODS, "rangeStart": "10.244.0.10"}]]}
        bridge = {
            "type": "bridge",
            "bridge": "kubeloop0",
            "isGateway": True,
            "hairpinMode": True,
            "ipam": addresses | {"routes": [{"dst": "0.0.0.0/0"}]},
        }
        (networks / "pods.conflist").write_text(
            json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [bridge]})
        )
        config = self._folder / "containerd.toml"
        config.write_text(f"""version = 2
root = "{self._folder}/containerd"
state = "{self._folder}/containerd-state"
oom_score = 0
disabled_plugins = ["io.containerd.internal.v1.opt", "io.containerd.internal.v1.tracing"]
[grpc]
address = "{self._socket}"
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{PAUSE}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{CNI}"
conf_dir = "{networks}"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
""")
        self._spawn("containerd", f"--config={config}")
        self.until(self._containerd_answers, "containerd answers")

    def _start_kubelet(self) -> None:
        user = f"system:node:{NAME}"
        resolve = self._folder / "resolv.conf"
        resolve.write_text(f"nameserver {GATEWAY}\n")
        config = {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": GATEWAY,
            "authentication": {
                "anonymous": {"enabled": False},
                "x509": {"clientCAFile": str(self.authority.certificate)},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": self._cgroup,
            "failCgroupV1": False,
            "failSwapOn": False,
            "oomScoreAdj": 0,
            "clusterDNS": [GATEWAY],
            "clusterDomain": DOMAIN,
            "resolvConf": str(resolve),
            "containerRuntimeEndpoint": f"unix://{self._socket}",
            "podLogsDir": str(self._folder / "pod-logs"),
            "evictionHard": {"nodefs.available": "1%", "imagefs.available": "1%", "memory.available": "50Mi"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "registerNode": True,
        }
        path = self._folder / "kubelet.yaml"
        path.write_text(yaml.safe_dump(config))
        self._spawn(
            "kubelet",
            f"--config={path}",
            f"--kubeconfig={self.kubeconfig(user, ['system:nodes'])}",
            f"--root-dir={self._folder / 'kubelet'}",
            f"--cert-dir={self._folder / 'kubelet-certificates'}",
            f"--hostname-override={NAME}",
            f"--node-ip={GATEWAY}",
        )

    def _start_proxy(self, kubeconfig: str) -> None:
        config = {
            "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
            "kind": "KubeProxyConfiguration",
            "mode": "iptables",
            "clientConnection": {"kubeconfig": kubeconfig},
            "hostnameOverride": NAME,
            "clusterCIDR": PODS,
            "bindAddress": "127.0.0.1",
            "healthzBindAddress": "127.0.0.1:10256",
            "metricsBindAddress": "127.0.0.1:10249",
            "oomScoreAdj": 0,
            # The kernel's conntrack table belongs to the whole machine.
            "conntrack": {"maxPerCore": 0, "min": 0},
        }
        path = self._folder / "proxy.yaml"
        path.write_text(yaml.safe_dump(config))
        self._spawn("kube-proxy", f"--config={path}")

    def _start_dns(self, kubeconfig: str) -> None:
        config = self._folder / "Corefile"
        plugins = f"bind {GATEWAY}\nerrors\nkubernetes {DOMAIN} {{\nkubeconfig {kubeconfig} tests\n}}"
        config.write_text(f".:53 {{\n{plugins}\n}}\n")
        self._spawn("coredns", f"-conf={config}")

    def _containerd_answers(self) -> bool:
        try:
            self.ctr("version")
        except StartError:
            return False
        return True

    def _node_is_ready(self) -> bool:
        response = self.http.get(f"/api/v1/nodes/{NAME}")
        if not response.is_success:
            return False
        conditions = {item["type"]: item["status"] for item in response.json()["status"].get("conditions", ())}
        return conditions.get("Ready") == "True"


def _programs(assets: Path, folder: Path) -> Path:
    """Link the programs that were built, and Debian's containerd, into one folder."""
    folder.mkdir()
    for path in (*assets.iterdir(), Path(shutil.which("containerd") or "/usr/bin/containerd")):
        (folder / path.name).symlink_to(path.resolve())
    return folder


def _serve(authority: Authority) -> tuple[Path, Path]:
    """Write a certificate with which the API server can also serve pods."""
    return authority.server("kube-apiserver", ("127.0.0.1", GATEWAY, _API_SERVICE), ("kubernetes.default.svc",))
