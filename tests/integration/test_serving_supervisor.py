"""Several workers behind one address, as real processes: deaths, signals, a dead supervisor."""

from __future__ import annotations

import os
import signal
import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

import serving_scene as scene
from live_processes import is_alive
from tallystick.prediction_log.log_reader import read_log
from tallystick.server_process import ServerProcess, http_answers, tally_command

DAY = timedelta(days=1)
BODY = {"instances": [scene.INSTANCE]}
PREDICT = f"/v1/models/{scene.MODEL}:predict"


class Running(ServerProcess):
    """A ``tally serve --workers 2``."""

    def __init__(self, path, state):
        self.port = free_ports()
        super().__init__(
            "The supervisor",
            tally_command(path, "serve", "--workers", "2", "--port", str(self.port)),
            log=path / "server.log",
            environment=os.environ
            | {"TALLYSTICK_STATE_DIR": str(state), "TALLYSTICK_LOG_WINDOW_S": "60"},
        )

    def is_ready(self, number):
        return http_answers(f"http://127.0.0.1:{self.port + number}/ready")

    def children(self):
        folder = f"/proc/{self.pid}/task/{self.pid}/children"
        return [int(pid) for pid in Path(folder).read_text().split()]


def free_ports():
    """A port that is free, with the two behind it."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = first.getsockname()[1]
        try:
            for offset in range(3):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port + offset))
        except (OSError, OverflowError):
            continue
        return port


@pytest.fixture
def supervised(tmp_path, redis_server):
    scene.fill(redis_server.client)
    scene.write_store_yaml(tmp_path, redis_server.connection_string)
    repo = scene.project(tmp_path, redis_server.connection_string)
    scene.publish(repo.state_dir, scene.constant(0.25))
    running = Running(tmp_path, repo.state_dir)
    running.wait_until(lambda: all(map(running.is_ready, (0, 1, 2))))
    yield running, repo
    running.kill()


def test_a_dead_worker_is_replaced_and_all_end_together(supervised):
    running, repo = supervised
    url = f"http://127.0.0.1:{running.port}{PREDICT}"
    ids = [httpx.post(url, json=BODY).json()["predictions"][0]["prediction_id"] for _ in range(20)]
    before = running.children()
    assert len(before) == 2
    flushed = len(logged(repo))
    running.signal(signal.SIGUSR1)
    scene.wait_for(lambda: len(logged(repo)) == 20)
    assert flushed == 0
    os.kill(before[0], signal.SIGKILL)
    scene.wait_for(lambda: len({*running.children()} - {*before}) == 1, seconds=30)
    scene.wait_for(lambda: all(map(running.is_ready, (1, 2))), seconds=60)
    ids.append(httpx.post(url, json=BODY).json()["predictions"][0]["prediction_id"])
    running.signal(signal.SIGTERM)
    assert running.wait(60) == 0, running.log.read_text()
    assert "Worker 1 ended with -9" in running.log.read_text()
    assert sorted(logged(repo)) == sorted(ids)


def test_workers_do_not_outlive_their_supervisor(supervised):
    running, repo = supervised
    answer = httpx.post(f"http://127.0.0.1:{running.port}{PREDICT}", json=BODY)
    workers = running.children()
    os.kill(running.pid, signal.SIGKILL)  # not its session, in which the workers are
    scene.wait_for(lambda: not any(map(is_alive, workers)), seconds=30)
    (prediction,) = answer.json()["predictions"]
    assert logged(repo) == [prediction["prediction_id"]]


def logged(repo):
    now = datetime.now(UTC)
    parts = read_log(repo.state_dir, scene.MODEL, start=now - DAY, end=now + DAY)
    return [found for part in parts for found in part.table["prediction_id"].to_pylist()]
