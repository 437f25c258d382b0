"""The backtest: what would each way to decide about retraining have given on the history that is there?

`history` says what was known when and trains each model once; `walk` takes one policy of `policies` through the
history, with the monitor, the trigger's ledger and the gate themselves; `score` measures what it served; `run` does
it all in parallel. `cli_backtest` shows it and `apply` writes the choice into loop.yaml.
"""

from kubeloop.errors import KubeloopError


class BacktestError(KubeloopError):
    """There is nothing to learn from this history; the message says what it lacks."""

    lasting = True
