"""The drift event, with which the monitor or a person requests a retraining."""

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, AwareDatetime, ConfigDict, StringConstraints, TypeAdapter, ValidationError

from kubeloop import moments
from kubeloop.config import DnsName
from kubeloop.names import DRIFT_EVENT
from kubeloop.payloads import cloudevents

Kind = Literal["drift", "performance", "schedule", "manual"]


def _utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise ValueError("UTC has no year for this moment") from None


def _come(value: datetime) -> datetime:
    """Refuse a moment in the future: nothing is known about it, and a cooldown would last until then."""
    return moments.past(value, moments.MOST)


_Moment = Annotated[AwareDatetime, AfterValidator(_utc), AfterValidator(_come)]
# A control character would break the command line or the log that contains the text.
_Text = Annotated[str, StringConstraints(pattern=r"^\P{Cc}*$", max_length=2000)]
_Id = Annotated[str, StringConstraints(pattern=r"^\P{Cc}+$", max_length=200)]


@dataclass(frozen=True)
class DriftEvent:
    """An episode of drift, as the monitor or a person reports it.

    `as_of` is the event's time: the run uses what was known then, and cooldowns are measured in it.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    service: DnsName
    episode: _Id
    opened_at: _Moment
    as_of: _Moment
    kind: Kind
    features: tuple[_Text, ...]
    reason: _Text

    @property
    def run_name(self) -> str:
        """The run's name: a Kubernetes name of at most 63 characters, unique to this episode of this service."""
        digest = hashlib.sha256(f"{self.service}\n{self.episode}".encode()).hexdigest()[:8]
        episode = self.episode.removeprefix(f"{self.service}-").lower()
        slug = re.sub(r"[^a-z0-9]+", "-", episode)[: 52 - len(self.service)].strip("-")
        return "-".join(part for part in (self.service, slug, digest) if part)

    @classmethod
    def parse(cls, headers: Mapping[str, str], body: bytes) -> "DriftEvent":
        """Read a CloudEvents 1.0 HTTP message, in binary or structured mode.

        Raises:
            ValueError: it is not a drift event; the message names what is wrong.
        """
        given = {name.lower().encode("latin-1"): value.encode("latin-1", "replace") for name, value in headers.items()}
        media = given.get(b"content-type", b"").partition(b";")[0].strip().lower().decode("latin-1")
        if media != cloudevents.STRUCTURED:
            if b"ce-specversion" not in given:
                raise ValueError(f"not a CloudEvent; send ce-* headers, or content-type {cloudevents.STRUCTURED}")
            if media != "application/json":
                raise ValueError(f"content-type is {media or 'missing'}; a binary event's body is application/json")
        ((attributes, data, *_),) = cloudevents.messages(given, body)
        for name, expected in (("specversion", "1.0"), ("type", DRIFT_EVENT)):
            if attributes.get(name) != expected:
                raise ValueError(f"{name} is {attributes.get(name)!r}; expected {expected!r}")
        try:
            event = _ADAPTER.validate_json(data, strict=True)
        except ValidationError as error:
            wrong = "; ".join(f"{'.'.join(map(str, ('data', *e['loc'])))}: {e['msg']}" for e in error.errors())
            raise ValueError(wrong) from error
        # Senders that forward events, such as Argo Events, do not set a subject.
        given_names = {"id": attributes.get("id"), "subject": attributes.get("subject", event.episode)}
        for name, value in given_names.items():
            if value != event.episode:
                raise ValueError(f"{name} is {value!r}; it must be data.episode, {event.episode!r}")
        if not attributes.get("source"):
            raise ValueError("source is missing; name the sender")
        return event


_ADAPTER = TypeAdapter(DriftEvent)
