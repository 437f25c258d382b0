"""A real Git server on loopback: a bare repository behind `git daemon` or behind `git http-backend` with passwords."""

import base64
import contextlib
import os
import socketserver
import subprocess
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import SecretStr

from kubeloop import config
from kubeloop.config import Settings
from kubeloop.delivery import patch
from tests.cluster.conftest import NAME, build

PATCH = f"manifests/overlays/prod/models/{NAME}.yaml"
MODELS = "manifests/overlays/prod/models"
OTHERS = {"README.md": "# Loops\n", "apps/web/values.yaml": "replicas: 2  # as agreed\n", "apps/web/notes.txt": "x\n"}
SOMEBODY = {f"GIT_{who}_{what}": "server" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
ENV = {"PATH": os.environ["PATH"], "GIT_CONFIG_NOSYSTEM": "1", "HOME": "/nonexistent"}
Server = TypeVar("Server", bound=socketserver.BaseServer)


class Git:
    """A bare repository, and what other people do with it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bare = folder / "loops.git"
        run(folder, "init", "-q", "--bare", "-b", "main", str(self.bare))
        run(self.bare, "config", "http.receivepack", "true")

    def clone(self, name: str) -> Path:
        """Clone as a person with a name."""
        run(self.folder, "clone", "-q", str(self.bare), name)
        for setting, value in (("user.name", name), ("user.email", f"{name}@example.org")):
            run(self.folder / name, "config", setting, value)
        return self.folder / name

    def commit(self, clone: Path, files: dict[str, str], message: str = "Change") -> str:
        """Commit files in a clone and push them."""
        for path, content in files.items():
            (clone / path).parent.mkdir(parents=True, exist_ok=True)
            (clone / path).write_text(content)
        run(clone, "add", "-A")
        run(clone, "commit", "-q", "-m", message)
        run(clone, "push", "-q", "origin", "HEAD")
        return run(clone, "rev-parse", "HEAD")

    def begin(self) -> Path:
        """Let a person push the files of an environment that serves version 6; return the person's clone."""
        clone = self.clone("alice")
        self.commit(clone, OTHERS | overlay("ml"), "Begin")
        return clone

    def log(self, branch: str = "main", form: str = "%s") -> list[str]:
        """Return the history of a branch, newest first."""
        return run(self.bare, "log", f"--format={form}", branch).splitlines()

    def whole(self) -> bool:
        """Return whether every object exists and is intact."""
        return run(self.bare, "fsck", "--strict", "--no-dangling") == ""

    def show(self, path: str = PATCH, at: str = "main") -> str:
        """Return a file."""
        return run(self.bare, "show", f"{at}:{path}")

    def named(self, at: str = "main") -> dict[str, Any]:
        """Return the patch."""
        return patch.read(self.show(at=at), NAME)

    def hook(self, text: str) -> None:
        """Install a hook with which the server accepts or refuses pushes."""
        path = self.bare / "hooks" / "pre-receive"
        path.parent.mkdir(exist_ok=True)
        path.write_text(f"#!/bin/sh\n{text}\n")
        path.chmod(0o755)


def run(folder: Path, *args: str, check: bool = True, **env: str) -> str:
    done = subprocess.run(["git", *args], cwd=folder, env=ENV | env, capture_output=True, text=True, check=False)
    assert not check or done.returncode == 0, f"git {' '.join(args)}: {done.stderr}"
    return done.stdout.strip()


def overlay(namespace: str, version: str = "6") -> dict[str, str]:
    """Return the base and overlay of an environment that serves a version, in kustomize's format."""
    whole = build(namespace, version)
    model = whole["spec"]["predictor"]["model"]
    lineage = whole["spec"]["predictor"].pop("annotations")
    own = {"storageUri": model.pop("storageUri"), "args": model.pop("args")}
    del whole["metadata"]["namespace"]
    predictor = {"annotations": lineage, "model": own, "minReplicas": 2}
    head = {"apiVersion": whole["apiVersion"], "kind": whole["kind"]}
    changes = head | {"metadata": {"name": NAME}, "spec": {"predictor": predictor}}
    kustomization = {"apiVersion": "kustomize.config.k8s.io/v1beta1", "kind": "Kustomization"}
    files = {
        f"manifests/models/{NAME}/inferenceservice.yaml": whole,
        f"manifests/models/{NAME}/kustomization.yaml": kustomization | {"resources": ["inferenceservice.yaml"]},
        f"{MODELS}/kustomization.yaml": kustomization
        | {"namespace": namespace, "resources": [f"../../../models/{NAME}"], "patches": [{"path": f"{NAME}.yaml"}]},
        PATCH: changes,
    }
    return {path: yaml.safe_dump(content, sort_keys=False) for path, content in files.items()}


class Daemon(socketserver.ThreadingTCPServer):
    """`git daemon` on a port that the system picks; it calls `before_push` before it answers a push."""

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.before_push: Callable[[], None] = lambda: None
        super().__init__(("127.0.0.1", 0), _Connection)

    @property
    def address(self) -> str:
        return f"git://127.0.0.1:{self.server_address[1]}/loops.git"


class _Connection(socketserver.BaseRequestHandler):
    server: Daemon

    def handle(self) -> None:
        if b"git-receive-pack" in self.request.recv(64, 2):  # 2 is MSG_PEEK: git reads the same bytes, too
            self.server.before_push()
        command = ["git", "daemon", "--inetd", "--export-all", "--enable=receive-pack"]
        command += [f"--base-path={self.server.folder}", str(self.server.folder)]
        subprocess.run(
            command, env=ENV, stdin=self.request, stdout=self.request, stderr=subprocess.DEVNULL, check=False
        )


class Web(ThreadingHTTPServer):
    """`git http-backend` for one user and password."""

    daemon_threads = True

    def __init__(self, folder: Path, user: str, password: str) -> None:
        self.folder = folder
        self.asked: list[str | None] = []
        self.expected = "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
        self.status = 0
        super().__init__(("127.0.0.1", 0), _Request)

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/loops.git"


class _Request(BaseHTTPRequestHandler):
    server: Web

    def do_GET(self) -> None:
        given = self.headers.get("authorization")
        self.server.asked.append(given)
        if given != self.server.expected or self.server.status:
            self.send_response(self.server.status or 401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        length = int(self.headers.get("content-length") or 0)
        cgi = {
            "GIT_PROJECT_ROOT": str(self.server.folder),
            "GIT_HTTP_EXPORT_ALL": "1",
            "REQUEST_METHOD": self.command,
            "PATH_INFO": path,
            "QUERY_STRING": query,
            "CONTENT_TYPE": self.headers.get("content-type", ""),
            "CONTENT_LENGTH": str(length),
            "GIT_PROTOCOL": self.headers.get("git-protocol", ""),
            "REMOTE_USER": "someone",
        }
        done = subprocess.run(
            ["git", "http-backend"], env=ENV | cgi, input=self.rfile.read(length), capture_output=True, check=False
        )
        head, _, body = done.stdout.partition(b"\r\n\r\n")
        headers = dict(line.split(": ", 1) for line in head.decode().splitlines())
        self.send_response(int(headers.pop("Status", "200").split()[0]))
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    do_POST = do_GET  # noqa: N815 - the name that http.server calls

    def log_message(self, format: str, *args: Any) -> None:
        """Print nothing."""


@contextlib.contextmanager
def served(server: Server) -> Iterator[Server]:
    """Run a server in a thread."""
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def settings(folder: Path, token: str = "") -> Settings:
    """Return settings with a token."""
    return config.settings(folder).model_copy(update={"git_token": SecretStr(token)})
