"""Read all settings: the use case (`loop.yaml`) and the places where this installation keeps things.

They are two objects, because they change for different reasons. `Loop` is the use case: a pipeline run gets it as a
parameter, and its digest is part of a model's lineage. `Settings` is the place: folders, ports, interpreters; it comes
from `KUBELOOP_*` variables and never changes what is learned.
"""

from kubeloop.config import kinds
from kubeloop.config.environments import Environment
from kubeloop.config.loop import Drift, Features, Gates, Loop, Replay, Serving, Source, Table, Training, load
from kubeloop.config.place import PUBLIC, QUIET, Node, Settings, adopt, inherited, node, own, settings
from kubeloop.config.types import ConfigError, DnsName, duration, duration_text, instant, past

__all__ = [
    "PUBLIC",
    "QUIET",
    "ConfigError",
    "DnsName",
    "Drift",
    "Environment",
    "Features",
    "Gates",
    "Loop",
    "Node",
    "Replay",
    "Serving",
    "Settings",
    "Source",
    "Table",
    "Training",
    "adopt",
    "duration",
    "duration_text",
    "inherited",
    "instant",
    "kinds",
    "load",
    "node",
    "own",
    "past",
    "settings",
]
