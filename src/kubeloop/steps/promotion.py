"""Compare a trained model with the champion, register it, serve it, and make it the champion."""

import json
import logging
import subprocess
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from kubeloop import __version__, moments, names
from kubeloop.config import Loop, Settings
from kubeloop.steps import loops
from kubeloop.steps.stages import StageError, digest, slice_columns

if TYPE_CHECKING:
    import numpy.typing as npt
    import pandas as pd

    from kubeloop.delivery import Applied
    from kubeloop.models.gates import Verdict
    from kubeloop.models.registry import Version
    from kubeloop.tasks.tabular.holdout import Answered

_log = logging.getLogger(__name__)


def gate(loop: Loop, settings: Settings, run: str, model: Path, holdout: Path) -> "Verdict":
    """Compare the new model with the champion on the same newest hold-out.

    Rows that the champion was trained on are left out, because they would favour it. A run that is resumed after its
    model was registered keeps the registered verdict, because the champion may be the same model by then.

    Raises:
        StageError: too few rows are newer than the champion's training data.
    """
    from kubeloop.models import gates
    from kubeloop.tasks.tabular import model_folder

    found = _judge(loop, settings, run, holdout)
    # A registered verdict already holds them.
    if not found.warnings:
        found = gates.warned(found, model_folder.read(model).warnings, loop.gates)
    # The ledger, the report and `kubeloop submit` show this reason for a run.
    if (said := loops.stale(loop, settings)) and said not in found.reason:
        found = replace(found, reason=f"{found.reason} {said}.")
    _log.info("%s", found.reason)
    return found


def _judge(loop: Loop, settings: Settings, run: str, holdout: Path) -> "Verdict":
    from kubeloop.models import gates, registry
    from kubeloop.tasks import port
    from kubeloop.tasks.tabular import holdout as answered
    from kubeloop.tasks.tabular import model_folder

    task = port.of(loop)

    known = registry.versions(settings, loop.name)
    ours = next((version for version in known if version.run == run), None)
    if ours is not None:
        return gates.Verdict.from_dict(json.loads(ours.tags["kubeloop.gate"]))
    found = answered.read(holdout, task)
    champion = current_champion(loop, settings)
    if champion is None:
        return gates.first(task, found.truths, found.answers, loop.gates)
    folder = registry.folder(settings, champion)
    return compare(
        loop,
        found,
        model_folder.read(folder).trained_to,
        champion.version,
        lambda unseen: model_folder.predict(task, folder, unseen),
    )


def compare(
    loop: Loop,
    holdout: "Answered",
    trained_to: str,
    champion: str,
    old: Callable[["pd.DataFrame"], "npt.ArrayLike"],
) -> "Verdict":
    """Judge a challenger against the champion on the hold-out's rows that are newer than the champion's training data.

    Args:
        loop: the use case.
        holdout: the newest rows with the challenger's answers.
        trained_to: newest moment that the champion learned from, ISO 8601.
        champion: the champion's version.
        old: gives the champion's answers to rows.

    Raises:
        StageError: too few rows are newer than the champion's training data.
    """
    from kubeloop.models import gates
    from kubeloop.tasks import port

    newer = (holdout.rows["event_timestamp"] > moments.read(trained_to)).to_numpy()
    unseen = holdout.rows[newer]
    if len(unseen) < loop.gates.slice_min_rows:
        raise StageError(
            f"only {len(unseen)} of the hold-out's rows are newer than the data that champion {champion} was "
            f"trained on ({trained_to}); retrain later, or with a longer training.holdout"
        )
    return gates.compare(
        port.of(loop),
        holdout.truths[newer],
        old(unseen),
        holdout.answers[newer],
        loop.gates,
        blocks=gates.time_blocks(unseen["event_timestamp"].dt.tz_localize(None), loop.gates.block),
        slices=slice_columns(unseen, loop.gates.slices),
        seed=loop.training.seed,
    )


def current_champion(loop: Loop, settings: Settings) -> "Version | None":
    """Return the version that a new one has to beat.

    With GitOps the branch decides: a person may have reverted a promotion, or merged a proposal, and the alias follows.
    """
    from kubeloop.models import registry

    champion = registry.champion(settings, loop.name)
    if loop.delivery.git is None or loop.delivery.applier != "gitops":
        return champion
    from kubeloop.delivery import gitops

    lineage = gitops.named(loop.delivery.git, settings, loop.name)
    told = lineage.get(names.VERSION), lineage.get(names.DIGEST)
    served = next((v for v in registry.versions(settings, loop.name) if (v.version, v.sha256) == told), None)
    if served is None or served == champion:
        return champion
    registry.promote(settings, served)
    if not promoted(served):
        registry.tag(settings, served, {"kubeloop.promoted_at": datetime.now(UTC).isoformat()})
    return served


def promoted(version: "Version") -> bool:
    """Return whether a version was ever the champion: it was deployed, and the alias was moved to it.

    The gate's decision (`kubeloop.promoted`) does not prove it: a version may not have become ready, or may wait for a
    review.
    """
    from kubeloop.models import registry

    return "kubeloop.promoted_at" in version.tags or registry.CHAMPION in version.aliases


def numbers(verdict: "Verdict") -> dict[str, float]:
    """Return the numbers behind a verdict as metrics, for the pipeline's page."""
    found = {"champion": verdict.champion, "challenger": verdict.challenger, "difference": verdict.difference}
    if verdict.interval is not None:
        found |= {"interval_low": verdict.interval[0], "interval_high": verdict.interval[1]}
    return {f"{verdict.metric}_{name}": value for name, value in found.items() if value is not None}


