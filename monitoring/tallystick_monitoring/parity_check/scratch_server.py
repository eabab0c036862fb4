"""The real server over a scratch repo, and what it answers."""

from __future__ import annotations

import http.client
import json
import re
import socket
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, Self

from tallystick.errors import StateError, UnavailableError
from tallystick.server_process import ServerProcess
from tallystick_monitoring.parity_check.scratch_cleaner import sockets_of
from tallystick_monitoring.parity_check.scratch_repo import ScratchRepo

_START_S: Final = 180.0
_ANSWER_S: Final = 60.0
_OK: Final = 200
_ERROR: Final = re.compile(r"tally: (?!The server did not start)|[\w.]+(Error|Exception): ")
"""How the line of a server's log begins that says why it ended."""


class ScratchServer:
    """``tally serve`` on a socket in the scratch folder, for the time of a ``with`` block.

    Args:
        scratch: What is served.

    Raises:
        StateError: The server does not come up, or not in time. The error has the end of its log.
    """

    def __init__(self, scratch: ScratchRepo) -> None:
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
        self._server = ServerProcess(
            "The server of the parity check", command, log=self._log, pass_fds=(scratch.lock,)
        )

    def __enter__(self) -> Self:
        """Wait until it answers."""
        try:
            self._server.wait_until(self._is_alive, timeout_s=_START_S)
        except UnavailableError as error:
            raise StateError(
                "The API could not be compared, because the server did not start: "
                f"{self._last_words()}",
                hint="Start it by hand:  tally --repo DIR serve",
            ) from error
        return self

    def __exit__(self, *_: object) -> None:
        """Stop it."""
        if self._connection is not None:
            self._connection.close()
        with suppress(UnavailableError):  # it was killed, but the comparison is complete
            self._server.stop()

    def reasons_not_ready(self) -> list[str]:
        """Why a model might not be answered."""
        _, body = self.ask("GET", "/ready")
        return [str(reason) for reason in body.get("reasons", ())]

    def ask(self, method: str, path: str, body: object = None) -> tuple[int, dict[str, Any]]:
        """Send one request.

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

    def _is_alive(self) -> bool:
        try:
            return self._socket.exists() and self.ask("GET", "/health")[0] == _OK
        except UnavailableError:
            return False

    def _last_words(self) -> str:
        lines = self._log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        errors = [line for line in lines if _ERROR.match(line)]
        return _ERROR.sub("", (errors or lines or ["nothing"])[-1])


class _UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: Path, *, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX)
        self.sock.settimeout(self.timeout)
        self.sock.connect(str(self._path))
