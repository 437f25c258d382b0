"""A web page in the owner's browser: what it may send unasked, and what a rebound host name reaches."""

import json
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from tests.hostile.conftest import BODY, HTTP, INFER, OBJECT, Laptop
from tests.hostile.test_callers import DRIFT, LABELS

FORM = {"content-type": "application/x-www-form-urlencoded"}
JSON = {"content-type": "application/json"}


def everything(laptop: Laptop) -> dict[str, str]:
    return {**laptop.urls, "predictor": laptop.predictor}


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:80", "127.0.0.1.evil.example", "localhost@evil.example", ""]
)
def test_a_rebound_name_reaches_nothing(laptop: Laptop, host: str) -> None:
    for name, url in everything(laptop).items():
        for path in ("/status", "/metrics", "/"):
            assert HTTP.get(url + path, headers={"host": host}).status_code == 403, name
        assert HTTP.post(url + INFER, json=BODY, headers={"host": host}).status_code == 403, name


def test_the_usual_names_reach_it(laptop: Laptop) -> None:
    for name, url in everything(laptop).items():
        for host in ("localhost", "127.0.0.1:1", "[::1]:8080", "LOCALHOST:99", "localhost.:99"):
            assert HTTP.get(f"{url}/metrics", headers={"host": host}).status_code == 200, (name, host)


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "null", "http://127.0.0.1:1", "http://localhost.evil.example"]
)
def test_another_site_is_refused(laptop: Laptop, origin: str) -> None:
    for name, url in everything(laptop).items():
        for method, path in (("POST", INFER), ("GET", "/status"), ("OPTIONS", INFER), ("PUT", OBJECT)):
            answer = HTTP.request(method, url + path, json=BODY, headers={"origin": origin})
            assert answer.status_code == 403, (name, method)
            assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize(
    "media",
    ["application/x-www-form-urlencoded", "text/plain", "text/plain; x=application/json", "multipart/form-data"],
)
def test_a_body_that_a_page_can_send_is_refused(laptop: Laptop, media: str) -> None:
    for name, path in (("node", INFER), ("predictor", INFER), ("collector", "/"), ("trigger", "/events")):
        answer = HTTP.post(everything(laptop)[name] + path, json=BODY, headers={"content-type": media})
        assert (answer.status_code, "application/json" in answer.json()["error"]) == (415, True), name


def test_a_program_may_leave_out_the_content_type_and_a_browser_may_not(laptop: Laptop) -> None:
    content = json.dumps(BODY)
    for url in (laptop.urls["node"], laptop.predictor):
        request = HTTP.build_request("POST", url + INFER, content=content)
        assert "content-type" not in request.headers
        assert HTTP.send(request).status_code == 200
        assert HTTP.post(url + INFER, content=content, headers={"sec-fetch-site": "same-origin"}).status_code == 415


def test_a_long_upload_hears_why_it_is_refused(laptop: Laptop) -> None:
    answer = HTTP.post(laptop.urls["node"] + INFER, content=b"x" * 900_000, headers=FORM)
    assert answer.status_code == 415


PAGE = """<!doctype html><title>attack</title><body><script>
const targets = %s;
const iframe = document.body.appendChild(document.createElement("iframe"));
iframe.name = "sink";
function form(url, text) {
  const form = document.createElement("form"), field = document.createElement("input");
  form.method = "post"; form.action = url; form.enctype = "text/plain"; form.target = "sink";
  // name=value: the usual way to make JSON of it.
  const at = text.indexOf(":") + 1;
  field.name = text.slice(0, at) + '"'; field.value = '": ""' + text.slice(at + 1);
  form.append(field); document.body.append(form); form.submit();
}
async function send(url, options) {
  try { const answer = await fetch(url, options); return answer.type + (answer.status || ""); }
  catch (error) { return "failed"; }
}
(async () => {
  const found = {};
  for (const [name, method, url, text] of targets) {
    const simple = [undefined, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"];
    for (const type of simple) {
      const body = method === "GET" ? undefined : new Blob([text], type ? {type} : {});
      found[`${name} ${type}`] = await send(url, {method, body, mode: "no-cors", credentials: "include"});
    }
    found[`${name} read`] = await send(url.replace("127.0.0.1", "localhost"), {});
    for (const headers of [{"content-type": "application/json"}, {authorization: "Bearer x"}])
      found[`${name} preflight`] = await send(url, {method: method === "GET" ? "PUT" : method, body: text, headers});
    if (method === "POST") {
      navigator.sendBeacon(url, new Blob([text], {type: "text/plain"}));
      form(url, text);
      await new Promise(done => setTimeout(done, 100));
    }
  }
  await new Promise(done => setTimeout(done, 300));
  await fetch("/done", {method: "POST", body: JSON.stringify(found)});
  document.title = "over";
})();
</script>"""


