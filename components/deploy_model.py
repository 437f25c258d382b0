"""Step: deployment through an InferenceService."""

from components._step import step


@step
def deploy_model(loop: str, version: str) -> str:
    """Serve a registered version and, once it answers, make it the champion.

    Args:
        loop: the use case, as JSON.
        version: the version to serve.

    Returns:
        Address of the inference service; by GitOps it may be the commit that proposes the version.
    """
    from kubeloop import promotion
    from kubeloop.config import Loop, settings

    return promotion.deploy(Loop.parse(loop), settings(), version).outcome
