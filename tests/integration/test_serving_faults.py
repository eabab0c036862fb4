"""What happens when something changes or dies while requests come in."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from redis import Redis

import serving_scene as scene
from tallystick.errors import InputError
from tallystick.online_store import embedded_redis
from tallystick.prediction_log.log_reader import read_log
from tallystick_serving.serve_command import serve

START, END = datetime(2020, 1, 1, tzinfo=UTC), datetime(2100, 1, 1, tzinfo=UTC)
PREDICT = f"/v1/models/{scene.MODEL}:predict"
BODY = {"instances": [scene.INSTANCE]}


def logged(repo):
    parts = read_log(repo.state_dir, scene.MODEL, start=START, end=END)
    return [name for part in parts for name in part.table["prediction_id"].to_pylist()]


def test_a_new_champion_takes_over_without_a_failed_request(repo):
    first = scene.publish(repo.state_dir, scene.constant(0.25), version="1")
    answers = []
    with scene.running(repo) as client:
        stop = threading.Event()

        def ask():
            with httpx.Client(base_url=client.base_url, timeout=20) as own:
                while not stop.is_set():
                    answers.append(own.post(PREDICT, json=BODY))

        threads = [threading.Thread(target=ask) for _ in range(4)]
        for thread in threads:
            thread.start()
        scene.wait_for(lambda: len(answers) > 50)
        second = scene.publish(
            repo.state_dir, scene.constant(0.75), version="2", agreed=scene.contract(threshold=0.3)
        )
        scene.wait_for(lambda: answers[-1].json().get("model_version") == "2")
        count = len(answers)
        scene.wait_for(lambda: len(answers) > count + 50)
        stop.set()
        for thread in threads:
            thread.join()
        assert scene.metric(client, "tallystick_champion_info{") == 1
    assert {answer.status_code for answer in answers} == {200}
    seen = set()
    for answer in answers:
        body = answer.json()
        (prediction,) = body["predictions"]
        seen.add(
            (
                body["model_version"],
                body["contract_hash"],
                prediction["probability"],
                prediction["positive"],
            )
        )
    assert seen == {
        ("1", first.contract_hash, 0.25, False),
        ("2", second.contract_hash, 0.75, True),
    }
    ids = [answer.json()["predictions"][0]["prediction_id"] for answer in answers]
    assert sorted(logged(repo)) == sorted(ids)


def test_a_damaged_champion_changes_nothing_until_it_is_mended(repo):
    scene.publish(repo.state_dir, scene.constant(0.25), version="1")
    with scene.running(repo) as client:
        agreed = scene.contract(threshold=0.3)
        folder = repo.state_dir / "models" / scene.MODEL
        pointer = (folder / "champion.json").read_bytes()
        scene.publish(repo.state_dir, scene.constant(0.75), version="2", agreed=agreed)
        scene.wait_for(lambda: client.get("/v1/models/late").json()["version"] == "2")
        (folder / "champion.json").write_bytes(pointer)
        scene.wait_for(lambda: client.get("/v1/models/late").json()["version"] == "1")

        estimator = folder / agreed.contract_hash / "estimator.joblib"
        whole = estimator.read_bytes()
        estimator.write_bytes(whole[:-1])
        (folder / "champion.json").write_bytes(
            pointer.replace(b'"1"', b'"2"').replace(
                scene.contract().contract_hash.encode(), agreed.contract_hash.encode()
            )
        )
        scene.wait_for(lambda: client.get("/ready").json()["warnings"])
        ready = client.get("/ready")
        assert ready.status_code == 200
        assert "stays with version 1" in ready.json()["warnings"][0]
        assert client.post(PREDICT, json=BODY).json()["predictions"][0]["probability"] == 0.25
        assert scene.metric(client, "tallystick_champion_failures_total") == 1

        estimator.write_bytes(whole)
        scene.wait_for(lambda: client.get("/v1/models/late").json()["version"] == "2")
        assert client.get("/ready").json()["warnings"] == []


def test_a_first_champion_that_is_damaged_is_not_ready(repo):
    agreed = scene.publish(repo.state_dir, scene.constant(0.25))
    (repo.state_dir / "models" / "late" / agreed.contract_hash / "manifest.json").unlink()
    with scene.running(repo) as client:
        assert client.get("/ready").status_code == 503
        assert client.post(PREDICT, json=BODY).status_code == 503
        assert client.get("/health").status_code == 200


def test_redis_dies_and_comes_back(tmp_path):
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        state = Path(folder)
        repo = scene.project(tmp_path, f"unix://{embedded_redis.start(state)}")
        scene.publish(repo.state_dir, scene.constant(0.25))
        with Redis(unix_socket_path=repo.redis.connection_string.removeprefix("unix://")) as client:
            scene.fill(client)
        with scene.running(repo, request_timeout_s=0.5) as http:
            assert http.post(PREDICT, json=BODY).status_code == 200
            embedded_redis.stop(state)
            for _ in range(3):
                began = time.monotonic()
                answer = http.post(PREDICT, json=BODY)
                assert time.monotonic() - began < 2
                assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
                assert answer.json()["type"] == "urn:tallystick:problem:unavailable"
            assert http.get("/ready").status_code == 503
            assert http.get("/health").status_code == 200
            embedded_redis.start(state)
            body = BODY | {"parameters": {"features": True}}
            answer = http.post(PREDICT, json=body)
            assert answer.status_code == 200
            (prediction,) = answer.json()["predictions"]
            assert prediction["features"]["shop__n"] == 2**60 + 1
            assert http.get("/ready").status_code == 200
        embedded_redis.stop(state)
    assert len(logged(repo)) == 2


def test_redis_dies_again_and_again_under_load(tmp_path):
    """No answer is wrong and none is anything but 200 or 503, within the budget and a little."""
    with tempfile.TemporaryDirectory(prefix="tally") as folder:
        state = Path(folder)
        repo = scene.project(tmp_path, f"unix://{embedded_redis.start(state)}")
        scene.publish(repo.state_dir, scene.constant(0.25))
        with Redis(unix_socket_path=repo.redis.connection_string.removeprefix("unix://")) as client:
            scene.fill(client)
            pid = client.info("server")["process_id"]
        answers, stop = [], threading.Event()
        with scene.running(repo, request_timeout_s=1.0) as http:

            def ask():
                body = BODY | {"parameters": {"features": True}}
                with httpx.Client(base_url=http.base_url, timeout=20) as own:
                    while not stop.is_set():
                        began = time.monotonic()
                        answer = own.post(PREDICT, json=body)
                        answers.append((answer, time.monotonic() - began))

            threads = [threading.Thread(target=ask) for _ in range(8)]
            for thread in threads:
                thread.start()
            for _ in range(3):
                seen = len(answers)
                scene.wait_for(lambda seen=seen: _count(answers, 200, since=seen) > 20)
                os.kill(pid, signal.SIGKILL)
                seen = len(answers)
                scene.wait_for(lambda seen=seen: _count(answers, 503, since=seen) > 20)
                embedded_redis.start(state)
                with Redis(
                    unix_socket_path=repo.redis.connection_string.removeprefix("unix://")
                ) as client:
                    pid = client.info("server")["process_id"]
            seen = len(answers)
            scene.wait_for(lambda: _count(answers, 200, since=seen) > 20)
            stop.set()
            for thread in threads:
                thread.join()
        embedded_redis.stop(state)
    assert {answer.status_code for answer, _ in answers} == {200, 503}
    for answer, took_s in answers:
        assert took_s < 10
        if answer.status_code == 503:
            assert answer.headers["retry-after"] == "1"
            continue
        (prediction,) = answer.json()["predictions"]
        assert prediction["features"]["shop__n"] == 2**60 + 1
        assert prediction["features"]["town__mood"] == 0.25
        assert prediction["views"]["shop"]["status"] == "PRESENT"
    good = sum(answer.status_code == 200 for answer, _ in answers)
    assert len(logged(repo)) == good


def _count(answers, status, *, since):
    return sum(answer.status_code == status for answer, _ in answers[since:])


def test_a_redis_that_hangs_times_out_within_the_budget(tmp_path):
    with (
        tempfile.TemporaryDirectory(prefix="tally") as folder,
        socket.socket(socket.AF_UNIX) as mute,
    ):
        mute.bind(f"{folder}/mute.sock")
        mute.listen()
        repo = scene.project(tmp_path, f"unix://{folder}/mute.sock")
        scene.publish(repo.state_dir, scene.constant(0.25))
        with scene.running(repo, request_timeout_s=0.3) as http:
            began = time.monotonic()
            assert http.post(PREDICT, json=BODY).status_code == 503
            assert time.monotonic() - began < 1.5


YAML = """\
project: ${SCENE_PROJECT}
provider: local
registry: registry.db
offline_store: {type: tallystick.offline_store.DuckDBOfflineStore}
online_store:
  type: tallystick.online_store.RedisOnlineStore
  connection_string: ${SCENE_REDIS}
