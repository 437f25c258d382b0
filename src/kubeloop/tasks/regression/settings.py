"""The settings of a regression task in loop.yaml."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, model_validator

from kubeloop.config import loop
from kubeloop.config.types import Model

Algorithm = Literal["lightgbm", "ridge", "random_forest", "hist_gradient_boosting"]
QUANTILE = ("lightgbm", "hist_gradient_boosting")


class Interval(Model):
    """The prediction interval of every value."""

    method: Literal["conformal", "quantile"] = Field(
        default="conformal",
        description="conformal: quantiles of the errors on the newest quarter of the training rows, with the same "
        "width for all rows. quantile: two more models, corrected with the same errors; their width follows features.",
    )
    coverage: Annotated[float, Field(ge=0.5, le=0.99)] = Field(
        default=0.9, description="Share of true values that should lie inside."
    )


class Training(loop.Training):
    """How a model is trained."""

    algorithm: Algorithm = "lightgbm"
    interval: Interval = Interval()

    @model_validator(mode="after")
    def _has_quantiles(self) -> "Training":
        if self.interval.method == "quantile" and self.algorithm not in QUANTILE:
            raise ValueError(
                f"training.interval.method quantile needs {' or '.join(QUANTILE)}; write conformal for {self.algorithm}"
            )
        return self


class Gates(loop.Gates):
    """When a challenger may become the champion."""

    metric: Literal["rmse", "mae", "r2", "pinball"] = "rmse"
    floors: Mapping[Literal["r2", "coverage"], float] = Field(default={})
    ceilings: Mapping[Literal["rmse", "mae", "pinball"], float] = Field(default={})
    slice_tolerance: float = Field(
        default=0.1,
        ge=0,
        description="Largest allowed loss of the metric in a slice, as a share of the champion's value there.",
    )
