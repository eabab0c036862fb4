"""``tally serve``: the app on uvicorn, in one process or several."""

from __future__ import annotations

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import uvicorn

from tallystick.errors import StateError
from tallystick.settings import settings
from tallystick_serving.admission import Lane
from tallystick_serving.app import create_app
from tallystick_serving.compactor_process import compacting
from tallystick_serving.http_timeouts import patient_protocol
from tallystick_serving.listening_socket import listening, listening_beside
from tallystick_serving.store_config import Project, read_project
from tallystick_serving.supervisor import Crew, end_with_crew

logger = logging.getLogger(__name__)

DRAIN_S: Final = 30
"""Seconds that requests have to finish after a stop was asked for."""
GC_AFTER: Final = 50_000
"""Objects made, less those that are gone, after which the youngest are looked through."""
SWITCH_S: Final = 0.0001
FLUSH_S: Final = 30
"""Seconds that a worker has besides, to write its logs, before it is ended by force."""


def serve(
    repo: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    workers: int = 1,
    log_level: str = "info",
) -> None:
    """Serve the repo's models until SIGTERM or SIGINT; then answer what is in flight and flush.

    SIGUSR1 has the logs written at once.

    Args:
        repo: Folder of ``feature_store.yaml``.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        uds: Unix socket to listen on instead.
        workers: Processes that answer; several listen at addresses of their own as well.
        log_level: ``debug``, ``info``, ``warning`` or ``error``.

    Raises:
        InputError: There is no repo, or the address cannot be had.
        DefinitionError: The repo cannot be served.
        StateError: The server did not start; its log says why.
    """
    _ignore_flushes()
    project = read_project(repo)
    _log_to_terminal(log_level)
    with listening(host, port, uds) as listener:
        place = uds or listener.getsockname()
        with compacting(repo, every_s=settings().log_compact_s):
            if workers == 1:
                logger.info("Tallystick serves %s on %s.", project.name, place)
                _run(project, [listener], log_level)
                return
            logger.info("Tallystick serves %s on %s with %d workers.", project.name, place, workers)
            Crew(repo, listener, count=workers, stop_s=DRAIN_S + FLUSH_S).run()


def work(repo: Path, *, shared: int, number: int, log_level: str = "info") -> None:
    """Be one of several workers; see :mod:`tallystick_serving.supervisor`.

    Args:
        repo: Folder of ``feature_store.yaml``.
        shared: File number of the socket that all share.
        number: This worker's number, from 1.
        log_level: As in :func:`serve`.

    Raises:
        InputError: There is no repo, or the worker's own address cannot be had.
        DefinitionError: The repo cannot be served.
        StateError: The server did not start; its log says why.
    """
    _ignore_flushes()
    project = read_project(repo)
    _log_to_terminal(log_level)
    end_with_crew(lambda: os.kill(os.getpid(), signal.SIGTERM))
    with socket.socket(fileno=shared) as listener, listening_beside(listener, number) as own:
        logger.info("Worker %d of %s also listens on %s.", number, project.name, own.getsockname())
        _run(project, [listener, own], log_level)


def _ignore_flushes() -> None:
    """Until there are logs, a signal to write them is no reason to end."""
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)


def _log_to_terminal(level: str) -> None:
    logging.basicConfig(
        level=level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Feast tells of each look at its registry, which here is every few seconds.
    logging.getLogger("feast").setLevel(logging.WARNING)


def _run(project: Project, listeners: Sequence[socket.socket], log_level: str) -> None:
    app = create_app(project)
    config = uvicorn.Config(
        app,
        http=patient_protocol(settings().request_body_timeout_s),
        access_log=False,
        log_config=None,
        log_level=log_level,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
    )
    server = uvicorn.Server(config)
    _answer_first()
    with _outliving_signals(), _flushing_on_signal(app):
        server.run(sockets=list(listeners))
    if not server.started:
        raise StateError("The server did not start; the lines above say why.")


def _answer_first() -> None:
    """Let nothing in this process keep requests waiting for long.

    Cycles of garbage are looked for seldom: requests make none, and a look stops all of them. A
    thread that computes, as the log's does, gives the interpreter back sooner than by default.
    """
    sys.setswitchinterval(SWITCH_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_AFTER, 50, 50)


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
def _flushing_on_signal(app: Lane) -> Iterator[None]:
    """Write the logs on SIGUSR1, for whoever is about to read them."""

    def flush() -> None:
        service = app.service
        if service is None:
            return
        try:
            service.predictions.wal.seal()
            service.labels.wal.seal()
            if service.journal is not None:
                service.journal.buffer.flush()
        except OSError as error:
            logger.error("The logs cannot be written, and are kept in memory: %s", error)  # noqa: TRY400

    def on_signal(*_: object) -> None:
        threading.Thread(target=flush, name="log-flush").start()

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
