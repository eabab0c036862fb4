"""A real S3 server on this machine, for tests of object stores."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass

import pyarrow.fs
import pytest

from tallystick.server_process import ServerProcess, free_port, http_answers

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
        endpoint: The server's address.
        filesystem: It, opened.
    """

    name: str
    endpoint: str
    filesystem: pyarrow.fs.S3FileSystem

    def uri(self, path: str) -> str:
        """What a source's path is."""
        return f"s3://{self.name}/{path}"


@pytest.fixture(scope="session")
def s3_endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of one S3 server for all tests of the session."""
    port = free_port()
    server = ServerProcess(
        "The S3 server",
        [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)],
        log=tmp_path_factory.mktemp("s3") / "log",
        environment=os.environ | ENVIRONMENT,
    )
    server.wait_until(lambda: http_answers(f"http://127.0.0.1:{port}"))
    yield f"http://127.0.0.1:{port}"
    server.kill()


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
