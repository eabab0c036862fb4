"""Servers in processes of their own: started, awaited, stopped, and never left behind."""

from __future__ import annotations

import signal
import sys
import time

import pytest

from live_processes import is_alive
from tallystick.errors import UnavailableError
from tallystick.server_process import ServerProcess, free_port, http_answers, wait_until

SERVER = (
    "from http.server import *; import sys; "
    "HTTPServer(('127.0.0.1', int(sys.argv[1])), SimpleHTTPRequestHandler).serve_forever()"
)
STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print('loaded', flush=True); time.sleep(600)"
)
PARENT = (
    "import subprocess, sys, time; "
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); "
    "print(child.pid, flush=True); time.sleep(600)"
)


def python(tmp_path, code, *arguments):
    log = tmp_path / "log"
    return ServerProcess("The server", [sys.executable, "-c", code, *arguments], log=log)


def test_a_server_is_awaited_and_stopped(tmp_path):
    port = free_port()
    url = f"http://127.0.0.1:{port}/"
    with python(tmp_path, SERVER, str(port)) as server:
        server.wait_until(lambda: http_answers(url))
        assert server.returncode is None
        assert not http_answers(f"{url}missing")
    assert server.returncode == -signal.SIGTERM
    assert not http_answers(url)


def test_a_server_that_ends_is_an_error_with_the_end_of_its_log(tmp_path):
    server = python(tmp_path, "raise SystemExit('no port left')")
    with pytest.raises(UnavailableError, match=r"(?s)it ended.*no port left"):
        server.wait_until(lambda: False)
    assert server.returncode == 1


def test_a_server_that_is_not_ready_in_time_is_killed(tmp_path):
    server = python(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(UnavailableError, match="not ready in time"):
        server.wait_until(lambda: False, timeout_s=0.1)
    assert server.returncode == -signal.SIGKILL


def test_a_server_is_killed_if_its_readiness_cannot_be_checked(tmp_path):
    server = python(tmp_path, "import time; time.sleep(600)")
    with pytest.raises(ZeroDivisionError):
        server.wait_until(lambda: 1 / 0)
    assert server.returncode == -signal.SIGKILL


def test_a_server_that_ignores_the_stop_signal_is_killed(tmp_path):
    server = python(tmp_path, STUBBORN)
    server.wait_until(lambda: "loaded" in server.log.read_text())
    with pytest.raises(UnavailableError, match="did not end in"):
        server.stop(timeout_s=0.1)
    assert server.returncode == -signal.SIGKILL


def test_killing_a_server_ends_the_processes_of_its_session(tmp_path):
    server = python(tmp_path, PARENT)
    server.wait_until(lambda: "\n" in server.log.read_text())
    child = int(server.log.read_text())
    server.kill()
    assert wait_until(lambda: not is_alive(child), timeout_s=20)


def test_waiting_returns_the_last_result():
    started = time.monotonic()
    assert wait_until(list, timeout_s=0.05) == []
    assert time.monotonic() - started >= 0.05
    assert wait_until(lambda: "now", timeout_s=0) == "now"
