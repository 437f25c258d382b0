"""The backtest: compare what each retraining policy would have achieved on the recorded history.

`history` knows what was known when, and trains each model once. `walk` takes one policy of `policies` through the
history, with the loop's own monitor, ledger and gate. `score` measures what the policy served. `run` does all of this
in parallel. `kubeloop.cli.backtest` shows the result, and `apply` writes the chosen policy into loop.yaml.
"""

from kubeloop.errors import KubeloopError


class BacktestError(KubeloopError):
    """This history is not enough for a backtest; the message says what it lacks."""

    lasting = True
