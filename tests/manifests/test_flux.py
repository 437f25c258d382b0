"""Our Flux objects, checked against Flux's own schemas on a real API server."""

import copy

import pytest

from tests.charts.conftest import Object
from tests.control_plane.plane import CommandError
from tests.manifests.test_overlays import build, dry_run


def moved(objects: list[Object], namespace: str) -> list[Object]:
    found = copy.deepcopy(objects)
    for item in found:
        item["metadata"]["namespace"] = namespace
    return found


@pytest.mark.parametrize("environment", ["dev", "staging", "prod"])
def test_flux_accepts_its_own(control_plane, flux_crds, assets, environment):
    objects = build(assets, f"flux/{environment}")
    assert {item["kind"] for item in objects} == {"GitRepository", "HelmRelease", "Kustomization"}
    with control_plane.namespace("flux") as name:
        dry_run(control_plane, moved(objects, name))


@pytest.mark.parametrize(
    ("kind", "field", "value", "message"),
    [
        ("HelmRelease", "intervall", "1h", "spec.intervall: field not declared in schema"),
        ("Kustomization", "prune", "yes", "spec.prune"),
        ("GitRepository", "interval", "often", "spec.interval"),
    ],
)
def test_what_flux_would_refuse_is_refused_here(control_plane, flux_crds, assets, kind, field, value, message):
    broken = next(item for item in build(assets, "flux/prod") if item["kind"] == kind)
    broken["spec"][field] = value
    with control_plane.namespace("flux") as name, pytest.raises(CommandError, match=message):
        dry_run(control_plane, moved([broken], name))
