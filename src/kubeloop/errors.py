"""The base class of kubeloop's errors, and the exit codes of a program that fails with one of them."""

import contextlib
import sys
from collections.abc import Iterator

__all__ = ["KubeloopError"]

LASTING = 65
"""Exit code of a program that would fail again if it were restarted (EX_DATAERR of sysexits.h)."""
PASSING = 75
"""Exit code of a program that may succeed if it is restarted (EX_TEMPFAIL of sysexits.h).

No other program uses these two: 1 is an unexpected Python error, 2 a wrong command line, 64 a failure of argoexec, and
126 to 165 come from shells, kubelets and signals.
"""


class KubeloopError(Exception):
    """An error that kubeloop raises; its message is a sentence for a person, so no traceback is shown.

    Every class says whether its errors are `lasting`. An error of data, configuration or a decision would happen
    again on the next attempt; a server that is down may come back. If a class has both, each error sets it. If we
    do not know, the error counts as passing: one attempt too many costs less than a run that was given up.
    """

    lasting: bool


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that fails with this error; 1 if the error is not ours."""
    if not isinstance(error, KubeloopError):
        return 1
    return LASTING if error.lasting else PASSING


@contextlib.contextmanager
def program() -> Iterator[None]:
    """Run as a program: one of our errors ends it with its message on stderr and its exit code."""
    try:
        yield
    except KubeloopError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
