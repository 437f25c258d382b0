"""Hand an InferenceService to whatever serves it: here the local node, later a cluster or Git."""

from dataclasses import dataclass


class DeliveryError(RuntimeError):
    """The manifest does not serve; the message gives the reason and what to do next."""


@dataclass(frozen=True)
class Applied:
    """A manifest that is being served.

    Attributes:
        name: the inference service.
        namespace: its namespace.
        generation: the generation of its spec that is ready.
        storage_uri: the model that serves the default traffic.
        url: base address for clients; `<url>/v2/models/<name>/infer` predicts.
        seconds: time from the request until it was ready.
    """

    name: str
    namespace: str
    generation: int
    storage_uri: str
    url: str
    seconds: float
