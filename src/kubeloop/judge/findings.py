"""What the judge says of one criterion, and of all of them together."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

__all__ = ["Finding", "Verdict"]

Action = Literal["promote", "hold", "rollback"]


@dataclass(frozen=True)
class Finding:
    """The evidence of one criterion.

    Attributes:
        name: of the criterion.
        measure: what `champion` and `canary` are: a share of requests, or a metric by its name.
        champion: value of the champion's arm, None where there is none yet.
        canary: the same of the canary's.
        effect: ratio of the two, or the mean difference of blocks (positive where the canary is better).
        interval: confidence sequence of the effect, which holds at all times together.
        harm: evidence of harm, an e-value; harm is proven at `harm_limit`.
        harm_limit: see there.
        safety: evidence that there is no harm beyond the margin, None where nothing has to be proven.
        safety_limit: see there.
        proven: whether the margin, or the acceptable share, is proven; None where nothing has to be.
        events: what was counted, of both arms: requests, entities, or blocks.
        needed: about how many more the proof needs if both arms are equally good, None where that is unknown.
        detail: more for people, one sentence or nothing.
    """

    name: str
    measure: str
    champion: float | None
    canary: float | None
    effect: float | None
    interval: tuple[float, float] | None
    harm: float
    harm_limit: float
    safety: float | None
    safety_limit: float
    proven: bool | None
    events: int
    needed: int | None = None
    detail: str = ""

    @property
    def harmful(self) -> bool:
        """Whether harm is proven."""
        return self.harm >= self.harm_limit

    def __str__(self) -> str:
        state = "harm is proven" if self.harmful else "proven harmless" if self.proven else "no harm found"
        if self.canary is None or self.champion is None:
            return f"{self.name}: {state if self.harmful else 'nothing to compare yet'}"
        told = f"{self.name}: {state}, {self.measure} {self.canary:.4g} against the champion's {self.champion:.4g}"
        if self.interval is not None:
            low, high = self.interval
            times = self.measure.startswith("share")
            told += f" ({low:.3g} to {high:.3g} times)" if times else f" ({low:+.3g} to {high:+.3g})"
        return f"{told}. {self.detail}" if self.detail else told


@dataclass(frozen=True)
class Verdict:
    """The judge's decision at one moment, with its evidence.

    Attributes:
        action: what to do now.
        reason: why, for people.
        findings: of all criteria.
        valid: False if the traffic was not divided as planned; then nothing can be concluded.
        needed: about how many more requests are needed until the last proof, None where that is unknown or zero.
    """

    action: Action
    reason: str
    findings: tuple[Finding, ...]
    valid: bool = True
    needed: int | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Verdict":
        """Read the result of `to_dict`, also after a round trip through JSON."""
        findings = tuple(
            Finding(
                **{**one, "interval": None if one["interval"] is None else (one["interval"][0], one["interval"][1])}
            )
            for one in data["findings"]
        )
        return cls(**{**data, "findings": findings})
