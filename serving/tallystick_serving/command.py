"""``tally serve``: the app on uvicorn."""

from __future__ import annotations

import errno
import logging
import signal
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from fastapi import FastAPI

from tallystick.errors import InputError, StateError
from tallystick_serving.app import create_app
from tallystick_serving.project import read_project
from tallystick_serving.service import Service

logger = logging.getLogger(__name__)

DRAIN_S: Final = 30
"""Seconds that requests have to finish after a stop was asked for."""
BACKLOG: Final = 2048


def serve(
    repo: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    log_level: str = "info",
) -> None:
    """Serve the repo's models until SIGTERM or SIGINT; then answer what is in flight and flush.

    SIGUSR1 has the logs written at once.

    Args:
        repo: Folder of ``feature_store.yaml``.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        uds: Unix socket to listen on instead.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        InputError: There is no repo, or the address cannot be had.
        DefinitionError: The repo cannot be served.
        StateError: The server did not start; its log says why.
    """
    project = read_project(repo)
    logging.basicConfig(
        level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    app = create_app(project)
    config = uvicorn.Config(
        app,
        access_log=False,
        log_config=None,
        log_level=log_level,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        lifespan="on",
    )
    with _listening(host, port, uds) as listener:
        logger.info("Tallystick serves %s on %s.", project.name, uds or listener.getsockname())
        server = uvicorn.Server(config)
        with _outliving_signals(), _flushing_on_signal(app):
            server.run(sockets=[listener])
    if not server.started:
        raise StateError("The server did not start; the lines above say why.")


@contextmanager
def _listening(host: str, port: int, uds: Path | None) -> Iterator[socket.socket]:
    """A bound socket; taken before anything is loaded, so that a clash is told at once."""
    if uds is not None:
        with socket.socket(socket.AF_UNIX) as listener:
            _bind_path(listener, uds)
            try:
                yield listener
            finally:
                uds.unlink(missing_ok=True)
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except (OSError, OverflowError) as error:
            in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
            reason = "is in use" if in_use else f"cannot be listened on ({error})"
            raise InputError(
                f"Port {port} on {host} {reason}; choose another one:  tally serve --port N"
            ) from error
        yield listener


def _bind_path(listener: socket.socket, path: Path) -> None:
    """Bind to a path; a socket that a dead server left there is replaced, a living one's is not."""
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                probe.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
    try:
        listener.bind(str(path))
        listener.listen(BACKLOG)
    except OSError as error:
        raise InputError(
            f"Socket {path} cannot be listened on ({error}); choose another path."
        ) from error


@contextmanager
def _outliving_signals() -> Iterator[None]:
    """Let a stopped server return: uvicorn raises the signal again once it has drained."""
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _flushing_on_signal(app: FastAPI) -> Iterator[None]:
    """Write the logs on SIGUSR1, for whoever is about to read them."""

    def flush() -> None:
        service: Service | None = getattr(app.state, "service", None)
        if service is None:
            return
        try:
            service.predictions.buffer.flush()
            service.labels.buffer.flush()
        except OSError as error:
            logger.error("The logs cannot be written, and are kept in memory: %s", error)  # noqa: TRY400

    def on_signal(*_: object) -> None:
        threading.Thread(target=flush, name="log-flush").start()

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
