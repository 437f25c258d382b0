"""Check what an image must not contain or allow.

`docker run --rm -i --read-only --tmpfs /tmp IMAGE python - < contents.py`
"""

import os
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

FORBIDDEN = ("apt", "apt-get", "c++", "cc", "dpkg", "g++", "gcc", "ld", "make", "pip", "pip3", "uv")
SECRET = re.compile(r"passw|secret|token|credential|api_?key|private|access_key", re.IGNORECASE)
VIRTUAL = {"/proc", "/sys", "/dev", "/tmp"}  # noqa: S108


def problems() -> Iterator[str]:
    """Report everything that is wrong."""
    if os.getuid() != 65532 or os.getgid() != 65532:
        yield f"runs as {os.getuid()}:{os.getgid()}, not 65532:65532"
    if os.environ.get("HOME") != "/tmp":  # noqa: S108
        yield f"HOME is {os.environ.get('HOME')}, which may not be writable"
    for program in FORBIDDEN:
        if found := shutil.which(program, path=os.environ["PATH"] + ":/usr/local/sbin:/usr/sbin:/sbin"):
            yield f"{found} is there"
    for module in ("pip", "ensurepip"):
        if any((Path(folder) / module).exists() for folder in sys.path):
            yield f"the module {module} is there"
    for name in os.environ:
        if SECRET.search(name):
            yield f"the variable {name} looks like a secret"
    if Path(sys.prefix) != Path("/opt/venv"):
        yield f"python is that of {sys.prefix}, not /opt/venv"
    yield from _files()


def _files() -> Iterator[str]:
    for folder, folders, files in os.walk("/"):
        folders[:] = [name for name in folders if str(Path(folder) / name) not in VIRTUAL]
        for path in (Path(folder), *(Path(folder) / name for name in files)):
            found = path.lstat()
            if not stat.S_ISLNK(found.st_mode) and (found.st_mode & stat.S_IWOTH or found.st_uid == os.getuid()):
                yield f"{path} is writable by more than root"
            if stat.S_ISREG(found.st_mode) and found.st_mode & (stat.S_ISUID | stat.S_ISGID):
                yield f"{path} runs with its owner's rights"


if __name__ == "__main__":
    wrong = list(problems())
    print("\n".join(wrong) or "ok")
    sys.exit(bool(wrong))
