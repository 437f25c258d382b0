"""A node's network, mounts and limits, in namespaces that end with the tests."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

BRIDGE = "kubeloop0"
GATEWAY = "10.244.0.1"
"""The address of this machine for pods; what listens on loopback answers there too."""
PODS = "10.244.0.0/24"

_CGROUPS = Path("/sys/fs/cgroup")
# Settings that a kubelet makes for the whole machine: it must see the values that it wants, and change nothing.
_KERNEL = {"vm/overcommit_memory": "1", "vm/panic_on_oom": "0", "kernel/panic": "10", "kernel/panic_on_oops": "1"}


def apart() -> bool:
    """Return whether this process has its own network, as under `make e2e-node`."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


@contextlib.contextmanager
def laid(folder: Path) -> Iterator[str]:
    """Set up network and mounts, and yield a control group; at the end, stop and unmount everything in the folder."""
    _lay_network()
    _lay_mounts(folder)
    try:
        with _cgroup(folder.name) as group:
            yield group
    finally:
        _clear_mounts(folder)


def _lay_network() -> None:
    """Create the bridge, and redirect what pods send to its address to loopback."""
    for command in (
        "ip link set lo up",
        f"ip link add {BRIDGE} type bridge",
        f"ip address add {GATEWAY}/24 dev {BRIDGE}",
        f"ip link set {BRIDGE} up",
        # A Service's address needs a route before kube-proxy rewrites it.
        f"ip route add default via {GATEWAY}",
        f"sysctl -qw net.ipv4.ip_forward=1 net.ipv4.conf.{BRIDGE}.route_localnet=1",
        f"iptables -t nat -A PREROUTING -i {BRIDGE} -d {GATEWAY} -p tcp -j DNAT --to-destination 127.0.0.1",
        f"iptables -t nat -A INPUT -i {BRIDGE} -d 127.0.0.1 -p tcp -j SNAT --to-source 127.0.0.1",
    ):
        _run(command)


def _lay_mounts(folder: Path) -> None:
    """Hide what the node's programs write outside their folders in overlays of this mount namespace."""
    _run("mount --make-rshared /")
    for place in ("var", "etc"):
        upper, work = folder / place / "upper", folder / place / "work"
        upper.mkdir(parents=True)
        work.mkdir()
        _run(f"mount -t overlay overlay -o lowerdir=/{place},upperdir={upper},workdir={work} /{place}")
    _run("mount -t tmpfs tmpfs /run")
    Path("/etc/resolv.conf").unlink(missing_ok=True)
    Path("/etc/resolv.conf").write_text(f"nameserver {GATEWAY}\n")
    for name, value in _KERNEL.items():
        shown = folder / name.replace("/", "-")
        shown.write_text(f"{value}\n")
        _run(f"mount --bind {shown} /proc/sys/{name}")


@contextlib.contextmanager
def _cgroup(name: str) -> Iterator[str]:
    """Make a control group in every version 1 hierarchy, yield its path, and delete it with everything in it."""
    hierarchies = [path for path in _CGROUPS.iterdir() if path.is_dir() and not path.is_symlink()]
    if not (_CGROUPS / "memory").is_dir():
        hierarchies = [_CGROUPS]
    for path in hierarchies:
        (path / name).mkdir()
        for limit in ("cpuset.cpus", "cpuset.mems"):
            # A new set is empty, and no process can run without processors.
            if path.name == "cpuset":
                (path / name / limit).write_text((path / limit).read_text())
    try:
        yield f"/{name}"
    finally:
        for path in hierarchies:
            _remove(path / name)


def _remove(group: Path) -> None:
    """Kill the processes of a control group and delete it from the leaves up."""
    deadline = time.monotonic() + 20
    groups = [Path(found) for found, _, _ in os.walk(group, topdown=False)]
    for pid in (pid for path in groups for pid in (path / "cgroup.procs").read_text().split()):
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(pid), signal.SIGKILL)
    for path in groups:
        while True:
            try:
                path.rmdir()
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
            else:
                break


def _run(command: str) -> None:
    done = subprocess.run(command.split(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{command}: {done.stderr.strip()}")


def _clear_mounts(folder: Path) -> None:
    """Unmount everything that is mounted in a folder or from it."""
    for line in reversed(Path("/proc/self/mounts").read_text().splitlines()):
        if f"{folder}/" in line:
            _run(f"umount --lazy {line.split()[1]}")
