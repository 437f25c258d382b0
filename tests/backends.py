"""PostgreSQL, Redis and an S3 store for tests: real ones, on loopback, with credentials made for the run."""

import contextlib
import itertools
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest

from kubeloop.node.processes import die_with_parent
from tests import outside

BUCKET = "kubeloop"
_LIMIT_S = 30.0
_GRACE_S = 3.0


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextlib.contextmanager
def running(
    command: list[str], log: Path, ready: Callable[[], bool], end: signal.Signals = signal.SIGTERM, **options: object
) -> Iterator[None]:
    parent = os.getpid()
    with log.open("ab") as output:
        process = subprocess.Popen(
            command, stdout=output, stderr=subprocess.STDOUT, preexec_fn=lambda: die_with_parent(parent), **options
        )
    try:
        deadline = time.monotonic() + _LIMIT_S
        while not ready():
            assert process.poll() is None, log.read_text()[-3000:]
            assert time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.05)
        yield
    finally:
        process.send_signal(end)
        try:
            process.wait(_GRACE_S)
        except subprocess.TimeoutExpired:  # SeaweedFS takes half a minute to shut down
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
        return True
    return False


class Postgres:
    """A PostgreSQL server that tests may stop and start again."""

    def __init__(self, folder: Path) -> None:
        # Debian keeps the server's programs outside PATH, in one folder per version.
        places = sorted(map(str, Path("/usr/lib/postgresql").glob("*/bin")), reverse=True)
        self._initdb, self._server = (outside.backend(name, *places) for name in ("initdb", "postgres"))
        self._folder, self._log = folder / "data", folder / "postgres.log"
        self._password = secrets.token_hex(16)
        self.port = free_port()
        self._stack = contextlib.ExitStack()
        # PostgreSQL refuses to run as root.
        self._user = {"user": "postgres"} if os.getuid() == 0 else {}
        secret = folder / "password"
        secret.write_text(self._password)
        self._folder.mkdir()
        if self._user:
            for path in (folder, self._folder, secret):
                shutil.chown(path, "postgres")
        subprocess.run(
            [self._initdb, "-D", self._folder, "-U", "kubeloop", "-A", "scram-sha-256", f"--pwfile={secret}", "-N"],
            check=True,
            capture_output=True,
            cwd=folder,
            **self._user,
        )

    def start(self, durable: bool = False) -> None:
        """Start it, and wait until it answers; unless `durable`, it does not wait for the disk."""
        command = [self._server, "-D", str(self._folder), "-p", str(self.port), "-k", "", "-h", "127.0.0.1"]
        command += [] if durable else ["-F"]
        options = {"cwd": self._folder.parent, **self._user}
        # On SIGINT it ends without waiting for its clients.
        self._stack.enter_context(running(command, self._log, self._answers, signal.SIGINT, **options))

    def stop(self) -> None:
        """End it and keep its data."""
        self._stack.close()

    def database(self, name: str) -> str:
        """Make an empty database and return its SQLAlchemy URL."""
        import sqlalchemy as sa

        engine = sa.create_engine(self._url("postgres"), isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            connection.execute(sa.text(f'CREATE DATABASE "{name}"'))
        engine.dispose()
        return self._url(name)

    def _url(self, name: str) -> str:
        return f"postgresql+psycopg://kubeloop:{self._password}@127.0.0.1:{self.port}/{name}"

    def _answers(self) -> bool:
        import psycopg

        url = self._url("postgres").replace("+psycopg", "")
        with contextlib.suppress(psycopg.OperationalError), psycopg.connect(url, connect_timeout=1):
            return True
        return False


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[Postgres]:
    """One PostgreSQL server for the session; a test that stops it starts it again."""
    # This folder is not one of pytest's: every new session closes those to other users, and PostgreSQL runs as one.
    with tempfile.TemporaryDirectory(prefix="kubeloop-postgres-") as folder:
        server = Postgres(Path(folder))
        server.start()
        yield server
        server.stop()


@pytest.fixture
def postgres(postgres_server: Postgres) -> str:
    """The SQLAlchemy URL of an empty database."""
    return postgres_server.database(f"test_{secrets.token_hex(4)}")


@pytest.fixture(scope="session")
def redis_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], str]]:
    """A Redis server; each call returns the URL of an empty database on it."""
    server, folder, port = outside.backend("redis-server"), tmp_path_factory.mktemp("redis"), free_port()
    password = secrets.token_hex(16)
    config = folder / "redis.conf"
    config.write_text(f'bind 127.0.0.1\nport {port}\nrequirepass {password}\nsave ""\ndir {folder}\ndatabases 64\n')
    number = itertools.count()
    with running([server, str(config)], folder / "redis.log", lambda: _listens(port)):
        yield lambda: f"redis://:{password}@127.0.0.1:{port}/{next(number)}"


