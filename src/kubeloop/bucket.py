"""Objects in an S3 store: small reads and writes, and folders of files that never change once they are there."""

import mimetypes
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from kubeloop import paths
from kubeloop.config import ConfigError, Settings
from kubeloop.errors import KubeloopError

if TYPE_CHECKING:
    from pyarrow import fs

_CONNECT_S = 3.0
_REQUEST_S = 30.0
_ATTEMPTS = 2


class BucketError(KubeloopError, OSError):
    """The store does not answer, or refuses; asking again later may help."""

    lasting = False


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
        connect: makes the client, at the first use: it takes 30 MiB, and a trigger needs it once a run has ended.
        root: the bucket and the prefix.
    """

    connect: "Callable[[], fs.FileSystem]"
    root: str

    @cached_property
    def store(self) -> "fs.FileSystem":
        """The client."""
        return self.connect()

    @classmethod
    def open(cls, settings: Settings) -> "Bucket":
        """Open what `KUBELOOP_BUCKET` names; nothing is sent yet.

        Raises:
            ConfigError: it names no s3:// address.
        """
        url = urlsplit(settings.bucket)
        if url.scheme != "s3" or not url.netloc:
            raise ConfigError(f"KUBELOOP_BUCKET is {settings.bucket!r}; write s3://bucket or s3://bucket/prefix")
        return cls(partial(_client, settings.s3_endpoint), f"{url.netloc}{url.path}".rstrip("/"))

    def address(self, prefix: str) -> str:
        """Return the s3:// address of what lies under a prefix."""
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

        base = f"{self.root}/{prefix}"
        try:
            found = self.store.get_file_info(fs.FileSelector(base, allow_not_found=True, recursive=True))
        except OSError as error:
            raise BucketError(f"cannot list {base}: {error}") from error
        files = [info for info in found if info.type == fs.FileType.File]
        return sorted(info.path.removeprefix(f"{base}/") for info in files if before is None or info.mtime < before)

    def put(self, name: str, content: bytes) -> None:
        """Write an object in one piece, so that a browser knows by its name what it is.

        Raises:
            BucketError: the store does not take it.
        """
        kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
        try:
            with self.store.open_output_stream(f"{self.root}/{name}", metadata={"Content-Type": kind}) as sink:
                sink.write(content)
        except OSError as error:
            raise BucketError(f"cannot write {self.root}/{name}: {error}") from error

    def get(self, name: str) -> bytes | None:
        """Return an object, or None when there is none.

        Raises:
            BucketError: the store does not answer.
        """
        try:
            with self.store.open_input_stream(f"{self.root}/{name}") as source:
                return bytes(source.read())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise BucketError(f"cannot read {self.root}/{name}: {error}") from error

    def delete(self, name: str) -> None:
        """Remove an object, if it is there.

        Raises:
            BucketError: the store does not answer.
        """
        try:
            self.store.delete_file(f"{self.root}/{name}")
        except FileNotFoundError:
            return
        except OSError as error:
            raise BucketError(f"cannot remove {self.root}/{name}: {error}") from error

    def push(self, folder: Path, prefix: str) -> int:
        """Copy every file of a folder under a prefix, and return how many there were.

        Raises:
            BucketError: the store does not take one; those before it are there.
        """
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            self.put(f"{prefix}/{path.relative_to(folder).as_posix()}", path.read_bytes())
        return len(files)

    def pull(
        self, prefix: str, folder: Path, wanted: Callable[[str], bool] = lambda _: True, most: int | None = None
    ) -> list[str]:
        """Copy the objects under a prefix that a folder has not yet, in order and each in one step; return their names.

        Args:
            prefix: where the objects are.
            folder: where their files go.
            wanted: says of a name, relative to the prefix, whether to copy it.
            most: objects to copy at most.

        Raises:
            BucketError: the store does not answer; what was copied before is whole.
        """
        fetched: list[str] = []
        for name in self.names(prefix):
            if len(fetched) == most:
                break
            try:
                target = paths.inside(folder, *name.split("/"), what="the object")
            except paths.PathError:  # nobody of ours wrote it
                continue
            if target.exists() or not wanted(name):
                continue
            content = self.get(f"{prefix}/{name}")
            if content is None:  # removed since it was listed: what follows waits for the next call, to keep the order
                break
            target.parent.mkdir(parents=True, exist_ok=True)
            part = target.with_name(f".{target.name}.part")
            part.write_bytes(content)
            part.replace(target)
            fetched.append(name)
        return fetched
