"""Signals that end a command: INT, TERM and HUP."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def ending_on_signals() -> Iterator[Callable[[], None]]:
    """Clean up and exit on TERM, and on HUP when the terminal is closed, as on Ctrl-C.

    The exit status is 128 plus the signal's number, as in a shell. Ctrl-C raises
    ``KeyboardInterrupt``, as usual.

    Yields:
        A function that exits if a signal came before. Work that goes on after errors calls it,
        because DuckDB may turn a signal into an error of its own. Long work calls it too, because
        Python drops what a handler raises while an object is finalized.
    """
    received: list[int] = []

    def end(number: int, _: FrameType | None) -> NoReturn:
        received.append(number)
        raise _ending(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # no other thread may say what a signal does
        return

    def end_if_received() -> None:
        if received:
            raise _ending(received[0])

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup has it
    }
    try:
        yield end_if_received
    except Exception as error:
        # DuckDB makes an error of its own of what a handler raises while it works.
        if received:
            raise _ending(received[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
