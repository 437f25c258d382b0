"""Render every HTML page of kubeloop: data are escaped, nothing is loaded, and a policy allows only our own script.

A page called NAME is `templates/NAME.html`, which fills `page.html`, with the styles of page.css and NAME.css and, if
there is one, the script NAME.js. The policy is a <meta>, since pages are read from a file, from a bucket, or in a
frame of the Kubeflow UI, which lets scripts run.
"""

import base64
import functools
import hashlib
from importlib import resources
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Environment


def render(name: str, /, **content: object) -> str:
    """Return a complete page.

    Args:
        name: of the page.
        content: the variables of its template, including `title`. Everything except `Markup` is escaped.
    """
    from markupsafe import Markup

    style, script = _source("page.css") + _source(f"{name}.css"), _source(f"{name}.js")
    # Hashed from the package's files, so that a script that gets into the page in another way has no hash.
    allowed = [f"style-src {_hash(style)}", *([f"script-src {_hash(script)}"] if script else [])]
    policy = "; ".join(["default-src 'none'", *allowed, "base-uri 'none'", "form-action 'none'"])
    assets = {"policy": policy, "style": Markup(style), "script": Markup(script)}  # noqa: S704 - files of the package
    return _environment().get_template(f"{name}.html").render(content, **assets)


@functools.cache
def _environment() -> "Environment":
    from jinja2 import Environment, PackageLoader, StrictUndefined

    return Environment(
        loader=PackageLoader("kubeloop"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _source(file: str) -> str:
    """Return a file's text, or nothing if it does not exist."""
    path = resources.files("kubeloop") / "templates" / file
    return path.read_text() if path.is_file() else ""


def _hash(text: str) -> str:
    """Return the hash that a policy uses to allow an element's text."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"
