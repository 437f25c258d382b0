"""A second port that only shows a service: metrics and probes, and nothing else.

In a cluster, Prometheus can then connect to a service without being able to send it events, labels or requests.
A NetworkPolicy cannot tell paths apart, but it can tell ports apart.
"""

import argparse
from typing import Any

from starlette.responses import PlainTextResponse

from kubeloop.serving.bounds import Post

SHOWN = ("/metrics", "/healthz", "/readyz")
_READING = frozenset({"GET", "HEAD"})


class MetricsPort:
    """An ASGI application that, on one of its ports, answers only GET of `SHOWN`.

    Args:
        app: the application behind it.
        port: the port; requests on another port all go to the application.
    """

    def __init__(self, app: Any, port: int) -> None:
        self._app = app
        self._prompt = getattr(app, "at_once", None)
        self.port = port

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] != "http" or scope["server"][1] != self.port or _shown(scope):
            await self._app(scope, receive, send)
            return
        # The unread rest of a body must not be read as the next request.
        message = f"this port answers only GET {', '.join(SHOWN)}\n"
        await PlainTextResponse(message, 404, {"connection": "close"})(scope, receive, send)

    def at_once(self, post: Post) -> Any:
        """See `process.Prompt`."""
        return None if self._prompt is None or post.port == self.port else self._prompt(post)


def _shown(scope: Any) -> bool:
    return scope["method"] in _READING and scope["path"] in SHOWN


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flag of a service whose metrics others may read."""
    parser.add_argument(
        "--metrics-port",
        type=int,
        help="a second port, which answers only GET of metrics and health (default: none)",
    )
