"""``tally serve``: the app on uvicorn, in one process or in several workers."""

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
from tallystick.server_process import when_input_ends
from tallystick.settings import settings
from tallystick_serving.app import create_app
from tallystick_serving.compactor_process import compacting
from tallystick_serving.http_timeouts import timeout_protocol
from tallystick_serving.listening_socket import listening, listening_for_worker
from tallystick_serving.server_state import ServerState
from tallystick_serving.store_config import StoreConfig, read_store_config
from tallystick_serving.supervisor import Supervisor

logger = logging.getLogger(__name__)

DRAIN_S: Final = 30
"""Seconds that requests have to finish after a stop signal."""
FLUSH_S: Final = 30
"""Seconds that a worker has after these to write its logs, before it is killed."""
GC_THRESHOLD: Final = 50_000
"""Objects allocated, less those freed, after which the youngest generation is collected."""
SWITCH_INTERVAL_S: Final = 0.0001


def serve(
    repo: Path,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: Path | None = None,
    workers: int = 1,
    ends_with_input: bool = False,
) -> None:
    """Serve the repo's models until SIGTERM or SIGINT, and write the logs at the end.

    Requests in flight are answered first. On SIGUSR1 the logs are written at once.

    Args:
        repo: Folder of ``feature_store.yaml``.
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        uds: Unix socket to listen on instead.
        workers: Processes that answer; each of several has an address of its own as well.
        ends_with_input: Whether the end of the standard input stops it too, so that it never
            outlives the process that started it.

    Raises:
        InputError: There is no repo, or the address cannot be listened on.
        DefinitionError: The repo cannot be served.
        StateError: The server did not start; its log says why.
    """
    config = _prepare(repo)
    if ends_with_input:
        _end_with_input()
    with (
        listening(host, port, uds) as listener,
        compacting(repo, every_s=settings().log_compact_s),
    ):
        address = uds or listener.getsockname()
        logger.info("Tallystick serves %s on %s, workers: %d.", config.name, address, workers)
        if workers == 1:
            _run(config, [listener])
        else:
            Supervisor(repo, listener, count=workers, stop_s=DRAIN_S + FLUSH_S).run()


def work(repo: Path, *, shared: int, number: int) -> None:
    """Run one of several workers; see :mod:`tallystick_serving.supervisor`.

    Args:
        repo: Folder of ``feature_store.yaml``.
        shared: File descriptor of the socket that all workers share.
        number: This worker's number, from 1.

    Raises:
        InputError: There is no repo, or the worker's own address cannot be listened on.
        DefinitionError: The repo cannot be served.
        StateError: The server did not start; its log says why.
    """
    config = _prepare(repo)
    _end_with_input()
    with socket.socket(fileno=shared) as listener, listening_for_worker(listener, number) as own:
        logger.info("Worker %d of %s also listens on %s.", number, config.name, own.getsockname())
        _run(config, [listener, own])


def _prepare(repo: Path) -> StoreConfig:
    signal.signal(signal.SIGUSR1, signal.SIG_IGN)  # there are no logs to write yet
    config = read_store_config(repo)
    logging.basicConfig(
        level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )
    # Feast logs each read of its registry, which here is every few seconds.
    logging.getLogger("feast").setLevel(logging.WARNING)
    return config


def _end_with_input() -> None:
    when_input_ends(lambda: os.kill(os.getpid(), signal.SIGTERM))


def _run(config: StoreConfig, listeners: Sequence[socket.socket]) -> None:
    server_config = uvicorn.Config(
        create_app(config, while_open=_flushing_on_signal),
        http=timeout_protocol(settings().request_body_timeout_s),
        access_log=False,
        log_config=None,
        timeout_graceful_shutdown=DRAIN_S,
        server_header=False,
        proxy_headers=False,
        lifespan="on",
    )
    server = uvicorn.Server(server_config)
    _favour_requests()
    with _returning_on_signals():
        server.run(sockets=list(listeners))
    if not server.started:
        raise StateError("The server did not start; the lines above say why.")


def _favour_requests() -> None:
    """Configure the interpreter for short latencies.

    The garbage collector runs seldom: requests make no cycles, and a collection stops all of them.
    A thread that computes, as the log's does, releases the interpreter sooner than by default.
    """
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 50, 50)


@contextmanager
def _returning_on_signals() -> Iterator[None]:
    """Let a stopped server return: uvicorn raises the signal again after its last request."""
    before = {
        number: signal.signal(number, lambda *_: None) for number in (signal.SIGTERM, signal.SIGINT)
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _flushing_on_signal(state: ServerState) -> Iterator[None]:
    """Write the logs on SIGUSR1, for a reader that needs their last rows."""

    def flush() -> None:
        try:
            state.predictions.seal()
            state.labels.seal()
            if state.journal is not None:
                state.journal.buffer.flush()
        except OSError as error:
            logger.error("The logs cannot be written; their rows stay in memory: %s", error)  # noqa: TRY400

    def on_signal(*_: object) -> None:
        threading.Thread(target=flush, name="log-flush").start()

    before = signal.signal(signal.SIGUSR1, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGUSR1, before)
