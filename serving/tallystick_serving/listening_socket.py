"""Listening sockets, opened before anything is loaded, so that a conflict fails at once."""

from __future__ import annotations

import errno
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from tallystick.errors import InputError

BACKLOG: Final = 2048


@contextmanager
def listening(host: str, port: int, uds: Path | None) -> Iterator[socket.socket]:
    """A socket that listens.

    Args:
        host: Address to listen on.
        port: Port to listen on; 0 for any free one.
        uds: Unix socket to listen on instead.

    Raises:
        InputError: The address cannot be listened on.
    """
    if uds is not None:
        with socket.socket(socket.AF_UNIX) as listener:
            _bind_path(listener, uds)
            try:
                yield listener
            finally:
                uds.unlink(missing_ok=True)
        return
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server(
            (host, port),
            family=family,
            backlog=BACKLOG,
            dualstack_ipv6=family is socket.AF_INET6 and socket.has_dualstack_ipv6(),
        )
    except (OSError, OverflowError) as error:
        in_use = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        reason = "is in use" if in_use else f"cannot be listened on ({error})"
        raise InputError(
            f"Port {port} on {host} {reason}; choose another one:  tally serve --port N"
        ) from error
    with listener:
        yield listener


@contextmanager
def listening_for_worker(shared: socket.socket, number: int) -> Iterator[socket.socket]:
    """A worker's own socket: the port of the shared socket plus ``number``, or its path plus it.

    Raises:
        InputError: The address cannot be listened on.
    """
    address = shared.getsockname()
    if shared.family == socket.AF_UNIX:
        own = listening("", 0, Path(f"{address}.{number}"))
    else:
        own = listening(address[0], address[1] + number, None)
    with own as listener:
        yield listener


def _bind_path(listener: socket.socket, path: Path) -> None:
    """Bind to a path; replace the socket of a server that has ended, but not of one that runs."""
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
            f"Socket {path} cannot be listened on ({error}); choose another one:  "
            "tally serve --uds PATH"
        ) from error
