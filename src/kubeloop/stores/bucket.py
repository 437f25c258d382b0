"""Objects in an S3 store: small reads and writes, and folders of files that never change once they are written.

An installation owns its bucket. The object `owner.json` names the owner. An installation with another name is refused
before it reads or writes anything else, since two payload logs in one place would remove each other's segments.
"""

import json
import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import urlsplit

from kubeloop import paths
from kubeloop.config import ConfigError, Settings
from kubeloop.errors import KubeloopError
from kubeloop.stores import whole

if TYPE_CHECKING:
    from pyarrow import fs

_CONNECT_S = 3.0
_REQUEST_S = 30.0
_ATTEMPTS = 2


class BucketError(KubeloopError, OSError):
    """The store does not answer, or refuses; a later attempt may succeed."""

    lasting = False


class OwnerError(BucketError):
    """The bucket belongs to another installation; only a person can change that."""

    lasting = True


class Owner(NamedTuple):
    """The owner of the bucket.

    Attributes:
        name: the installation's name, see `Settings.owner`.
        log: the payload log's name, see `mirror.log_name`; empty before its first segment.
        beat: changes as long as the log's mirror is running.
    """

    name: str
    log: str = ""
    beat: str = ""


OWNER = "owner.json"


def _client(address: str) -> "fs.FileSystem":
    from pyarrow import fs

    endpoint = urlsplit(address)
    options = {"endpoint_override": endpoint.netloc, "scheme": endpoint.scheme} if endpoint.netloc else {}
    return fs.S3FileSystem(
        **options,
        connect_timeout=_CONNECT_S,
        request_timeout=_REQUEST_S,
        retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=_ATTEMPTS),
        background_writes=False,
    )


