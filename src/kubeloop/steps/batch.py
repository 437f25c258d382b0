"""The steps of the other pipelines: update the online store, score a batch, judge missed windows."""

import logging
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import httpx
import pyarrow as pa
import pyarrow.parquet as pq

from kubeloop.config import Loop, Settings, duration
from kubeloop.steps.promotion import current_champion
from kubeloop.steps.stages import StageError

_JUDGE_S = 600.0
_log = logging.getLogger(__name__)


class Scores(NamedTuple):
    """The number of scored events, and the version that scored them."""

    rows: int
    version: str


def materialize(loop: Loop, settings: Settings, raw: Path, as_of: datetime) -> dict[str, int]:
    """Compute the feature tables, register their definitions, and write the newest row of every key online.

    Args:
        loop: the use case.
        settings: where the feature repo and the online store are.
        raw: folder of validated raw tables.
        as_of: rows that became known later are left out.

    Returns:
        Rows by view, and `online`: the rows written to the online store.
    """
    from kubeloop import features
    from kubeloop.features import online

    rows = features.build(settings.home / loop.features.repo, raw, settings.features, settings)
    written = online.Materializer(settings.features, loop.features.service, settings).advance(as_of)
    _log.info("%d rows written online, as of %s", written, as_of.isoformat())
    return {**rows, "online": written}


def score(loop: Loop, settings: Settings, raw: Path, as_of: datetime, since: str, out: Path) -> Scores:
    """Score the events of a span of time with the champion, with the features as they were known.

    Args:
        loop: the use case.
        settings: where the registry and the feature repo are.
        raw: folder of validated raw tables.
        as_of: end of the span, exclusive.
        since: length of the span, such as `1d`.
        out: Parquet file: event_id, event_timestamp, the model's answer, version; one row per event.

    Raises:
        StageError: there is no champion yet, or no event in the span.
    """
    import tempfile

    from kubeloop import features
    from kubeloop.models import registry
    from kubeloop.tasks.tabular import maker, model_folder

    champion = current_champion(loop, settings)
    if champion is None:
        raise StageError(f"{loop.name} has no champion to score with; run the training pipeline first")
    start = as_of - duration(since)
    repo = settings.home / loop.features.repo
    rows = features.events(repo, raw, start=start, end=as_of)
    if not rows.num_rows:
        raise StageError(f"there is no event between {start.isoformat()} and {as_of.isoformat()}; score a longer span")
    with tempfile.TemporaryDirectory(dir=out.parent) as scratch:
        features.build(repo, raw, Path(scratch))
        # A version uses the features that it was trained on.
        table = features.training_set(Path(scratch), champion.tags["kubeloop.feature_service"], rows)
    kind = maker.of(loop)
    found = model_folder.predict(kind.task, registry.folder(settings, champion), table.to_pandas())
    scores: dict[str, Any] = {
        "event_id": table["event_id"],
        "event_timestamp": table["event_timestamp"],
        **{name: pa.array(column) for name, column in kind.scored(found).items()},
        "version": [champion.version] * table.num_rows,
    }
    pq.write_table(pa.table(scores), out, compression="zstd")
    _log.info("%d events from %s on scored by version %s", table.num_rows, start.isoformat(), champion.version)
    return Scores(table.num_rows, champion.version)


def judge(loop: Loop, settings: Settings, until: datetime) -> dict[str, Any]:
    """Have the monitor judge every window that has ended and was not judged yet; return its status.

    Args:
        loop: the use case.
        settings: where the monitor is.
        until: windows that end later are left out.

    Raises:
        ServiceError: no monitor is running, or it cannot judge now; another attempt may succeed. The message is the
        monitor's.
        StageError: it refuses the request.
    """
    from kubeloop import access, addresses

    url = addresses.address(settings, "monitor").format(loop=loop.name)
    # The token belongs to this machine, and a monitor elsewhere must not get it.
    login = {} if settings.monitor_url else access.header(settings.token_file)
    try:
        answer = httpx.post(
            f"{url}/advance", json={"until": until.isoformat()}, headers=login, timeout=_JUDGE_S, trust_env=False
        )
    except httpx.HTTPError as error:
        raise addresses.ServiceError(f"the monitor at {url} does not answer: {error}") from error
    if answer.is_server_error:
        raise addresses.ServiceError(f"the monitor judged nothing: {answer.text[:1000]}")
    if answer.is_error:
        raise StageError(f"the monitor judged nothing: {answer.text[:1000]}")
    found: dict[str, Any] = answer.json()
    return found
