"""MLflow's UI on a laptop, only for its owner: `kubeloop mlflow`.

MLflow does not authenticate callers, and a loopback port is open to every user of the machine, who could move the
champion's alias. As in Jupyter, each start makes a token: the printed link contains it and sets a cookie. MLflow's own
clients send it as MLFLOW_TRACKING_TOKEN.
"""

import hmac
import importlib
from http.cookies import CookieError, SimpleCookie
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

from kubeloop import access, config
from kubeloop.config import Settings
from kubeloop.models import mlflow_server

_COOKIE = "kubeloop-mlflow"
_HINT = b"A token is needed: open the link of `kubeloop mlflow`, or send its token as MLFLOW_TRACKING_TOKEN.\n"


class Door:
    """An ASGI application that passes on requests with the token."""

    def __init__(self, app: Any, token: str) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Answer one request, or pass it on."""
        if scope["type"] == "lifespan" or (scope["type"] == "http" and self._known(dict(scope["headers"]))):
            await self._app(scope, receive, send)
        elif scope["type"] != "http":
            await send({"type": "websocket.close", "code": 1008})
        elif scope["method"] == "GET" and self._is(
            parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        ):
            cookie = f"{_COOKIE}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            await _answer(send, 303, b"", (b"location", b"/"), (b"set-cookie", cookie.encode()))
        else:
            await _answer(send, 403, _HINT)

    def _known(self, headers: dict[bytes, bytes]) -> bool:
        scheme, _, given = headers.get(b"authorization", b"").decode("latin-1").partition(" ")
        if scheme.lower() == "bearer" and self._is(given):
            return True
        try:
            cookie = SimpleCookie(headers.get(b"cookie", b"").decode("latin-1")).get(_COOKIE)
        except CookieError:
            return False
        return cookie is not None and self._is(cookie.value)

    def _is(self, given: str) -> bool:
        return hmac.compare_digest(given.encode(), self._token.encode())


async def _answer(send: Any, status: int, body: bytes, *headers: tuple[bytes, bytes]) -> None:
    fixed = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(body)),
        # MLflow's own answers carry it as well.
        (b"x-content-type-options", b"nosniff"),
        (b"content-security-policy", b"default-src 'none'"),
    ]
    await send({"type": "http.response.start", "status": status, "headers": [*fixed, *headers]})
    await send({"type": "http.response.body", "body": body})


def create_app() -> Door:
    """Return MLflow's application behind the token check; uvicorn calls this."""
    return Door(importlib.import_module("mlflow.server.fastapi_app").app, access.read(_token_file(config.settings())))


def _token_file(settings: Settings) -> Path:
    return settings.state / "mlflow-token"


def serve(settings: Settings, port: int) -> None:
    """Serve until Ctrl-C, behind a token that the printed link holds.

    Raises:
        AccessError: the state folder cannot be kept from others.
    """
    access.private(settings.state)
    token = access.make(_token_file(settings))
    print(f"Open http://127.0.0.1:{port}/?token={token}", flush=True)
    where = ["--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    mlflow_server.serve([*where, "--backend-store-uri", settings.mlflow_uri], "kubeloop.models.mlflow_ui:create_app")
