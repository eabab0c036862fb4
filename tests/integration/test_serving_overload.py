"""Too many requests, slow clients and dead clients: refused at once, without delay to others."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
import time
from contextlib import contextmanager

from redis import Redis

import serving_scene as scene

BODY = {"instances": [scene.INSTANCE]}
PREDICT = f"/v1/models/{scene.MODEL}:predict"
BUSY = "urn:tallystick:problem:busy"


def slow(inputs):
    """An on-demand view that keeps the server busy."""
    import time

    time.sleep(0.05)
    return {"per_km": [1.0 for _ in inputs["n"]], "hour": [1 for _ in inputs["depart"]]}


slow.__module__ = "__main__"


def request_bytes(body, *, path=PREDICT, length=None):
    content = json.dumps(body).encode()
    return (
        f"POST {path} HTTP/1.1\r\nhost: x\r\ncontent-length: {length or len(content)}\r\n\r\n"
    ).encode() + content


def connected(client):
    url = client.base_url
    return socket.create_connection((url.host, url.port), timeout=20)


def test_more_than_the_limit_is_refused_at_once_and_the_rest_is_answered(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with scene.running(repo, requests_in_flight_max=4, request_timeout_s=20) as client:
        # A Redis that does not answer holds the first four requests.
        with stopped(repo):
            lines = [connected(client) for _ in range(12)]
            for line in lines:
                line.sendall(request_bytes(BODY))
            refused = []
            for line in lines[4:]:
                line.settimeout(4)
                refused.append(line.recv(65536))
            in_flight = scene.metric(client, "tallystick_requests_in_flight")
        answered = [line.recv(65536) for line in lines[:4]]
        for line in lines:
            line.close()
        assert in_flight == 4
        for answer in refused:
            assert answer.startswith(b"HTTP/1.1 503")
            assert b"retry-after: 1" in answer.lower()
            assert BUSY.encode() in answer
        assert [answer[:12] for answer in answered] == [b"HTTP/1.1 200"] * 4
        scene.wait_for(lambda: scene.metric(client, "tallystick_requests_in_flight") == 0)
        assert client.post(PREDICT, json=BODY).status_code == 200


@contextmanager
def stopped(repo):
    """A Redis that does not answer until the end of the block."""
    with Redis(unix_socket_path=repo.redis.connection_string.removeprefix("unix://")) as client:
        pid = client.info("server")["process_id"]
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_health_and_metrics_are_answered_at_the_limit_of_requests(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with scene.running(repo, requests_in_flight_max=1, request_timeout_s=20) as client:
        with stopped(repo):
            line = connected(client)
            line.sendall(request_bytes(BODY))
            scene.wait_for(lambda: scene.metric(client, "tallystick_requests_in_flight") == 1)
            assert client.get("/health").status_code == 200
            labels = client.post("/v1/models/late/labels", json={"labels": []})
            assert (labels.status_code, labels.json()["type"]) == (503, BUSY)
        assert line.recv(65536).startswith(b"HTTP/1.1 200")
        line.close()


def test_a_body_that_does_not_arrive_does_not_count_and_times_out(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with scene.running(repo, requests_in_flight_max=1, request_body_timeout_s=0.5) as client:
        lines = [connected(client) for _ in range(5)]
        for line in lines:
            line.sendall(request_bytes(BODY, length=100_000))
        for _ in range(3):
            assert client.post(PREDICT, json=BODY).status_code == 200
        for line in lines:
            answer = line.recv(65536)
            assert answer.startswith(b"HTTP/1.1 408")
            assert b"urn:tallystick:problem:too-slow" in answer
            line.close()


def test_a_client_that_disconnects_or_does_not_read_does_not_count(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with scene.running(repo, requests_in_flight_max=1) as client:
        gone = connected(client)
        gone.sendall(request_bytes(BODY, length=100_000))
        gone.close()
        deaf = connected(client)
        many = {"instances": [scene.INSTANCE] * 1000, "parameters": {"features": True}}
        for _ in range(20):
            deaf.sendall(request_bytes(many))
        for _ in range(5):
            scene.wait_for(lambda: client.post(PREDICT, json=BODY).status_code == 200)
        assert scene.metric(client, "tallystick_requests_in_flight") == 0
        deaf.close()


def test_limits_on_bodies_hold_for_every_route(repo):
    scene.publish(repo.state_dir, scene.constant(0.25))
    with scene.running(repo, request_bytes_max=2048) as client:
        for path in (PREDICT, "/v1/models/late/labels", "/push", "/get-online-features"):
            declared = client.post(path, content=b"x" * 2049)
            assert declared.status_code == 413, path
            chunked = client.post(path, content=iter([b"x" * 1500, b"x" * 1500]))
            assert chunked.status_code == 413, path
            assert client.post(path, content=b"x" * 2048).status_code == 400, path


def test_another_method_is_answered_with_the_allowed_one(repo):
    with scene.running(repo) as client:
        for path in (PREDICT, "/get-online-features", "/v1/models/late:features"):
            answer = client.get(path)
            assert (answer.status_code, answer.headers["allow"]) == (405, "POST")
            assert answer.json()["type"] == "urn:tallystick:problem:method-not-allowed"
            assert "takes POST" in answer.json()["detail"]


def test_an_unexpected_error_is_logged_once_and_its_text_is_not_answered(repo, monkeypatch, caplog):
    from tallystick_serving.champion_watcher import ChampionWatcher

    def fail(*_):
        raise RuntimeError("s3cret")

    with scene.running(repo) as client:
        monkeypatch.setattr(ChampionWatcher, "predictor", fail)
        answers = [client.post(PREDICT, json=BODY), client.get(f"/v1/models/{scene.MODEL}")]
    for answer in answers:
        assert answer.status_code == 500
        assert answer.json()["type"] == "urn:tallystick:problem:internal"
        assert "s3cret" not in answer.text
    assert [record.getMessage() for record in caplog.records if record.exc_info] == [
        "A request failed: s3cret"
    ] * len(answers)


def test_a_busy_server_answers_all_that_it_took(repo):
    scene.publish(repo.state_dir, scene.constant(0.25), function=slow)
    statuses = []
    with scene.running(repo, requests_in_flight_max=3) as client:

        def ask():
            line = connected(client)
            line.sendall(request_bytes(BODY))
            statuses.append(line.recv(65536)[9:12])
            line.close()

        threads = [threading.Thread(target=ask) for _ in range(30)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        accepted = scene.metric(client, 'tallystick_log_accepted_total{log="predictions"}')
    assert set(statuses) <= {b"200", b"503"}
    assert statuses.count(b"200") == accepted > 0


def test_the_rest_of_an_answered_body_times_out():
    with answering(0.3, b"x") as address:
        line = socket.create_connection(address, timeout=20)
        line.sendall(b"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: 100\r\n\r\nsome")
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
        line.sendall(b"more")
        assert line.recv(1000) == b""
        line.close()


@contextmanager
def answering(timeout_s, content):
    """A server with our protocol, whose app answers before it has read a body."""
    import uvicorn

    from tallystick_serving.http_timeouts import timeout_protocol

    async def app(scope, receive, send):  # noqa: ARG001 - it does not read
        assert scope["type"] == "http"
        length = b"%d" % len(content)
        headers = [(b"content-length", length)]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": content})

    config = uvicorn.Config(
        app, port=0, http=timeout_protocol(timeout_s), log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        scene.wait_for(lambda: server.started)
        yield server.servers[0].sockets[0].getsockname()
    finally:
        server.should_exit = True
        thread.join()


def test_a_connection_without_a_request_is_closed():
    import uvicorn

    from tallystick_serving.http_timeouts import timeout_protocol

    async def app(scope, receive, send):
        assert scope["type"] == "http"
        await receive()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = uvicorn.Config(
        app, port=0, http=timeout_protocol(0.3), log_config=None, lifespan="off"
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    scene.wait_for(lambda: server.started)
    address = server.servers[0].sockets[0].getsockname()
    whole = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
    mute, slow_head, second_slow, idle = (
        socket.create_connection(address, timeout=20) for _ in range(4)
    )
    slow_head.sendall(whole[:-4])
    for line in (second_slow, idle):
        line.sendall(whole)
        assert line.recv(1000).startswith(b"HTTP/1.1 200")
    second_slow.sendall(whole[:-4])
    for line in (mute, slow_head, second_slow):
        assert line.recv(1000) == b""
    # uvicorn leaves an idle connection open after a request.
    time.sleep(0.4)
    idle.sendall(whole)
    assert idle.recv(1000).startswith(b"HTTP/1.1 200")
    for line in (mute, slow_head, second_slow, idle):
        line.close()
    server.should_exit = True
    thread.join()
