"""Send episodes to the trigger: each one until the trigger answers, always with the same ID."""

import logging
import time
from datetime import UTC, datetime
from typing import Any

import httpx

from kubeloop import access
from kubeloop.monitoring.rows import EpisodeRow
from kubeloop.monitoring.store import Store
from kubeloop.payloads import cloudevents

_log = logging.getLogger(__name__)

_FIRST_PAUSE_S = 0.5
_LAST_PAUSE_S = 60.0


class Outbox:
    """Sends the open episodes in the store that have no answer; without a URL they wait."""

    def __init__(
        self, store: Store, service: str, url: str | None = None, timeout_s: float = 10.0, token: str = ""
    ) -> None:
        self._store = store
        self._service = service
        self._url = f"{url.rstrip('/')}/events" if url else None
        login = access.bearer(token)
        # A proxy that the environment names must not see the token.
        self._client = httpx.Client(timeout=timeout_s, headers=login, trust_env=not login)
        self._pause = _FIRST_PAUSE_S
        self._not_before = 0.0

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def hurry(self) -> None:
        """Let the next delivery start at once, even after failures."""
        self._not_before = 0.0

    def deliver(self) -> None:
        """Send waiting episodes. If the trigger does not answer, later calls try again, at growing intervals."""
        if self._url is None or time.monotonic() < self._not_before:
            return
        for row in waiting(self._store, self._service):
            try:
                response = self._client.post(self._url, json=event(row), headers=_HEADERS)
                response.raise_for_status()
                decision = response.json()
                accepted = bool(decision["accepted"])
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                _log.warning("episode %s is not delivered, trying again in %g s: %s", row["id"], self._pause, error)
                self._not_before = time.monotonic() + self._pause
                self._pause = min(2 * self._pause, _LAST_PAUSE_S)
                return
            self._pause = _FIRST_PAUSE_S
            self._settle(row, accepted, decision)

    def _settle(self, row: EpisodeRow, accepted: bool, decision: dict[str, Any]) -> None:
        over = {} if accepted else {"closed_at": row["opened_at"], "outcome": "refused"}
        self._store.update_episode(
            row["id"],
            emitted_at=datetime.now(UTC),
            accepted=accepted,
            run_name=decision.get("run_name"),
            decision=decision.get("reason"),
            **over,
        )
        _log.info("episode %s: the trigger says %s", row["id"], decision.get("reason"))


_HEADERS = {"content-type": cloudevents.STRUCTURED}


def waiting(store: Store, service: str) -> list[EpisodeRow]:
    """Return the open episodes that the trigger has not answered."""
    return [row for row in store.episodes(service) if row["emitted_at"] is None and row["closed_at"] is None]


def event(row: EpisodeRow) -> dict[str, Any]:
    """Return the CloudEvent of an episode."""
    return cloudevents.drift_event(
        source=f"/kubeloop/monitor/{row['service']}",
        service=row["service"],
        episode=row["id"],
        opened_at=row["opened_at"],
        as_of=row["as_of"],
        kind=row["kind"],
        features=row["features"],
        reason=row["reason"],
    )