@dataclass
class Site:
    """A site of another origin: it serves the page, and records the requests that a service would get from it."""

    port: int = 0
    page: str = ""
    report: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[str, str, str]] = field(default_factory=list)
    over: threading.Event = field(default_factory=threading.Event)


@pytest.fixture
def site() -> Iterator[Site]:
    found = Site()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: object) -> None:
            pass

        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("content-length", 0)))
            if self.path == "/page":
                content = found.page.encode()
            else:
                content = b"{}"
                if self.path == "/done":
                    found.report = json.loads(body)
                    found.over.set()
                elif self.path != "/favicon.ico":
                    found.requests.append((self.command, self.headers["host"], self.headers.get("content-type", "")))
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.send_header("content-length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = do_PUT = do_OPTIONS = answer  # noqa: N815

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        found.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        yield found
        server.shutdown()


def test_a_page_starts_nothing(laptop: Laptop, site: Site, browser: str, tmp_path: Path) -> None:
    """The page does everything that a page can; a server that accepts everything shows that its requests arrive."""
    event = {"specversion": "1.0", "type": "io.kubeloop.drift", "source": "x", "id": "theirs-1", "subject": "theirs-1"}
    label = {"specversion": "1.0", "type": "io.kubeloop.label", "source": "x", "id": "theirs-1"}
    urls = everything(laptop)
    attacks = [
        ("control", "POST", f"http://127.0.0.1:{site.port}/control", json.dumps(event)),
        ("run", "POST", f"{urls['trigger']}/events", json.dumps(event | {"data": DRIFT})),
        ("label", "POST", f"{urls['collector']}/", json.dumps(label | {"data": json.loads(LABELS)})),
        ("flush", "POST", f"{urls['collector']}/flush", "{}"),
        ("clock", "POST", f"{urls['monitor']}/advance", '{"until": "2099-01-01T00:00:00Z"}'),
        ("infer", "POST", urls["node"] + INFER, json.dumps(BODY)),
        ("inner", "POST", f"{urls['node']}/_predictor{INFER}", json.dumps(BODY)),
        ("predictor", "POST", urls["predictor"] + INFER, json.dumps(BODY)),
        ("manifest", "PUT", urls["node"] + OBJECT, "{}"),
        ("removal", "DELETE", urls["node"] + OBJECT, ""),
    ]
    rebound = [
        (f"rebound {name}", method, url.replace("127.0.0.1", "rebound.example"), text)
        for name, method, url, text in attacks
        if method == "POST"
    ]
    site.page = PAGE % json.dumps(attacks + rebound)
    before = laptop.state()
    command = [
        *(browser, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
        *("--no-proxy-server", f"--user-data-dir={tmp_path / 'profile'}", "--remote-debugging-port=0"),
        "--host-resolver-rules=MAP evil.example 127.0.0.1, MAP rebound.example 127.0.0.1",
        # Turn off Chromium's own guard against such pages, which other browsers lack.
        "--disable-features=LocalNetworkAccessChecks,PrivateNetworkAccessSendPreflights,BlockInsecurePrivateNetworkRequests",
        f"http://evil.example:{site.port}/page",
    ]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=(tmp_path / "log").open("w"))
    try:
        assert site.over.wait(60), (tmp_path / "log").read_text()[-2000:]
    finally:
        process.terminate()
        process.wait(20)
    # The control: everything that a page can send arrived at the server without a guard.
    sent = {(method, media.partition(";")[0]) for method, _, media in site.requests}
    for media in ("", "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"):
        assert ("POST", media) in sent, sent
    assert {host.partition(":")[0] for _, host, _ in site.requests} >= {"127.0.0.1", "rebound.example"}
    # No page of another site can read an answer, and none of its requests had an effect.
    readable = {
        name: how for name, how in site.report.items() if how not in ("failed", "opaque") and "control" not in name
    }
    assert not readable
    assert laptop.state() == before


def test_a_guard_behind_a_service_checks_no_host_names() -> None:
    """In a cluster a server is bound to every address, it has many names, and clients may forward an Origin."""
    import asyncio

    from kubeloop.serving.guard import Guard

    async def app(scope: dict, receive: object, send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def status(guard: Guard) -> int:
        transport = httpx.ASGITransport(guard)
        async with httpx.AsyncClient(transport=transport, base_url="http://collector.kubeloop") as client:
            answer = await client.post(
                "/", content=b"x", headers={"origin": "https://app.example", "content-type": "text/plain"}
            )
            return answer.status_code

    assert asyncio.run(status(Guard(app, "0.0.0.0"))) == 200  # noqa: S104
    assert asyncio.run(status(Guard(app, "::"))) == 200
    assert asyncio.run(status(Guard(app, "0.0.0.0", token="t"))) == 401  # noqa: S104, S106
    assert asyncio.run(status(Guard(app, "127.0.0.1"))) == 403
    assert asyncio.run(status(Guard(app, "::1"))) == 403
