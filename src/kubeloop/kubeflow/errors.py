"""The errors of calls to the Kubeflow Pipelines API, each as one sentence that says what to do."""

import json

from kubeloop.errors import KubeloopError


class KfpError(KubeloopError, OSError):
    """The pipelines API gave no usable answer. It may or may not have carried out the request."""

    lasting = False


class NoAnswerError(KfpError, ConnectionError):
    """It does not answer, or the answer was lost."""


class DeniedError(KfpError, PermissionError):
    """It does not accept the caller."""

    lasting = True


class RefusedError(KfpError):
    """It refuses this request; nothing was done."""

    lasting = True


class MissingError(KfpError):
    """The object does not exist."""

    lasting = True


class ExistsError(KfpError):
    """The name already exists."""

    lasting = True


class TooOldError(KfpError):
    """The address answers, but not as Kubeflow Pipelines 2 does."""

    lasting = True


def meaning(url: str, what: str, status: int, body: bytes | str | None) -> KfpError:
    """Return the error that an HTTP status stands for.

    Args:
        url: the API's address.
        what: the requested action, as in "cannot <what>".
        status: the status; 0 when the connection could not be secured.
        body: the answer; its message is quoted.
    """
    said = _message(body)
    # An authenticating proxy redirects unknown clients to a login page.
    if status == 401 or status in range(300, 400):
        return DeniedError(
            f"cannot {what}: {url} needs to know the caller (status {status}); KUBELOOP_KFP_TOKEN_FILE must name a "
            "service account token for the audience pipelines.kubeflow.org"
        )
    if status == 403:
        return DeniedError(
            f"cannot {what}: {url} forbids it ({said}); the service account needs a role for pipelines in the namespace"
        )
    if status == 404:
        return MissingError(f"cannot {what}: {said}")
    if status == 409:
        return ExistsError(f"cannot {what}: {said}")
    if status in (400, 405, 413, 415, 422):
        return RefusedError(f"cannot {what}: Kubeflow Pipelines says: {said}")
    return NoAnswerError(f"cannot {what}: {url} answers with status {status} ({said}); it may work later")


def _message(body: bytes | str | None) -> str:
    text = body.decode(errors="replace") if isinstance(body, bytes) else body or ""
    try:
        content = json.loads(text)
    except ValueError:
        return " ".join(text.split())[:200] or "no reason given"
    if not isinstance(content, dict):
        return text[:200]
    found = content.get("message") or content.get("error_message") or content.get("error") or "no reason given"
    return " ".join(str(found).split())[:400]
