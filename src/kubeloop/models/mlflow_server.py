"""The MLflow server in one process: `python -m kubeloop.models.mlflow_server` has the options of `mlflow server`.

`mlflow server` checks its options, prepares the database, starts uvicorn as a child, and waits. It then uses 180 MiB,
as much as the child. Here uvicorn replaces it. The command, the variables and their meaning are MLflow's own. Python's
audit events (PEP 578) announce that a child is about to start. If MLflow starts its server in another way, it runs in
two processes, as without this module.
"""

import os
import runpy
import sys
from collections.abc import Sequence
from typing import Any


def serve(arguments: Sequence[str], factory: str = "") -> None:
    """Run `mlflow server` until uvicorn replaces it.

    Args:
        arguments: of `mlflow server`.
        factory: `module:function` that makes the application to serve; MLflow's own if left out.
    """

    def become(event: str, args: tuple[Any, ...]) -> None:
        if event != "subprocess.Popen":
            return
        executable, command, _, environment = args
        if isinstance(command, list) and command[1:3] == ["-m", "uvicorn"]:
            if factory:
                command = [*command[:-1], "--factory", factory]
            sys.stdout.flush()
            sys.stderr.flush()
            os.execve(executable, command, environment)  # noqa: S606 - MLflow's own command

    sys.argv = ["mlflow", "server", *arguments]
    sys.addaudithook(become)
    runpy.run_module("mlflow", run_name="__main__", alter_sys=False)


if __name__ == "__main__":
    serve(sys.argv[1:])
