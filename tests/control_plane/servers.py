"""etcd and kube-apiserver on loopback, with certificates for this run; both end with the process that started them."""

import base64
import contextlib
import functools
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx

from kubeloop.node.processes import die_with_parent
from tests.control_plane.certificates import Authority

ADMIN = "admin"
TIMEOUT_S = 120.0
POLL_S = 0.05

_READY_S = 60.0


class StartError(RuntimeError):
    """etcd or kube-apiserver did not start; the message ends with the tail of its log."""


class Servers:
    """One etcd and one kube-apiserver with data in a folder, RBAC and Pod Security admission.

    Start them in the main thread: the kernel kills them when the thread that started them ends.

    Attributes:
        url: address of the API server.
        authority: issues certificates to its users.
        admin: certificate and key of a member of system:masters.
        http: a client with the administrator's rights; paths are relative to `url`.
    """

    def __init__(self, assets: Path, folder: Path) -> None:
        self._assets = assets
        self._folder = folder
        self.authority = Authority(folder)
        self._data = folder / "etcd"
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        # Bound, but not listening: no other program can take these ports, and the servers share them.
        self._ports = [_reserve() for _ in range(3)]
        client, peer, secure = (port.getsockname()[1] for port in self._ports)
        self._etcd_urls = f"http://127.0.0.1:{client}", f"http://127.0.0.1:{peer}"
        self._port = secure
        self.url = f"https://127.0.0.1:{secure}"
        self._serving = self.authority.server("kube-apiserver")
        self._tokens_key = self.authority.key("service-accounts")
        self.admin = self.authority.user(ADMIN, ["system:masters"], ADMIN)
        tls = ssl.create_default_context(cafile=self.authority.certificate)
        tls.load_cert_chain(*self.admin)
        self.http = httpx.Client(base_url=self.url, verify=tls, timeout=TIMEOUT_S, trust_env=False)

    def start(self, data: Path | None = None) -> None:
        """Start both, on a copy of the data that `keep` saved, and wait until the API server is ready.

        Raises:
            StartError: one of them ended, or was not ready in time.
        """
        if data:
            shutil.copytree(data, self._data)
        client, peer = self._etcd_urls
        self._spawn(
            "etcd",
            f"--data-dir={self._data}",
            f"--listen-client-urls={client}",
            f"--advertise-client-urls={client}",
            f"--listen-peer-urls={peer}",
            f"--initial-advertise-peer-urls={peer}",
            f"--initial-cluster=default={peer}",
            "--socket-reuse-port",
            "--unsafe-no-fsync",
        )
        self.start_api_server()

    def start_api_server(self) -> None:
        """Start kube-apiserver on etcd's current data, at the same address as before.

        Raises:
            StartError: it ended, or was not ready in time.
        """
        certificate, key = self._serving
        self._spawn(
            "kube-apiserver",
            f"--etcd-servers={self._etcd_urls[0]}",
            "--bind-address=127.0.0.1",
            "--advertise-address=127.0.0.1",
            f"--secure-port={self._port}",
            "--permit-port-sharing",
            "--endpoint-reconciler-type=none",
            f"--tls-cert-file={certificate}",
            f"--tls-private-key-file={key}",
            f"--client-ca-file={self.authority.certificate}",
            "--authorization-mode=RBAC",
            "--service-cluster-ip-range=10.0.0.0/16",
            "--service-account-issuer=https://kubernetes.default.svc",
            f"--service-account-key-file={self._tokens_key}",
            f"--service-account-signing-key-file={self._tokens_key}",
        )
        self.wait(self._ready)

    def stop_api_server(self) -> None:
        """End kube-apiserver at once; etcd keeps its data."""
        self._kill("kube-apiserver")

    def keep(self, data: Path) -> None:
        """Save all objects for later starts in place of older copies in the same folder; both servers restart."""
        self._end()
        data.parent.mkdir(exist_ok=True)
        for other in data.parent.iterdir():
            if other != data:
                shutil.rmtree(other, ignore_errors=True)
        with tempfile.TemporaryDirectory(dir=data.parent.parent) as folder:
            copy = shutil.copytree(self._data, Path(folder) / data.name)
            # Another process of the suite may have saved its own copy meanwhile.
            with contextlib.suppress(OSError):
                copy.rename(data)
        self.start()

    def stop(self) -> None:
        """End both at once; nobody needs their data."""
        self._end()
        self.http.close()
        for port in self._ports:
            port.close()

    def wait(self, done: Callable[[], bool]) -> None:
        """Wait until the API server has done something.

        Raises:
            StartError: one of the two ended, or it takes too long.
        """
        deadline = time.monotonic() + _READY_S
        while not done():
            ended = next((name for name, process in self._processes.items() if process.poll() is not None), None)
            if ended or time.monotonic() > deadline:
                tail = (self._folder / f"{ended or 'kube-apiserver'}.log").read_text(errors="replace")[-2000:]
                what = f"{ended} ended" if ended else f"kube-apiserver was not ready within {_READY_S:g} s"
                raise StartError(f"{what}:\n{tail}")
            time.sleep(POLL_S)

    def erase(self, part: str) -> None:
        """Delete every key that contains `part` from etcd, which the API server would never do by itself."""
        found = self._etcd("range", key="/registry/", range_end="/registry0")
        for key in (base64.b64decode(entry["key"]).decode() for entry in found["kvs"]):
            if part in key:
                self._etcd("deleterange", key=key)

    def _spawn(self, program: str, *args: str) -> None:
        with (self._folder / f"{program}.log").open("ab") as log:
            self._processes[program] = subprocess.Popen(
                [self._assets / program, *args],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self._folder,
                preexec_fn=functools.partial(die_with_parent, os.getpid()),
            )

    def _end(self) -> None:
        for name in reversed(list(self._processes)):
            self._kill(name)

    def _kill(self, program: str) -> None:
        process = self._processes.pop(program)
        process.kill()
        process.wait()

    def _ready(self) -> bool:
        try:
            return self.http.get("/readyz").is_success
        except httpx.TransportError:
            return False

    def _etcd(self, verb: str, **names: str) -> dict[str, Any]:
        body: dict[str, Any] = {field: base64.b64encode(name.encode()).decode() for field, name in names.items()}
        body |= {"keys_only": True} if verb == "range" else {}
        response = httpx.post(f"{self._etcd_urls[0]}/v3/kv/{verb}", json=body, trust_env=False)
        found: dict[str, Any] = response.raise_for_status().json()
        return found


def _reserve() -> socket.socket:
    """Bind a loopback port that the system picks, for a server that shares ports."""
    held = socket.socket()
    held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    held.bind(("127.0.0.1", 0))
    return held
