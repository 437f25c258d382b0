"""Step: deployment through an InferenceService."""

from components._step import step


@step
def deploy_model(loop: str, version: str) -> str:
    """Serve a registered version and, once it answers, make it the champion.

    Args:
        loop: the use case, as JSON or a reference to it.
        version: the version to serve.

    Returns:
        Address of the inference service; by GitOps it may be the commit that proposes the version.
    """
    from kubeloop import loops, promotion
    from kubeloop.config import settings

    return promotion.deploy(loops.read(loop, settings()), settings(), version).outcome
