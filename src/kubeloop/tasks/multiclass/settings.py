"""The settings of a multiclass task in loop.yaml."""

from collections.abc import Mapping
from typing import Annotated, Literal

from pydantic import Field, field_validator

from kubeloop.config import loop
from kubeloop.config.types import Share

Algorithm = Literal["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"]
MOST_CLASSES, LONGEST = 50, 200


class Training(loop.Training):
    """How a model is trained."""

    algorithm: Algorithm = "lightgbm"
    classes: Annotated[tuple[str, ...], Field(min_length=2, max_length=MOST_CLASSES)] = Field(
        description="The values of the label, as text, in the order in which the model gives their probabilities. "
        "A row with another label is not used for training.",
    )

    @field_validator("classes")
    @classmethod
    def _differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(classes)) < len(classes) or not all(classes):
            raise ValueError("training.classes must be different texts, and none of them empty")
        # Class names are part of keys in the monitor's database, and clients send them as labels.
        if wrong := [name for name in classes if len(name) > LONGEST or not name.isprintable()]:
            raise ValueError(f"training.classes has {wrong[0]!r:.80}: at most {LONGEST} printable characters")
        return classes


class Gates(loop.Gates):
    """When a challenger may become the champion."""

    metric: Literal["log_loss", "macro_f1", "balanced_accuracy", "accuracy", "top_k"] = "log_loss"
    floors: Mapping[Literal["macro_f1", "balanced_accuracy", "accuracy", "top_k"], Share] = Field(default={})
    ceilings: Mapping[Literal["log_loss", "ece"], float] = Field(default={"ece": 0.15})