def register(
    loop: Loop,
    settings: Settings,
    *,
    model: Path,
    training_set: Path,
    evaluation: Path,
    verdict: str,
    run: str,
    as_of: datetime,
    reason: str,
    snapshot: str,
) -> str:
    """Register the model with its lineage, whatever the gate decided; return the version."""
    from kubeloop.models import registry
    from kubeloop.tasks.tabular import model_folder

    card = model_folder.read(model)
    tags = {
        "kubeloop.as_of": as_of.isoformat(),
        "kubeloop.reason": reason,
        "kubeloop.trained_from": card.trained_from,
        "kubeloop.trained_to": card.trained_to,
        "kubeloop.raw_sha256": snapshot,
        "kubeloop.training_set_sha256": digest(training_set),
        "kubeloop.feature_service": loop.features.service,
        "kubeloop.feature_repo_sha256": digest(settings.home / loop.features.repo),
        "kubeloop.config_sha256": loop.digest(),
        "kubeloop.code": code_version(settings),
        "kubeloop.gate": verdict,
        "kubeloop.promoted": json.dumps(json.loads(verdict)["promote"]),
    }
    version = registry.register(settings, loop, model, run=run, tags=tags, artifacts=evaluation).version
    _log.info("registered as version %s", version)
    if settings.bucket:
        _tell(loop, settings, model, verdict, run, version)
    return version


def _tell(loop: Loop, settings: Settings, model: Path, verdict: str, run: str, version: str) -> None:
    """Store the reference for the monitor, and the outcome for the trigger.

    The outcome is valid only once the run has succeeded: a promoted version may still fail to become ready.
    """
    from kubeloop.stores.bucket import Bucket

    decision = json.loads(verdict)
    outcome = {"promote": decision["promote"], "reason": decision["reason"], "version": version}
    bucket = Bucket.open(settings)
    bucket.push(model / "reference", names.reference(loop.name, version))
    bucket.put(names.outcome(run), json.dumps(outcome).encode())


def deploy(loop: Loop, settings: Settings, version: str) -> "Applied":
    """Serve a registered version and, once it answers, make it the champion.

    The alias moves last, so that it always names a model that serves. A version that waits for a review does not serve
    yet, and stays the challenger.

    Raises:
        DeliveryError: the version does not become ready; the old champion continues to serve.
        StageError: a newer version is the champion; a run that is resumed late must not take its place.
    """
    from kubeloop.models import registry

    found = registry.get(settings, loop.name, version)
    champion = registry.champion(settings, loop.name)
    if champion is not None and int(champion.version) > int(version):
        raise StageError(
            f"version {champion.version} is the champion and newer than version {version}, which is not served again; "
            "start a new run instead"
        )
    applied = serve(loop, settings, found)
    now = datetime.now(UTC).isoformat()
    if applied.proposal:
        registry.tag(settings, found, {"kubeloop.proposal": applied.proposal, "kubeloop.proposed_at": now})
        _log.info("version %s is proposed: %s", version, applied.proposal)
        return applied
    registry.promote(settings, found)
    registry.tag(settings, found, {"kubeloop.served_at": applied.url, "kubeloop.promoted_at": now})
    _log.info("version %s is the champion and serves at %s", version, applied.url)
    return applied


def resume(loop: Loop, settings: Settings, champion: "Version") -> "Applied":
    """Serve a champion again, with the features that it was trained on, and record its address.

    It keeps its features even if loop.yaml now names a newer feature service.

    Raises:
        DeliveryError: the version does not become ready.
    """
    from kubeloop.models import registry

    own = loop.features.model_copy(update={"service": champion.tags["kubeloop.feature_service"]})
    applied = serve(loop.model_copy(update={"features": own}), settings, champion)
    if applied.url:
        registry.tag(settings, champion, {"kubeloop.served_at": applied.url})
    return applied


def serve(loop: Loop, settings: Settings, version: "Version") -> "Applied":
    """Apply the InferenceService of a version and wait until it answers; with GitOps this may only open a proposal.

    Raises:
        DeliveryError: the version does not become ready.
    """
    from kubeloop import addresses, features
    from kubeloop.delivery import pods
    from kubeloop.delivery.apply import apply
    from kubeloop.delivery.manifest import ModelRef, inference_service
    from kubeloop.models import registry

    here = loop.delivery.applier == "local"
    if not here and settings.feature_registry and settings.online_store:
        # A transformer does not start without its features, and they may not be materialized yet.
        features.register(settings.home / loop.features.repo, settings)
    uri = version.uri if here else registry.storage_uri(version)
    manifest = inference_service(
        loop,
        ModelRef(version.version, uri, version.sha256, version.run),
        logger_url=addresses.address(settings, "collector"),
        # A pod has the feature repo in its image; tables and store are shared.
        feature_dir=settings.features if here else settings.home / loop.features.repo,
    )
    verdict = json.loads(version.tags.get("kubeloop.gate", "{}"))
    why = "; ".join(filter(None, (version.tags.get("kubeloop.reason"), verdict.get("reason"))))
    return apply(loop, manifest if here else pods.place(loop, manifest), settings, why=why)


def code_version(settings: Settings) -> str:
    """Return kubeloop's version, with the commit of the image or of the loop's folder if there is one."""
    if settings.code:
        return f"{__version__}+{settings.code}"
    try:
        commit = subprocess.run(
            ["git", "-C", str(settings.home), "rev-parse", "--short=12", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return __version__
    return f"{__version__}+{commit}"
