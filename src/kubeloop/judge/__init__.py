"""Decides from live traffic and late labels whether a canary may become the champion, however often it is asked.

`verdict` has the judge, `criteria` what it goes by, `arms` and `bets` the mathematics, `forecast` how long it will
take, `exposures` what it sees, `assignment` which arm a unit gets.
"""

from kubeloop.judge.exposures import ExposureError, Exposures
from kubeloop.judge.findings import Finding, Verdict
from kubeloop.judge.verdict import Judge

__all__ = ["ExposureError", "Exposures", "Finding", "Judge", "Verdict"]
