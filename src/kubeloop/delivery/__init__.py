"""Hand an InferenceService to whatever serves it: the local node, a cluster, or Git for Argo CD and Flux."""

from dataclasses import dataclass

from kubeloop.errors import KubeloopError


class DeliveryError(KubeloopError):
    """The manifest does not serve; the message gives the reason and what to do next."""

    lasting = False


class RejectedError(DeliveryError):
    """What is to be delivered, or where to, is refused as it is; it must be changed before another attempt."""

    lasting = True


class SupersededError(DeliveryError):
    """The version's time is over: a newer one serves, or a person took it back; trying again changes nothing."""

    lasting = True


@dataclass(frozen=True)
class Applied:
    """A manifest that is being served, or that Git holds where nobody waited until it is.

    Attributes:
        name: the inference service.
        namespace: its namespace.
        generation: the generation of its spec that is ready; 0 where nobody waited.
        storage_uri: the model that serves, or will serve, the default traffic.
        url: base address for clients; `<url>/v2/models/<name>/infer` predicts. Empty where nobody waited.
        seconds: time from the request until it was ready.
        proposal: the commit that waits for a review, and its branch; until it is merged the model does not serve.
    """

    name: str
    namespace: str
    generation: int
    storage_uri: str
    url: str
    seconds: float
    proposal: str = ""

    @property
    def outcome(self) -> str:
        """Return the address that serves the model, or else where it was proposed."""
        return self.url or self.proposal
