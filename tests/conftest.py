"""Parts that several tests start for real."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from redis import Redis

from tallystick.online_store import embedded


@dataclass(frozen=True)
class RedisServer:
    """A running Redis that holds nothing when a test begins."""

    socket: Path
    client: Redis

    @property
    def connection_string(self) -> str:
        """As in feature_store.yaml."""
        return f"unix://{self.socket}"


@pytest.fixture(scope="session")
def redis_process() -> Iterator[RedisServer]:
    """One real Redis server for all tests of the session."""
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        socket = embedded.start(Path(folder))
        client = Redis(unix_socket_path=str(socket))
        yield RedisServer(socket, client)
        client.close()
        embedded.stop(Path(folder))


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """The session's Redis server, emptied."""
    redis_process.client.flushall()
    return redis_process
