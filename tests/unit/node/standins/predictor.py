"""A model server for tests: it answers V2 with its version, and misbehaves as `behaviour.json` in its folder says."""

import argparse
import json
import os
import signal
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--model-dir", type=Path, required=True)
parser.add_argument("--version", required=True)
parser.add_argument("--name", required=True)
parser.add_argument("--port", type=int, required=True)
args, _ = parser.parse_known_args()
if not args.model_dir.is_dir():
    sys.exit(f"{args.model_dir} does not exist; name a model folder")
file = args.model_dir / "behaviour.json"
behaviour = json.loads(file.read_text()) if file.is_file() else {}


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.reply(200, {"headers": {key.lower(): value for key, value in self.headers.items()}, "path": self.path})

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        time.sleep(behaviour.get("sleep", 0))
        if behaviour.get("die"):
            os._exit(3)
        rows = json.loads(body)["inputs"][0]["shape"][0]
        output = {"name": "probability", "datatype": "FP32", "shape": [rows], "data": [0.5] * rows}
        answer = {"model_name": args.name, "model_version": args.version, "outputs": [output], "got": body.decode()}
        self.reply(behaviour.get("status", 200), answer)

    def reply(self, status: int, answer: object) -> None:
        body = json.dumps(answer).encode()
        head = f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\ncontent-length: {len(body)}\r\n"
        head += "x-served-by: standin\r\nconnection: x-secret\r\nx-secret: 1\r\n\r\n"
        self.wfile.write(head.encode() + body)


if "exit" in behaviour:
    sys.exit(behaviour["exit"])
if behaviour.get("hang"):
    time.sleep(600)
# It does not finish its requests, so the node must have waited for them.
signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
server = ThreadingHTTPServer(("127.0.0.1", args.port), Handler)
server.daemon_threads = True
time.sleep(behaviour.get("start_s", 0))
print(f"ready http://127.0.0.1:{server.server_port}", flush=True)
print("and some more output", flush=True)
server.serve_forever()
