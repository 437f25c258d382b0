"""Convert an online store's URL to Feast's configuration: addresses, credentials, timeouts and TLS."""

import json
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

_ANSWERING = {"socket_connect_timeout": 1.0, "socket_timeout": 2.0, "retry": None}
"""For servers: a request waits this long for a silent store, and the client tries again, not redis-py."""

_WRITING = {"socket_connect_timeout": 5.0, "socket_timeout": 30.0}
"""For jobs, which can wait; redis-py tries three times more."""

_REDIS = {
    "socket_timeout": float,
    "socket_connect_timeout": float,
    "health_check_interval": int,
    "client_name": str,
    "ssl_ca_certs": str,
    "ssl_certfile": str,
    "ssl_keyfile": str,
    "ssl_cert_reqs": str,
}
_POSTGRES = {
    "sslmode": "sslmode",
    "sslkey": "sslkey_path",
    "sslcert": "sslcert_path",
    "sslrootcert": "sslrootcert_path",
    "keepalives_idle": "keepalives_idle",
}


def config(text: str, *, answering: bool) -> dict[str, Any]:
    """Return the part `online_store` of Feast's configuration.

    Args:
        text: a redis://, rediss:// or postgresql:// URL; special characters of its password are percent-encoded.
        answering: for a server, which must not wait long for the store.

    Raises:
        ValueError: the URL is not one of these, or has an unknown option. The message quotes nothing after the
            scheme, since a password with a / in it can end up in any part.
    """
    try:
        url = urlsplit(text)
        port = url.port
    except ValueError:
        # The library's message quotes the URL.
        raise ValueError("it is not a URL; percent-encode special characters of the password: %2F for /") from None
    redis = url.scheme in ("redis", "rediss")
    if not redis and url.scheme.partition("+")[0] != "postgresql":
        raise ValueError(f"it starts with {url.scheme}://; write redis://, rediss:// or postgresql://")
    if not url.hostname or (redis and ":" in url.hostname):
        raise ValueError("it has no host name, or an IPv6 address, which Feast's Redis store cannot take")
    return _redis(url, port or 6379, answering) if redis else _postgres(url, port or 5432)


def _redis(url: SplitResult, port: int, answering: bool) -> dict[str, Any]:
    options: dict[str, Any] = dict(_ANSWERING if answering else _WRITING)
    options |= {name: unquote(value) for name in ("username", "password") if (value := getattr(url, name))}
    options |= {"ssl": True} if url.scheme == "rediss" else {}
    asked = _query(url, _REDIS)
    try:
        options["db"] = int(url.path.strip("/") or 0)
        options |= {name: _REDIS[name](value) for name, value in asked}
    except ValueError:
        raise ValueError("its path must be the number of a database, and timeouts must be numbers of seconds") from None
    # Feast splits at every comma, and parses each value as JSON if it can: a password 1e5 would become a number.
    words = [name + "=" + json.dumps(value).replace(",", "\\u002c") for name, value in options.items()]
    return {"type": "redis", "connection_string": ",".join([f"{url.hostname}:{port}", *words])}


def _postgres(url: SplitResult, port: int) -> dict[str, Any]:
    return {
        "type": "postgres",
        "host": url.hostname,
        "port": port,
        "database": url.path.strip("/"),
        "user": unquote(url.username or ""),
        "password": unquote(url.password or ""),
        # Feast requires TLS unless it is told otherwise, for example with `?sslmode=`.
        **{_POSTGRES[name]: value for name, value in _query(url, _POSTGRES)},
    }


def _query(url: SplitResult, known: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = parse_qsl(url.query)
    if {name for name, _ in found} - known.keys():
        raise ValueError(f"it has an unknown option; the options are {', '.join(known)}")
    return found
