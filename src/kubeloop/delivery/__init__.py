"""Deliver an InferenceService to the local node, to a cluster, or to Git for Argo CD and Flux."""

from dataclasses import dataclass

from kubeloop.errors import KubeloopError


class DeliveryError(KubeloopError):
    """The manifest is not served; the message gives the reason and says what to do next."""

    lasting = False


class RejectedError(DeliveryError):
    """The manifest or its destination is refused; it must be changed before another attempt."""

    lasting = True


class SupersededError(DeliveryError):
    """The version is out of date: a newer one serves, or a person reverted it; another attempt changes nothing."""

    lasting = True


@dataclass(frozen=True)
class Applied:
    """A manifest that is being served, or that was committed to Git without waiting.

    Attributes:
        name: the inference service.
        namespace: its namespace.
        generation: the generation of its spec that is ready; 0 without waiting.
        storage_uri: the model that serves, or will serve, the default traffic.
        url: base address for clients; `<url>/v2/models/<name>/infer` predicts. Empty without waiting.
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
