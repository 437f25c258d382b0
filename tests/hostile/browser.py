"""Chromium with one tab behind a proxy of the tests: it shows pages, and records every request for anything else."""

import base64
import json
import re
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
from websockets.sync.client import ClientConnection, connect

ORIGIN = "http://pages.example"
DEADLINE_S = 60.0
OWN = re.compile(r"^(https?://)?[a-z0-9-]+\.(google|googleapis|gvt1)\.com[:/]|/favicon\.ico$")
"""Addresses that Chromium requests by itself, whatever page it shows."""


@dataclass
class Tab:
    """A tab, the pages that the proxy serves, and the other requests that the tab made."""

    pages: dict[str, str] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    dialogs: list[str] = field(default_factory=list)
    _last: int = 0
    _socket: ClientConnection = field(init=False)

    def show(self, page: str, width: int = 1280) -> None:
        """Load a page, and wait until everything that it requests has loaded or failed."""
        path = f"/{len(self.pages)}"
        self.pages[path] = page
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Page.navigate", url=ORIGIN + path)
        begin = time.monotonic()
        while self.evaluate("location.pathname + document.readyState") != f"{path}complete":
            # A page that navigated away never gets there.
            assert time.monotonic() < begin + (5 if self.requests else DEADLINE_S), f"{path} did not load"
            time.sleep(0.005)

    def evaluate(self, expression: str) -> Any:
        """Return the value of an expression in the page, or a promise's result."""
        found = self.ask("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def picture(self) -> bytes:
        """Return the whole page as PNG."""
        return base64.b64decode(self.ask("Page.captureScreenshot", captureBeyondViewport=True)["data"])

    def ask(self, method: str, **params: Any) -> dict[str, Any]:
        """Send one command of the DevTools protocol and return its result."""
        sent = self._send(method, params)
        while True:
            message = json.loads(self._socket.recv(DEADLINE_S))
            if message.get("method") == "Page.javascriptDialogOpening":
                self.dialogs.append(message["params"]["message"])
                self._send("Page.handleJavaScriptDialog", {"accept": True})
            elif message.get("id") == sent:
                assert "error" not in message, f"{method}: {message['error']}"
                return dict(message["result"])

    def _send(self, method: str, params: dict[str, Any]) -> int:
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        return self._last


@contextmanager
def opened(program: str, profile: Path) -> Iterator[Tab]:
    """Start Chromium and close it at the end."""
    tab = Tab()
    with _proxy(tab) as port:
        command = [
            *(program, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
                "--disable-extensions",
            ),
            *(f"--proxy-server=127.0.0.1:{port}", "--proxy-bypass-list=<-loopback>", "--hide-scrollbars"),
            *(f"--user-data-dir={profile}", "--remote-debugging-port=0", "about:blank"),
        ]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            with connect(_target(profile), max_size=None, proxy=None) as socket:
                tab._socket = socket
                tab.ask("Page.enable")
                yield tab
        finally:
            process.terminate()
            process.wait(20)


def _target(profile: Path) -> str:
    """Return the tab's debugger address once Chromium has printed its port."""
    until = time.monotonic() + DEADLINE_S
    while time.monotonic() < until:
        try:
            port = (profile / "DevToolsActivePort").read_text().split()[0]
            found = httpx.get(f"http://127.0.0.1:{port}/json/list", trust_env=False).json()
            return next(str(each["webSocketDebuggerUrl"]) for each in found if each["type"] == "page")
        except (FileNotFoundError, IndexError, StopIteration, httpx.TransportError):
            time.sleep(0.05)
    raise TimeoutError("Chromium did not start")


@contextmanager
def _proxy(tab: Tab) -> Iterator[int]:
    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            page = tab.pages.get(self.path.removeprefix(ORIGIN))
            if page is None and not OWN.search(self.path):
                tab.requests.append(f"{self.command} {self.path}")
            content = (page or "").encode()
            self.send_response(200 if page is not None else 404)
            self.send_header("content-type", "text/html; charset=utf-8")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_CONNECT = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()
