"""Where the services of this installation answer."""

from kubeloop import access
from kubeloop.config import Settings
from kubeloop.errors import KubeloopError


class ServiceError(KubeloopError):
    """A service is not up or does not come up; the message says what to do."""

    lasting = False


def address(settings: Settings, name: str) -> str:
    """Return the base URL of a service that is up.

    Raises:
        ServiceError: no such service is up.
    """
    if known := {"collector": settings.collector_url, "monitor": settings.monitor_url}.get(name):
        return known
    try:
        return str(access.services(settings.services_file)[name]["url"])
    except (OSError, KeyError) as error:
        raise ServiceError(f"no {name} is up; start the services with `kubeloop serve`") from error
