"""The one family of kubeloop's errors, and how a program that fails with one of them ends."""

import contextlib
import sys
from collections.abc import Iterator

__all__ = ["KubeloopError"]

LASTING = 65
"""Exit code of a program whose error another attempt would meet again (EX_DATAERR of sysexits.h)."""
PASSING = 75
"""Exit code of a program that may succeed when it is started again (EX_TEMPFAIL of sysexits.h).

Neither is used by others for themselves: 1 is an error that Python did not expect, 2 a command line that cannot be
read, 64 argoexec's own failure, and 126 to 165 come from shells, kubelets and signals.
"""


class KubeloopError(Exception):
    """What kubeloop itself raises; its message is a sentence for a person, who need not see a traceback.

    Every class says whether its errors are `lasting`: data, configuration and decisions make errors that another
    attempt would meet again, while a server that is away may be back. Where a class has both, the error says it
    itself; where that is not known it counts as passing, since an attempt too many costs less than a run given up.
    """

    lasting: bool


def exit_code(error: BaseException) -> int:
    """Return the exit code of a program that fails with an error: 1 where the error is not ours."""
    if not isinstance(error, KubeloopError):
        return 1
    return LASTING if error.lasting else PASSING


@contextlib.contextmanager
def program() -> Iterator[None]:
    """Be a program: an error of ours ends it with its sentence on stderr and its exit code."""
    try:
        yield
    except KubeloopError as error:
        print(error, file=sys.stderr, flush=True)
        sys.exit(exit_code(error))