"""


@pytest.fixture
def folder(repo, redis_server):
    (repo.path / "feature_store.yaml").write_text(YAML)
    return {
        "SCENE_PROJECT": scene.PROJECT,
        "SCENE_REDIS": redis_server.connection_string,
        "TALLYSTICK_STATE_DIR": str(repo.state_dir),
    }


SERVE = """\
import sys
from pathlib import Path
from tallystick_serving.serve_command import serve
serve(Path(sys.argv[1]), uds=Path(sys.argv[2]))
print(sorted({"feast", "mlflow", "duckdb"} & set(sys.modules)))
"""


def test_sigterm_loses_nothing_and_predicting_needs_no_feast(repo, folder):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with tempfile.TemporaryDirectory(prefix="tally") as short:
        uds = f"{short}/serving.sock"
        with subprocess.Popen(
            [sys.executable, "-c", SERVE, str(repo.path), uds],
            env=os.environ | folder | {"TALLYSTICK_LOG_WINDOW_S": "60"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                scene.wait_for(lambda: Path(uds).exists() or process.poll() is not None, seconds=60)
                answered = asyncio.run(_ask_until_gone(uds, process, repo))
                modules, said = process.communicate(timeout=40)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == 0, said
        assert not Path(uds).exists()
    assert len(answered) > 100
    assert sorted(logged(repo)) == sorted(answered)
    assert modules == "[]\n"


async def _ask_until_gone(uds, process, repo):
    """Ask from eight clients; flush once by signal, then stop the server amid the requests."""
    answered = []

    async def ask():
        transport = httpx.AsyncHTTPTransport(uds=uds)
        async with httpx.AsyncClient(transport=transport, base_url="http://x", timeout=60) as own:
            while True:
                try:
                    answer = await own.post(PREDICT, json=BODY)
                except httpx.TransportError:
                    return  # never begun: the server takes no connection any more
                assert answer.status_code == 200, answer.text
                answered.append(answer.json()["predictions"][0]["prediction_id"])

    def stop():
        scene.wait_for(lambda: len(answered) >= 100)
        process.send_signal(signal.SIGUSR1)
        scene.wait_for(lambda: logged(repo))
        process.send_signal(signal.SIGTERM)

    await asyncio.gather(*(ask() for _ in range(8)), asyncio.to_thread(stop))
    return answered


def test_a_port_in_use_is_one_clear_sentence(repo, folder, monkeypatch):
    for name, value in folder.items():
        if name.startswith("SCENE_"):
            monkeypatch.setenv(name, value)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(InputError, match=f"Port {port} on 127.0.0.1 is in use"):
            serve(repo.path, port=port)
    with (
        tempfile.TemporaryDirectory(prefix="tally") as short,
        socket.socket(socket.AF_UNIX) as taken,
    ):
        taken.bind(f"{short}/s")
        taken.listen()
        with pytest.raises(InputError, match="cannot be listened on"):
            serve(repo.path, uds=Path(short) / "s")
