"""Step: deployment through an InferenceService."""

from typing import NamedTuple

from components._step import step


@step
def deploy_model(loop: str, version: str) -> NamedTuple("Outputs", address=str):
    """Serve a registered version and, once it answers, make it the champion.

    Args:
        loop: the use case, as JSON or a reference to it.
        version: the version to serve.

    Returns:
        Address of the inference service; by GitOps it may be the commit that proposes the version.
    """
    from kubeloop.config import settings
    from kubeloop.steps import loops, promotion

    return (promotion.deploy(loops.read(loop, settings()), settings(), version).outcome,)
