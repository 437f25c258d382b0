"""A stand-in for KServe's admission webhooks in front of a real API server: the same defaults, the same refusals.

Names and paths are those of config/webhook/manifests.yaml in kserve/kserve at commit aaac4e29.
"""

import base64
import contextlib
import json
import ssl
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.control_plane.certificates import Authority
from tests.kserve import rules, runtimes
from tests.kserve.defaults import defaulted

GROUP = "serving.kserve.io"
DEFAULTER = "inferenceservice.kserve-webhook-server.defaulter"
VALIDATOR = "inferenceservice.kserve-webhook-server.validator"

Object = dict[str, Any]

_API = "admissionregistration.k8s.io/v1"
_MUTATE, _VALIDATE = (f"/{verb}-serving-kserve-io-v1beta1-inferenceservice" for verb in ("mutate", "validate"))
_RUNTIMES = {
    kind: (f"{kind}.kserve-webhook-server.validator", f"/validate-serving-kserve-io-v1alpha1-{kind}")
    for kind in ("servingruntime", "clusterservingruntime")
}


@contextlib.contextmanager
def served(authority: Authority, runtimes_there: Callable[[Object], list[Object]]) -> Iterator[list[Object]]:
    """Serve the webhooks on loopback; yield the configurations that point an API server to them.

    Args:
        authority: authority that signs the server's certificate.
        runtimes_there: returns the runtimes of the same kind and namespace as the one to admit.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            review = json.loads(self.rfile.read(int(self.headers["content-length"])))
            answer = _answer(self.path.partition("?")[0], review["request"], runtimes_there)
            body = json.dumps({key: review[key] for key in ("apiVersion", "kind")} | {"response": answer}).encode()
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.server("kserve-webhooks"))
    server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
    thread.start()
    try:
        yield _configurations(f"https://127.0.0.1:{server.server_address[1]}", authority.certificate.read_bytes())
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def _answer(path: str, request: Object, runtimes_there: Callable[[Object], list[Object]]) -> Object:
    answer: Object = {"uid": request["uid"], "allowed": True}
    found = request["object"]
    try:
        if path == _MUTATE:
            return answer | _changes(found)
        if path == _VALIDATE:
            rules.validate(found, request.get("oldObject"))
        else:
            runtimes.validate(found, runtimes_there(found))
    except rules.RefusedError as error:
        return answer | {"allowed": False, "status": {"code": 403, "message": str(error)}}
    return answer


def _changes(service: Object) -> Object:
    try:
        now = defaulted(service)
    except (AttributeError, KeyError, TypeError):
        return {}  # of the wrong shape, which the schema refuses next
    changes = [{"op": "replace", "path": "/spec", "value": now["spec"]}]
    if annotations := now["metadata"].get("annotations"):
        changes.append({"op": "add", "path": "/metadata/annotations", "value": annotations})
    return {"patchType": "JSONPatch", "patch": base64.b64encode(json.dumps(changes).encode()).decode()}


def _configurations(url: str, authority: bytes) -> list[Object]:
    def webhook(name: str, path: str, resource: str, version: str) -> Object:
        rule = {"apiGroups": [GROUP], "apiVersions": [version], "operations": ["CREATE", "UPDATE"]}
        return {
            "name": name,
            "admissionReviewVersions": ["v1"],
            "clientConfig": {"url": url + path, "caBundle": base64.b64encode(authority).decode()},
            "failurePolicy": "Fail",
            "sideEffects": "None",
            "rules": [rule | {"resources": [resource]}],
        }

    services = ("inferenceservices", "v1beta1")
    validating = [webhook(VALIDATOR, _VALIDATE, *services)]
    validating += [webhook(name, path, f"{kind}s", "v1alpha1") for kind, (name, path) in _RUNTIMES.items()]
    return [
        {"apiVersion": _API, "kind": kind, "metadata": {"name": name}, "webhooks": webhooks}
        for kind, name, webhooks in (
            ("MutatingWebhookConfiguration", f"inferenceservice.{GROUP}", [webhook(DEFAULTER, _MUTATE, *services)]),
            ("ValidatingWebhookConfiguration", f"inferenceservice.{GROUP}", validating),
        )
    ]
