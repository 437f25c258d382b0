"""A transformer for tests: it forwards a request unchanged, late if its feature service is `slow`, and names itself."""

import argparse
import http.client
import os
import signal
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

parser = argparse.ArgumentParser()
parser.add_argument("--predictor-url", required=True)
parser.add_argument("--feature-service", required=True)
parser.add_argument("--port", type=int, required=True)
args, _ = parser.parse_known_args()
predictor = urlsplit(args.predictor_url)
local = threading.local()


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.forward(None)

    def do_POST(self) -> None:
        self.forward(self.rfile.read(int(self.headers["content-length"])))

    def forward(self, body: bytes | None) -> None:
        if args.feature_service == "slow":
            time.sleep(0.8)
        if not hasattr(local, "connection"):
            local.connection = http.client.HTTPConnection(predictor.hostname, predictor.port)
        headers = {key: value for key, value in self.headers.items() if key.lower() not in ("host", "content-length")}
        local.connection.request(self.command, predictor.path + self.path, body, headers)
        response = local.connection.getresponse()
        answer = response.read()
        head = f"HTTP/1.1 {response.status} X\r\ncontent-length: {len(answer)}\r\n"
        head += f"x-transformer: {args.feature_service}\r\n"
        kept = [(k, v) for k, v in response.getheaders() if k in ("content-type", "x-served-by", "x-secret")]
        head += "".join(f"{key}: {value}\r\n" for key, value in kept)
        self.wfile.write(head.encode() + b"\r\n" + answer)


signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
print(f"ready http://127.0.0.1:{server.server_port}", flush=True)
server.serve_forever()
