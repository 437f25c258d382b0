"""Remove old results of validations: the Data Docs and the quarantined rows of a run.

`stages` calls it after each validation, so that neither the bucket nor the state folder of a laptop grows forever.
"""

import contextlib
import logging
import shutil
from datetime import datetime
from pathlib import Path

from kubeloop.config import Loop
from kubeloop.stores.bucket import Bucket, BucketError

KINDS = ("data-docs", "quarantine")
"""Folders of the state and prefixes of the bucket, with one folder per run."""

_log = logging.getLogger(__name__)


def expire_on_disk(state: Path, loop: Loop, now: datetime) -> int:
    """Remove the folders of runs that have not changed for `pipelines.findings_ttl`; return how many."""
    limit = (now - loop.pipelines.findings_ttl).timestamp()
    removed = 0
    for run in (run for kind in KINDS for run in (state / kind).glob("*")):
        # Another run may be removing the same folder.
        with contextlib.suppress(FileNotFoundError):
            if run.is_dir() and max(path.lstat().st_mtime for path in (run, *run.rglob("*"))) < limit:
                shutil.rmtree(run, ignore_errors=True)
                removed += 1
    return removed


def expire_in_bucket(bucket: Bucket, loop: Loop, now: datetime) -> int:
    """Remove the loop's objects that are older than `pipelines.findings_ttl`, and return how many.

    If the store refuses to delete, for example because steps may only write, the run does not fail. Old objects then
    stay until the next run, or until a lifecycle rule removes them.
    """
    removed = 0
    try:
        for kind in KINDS:
            prefix = f"{kind}/{loop.name}"
            for name in bucket.names(prefix, before=now - loop.pipelines.findings_ttl):
                bucket.delete(f"{prefix}/{name}")
                removed += 1
    except BucketError as error:
        _log.warning("could not remove findings older than %s from the bucket: %s", loop.pipelines.findings_ttl, error)
    return removed
