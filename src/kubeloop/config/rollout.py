"""The settings of a rollout: by what a new version is judged while it serves a share of the traffic."""

from datetime import timedelta
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kubeloop.config.types import Duration, Model, Share

Ratio = Annotated[float, Field(gt=0, le=32)]
Factor = Annotated[float, Field(ge=1, le=32)]


class Frequency(Model):
    """How often something bad may happen at the canary, compared with the champion."""

    tolerance: Factor = Field(
        default=1.0,
        description="The canary is rolled back once it is proven to have more than this many times the champion's "
        "bad events.",
    )
    margin: Ratio | None = Field(
        default=2.0,
        description="The canary is promoted only once it is proven to have less than this many times the champion's "
        "bad events. With null this is only a guardrail: harm rolls back, and nothing has to be proven.",
    )
    acceptable: Annotated[Share, Field(lt=1)] | None = Field(
        default=None,
        description="A share of bad events that is proven instead of `margin`: the canary is also good enough once "
        "its share is proven to be below this, whatever the champion's is.",
    )

    @model_validator(mode="after")
    def _apart(self) -> "Frequency":
        if self.margin is not None and self.margin <= self.tolerance:
            raise ValueError(f"margin ({self.margin:g}) must be larger than tolerance ({self.tolerance:g})")
        return self


class Errors(Frequency):
    """Requests that failed: status 5xx, a timeout, a lost connection, a malformed answer."""

    acceptable: Annotated[Share, Field(lt=1)] | None = 0.001


class Latency(Frequency):
    """Requests that took longer than the champion's own quantile, as it was before them."""

    quantile: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    tolerance: Factor = 1.5
    margin: Ratio | None = 3.0


class Labels(Frequency):
    """Predictions whose label is still missing at its deadline."""

    tolerance: Factor = 1.25
    margin: Ratio | None = None


class Distribution(Model):
    """The predictions themselves: how often they fall into each tenth of the champion's."""

    tolerance: Annotated[float, Field(gt=1, le=32)] = Field(
        default=4.0,
        description="The canary is rolled back once a tenth of the champion's predictions is proven to hold more than "
        "this many times as many of the canary's, or less than one over it. A difference is not harm, so this is a "
        "large factor.",
    )


class Quality(Model):
    """Live `gates.metric`, from blocks of `gates.block`, as labels reach their deadline (`drift.label_wait`)."""

    tolerance: float = Field(
        default=0.0,
        ge=0,
        description="The canary is rolled back once its metric is proven to be worse by more than this; for losses, "
        "a share of the champion's value.",
    )
    margin: Annotated[float, Field(gt=0)] | None = Field(
        default=None,
        description="The canary is promoted only once its metric is proven to be worse by less than this. With null "
        "this is only a guardrail: labels take days, and the gate has compared the models already.",
    )
    bound: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.3, description="Differences of one block are clipped to this; for losses, a share of the champion's."
    )
    min_rows: int = Field(default=20, ge=1, description="Rows of each arm that a block needs.")
    slices: bool = Field(default=True, description="Judge the slices of `gates.slices` as well.")

    @model_validator(mode="after")
    def _apart(self) -> "Quality":
        if self.margin is not None and self.margin <= self.tolerance:
            raise ValueError(f"margin ({self.margin:g}) must be larger than tolerance ({self.tolerance:g})")
        if max(self.tolerance, self.margin or 0) >= self.bound:
            raise ValueError("bound must be larger than tolerance and margin")
        return self


class Named(Frequency):
    """A metric of the user's own that is 0 or 1 for each request, 1 being bad."""

    name: str = Field(pattern=r"^[a-z][a-z0-9_]{0,40}$", description="Its column among the judge's events.")
    margin: Ratio | None = None


class Rollout(Model):
    """By what a new version is judged while it serves a share of the traffic."""

    alpha: Annotated[float, Field(gt=0, lt=0.5)] = Field(
        default=0.05,
        description="Chance that a harmless version is rolled back, over a whole rollout, however often it is looked "
        "at; the criteria share it. Also the chance that a harmful one is called safe, for each criterion.",
    )
    errors: Errors = Errors()
    latency: Latency | None = Latency()
    labels: Labels | None = Labels()
    distribution: Distribution | None = Distribution()
    quality: Quality | None = Quality()
    metrics: tuple[Named, ...] = ()
    unit: Literal["request", "entity"] = Field(
        default="request",
        description="What is assigned to an arm, and counted: each request for itself, or each entity for good.",
    )
    max_wait: Duration = Field(default=timedelta(days=14), description="How long a rollout may wait for its proofs.")
    on_timeout: Literal["hold", "promote", "rollback"] = Field(
        default="hold", description="What happens if no harm was found by then, but the proofs are not complete."
    )

    @property
    def criteria(self) -> int:
        """Criteria that share `alpha`."""
        optional = (self.latency, self.labels, self.distribution, self.quality)
        return 1 + sum(one is not None for one in optional) + len(self.metrics)

    @model_validator(mode="after")
    def _named_once(self) -> "Rollout":
        names = [metric.name for metric in self.metrics]
        if len(names) != len({*names, "errors", "latency", "labels", "distribution", "quality"}) - 5:
            raise ValueError("rollout.metrics: each needs its own name, other than those of the built-in criteria")
        return self