@pytest.fixture
def redis(redis_server: Callable[[], str]) -> str:
    """The URL of an empty Redis database."""
    return redis_server()


@dataclass(frozen=True)
class S3:
    """A prefix in an S3 store.

    Attributes:
        endpoint: its address.
        bucket: its s3:// address.
        environ: the variables from which S3 clients read address and credentials.
    """

    endpoint: str
    bucket: str
    environ: dict[str, str]


class Seaweed:
    """A SeaweedFS server that tests may stop and start again."""

    def __init__(self, folder: Path) -> None:
        import json

        self._program, self._folder = outside.backend("weed"), folder
        access, secret = secrets.token_hex(8), secrets.token_hex(16)
        identity = {"name": "test", "credentials": [{"accessKey": access, "secretKey": secret}], "actions": ["Admin"]}
        (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
        (folder / "data").mkdir()
        names = ("master", "master.grpc", "volume", "volume.grpc", "filer", "filer.grpc", "s3", "s3.grpc")
        self._ports = {name: free_port() for name in names}
        self.endpoint = f"http://127.0.0.1:{self._ports['s3']}"
        self.environ = {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": access,
            "AWS_SECRET_ACCESS_KEY": secret,
            "AWS_REGION": "us-east-1",
        }
        self._stack = contextlib.ExitStack()

    def start(self) -> None:
        """Start it, and wait until it answers."""
        flags = [f"-{name if '.' in name else name + '.port'}={port}" for name, port in self._ports.items()]
        flags = [flag.replace(".grpc=", ".port.grpc=") for flag in flags]
        command = [
            *(self._program, "server", f"-dir={self._folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3"),
            *(f"-s3.config={self._folder / 's3.json'}", "-volume.max=50", "-master.volumeSizeLimitMB=64", *flags),
            # Ports of protocols that the tests do not use; their defaults are fixed ports.
            *("-s3.port.iceberg=0", "-s3.port.lance=0"),
        ]
        log = self._folder / "weed.log"
        self._stack.enter_context(running(command, log, self._answers, cwd=self._folder))

    def stop(self) -> None:
        """End it and keep its data."""
        self._stack.close()

    def _answers(self) -> bool:
        """Return whether an object can be written and read: after a restart, the health check succeeds before that."""
        from pyarrow import fs

        with contextlib.suppress(httpx.HTTPError, OSError):
            if httpx.get(f"{self.endpoint}/healthz", timeout=2, trust_env=False).is_success:
                store = fs.S3FileSystem(
                    access_key=self.environ["AWS_ACCESS_KEY_ID"],
                    secret_key=self.environ["AWS_SECRET_ACCESS_KEY"],
                    endpoint_override=self.endpoint.removeprefix("http://"),
                    scheme="http",
                    allow_bucket_creation=True,
                )
                # SeaweedFS keeps separate volumes for each bucket, so all tests share one bucket.
                store.create_dir(BUCKET)
                with store.open_output_stream(f"{BUCKET}/probe") as sink:
                    sink.write(b"probe")
                with store.open_input_stream(f"{BUCKET}/probe") as source:
                    return bool(source.read() == b"probe")
        return False


@pytest.fixture(scope="session")
def seaweed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    """One S3 server for the session; a test that stops it starts it again."""
    server = Seaweed(tmp_path_factory.mktemp("seaweed"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def s3(seaweed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> S3:
    """An empty prefix of a bucket, with the credentials in the process's environment variables."""
    for name, value in seaweed.environ.items():
        monkeypatch.setenv(name, value)
    return S3(seaweed.endpoint, f"s3://{BUCKET}/{secrets.token_hex(4)}", seaweed.environ)
