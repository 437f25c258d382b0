"""The settings of a binary task in loop.yaml."""

from collections.abc import Mapping
from typing import Literal

from pydantic import Field

from kubeloop.config import loop
from kubeloop.config.types import Share

Algorithm = Literal["lightgbm", "logistic_regression", "random_forest", "hist_gradient_boosting"]


class Training(loop.Training):
    """How a model is trained."""

    algorithm: Algorithm = "lightgbm"


class Gates(loop.Gates):
    """When a challenger may become the champion."""

    metric: Literal["auc", "pr_auc", "log_loss", "brier"] = "auc"
    floors: Mapping[Literal["auc", "pr_auc"], Share] = Field(default={"auc": 0.6})
    ceilings: Mapping[Literal["log_loss", "brier", "ece"], float] = Field(default={"ece": 0.15})
