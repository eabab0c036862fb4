"""A real S3 server on this machine, for tests of object stores."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs
import pytest

ENVIRONMENT = {
    "AWS_ACCESS_KEY_ID": "tally",
    "AWS_SECRET_ACCESS_KEY": "stick",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


@dataclass(frozen=True)
class Bucket:
    """An empty bucket.

    Attributes:
        name: Its name.
        endpoint: Where the server is asked.
        filesystem: It, opened.
    """

    name: str
    endpoint: str
    filesystem: pyarrow.fs.S3FileSystem

    def uri(self, path: str) -> str:
        """What a source's path is."""
        return f"s3://{self.name}/{path}"


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as asked:
        asked.bind(("127.0.0.1", 0))
        return int(asked.getsockname()[1])


def wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    """Return once somebody listens on a port."""
    for _ in range(600):
        assert process.poll() is None, "the S3 server has ended"
        with socket.socket() as asked:
            asked.settimeout(1)
            if asked.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError("the S3 server does not listen")


@pytest.fixture(scope="session")
def s3_endpoint() -> Iterator[str]:
    """Where one S3 server for all tests of the session is asked."""
    port = free_port()
    process = subprocess.Popen(
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env=os.environ | ENVIRONMENT,
    )
    try:
        wait_for(port, process)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def bucket(
    s3_endpoint: str, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Bucket:
    """An empty bucket of the test's own."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    filesystem = pyarrow.fs.S3FileSystem(endpoint_override=s3_endpoint, allow_bucket_creation=True)
    name = f"b{abs(hash(request.node.nodeid)):x}"
    filesystem.create_dir(name)
    return Bucket(name, s3_endpoint, filesystem)
