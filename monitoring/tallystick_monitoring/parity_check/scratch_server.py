"""The real server over a scratch repo, and what it answers."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Self

from tallystick.errors import StateError, UnavailableError
from tallystick_monitoring.parity_check.scratch_cleaner import sockets_of
from tallystick_monitoring.parity_check.scratch_repo import Scratch

_START_S: Final = 180.0
_STOP_S: Final = 60.0
_ANSWER_S: Final = 60.0
_POLL_S: Final = 0.05
_OK: Final = 200
_ERROR: Final = re.compile(r"tally: (?!The server did not start)|[\w.]+(Error|Exception): ")
"""How the line of a server's log begins that says why it ended."""


class Api:
    """``tally serve`` on a socket in the scratch folder, for the time of a ``with`` block.

    Args:
        scratch: What is served.

    Raises:
        StateError: The server does not come up, or not in time; its last words are told.
    """

    def __init__(self, scratch: Scratch) -> None:
        sockets = sockets_of(scratch.folder)
        sockets.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._socket = sockets / "api.sock"
        self._log = scratch.folder / "server.log"
        self._connection: _UnixConnection | None = None
        command = [
            *(sys.executable, "-B", "-P", "-m", "tallystick_monitoring.parity_check.scratch_serve"),
            *(str(scratch.repo.path), "--repo", str(scratch.served)),
            *("serve", "--uds", str(self._socket)),
        ]
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603 our own command
                command,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                pass_fds=(scratch.lock,),
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        """Wait until it answers."""
        try:
            self._wait_until_alive()
        except BaseException:
            self._process.kill()
            self._end()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        self._process.send_signal(signal.SIGTERM)
        self._end()

    def _end(self) -> None:
        if self._connection is not None:
            self._connection.close()
        try:
            self._process.wait(_STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdin is not None
        self._process.stdin.close()

    def reasons_not_ready(self) -> list[str]:
        """Why a model might not be answered."""
        _, body = self.ask("GET", "/ready")
        return [str(reason) for reason in body.get("reasons", ())]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Send one request.

        Args:
            method: ``GET`` or ``POST``.
            path: Path of the route.
            body: What is sent as JSON; nothing if None.

        Returns:
            The status, and the object that was answered.

        Raises:
            UnavailableError: The server went away, or did not answer in time.
        """
        text = None if body is None else json.dumps(body, allow_nan=False)
        try:
            if self._connection is None:
                self._connection = _UnixConnection(self._socket, timeout_s=_ANSWER_S)
            self._connection.request(method, path, body=text)
            answer = self._connection.getresponse()
            content = json.loads(answer.read())
        except (OSError, http.client.HTTPException, ValueError) as error:
            if self._connection is not None:
                self._connection.close()
            raise UnavailableError(
                "The server of the parity check", f"{error!r}; it said: {self._last_words()}"
            ) from error
        return answer.status, content if isinstance(content, dict) else {}

    def _wait_until_alive(self) -> None:
        give_up = time.monotonic() + _START_S
        while self._process.poll() is None and time.monotonic() < give_up:
            if self._socket.exists():
                try:
                    if self.ask("GET", "/health")[0] == _OK:
                        return
                except UnavailableError:
                    pass
            time.sleep(_POLL_S)
        raise StateError(
            f"The API could not be compared, as the server did not come up: {self._last_words()}",
            hint="Start it by hand:  tally --repo DIR serve",
        )

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        told = [line for line in lines if _ERROR.match(line)]
        return _ERROR.sub("", (told or lines or ["nothing"])[-1])


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
