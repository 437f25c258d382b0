"""Every server refuses requests that two servers could read in two ways, and reads all of every well-formed request."""

import re
import subprocess
from pathlib import Path

import pytest

from kubeloop.payloads import segments
from tests import outside
from tests.hostile.front.conftest import Run
from tests.hostile.front.servers import Server, content, contents, status, statuses

# What the JDK's HttpClient (17) sends with its first request to a server; the body follows in a separate packet.
JAVA = (
    "Connection: Upgrade, HTTP2-Settings",
    "HTTP2-Settings: AAEAAEAAAAIAAAAAAAMAAAAAAAQBAAAAAAUAAEAAAAYABgAA",
    "Upgrade: h2c",
)
CHUNKED = "transfer-encoding: chunked"

BAD = {
    "two lengths": (["content-length: 5", "content-length: 6"], b"hello"),
    "one length twice": (["content-length: 5", "content-length: 5"], b"hello"),
    "a list of lengths": (["content-length: 5, 5"], b"hello"),
    "a signed length": (["content-length: +5"], b"hello"),
    "a negative length": (["content-length: -5"], b"hello"),
    "a length in hex": (["content-length: 0x5"], b"hello"),
    "an empty length": (["content-length: "], b"hello"),
    "an endless length": (["content-length: 99999999999999999999999"], b"hello"),
    "length and chunks": (["content-length: 5", CHUNKED], b"0\r\n\r\n"),
    "chunks and length": ([CHUNKED, "content-length: 5"], b"0\r\n\r\n"),
    "space before the colon": (["content-length : 5"], b"hello"),
    "a folded header": (["x: a", " b", "content-length: 5"], b"hello"),
    "a bare line feed": (["x: a\ncontent-length: 5"], b"hello"),
    "a bare carriage return": (["x: a\rb", "content-length: 5"], b"hello"),
    "a null byte": (["x: a\0b", "content-length: 5"], b"hello"),
    "a header without a name": ([": x", "content-length: 5"], b"hello"),
    "chunked twice": ([CHUNKED, CHUNKED], b"0\r\n\r\n"),
    "chunked and more": (["transfer-encoding: chunked, identity"], b"0\r\n\r\n"),
    "another coding": (["transfer-encoding: gzip, chunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "an unknown coding": (["transfer-encoding: xchunked"], b"5\r\nhello\r\n0\r\n\r\n"),
    "identity": (["transfer-encoding: identity"], b"hello"),
    "a chunk without a size": ([CHUNKED], b"zz\r\n"),
    "a chunk in 0x": ([CHUNKED], b"0x5\r\nhello\r\n0\r\n\r\n"),
    "a negative chunk": ([CHUNKED], b"-5\r\nhello\r\n0\r\n\r\n"),
    "an endless chunk": ([CHUNKED], b"fffffffffffffffff\r\nhello\r\n0\r\n\r\n"),
    "a chunk that is longer": ([CHUNKED], b"5\r\nhello!\r\n0\r\n\r\n"),
    "a chunk ended by a line feed": ([CHUNKED], b"5\nhello\r\n0\r\n\r\n"),
    "two hosts": (["host: other", "content-length: 5"], b"hello"),
    "too many headers": ([*(f"x{n}: y" for n in range(150)), "content-length: 5"], b"hello"),
    "too large a header": ([f"x: {'y' * 70_000}", "content-length: 5"], b"hello"),
}


def said(answer: bytes) -> tuple[int, bytes]:
    """Return the parts of an answer that do not vary between answers."""
    return status(answer), re.sub(rb'"(id|at|received_at)": ?"[^"]*"', b"", content(answer))


@pytest.mark.parametrize("case", BAD)
def test_what_is_ambiguous_is_refused_and_the_connection_closed(server: Server, case: str) -> None:
    headers, body = BAD[case]
    # The bytes after it must not be read as another request.
    answer = server.ask(server.head(*headers) + b"\r\n" + body + server.whole())
    (code,) = statuses(answer)
    assert code in (400, 431, 501)
    assert b"connection: close" in answer.partition(b"\r\n\r\n")[0].lower()
    assert b'{"error":' in answer


@pytest.mark.parametrize(
    ("sent", "codes"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", {400, 505}),
        (b"GET / HTTP/2.0\r\nhost: x\r\n\r\n", {505}),
        (b"GET / HTTP/9.9\r\n\r\n", {400, 505}),
        (b"GET /\r\n\r\n", {400, 505}),
        (b"GET / HTTP/1.1\r\n\r\n", {400}),
        (b"FETCH / HTTP/1.1\r\nhost: x\r\n\r\n", {400}),
        (b"CONNECT x:1 HTTP/1.1\r\nhost: x\r\n\r\n", {405}),
        (b"GET /\xff HTTP/1.1\r\nhost: x\r\n\r\n", {400}),
        (b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n", {501}),
    ],
)
def test_what_is_not_http_1_1_is_refused(server: Server, sent: bytes, codes: set[int]) -> None:
    assert set(statuses(server.ask(sent))) & codes
    assert server.alive()


def test_a_body_in_chunks_is_the_same_as_one_with_a_length(server: Server) -> None:
    plain = server.ask(server.whole("connection: close"))
    assert status(plain) == server.status
    half = len(server.body) // 2
    chunks = b"".join(b"%x;a=b\r\n%s\r\n" % (len(part), part) for part in (server.body[:half], server.body[half:]))
    head = server.head("connection: close", CHUNKED, "trailer: content-encoding") + b"\r\n"
    # A trailer is not a header: as a header, this one would cause every body to be refused.
    assert said(server.ask(head, chunks + b"0\r\ncontent-encoding: gzip\r\n\r\n")) == said(plain)


@pytest.mark.parametrize("offer", [JAVA, ("connection: upgrade", "UPGRADE: websocket"), ("Upgrade: h2c",)])
def test_an_offered_upgrade_is_ignored(server: Server, offer: tuple[str, ...]) -> None:
    plain = content(server.ask(server.whole("connection: close")))
    last = server.whole("connection: close")
    length = f"content-length: {len(server.body)}"
    head = server.head(*offer, length) + b"\r\n"
    alone = server.ask(head + server.body + last)
    assert statuses(alone) == [server.status] * 2
    assert contents(alone) == [plain] * 2
    # The body in a separate packet, the upgrade offer cut in two, and single bytes.
    for pieces in (
        [head, 0.05, server.body],
        [head[: head.lower().index(b"upgrade:") + 3], 0.05, head[head.lower().index(b"upgrade:") + 3 :] + server.body],
        [bytes([byte]) for byte in head + server.body],
    ):
        answers = server.ask(*pieces, 0.05, last)
        assert statuses(answers) == [server.status] * 2, answers
        assert contents(answers) == [plain] * 2
    chunked = server.head(*offer, CHUNKED) + b"\r\n%x\r\n" % len(server.body)
    answers = server.ask(chunked, 0.05, server.body + b"\r\n0\r\n\r\n", last)
    assert statuses(answers) == [server.status] * 2
    assert contents(answers) == [plain] * 2


def test_a_body_that_looks_like_an_offer_is_left_alone(run: Run) -> None:
    with run("collector") as collector:
        body = b"first\r\nUpgrade: h2c\r\n\r\nPOST / HTTP/1.1\r\n\r\n"
        collector.headers = {"ce-specversion": "1.0", "ce-type": "t", "ce-id": "1", "ce-source": "s"}
        head = collector.head(*JAVA, f"content-length: {len(body)}") + b"\r\n"
        assert statuses(collector.ask(head, 0.05, body, 0.05, collector.whole("connection: close"))) == [202, 202]
        assert bodies(collector) == [body, collector.body]


JAVA_CLIENT = """
import java.net.URI;
import java.net.http.*;

class Post {
    public static void main(String[] args) throws Exception {
        HttpClient client = HttpClient.newHttpClient();
        for (int i = 0; i < 2; i++) {
            HttpRequest.Builder request = HttpRequest.newBuilder(URI.create(args[0])).header("ce-id", "java-" + i);
            for (int n = 2; n + 1 < args.length; n += 2) request.header(args[n], args[n + 1]);
            request.POST(HttpRequest.BodyPublishers.ofString(args[1]));
            System.out.println(client.send(request.build(), HttpResponse.BodyHandlers.ofString()).statusCode());
        }
    }
}
"""


@pytest.fixture
def java() -> str:
    return outside.java()


def test_labels_that_java_sends_are_whole(run: Run, java: str, tmp_path: Path) -> None:
    (tmp_path / "Post.java").write_text(JAVA_CLIENT)
    with run("collector") as collector:
        headers = [part for name, value in collector.headers.items() if name != "ce-id" for part in (name, value)]
        command = [java, tmp_path / "Post.java", collector.url, collector.body.decode(), *headers]
        sent = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert sent.stdout.split() == ["202", "202"], sent.stderr
        assert bodies(collector) == [collector.body] * 2


def bodies(collector: Server) -> list[bytes]:
    """Return the bodies in a collector's log."""
    assert status(collector.ask(b"POST /flush HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n")) == 200
    table, _ = segments.read(collector.log.parent / "log")
    return list(table["body"].to_pylist())


def test_labels_that_cannot_be_read_are_refused_with_the_reason(every: dict[str, Server]) -> None:
    collector = every["collector"]
    good = collector.body.decode()
    for body, reason in (
        ("", "no list of labels"),
        ("{}", "no list of labels"),
        (good.replace('"label": 1', '"label": [1]'), "a label must be a number, or the name of a class"),
        (good.replace("2013-04-01T12:00:00Z", "yesterday"), "a label is malformed"),
        (good.replace('"event_id": "a", ', ""), "event_id"),
    ):
        head = collector.head("connection: close", f"content-length: {len(body)}") + b"\r\n"
        answer = collector.ask(head + body.encode())
        assert (status(answer), reason in content(answer).decode()) == (400, True), answer
    scrape = collector.ask(b"GET /metrics HTTP/1.1\r\nhost: 127.0.0.1\r\nconnection: close\r\n\r\n").decode()
    (rejected,) = re.findall(r'events_rejected_total\{reason="bad_event"\} ([0-9.]+)', scrape)
    assert float(rejected) >= 5


def test_a_body_that_ends_early_is_not_a_request(server: Server) -> None:
    for part in (0, 1, len(server.body) - 1):
        answer = server.ask(
            server.head(f"content-length: {len(server.body)}") + b"\r\n" + server.body[:part], half=True
        )
        assert set(statuses(answer)) <= {400}
        chunk = b"%x\r\n%s\r\n" % (len(server.body), server.body)
        assert set(statuses(server.ask(server.head(CHUNKED) + b"\r\n" + chunk, half=True))) <= {400}
    assert "Traceback" not in server.log.read_text()
    assert server.alive()


def test_a_client_that_closes_its_side_is_answered(server: Server) -> None:
    assert statuses(server.ask(server.whole(), half=True)) == [server.status]
    assert statuses(server.ask(server.whole() * 3, half=True)) == [server.status] * 3


def test_whole_requests_before_a_bad_one_are_answered_first(server: Server) -> None:
    answer = server.ask(server.whole() * 2 + b"nonsense\r\n\r\n" + server.whole())
    assert statuses(answer) == [server.status] * 2 + [400]


def test_every_answer_has_one_date(server: Server) -> None:
    get = f"GET {server.probe} HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n".encode()
    answers = server.ask(
        get + server.whole() + b"GET /nowhere HTTP/1.1\r\nhost: 127.0.0.1\r\n\r\n" + b"nonsense\r\n\r\n"
    )
    heads = [part.partition(b"\r\n\r\n")[0].lower() for part in answers.split(b"HTTP/1.1 ")[1:]]
    assert len(heads) == 4
    assert [head.count(b"\r\ndate:") for head in heads] == [1] * 4