@dataclass(frozen=True)
class Bucket:
    """A prefix of an S3 bucket. Credentials come from the AWS variables that every S3 client reads.

    Attributes:
        connect: makes the client at its first use, since it takes 30 MiB, and a trigger needs it only once a run has
        ended.
        root: the bucket and the prefix.
        owner: the installation that uses it; if empty, no installation is refused.
    """

    connect: "Callable[[], fs.FileSystem]"
    root: str
    owner: str = ""

    @cached_property
    def _client(self) -> "fs.FileSystem":
        try:
            return self.connect()
        except OSError as error:
            raise BucketError(f"cannot open s3://{self.root}: {error}") from error

    @cached_property
    def store(self) -> "fs.FileSystem":
        """The client, after a check that the bucket does not belong to another installation.

        Raises:
            OwnerError: it belongs to another one.
            BucketError: the store does not answer.
        """
        if self.owner:
            self.check()
        return self._client

    @cached_property
    def _ours(self) -> "fs.FileSystem":
        """The client for writing, after the bucket is marked as this installation's."""
        if self.owner and self.check() is None:
            self.claim(Owner(self.owner))
        return self._client

    def check(self) -> Owner | None:
        """Return the owner of the bucket: this installation, or None if it has no owner yet.

        Raises:
            OwnerError: it belongs to another installation.
            BucketError: the store does not answer.
        """
        found = self.marked()
        if found and self.owner not in ("", found.name):
            raise OwnerError(
                f"s3://{self.root} belongs to the installation {found.name}, but this one is {self.owner}: give it its "
                f"own bucket or prefix or, if it replaces the other one, delete {OWNER} there"
            )
        return found

    def marked(self) -> Owner | None:
        """Return the owner of the bucket, if it has one.

        Raises:
            OwnerError: the mark cannot be read.
            BucketError: the store does not answer.
        """
        content = self._get(self._client, OWNER)
        if content is None:
            return None
        try:
            found = json.loads(content)
            return Owner(str(found["name"]), str(found.get("log", "")), str(found.get("beat", "")))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise OwnerError(
                f"s3://{self.root}/{OWNER} cannot be read; delete it if no other installation uses this bucket"
            ) from None

    def claim(self, owner: Owner) -> Owner | None:
        """Mark the bucket, and return the mark that it has afterwards.

        Arrow's client has no conditional write. If two installations claim an unmarked bucket at the same moment, the
        one whose mark was overwritten finds out here, or at its next `check`.

        Raises:
            OwnerError: another installation was faster.
            BucketError: the store does not answer.
        """
        self._put(self._client, OWNER, json.dumps(owner._asdict()).encode())
        return self.check()

    @classmethod
    def open(cls, settings: Settings) -> "Bucket":
        """Open what `KUBELOOP_BUCKET` names; nothing is sent yet.

        Raises:
            ConfigError: it is not an s3:// address.
        """
        url = urlsplit(settings.bucket)
        if url.scheme != "s3" or not url.netloc:
            raise ConfigError(f"KUBELOOP_BUCKET is {settings.bucket!r}; write s3://bucket or s3://bucket/prefix")
        root = f"{url.netloc}{url.path}".rstrip("/")
        return cls(partial(_client, settings.s3_endpoint), root, settings.owner)

    def address(self, prefix: str) -> str:
        """Return the s3:// address of a prefix."""
        return f"s3://{self.root}/{prefix}"

    def names(self, prefix: str, before: datetime | None = None) -> list[str]:
        """Return the names of the objects under a prefix, relative to it, in order.

        Args:
            prefix: where the objects are.
            before: only objects that were written earlier than this.

        Raises:
            BucketError: the store does not answer.
        """
        from pyarrow import fs

        base, client = f"{self.root}/{prefix}", self.store
        try:
            found = client.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
        except OSError as error:
            raise BucketError(f"cannot list {base}: {error}") from error
        files = [info for info in found if info.type == fs.FileType.File]
        return sorted(info.path.removeprefix(f"{base}/") for info in files if before is None or info.mtime < before)

    def put(self, name: str, content: bytes) -> None:
        """Write an object in one piece, with the content type of its name for browsers.

        Raises:
            BucketError: the store does not accept it.
        """
        self._put(self._ours, name, content)

    def _put(self, client: "fs.FileSystem", name: str, content: bytes) -> None:
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        try:
            with client.open_output_stream(f"{self.root}/{name}", metadata={"Content-Type": kind}) as sink:
                sink.write(content)
        except OSError as error:
            raise BucketError(f"cannot write {self.root}/{name}: {error}") from error

    def get(self, name: str) -> bytes | None:
        """Return an object, or None if it does not exist.

        Raises:
            BucketError: the store does not answer.
        """
        return self._get(self.store, name)

    def _get(self, client: "fs.FileSystem", name: str) -> bytes | None:
        try:
            with client.open_input_stream(f"{self.root}/{name}") as source:
                return bytes(source.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BucketError(f"cannot read {self.root}/{name}: {error}") from error

    def delete(self, name: str) -> None:
        """Remove an object, if it exists.

        Raises:
            BucketError: the store does not answer.
        """
        client = self._ours
        try:
            client.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise BucketError(f"cannot remove {self.root}/{name}: {error}") from error

    def push(self, folder: Path, prefix: str) -> int:
        """Copy every file of a folder to a prefix, and return how many there were.

        Raises:
            BucketError: the store does not accept a file; the files before it are stored.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return len(files)

    def pull(
        self, prefix: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True, most: int | None = None
    ) -> list[str]:
        """Copy the objects under a prefix that a folder lacks, in order and each in one step; return their names.

        Args:
            prefix: where the objects are.
            folder: where their files go.
            wanted: returns for a name, relative to the prefix, whether to copy it.
            most: most objects to copy.

        Raises:
            BucketError: the store does not answer; the files copied before are complete.
        """
        fetched: list[str] = []
        for name in self.names(prefix):
            if len(fetched) == most:
                break
            try:
                target = paths.inside(folder, *name.split("/"), what="the object")
            except paths.PathError:  # kubeloop did not write it
                continue
            if target.exists() or not wanted(name):
                continue
            content = self.get(f"{prefix}/{name}")
            if content is None:  # removed since it was listed: the next ones wait for the next call, to keep the order
                break
            target.parent.mkdir(parents=True, exist_ok=True)
            whole.write(target, content)
            fetched.append(name)
        return fetched
