"""Run the steps of a local run in processes with their libraries loaded, since imports take most of a step's time.

A server imports the libraries one by one, in the order in which the steps need them, and forks itself for each step.
A short script replaces the interpreter: it requests a fork and passes on streams, folder, variables and exit status.
The fork stays in the run's process group, so that a signal to the run also ends its steps.
"""

import contextlib
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from kubeloop import errors
from kubeloop.failures import Failure
from kubeloop.node.processes import die_with_parent

LIBRARIES = (
    "kfp.dsl.executor_main",
    "pandas",
    "duckdb",
    "great_expectations",
    "feast",
    "sklearn.ensemble",
    "lightgbm",
    "onnx",
    "matplotlib.figure",
    "mlflow",
)

FAILURE = "failure.json"
"""File next to the replacement of the interpreter: the error of the last step that failed."""

_STAND_IN = """#!{python} -IS
import json, os, socket, sys
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    order = json.dumps([sys.argv[1:], os.getcwd(), dict(os.environ)]).encode()
    socket.send_fds(server, [len(order).to_bytes(8, "big")], [0, 1, 2])
    server.sendall(order)
    status = server.recv(16)
# A step that dies without a word has sent nothing.
sys.exit(int(status) if status else 70)
"""


@contextlib.contextmanager
def interpreter(libraries: Sequence[str] = LIBRARIES) -> Iterator[str]:
    """Start the server, and yield the path of the script that replaces `python -m MODULE …`."""
    with tempfile.TemporaryDirectory(prefix="kubeloop-") as folder:
        address = str(Path(folder) / "fork")
        stand_in = Path(folder) / "python"
        stand_in.write_text(_STAND_IN.format(python=sys.executable, address=address))
        stand_in.chmod(0o700)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            given = [str(listener.fileno()), str(stand_in.with_name(FAILURE)), *libraries]
            server = subprocess.Popen(
                [sys.executable, "-m", "pipelines.warm", *given],
                pass_fds=[listener.fileno()],
                stdin=subprocess.PIPE,
                # It reads nothing while it imports a library, which takes seconds; a killed run must end it at once.
                preexec_fn=partial(die_with_parent, os.getpid()),
            )
        try:
            yield str(stand_in)
        finally:
            server.terminate()
            # If the kernel cannot end it, the server ends when its input ends.
            server.communicate()


def main() -> None:
    """Import the libraries named on the command line, and fork for every request that arrives in between."""
    listener = socket.socket(fileno=int(sys.argv[1]))
    waiting = list(sys.argv[3:])
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    while True:
        ready, _, _ = select.select([listener, sys.stdin], [], [], 0 if waiting else None)
        if sys.stdin in ready:
            return
        if listener in ready:
            _fork(listener, Path(sys.argv[2]))
        elif waiting:
            importlib.import_module(waiting.pop(0))


def _fork(listener: socket.socket, failure: Path) -> None:
    client, _ = listener.accept()
    server = os.getpid()
    with client:
        if os.fork():
            return
        # An interrupted run ends its server, and a step must not continue and deploy without its run.
        die_with_parent(server)
        listener.close()
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        status = 1
        try:
            status = _step(client, failure)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            with contextlib.suppress(OSError):
                client.sendall(str(status).encode())
            # The step must not run the server's exit handlers.
            os._exit(status)


def _step(client: socket.socket, failure: Path) -> int:
    """Become the requested process, and return its exit status; `failure` receives the error that ended it."""
    size, streams, _, _ = socket.recv_fds(client, 8, 3)
    order = b""
    while len(order) < int.from_bytes(size, "big"):
        order += client.recv(1 << 20)
    arguments, folder, variables = json.loads(order)
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(variables)
    flag, module, *rest = arguments
    if flag != "-m":
        print(f"python {flag}: only `-m MODULE` is supported here", file=sys.stderr)
        return 2
    # As `python -m` does.
    sys.path[0] = folder
    sys.argv = [module, *rest]
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as leaving:
        if isinstance(leaving.code, str):
            print(leaving.code, file=sys.stderr)
            return 1
        return leaving.code or 0
    except Exception as error:  # noqa: BLE001 - the run decides what becomes of it
        failure.write_text(Failure.of(error).dump())
        traceback.print_exc()
        return errors.exit_code(error)
    except BaseException:  # noqa: BLE001 - as the interpreter does at the end of a program
        traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    main()
