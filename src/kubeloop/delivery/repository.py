"""Read and extend a branch of a remote Git repository, without a checkout; the one importer of dulwich."""

import re
import stat
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from dulwich import client as dulwich
from dulwich.errors import GitProtocolError, HangupException, NotGitRepository
from dulwich.objects import Blob, Commit, ObjectID, ShaFile, Tree
from dulwich.pack import pack_objects_to_data
from dulwich.protocol import ZERO_SHA
from dulwich.refs import Ref
from dulwich.repo import Repo

from kubeloop.config import Settings
from kubeloop.delivery import DeliveryError, RejectedError
from kubeloop.errors import KubeloopError

CommitId = ObjectID

HISTORY = 50
"""Commits of a branch that are fetched: enough to see a revert while a step was being repeated."""

ANSWER_S = 30.0
"""How long to wait for a connection to an HTTP server, and for the next part of an answer."""

_REASON_CHARS = 300


class MovedError(KubeloopError):
    """The branch has moved since it was read."""

    lasting = False


class RefusedError(KubeloopError):
    """The server refuses the commit; the message is the server's."""

    lasting = False


@dataclass(frozen=True)
class Change:
    """A commit that is not on the server yet, with its new objects."""

    commit: Commit
    objects: tuple[ShaFile, ...]


class Snapshot:
    """The newest commits of some branches."""

    def __init__(self, repo: Repo, tips: Mapping[str, ObjectID]) -> None:
        self.tips = tips
        self._store = repo.object_store

    def read(self, commit: ObjectID, path: str) -> bytes | None:
        """Return a file of a commit; None if the commit does not have it."""
        entry = self._entry(self._commit(commit).tree, path)
        found = entry and self._store[entry[1]]
        return found.data if isinstance(found, Blob) else None

    def earlier(self, commit: ObjectID, path: str) -> Iterator[bytes]:
        """Yield each content that a file had in a commit or before it, once, as far as the history was fetched."""
        waiting, known = [commit], {commit}
        blobs = set()
        while waiting:
            found = self._commit(waiting.pop())
            entry = self._entry(found.tree, path)
            if entry and entry[1] not in blobs:
                blobs.add(entry[1])
                content = self._store[entry[1]]
                if isinstance(content, Blob):
                    yield content.data
            parents = [parent for parent in found.parents if parent not in known and parent in self._store]
            known.update(parents)
            waiting += parents

    def committer(self, commit: ObjectID) -> str:
        """Return who made a commit."""
        return bytes(self._commit(commit).committer).decode(errors="replace")

    def change(self, parent: ObjectID, path: str, content: bytes, message: str, author: str) -> Change:
        """Return a commit that gives one file of its parent another content."""
        blob = Blob.from_string(content)
        objects: list[ShaFile] = [blob]
        tree = self._replaced(self._commit(parent).tree, path.encode().split(b"/"), blob.id, objects)
        commit = Commit()
        commit.tree = tree
        commit.parents = [parent]
        commit.author = commit.committer = author.encode()
        commit.author_time = commit.commit_time = int(time.time())
        commit.author_timezone = commit.commit_timezone = 0
        commit.encoding = b"UTF-8"
        commit.message = message.encode()
        return Change(commit, (*objects, commit))

    def _commit(self, commit: ObjectID) -> Commit:
        found = self._store[commit]
        if not isinstance(found, Commit):
            raise RejectedError(f"{commit.decode()} is not a commit; delivery.git must name a branch")
        return found

    def _entry(self, tree: ObjectID, path: str) -> tuple[int, ObjectID] | None:
        """Return mode and id of a regular file."""
        mode, found = stat.S_IFDIR, tree
        for part in path.encode().split(b"/"):
            folder = self._store[found] if stat.S_ISDIR(mode) else None
            if not isinstance(folder, Tree) or part not in folder:
                return None
            mode, found = folder[part]
        return (mode, found) if stat.S_ISREG(mode) else None

    def _replaced(self, tree: ObjectID, path: list[bytes], blob: ObjectID, objects: list[ShaFile]) -> ObjectID:
        found = self._store[tree]
        if not isinstance(found, Tree):
            raise RejectedError(f"the folder of {b'/'.join(path).decode()} does not exist; correct delivery.git.path")
        folder = Tree.from_string(found.as_raw_string())
        mode, below = folder[path[0]]
        folder[path[0]] = (mode, self._replaced(below, path[1:], blob, objects) if path[1:] else blob)
        objects.append(folder)
        return folder.id


