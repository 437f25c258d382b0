"""The real node, which starts the stand-ins as its programs."""

import argparse
import sys
from pathlib import Path

from kubeloop import access
from kubeloop.node.desired import Commands
from kubeloop.node.server import Node, NodeServer
from kubeloop.serving.process import log_to_stderr, run

parser = argparse.ArgumentParser()
parser.add_argument("--state", type=Path, required=True)
parser.add_argument("--log-queue", type=int, default=10_000)
parser.add_argument("--max-body-bytes", type=int, default=100_000)
parser.add_argument("--ready-s", type=float, default=20.0)
parser.add_argument("--collector-url")
args = parser.parse_args()
here = Path(__file__).parent
commands = Commands(
    predictor=(sys.executable, str(here / "predictor.py")),
    transformer=(sys.executable, str(here / "transformer.py")),
    features=Path("features"),
)
log_to_stderr()
access.private(args.state)
node = Node(
    commands,
    args.state,
    log_queue=args.log_queue,
    max_body_bytes=args.max_body_bytes,
    ready_s=args.ready_s,
    token=access.make(args.state / "token"),
    collector_url=args.collector_url,
)
run(NodeServer(node, 0))
