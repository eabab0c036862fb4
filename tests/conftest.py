"""Fixtures that several tests use: real servers, a clock, and repos that are applied once."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

# Before Feast is imported, which switches this library to files that all apps of a process share.
# A server has a process of its own; the servers of these tests share one.
import hypothesis
import prometheus_client  # noqa: F401
import pytest
from redis import Redis

from tallystick.clock import SimulatedClock, process_clock
from tallystick.definitions.feature_repo import Repo, apply, open_repo
from tallystick.online_store import embedded_redis
from tallystick.settings import settings
from tiny_repo import copy_tiny_repo, make_tiny_repo

pytest_plugins = ["redis_servers", "s3_server"]

# Before scikit-learn is loaded, here and in the processes that tests start. Its threads wait for
# each other by spinning, and on cores that are busy with other tests take four times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# The duration of an example says nothing about whether it is right.
hypothesis.settings.register_profile(
    "untimed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("untimed")


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
        socket = embedded_redis.start(Path(folder))
        client = Redis(unix_socket_path=str(socket))
        yield RedisServer(socket, client)
        client.close()
        embedded_redis.stop(Path(folder))


@pytest.fixture
def redis_server(redis_process: RedisServer) -> RedisServer:
    """The session's Redis server, emptied."""
    redis_process.client.flushall()
    return redis_process


@pytest.fixture
def simulated_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimulatedClock]:
    """A simulated clock for this process, at noon of 1 March 2024."""
    path = tmp_path / "clock"
    clock = SimulatedClock(path, start=datetime(2024, 3, 1, 12, tzinfo=UTC))
    monkeypatch.setenv("TALLYSTICK_CLOCK_FILE", str(path))
    settings.cache_clear()
    process_clock.cache_clear()
    yield clock
    monkeypatch.undo()
    settings.cache_clear()
    process_clock.cache_clear()


@pytest.fixture(scope="session")
def applied_tiny_repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An applied tiny repo. Tests copy it with ``copy_tiny_repo`` and leave it unchanged."""
    path = make_tiny_repo(tmp_path_factory.mktemp("tiny") / "repo")
    apply(open_repo(path))
    return path


@pytest.fixture
def tiny_repo(applied_tiny_repo: Path, tmp_path: Path) -> Repo:
    """A repo of the test's own, applied and opened."""
    return open_repo(copy_tiny_repo(applied_tiny_repo, tmp_path / "repo"))
