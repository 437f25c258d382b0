"""Read the loops of a Helm release from its ConfigMaps, for `kubeloop submit` and `kubeloop schedule`."""

from kubeloop import names
from kubeloop.delivery import RejectedError
from kubeloop.delivery.cluster import Cluster, connect, current_namespace
from kubeloop.delivery.rollout import Object

_PATIENCE_S = 10.0
"""How long to wait for the API server, since a person waits at a terminal."""


def loop(release: str, namespace: str, name: str = "", *, context: str = "") -> str:
    """Return the YAML text of a loop as the chart installed it.

    It needs the verb list on ConfigMaps in the namespace of the release.

    Args:
        release: the Helm release.
        namespace: its namespace; the kube context's if empty, as for kubectl and helm.
        name: the loop's name; may be empty if the release has a single loop.
        context: context of the kubeconfig file; the current one if empty.

    Raises:
        DeliveryError: the release, the loop, a right or the cluster is missing; the message says what to do.
    """
    namespace = namespace or current_namespace(context)
    cluster = Cluster(connect(context), patience_s=_PATIENCE_S)
    releases: dict[str, dict[str, str]] = {}
    for item in cluster.config_maps(namespace, f"{names.PART_OF}=kubeloop"):
        labels = item["metadata"]["labels"]
        loops = releases.setdefault(labels.get(names.INSTANCE, ""), {})
        if text := _loop(item):
            loops[labels.get(names.LOOP, "")] = text
    if release not in releases:
        has = f"it has {_listed(releases)}" if releases else "`helm list -A` shows where it is"
        raise RejectedError(f"namespace {namespace} has no kubeloop release {release}; {has} (--release, --namespace)")
    loops = releases[release]
    if not loops:
        raise RejectedError(
            f"release {release} in namespace {namespace} has no loop yet; add it: helm upgrade {release} "
            f"charts/kubeloop -n {namespace} --reuse-values --set-file loops.<name>.config=loop.yaml"
        )
    name = name or (next(iter(loops)) if len(loops) == 1 else "")
    if name not in loops:
        wanted = f"no loop {name}" if name else f"{len(loops)} loops"
        raise RejectedError(f"release {release} has {wanted}; choose with --loop-name: {_listed(loops)}")
    return loops[name]


def _loop(item: Object) -> str:
    is_loop = item["metadata"]["labels"].get(names.COMPONENT) == "loop"
    return str((item.get("data") or {}).get("loop.yaml", "")) if is_loop else ""


def _listed(found: dict[str, dict[str, str]] | dict[str, str]) -> str:
    return ", ".join(sorted(found))
