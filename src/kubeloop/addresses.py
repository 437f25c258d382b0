"""The addresses of this installation's services."""

from kubeloop import access
from kubeloop.config import Settings
from kubeloop.errors import KubeloopError


class ServiceError(KubeloopError):
    """A service is not running or does not start; the message says what to do."""

    lasting = False


def address(settings: Settings, name: str) -> str:
    """Return the base URL of a running service.

    Raises:
        ServiceError: the service is not running.
    """
    if known := {"collector": settings.collector_url, "monitor": settings.monitor_url}.get(name):
        return known
    try:
        return str(access.services(settings.services_file)[name]["url"])
    except (OSError, KeyError) as error:
        raise ServiceError(f"the {name} is not running; start the services with `kubeloop serve`") from error