class Remote:
    """A repository on a server; nothing is kept between two calls."""

    def __init__(self, address: str, settings: Settings) -> None:
        self._address = address
        self._user = settings.git_user
        self._token = settings.git_token.get_secret_value()

    @contextmanager
    def fetch(self, *branches: str) -> Iterator[Snapshot]:
        """Fetch the newest commits of branches; a branch that is missing has no tip.

        Raises:
            DeliveryError: the server cannot be read; the message says why and what to do.
        """
        wanted = {_ref(branch): branch for branch in branches}

        def wants(refs: Mapping[Ref, ObjectID], depth: int | None = None) -> list[ObjectID]:  # noqa: ARG001 - dulwich's
            return [refs[ref] for ref in wanted if ref in refs]

        with tempfile.TemporaryDirectory(prefix="kubeloop-git-") as folder, Repo.init_bare(folder) as repo:
            with self._told(), self._client() as (client, path):
                found = client.fetch(path, repo, wants, depth=HISTORY, ref_prefix=list(wanted))
            refs: Mapping[Ref, ObjectID | None] = found.refs
            tips = {branch: tip for ref, branch in wanted.items() if (tip := refs.get(ref)) is not None}
            yield Snapshot(repo, tips)

    def push(self, branch: str, old: ObjectID | None, change: Change) -> None:
        """Move a branch from one commit, or from nothing, to another one.

        Raises:
            MovedError: the branch has moved.
            RefusedError: the server refuses the push.
            DeliveryError: the server cannot be written to; the message says why and what to do.
        """
        ref, words = _ref(branch), list[bytes]()

        def update(refs: Mapping[Ref, ObjectID]) -> dict[Ref, ObjectID]:
            if refs.get(ref, ZERO_SHA) != (old or ZERO_SHA):
                raise MovedError
            return {ref: change.commit.id}

        def pack(*_have_and_want: Any, **_options: Any) -> Any:
            return pack_objects_to_data(change.objects)

        with self._told(), self._client() as (client, path):
            result = client.send_pack(path.encode(), update, pack, progress=words.append)
        refusal = (result.ref_status or {}).get(ref)
        if refusal is not None:
            told = b"".join(words).decode(errors="replace")
            raise RefusedError(self._clean(f"{refusal}: {told}" if told.strip() else refusal))

    @contextmanager
    def _client(self) -> Iterator[tuple[dulwich.GitClient, str]]:
        client: dulwich.GitClient
        if self._address.startswith(("https:", "http:")):
            user = self._user if self._token else None
            client = dulwich.HttpGitClient(self._address, username=user, password=self._token or None, timeout=ANSWER_S)
            path = ""
        else:
            client, path = dulwich.get_transport_and_path(self._address)
        with closing(client):
            yield client, path

    def _clean(self, text: object) -> str:
        """Return a server's message on one line, shortened and without the token."""
        line = " ".join(str(text).split())
        if self._token:
            line = line.replace(self._token, "***")
        return line[:_REASON_CHARS].rstrip(". ")

    @contextmanager
    def _told(self) -> Iterator[None]:
        """Explain a failure in one sentence that says what to do."""
        at = self._address
        try:
            yield
        except (dulwich.HTTPUnauthorized, dulwich.HTTPProxyUnauthorized) as error:
            raise RejectedError(
                f"the Git server does not accept the credentials for {at}; put a token that may write there into the "
                "Secret behind KUBELOOP_GIT_TOKEN and, if the server needs it, its user into KUBELOOP_GIT_USER"
            ) from error
        except NotGitRepository as error:
            raise RejectedError(
                f"there is no repository at {at}, or KUBELOOP_GIT_TOKEN may not see it; correct "
                "delivery.git.repository, or the token's rights"
            ) from error
        except GitProtocolError as error:
            raise DeliveryError(self._protocol(error)) from error
        except FileNotFoundError as error:
            raise RejectedError(
                f"{at} needs the program {error.filename}, which is not installed here; write an https:// address"
            ) from error
        except OSError as error:
            raise DeliveryError(self._away(error)) from error
        except (ValueError, NotImplementedError) as error:  # an answer that is not Git's
            raise RejectedError(f"{at} is not a Git repository; correct delivery.git.repository") from error

    def _protocol(self, error: GitProtocolError) -> str:
        at, cause = self._address, error.__cause__
        if isinstance(error, HangupException):
            return (
                f"the Git server closed the connection to {at} ({self._clean(error)}); check that it is running and "
                "that it accepts the key"
            )
        if cause is not None:  # urllib3 wraps the reason in an account of its attempts
            return self._away(getattr(cause, "reason", None) or cause)
        if status := re.search(r"http resp (\d+)", str(error)):
            if status[1] == "403":
                return f"KUBELOOP_GIT_TOKEN has no right to write to {at}; give the token that right"
            return f"the Git server answers {status[1]} for {at}; check that delivery.git.repository is a Git address"
        return f"the Git server refuses {at}: {self._clean(error)}; correct delivery.git.repository, or allow the push"

    def _away(self, error: object) -> str:
        # urllib3 begins a reason with the object that it is about.
        reason = re.sub(r"^<?[\w.]+(\(.*?\))?( object at 0x\w+>)?: ", "", self._clean(error))
        return (
            f"the Git server of {self._address} does not answer ({reason}); check that delivery.git.repository is "
            "right and that the pipeline's pods can reach it"
        )


def _ref(branch: str) -> Ref:
    return Ref(b"refs/heads/" + branch.encode())
