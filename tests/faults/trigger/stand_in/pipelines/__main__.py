"""A stand-in for the pipelines: records its start, waits, and ends as `behaviour.json` in its folder says."""

import argparse
import json
import os
import sys
import time
from pathlib import Path

parser = argparse.ArgumentParser(prog="pipelines")
parser.add_argument("verb", choices=["run"])
parser.add_argument("pipeline", choices=["training"])
for option in ("--run-name", "--as-of", "--reason", "--loop", "--state"):
    parser.add_argument(option, required=True)
args = parser.parse_args()

run = Path(args.state) / "runs" / args.run_name / "run.json"
behaviour = json.loads(Path("behaviour.json").read_text())
with Path("starts.jsonl").open("a") as starts:
    starts.write(json.dumps({"pid": os.getpid(), "environment": dict(os.environ), **vars(args)}) + "\n")


def report(
    status: str, result: dict[str, object] | None = None, error: str | None = None, lasting: bool = False
) -> None:
    """Replace run.json the way the pipelines do."""
    content = {"name": args.run_name, "status": status, "pid": os.getpid(), "result": result}
    content |= {"error": error, "lasting": lasting}
    part = run.with_suffix(".new")
    part.write_text(json.dumps(content))
    part.replace(run)


if behaviour["end"] != "misconfigured":
    report("running")
print("the stand-in runs", flush=True)
if "wait_for" in behaviour:
    while not Path(behaviour["wait_for"]).exists():
        time.sleep(0.02)
match behaviour["end"]:
    case "promote" | "reject" as end:
        report("succeeded", result={"promote": end == "promote", "version": "2", "reason": f"to {end}"})
    case "fail":
        report("failed", error="no labels")
        sys.exit(1)
    case "lasting":
        report("failed", error="one class", lasting=True)
        sys.exit(65)
    case "misconfigured":
        sys.exit(65)
    case "die":
        os._exit(9)
