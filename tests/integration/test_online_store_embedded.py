"""The embedded server: shared by processes, and back with its data after any end."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from redis import Redis

from tallystick.errors import UnavailableError
from tallystick.online_store import embedded_redis
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.row_writer import delete_project

START = """
import sys
from pathlib import Path
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.redis_options import RedisOptions
print(connect(RedisOptions(), Path(sys.argv[1])).info("server")["process_id"])
"""


@pytest.fixture
def repo():
    with tempfile.TemporaryDirectory(prefix="a 'b\" ü") as folder:
        yield Path(folder)
        embedded_redis.stop(Path(folder) / ".tallystick")


def pid_of(repo) -> int:
    client = connect(RedisOptions(), repo)
    try:
        return client.info("server")["process_id"]
    finally:
        client.close()


def test_processes_that_start_at_once_share_one_server(repo):
    starters = [
        subprocess.Popen([sys.executable, "-c", START, repo], stdout=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    pids = {int(starter.communicate(timeout=60)[0]) for starter in starters}
    assert pids == {pid_of(repo)}
    client = connect(RedisOptions(), repo)
    assert client.config_get("port") == {"port": "0"}
    client.close()


def test_data_survive_a_stop(repo):
    state = repo / ".tallystick"
    client = connect(RedisOptions(), repo)
    client.set("key", "value")
    client.close()
    assert embedded_redis.is_running(state)
    assert embedded_redis.stop(state)
    assert not embedded_redis.is_running(state)
    assert not embedded_redis.stop(state)
    client = connect(RedisOptions(), repo)
    assert client.get("key") == b"value"
    client.close()


def test_a_killed_server_is_started_again_with_its_data(repo):
    client = connect(RedisOptions(), repo)
    client.set("key", "value")
    client.close()
    time.sleep(1.2)  # the append-only file is put on disk each second
    before = pid_of(repo)
    os.kill(before, signal.SIGKILL)
    assert embedded_redis.socket_path(repo / ".tallystick").exists()
    after = pid_of(repo)
    assert after != before
    client = connect(RedisOptions(), repo)
    assert client.get("key") == b"value"
    client.close()


def test_a_client_outlives_the_server(repo):
    state = repo / ".tallystick"
    client = connect(RedisOptions(), repo)
    assert delete_project(client, "p") == 0
    embedded_redis.stop(state)
    with pytest.raises(UnavailableError, match=r"redis\.sock"):
        delete_project(client, "p")
    embedded_redis.start(state)
    assert delete_project(client, "p") == 0
    client.close()


def test_a_long_path_gets_a_short_socket():
    with tempfile.TemporaryDirectory() as folder:
        state = Path(folder) / ("x" * 120)
        socket = embedded_redis.start(state)
        try:
            assert len(os.fsencode(socket)) <= 100
            client = Redis(unix_socket_path=str(socket))
            assert client.config_get("dir") == {"dir": str(state.resolve() / "redis")}
            client.close()
        finally:
            assert embedded_redis.stop(state)
            socket.parent.rmdir()


def test_stopping_what_never_ran(tmp_path):
    assert not embedded_redis.stop(tmp_path)
    assert not embedded_redis.is_running(tmp_path)
