"""One node of a TrainJob: `python -m kubeloop.tasks.tabular.train_node --job NAME` trains its share of the rows."""

import argparse
import contextlib
import io
import logging
import socket
import sys
import tempfile
import time
from pathlib import Path

from kubeloop import config, errors, failures, names
from kubeloop.config import Loop, Node
from kubeloop.errors import KubeloopError
from kubeloop.failures import Failure
from kubeloop.stores.bucket import Bucket
from kubeloop.tasks.tabular import candidate
from kubeloop.tasks.tabular.training import Network

PORT = 12400
"""Port of the first estimator; each further one of a model uses the next port (`training.Network.parameters`)."""
_RESOLVE_S = 1800.0

log = logging.getLogger("kubeloop.tasks.tabular.train_node")


class NodeError(KubeloopError):
    """This node cannot take part; the message says why."""

    lasting = True


class AbsentError(NodeError):
    """Another node did not start."""

    lasting = False


def hosts(node: Node) -> list[str]:
    """Return the host names of all nodes: Kubeflow Trainer numbers them from the first one, `…-0.…`.

    Raises:
        NodeError: the first node's name has another form.
    """
    head, dot, tail = node.first.partition(".")
    stem, dash, number = head.rpartition("-")
    if number != "0" or not dash:
        raise NodeError(f"the first node is called {node.first!r}, which does not end in -0; use another runtime")
    return [f"{stem}-{rank}{dot}{tail}" for rank in range(node.nodes)]


def meet(node: Node) -> Network:
    """Return the machines that train together, once the name of each can be resolved.

    Raises:
        AbsentError: a node did not start.
    """
    machines, deadline = [], time.monotonic() + _RESOLVE_S
    for host in hosts(node) if node.nodes > 1 else ["localhost"]:
        while True:
            with contextlib.suppress(OSError):
                machines.append(f"{socket.gethostbyname(host)}:{PORT}")
                break
            if time.monotonic() > deadline:
                raise AbsentError(f"{host} is still unknown after {_RESOLVE_S:g} s; check why its pod does not start")
            time.sleep(1)
    return Network(tuple(machines), node.rank)


def train(bucket: Bucket, job: str, network: Network) -> None:
    """Train on the data under the job's name; the first node writes the model folder and the hold-out next to it.

    Raises:
        NodeError: the job's data are not in the bucket.
        BucketError: the store does not answer.
    """
    place = names.job(job)
    text, rows = bucket.get(f"{place}/loop.json"), bucket.get(f"{place}/training.parquet")
    if text is None or rows is None:
        raise NodeError(f"{bucket.root}/{place} holds no job; start it from the training step")
    loop = Loop.parse(text.decode())
    with tempfile.TemporaryDirectory() as scratch:
        folder, holdout = Path(scratch) / "model", Path(scratch) / "holdout.parquet"
        if candidate.build(loop, io.BytesIO(rows), folder, holdout, network):
            bucket.put(f"{place}/holdout.parquet", holdout.read_bytes())
            bucket.push(folder, f"{place}/model")
            log.info("the model is in %s/%s/model", bucket.root, place)


def main() -> None:
    """Train as one node, and exit."""
    parser = argparse.ArgumentParser(prog="python -m kubeloop.tasks.tabular.train_node", description=__doc__)
    parser.add_argument("--job", required=True, help="name of the TrainJob and of its folder in the bucket")
    parser.add_argument("--machines", help="address:port of every node, by rank (default: from the TrainJob's names)")
    args = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
    with errors.program():
        settings = config.settings()
        try:
            here = config.node()
            network = Network(tuple(args.machines.split(",")), here.rank) if args.machines else meet(here)
            train(Bucket.open(settings), args.job, network)
        except KubeloopError as error:
            # A TrainJob's status only says that a pod failed.
            failures.keep(settings, f"{names.job(args.job)}/failure.json", Failure.of(error))
            raise


if __name__ == "__main__":
    main()
