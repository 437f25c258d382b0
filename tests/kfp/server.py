"""A Kubeflow Pipelines API on loopback for tests: real HTTP, strict about requests, as unreliable as a test wants."""

import contextlib
import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from email.parser import BytesParser
from email.policy import HTTP
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Literal
from urllib.parse import parse_qsl, urlsplit

Kind = Literal["lost before", "lost after", "late", "status", "delay", "page"]


@dataclass(frozen=True)
class Fault:
    """What goes wrong with one request.

    "lost before": the connection closes without the operation; "lost after": the connection closes after the operation;
    "late": the connection closes, and the operation follows when the test calls `release`.
    """

    kind: Kind
    status: int = 503
    seconds: float = 0.0


class KfpServer:
    """Serves a store; it asks `fault` about every request and records it in `requests` as (operation, fault)."""

    def __init__(self, specification: Any, store: Any, api_error: type[Exception], spec_error: type[Exception]) -> None:
        self.store = store
        self.specification = specification
        self.errors = (api_error, spec_error)
        self.fault: Callable[[str], Fault | None] = lambda _: None
        self.tokens: set[str] = set()
        self.forbidden: set[str] = set()
        self.requests: list[tuple[str, str | None]] = []
        self.violations: list[str] = []
        self._held: list[Callable[[], Any]] = []
        handler = type("Handler", (_Handler,), {"owner": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def count(self, operation: str) -> int:
        """Return how often an operation was requested."""
        return sum(1 for name, _ in self.requests if name.endswith(operation))

    def release(self) -> None:
        """Carry out the late operations; an error in one of them reaches nobody."""
        held, self._held = self._held, []
        for act in held:
            with contextlib.suppress(*self.errors):
                act()

    def hold(self, act: Callable[[], Any]) -> None:
        """Keep an operation for `release`."""
        self._held.append(act)

    def close(self) -> None:
        """Stop answering and refuse new connections."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Handler(BaseHTTPRequestHandler):
    owner: KfpServer
    protocol_version = "HTTP/1.1"
    # Send head and body in one packet: a second packet would wait for the acknowledgement of the first.
    wbufsize = -1

    def do_GET(self) -> None:
        self._serve()

    do_POST = do_DELETE = do_PATCH = do_GET  # noqa: N815

    def log_message(self, *_: Any) -> None:
        """Print nothing."""

    def _serve(self) -> None:
        api_error, spec_error = self.owner.errors
        content = self.rfile.read(int(self.headers.get("content-length") or 0))
        url = urlsplit(self.path)
        matched = self.owner.specification.route(self.command, url.path)
        operation = matched[0].operation if matched else "unknown"
        fault = self.owner.fault(operation)
        self.owner.requests.append((operation, fault.kind if fault else None))
        if fault and fault.kind == "lost before":
            return self._hang_up()
        if fault and fault.kind == "page":
            return self._answer(200, b"<html>please log in</html>", "text/html")
        if fault and fault.kind == "status":
            return self._answer(fault.status, json.dumps({"code": 13, "message": "told to fail"}).encode())
        if fault and fault.kind == "delay":
            time.sleep(fault.seconds)
        try:
            if matched is None:
                raise api_error(404, "Not Found")
            act = self._prepare(matched, url.query, content)
            if fault and fault.kind == "late":
                self.owner.hold(act)
                return self._hang_up()
            status, body = 200, json.dumps(act()).encode()
        except spec_error as error:
            self.owner.violations.append(f"{operation}: {error}")
            status, body = 400, json.dumps({"code": 3, "message": str(error)}).encode()
        except api_error as error:
            named = "error_message" if operation.startswith("upload") else "message"
            status, body = error.status, json.dumps({named: str(error)}).encode()  # type: ignore[attr-defined]
        if fault and fault.kind == "lost after":
            return self._hang_up()
        return self._answer(status, body)

    def _prepare(self, matched: tuple[Any, dict[str, str]], query_text: str, content: bytes) -> Callable[[], Any]:
        """Check a request against the specification and the caller's rights, and return the operation to carry out."""
        route, values = matched
        _, spec_error = self.owner.errors
        query = dict(parse_qsl(query_text, keep_blank_values=True))
        if unknown := set(query) - route.query:
            raise spec_error(f"unknown query parameters {sorted(unknown)}")
        arguments: dict[str, Any] = {**values, "query": query}
        if route.body:
            body = json.loads(content)
            self.owner.specification.check(route.body, body)
            arguments["body"] = body
        elif route.takes_file:
            arguments["file"] = self._file(content)
        elif content.strip() not in (b"", b"null"):
            raise spec_error(f"a body where none belongs: {content[:80]!r}")
        self._authorize(route, arguments)
        store = self.owner.store
        operation = getattr(store, route.operation, None)
        if operation is None:
            raise self.owner.errors[0](501, f"{route.operation} is not part of this server")

        def act() -> Any:
            with store.lock:
                answer = operation(**arguments)
                self.owner.specification.check(route.response, answer, "answer")
                return json.loads(json.dumps(answer))

        return act

    def _authorize(self, route: Any, arguments: dict[str, Any]) -> None:
        if route.operation.startswith("healthz") or not self.owner.tokens:
            return
        api_error = self.owner.errors[0]
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        if scheme != "Bearer" or token not in self.owner.tokens:
            raise api_error(401, "there is no user identity header, or the token is not valid")
        namespace = arguments["query"].get("namespace") or arguments.get("body", {}).get("namespace")
        if namespace in self.owner.forbidden:
            raise api_error(403, f"User is not authorized to {route.operation} in namespace {namespace}")

    def _file(self, content: bytes) -> tuple[str, bytes]:
        head = f"content-type: {self.headers['content-type']}\r\n\r\n".encode()
        message = BytesParser(policy=HTTP).parsebytes(head + content)
        for part in message.iter_parts():  # type: ignore[attr-defined]
            if part.get_param("name", header="content-disposition") == "uploadfile":
                return str(part.get_filename()), part.get_payload(decode=True)
        raise self.owner.errors[1]("no file `uploadfile`")

    def _answer(self, status: int, body: bytes, kind: str = "application/json") -> None:
        self.send_response(status)
        if 300 <= status < 400:
            self.send_header("location", f"{self.owner.url}/login")
        self.send_header("content-type", kind)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.close()
