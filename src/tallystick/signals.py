"""Signals that ask a command to end."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn


@contextmanager
def ending_on_signals() -> Iterator[Callable[[], None]]:
    """End as by Ctrl-C, with everything put away, when asked to or when the terminal is closed.

    The exit status is 128 and the signal's number, as a shell has it; Ctrl-C raises
    ``KeyboardInterrupt``, as ever.

    Yields:
        Something that ends as asked, if it was asked: for work that goes on after errors, of which
        one may be what DuckDB made of the signal; and for long work, since Python drops what a
        handler raises while an object is finalized.
    """
    asked: list[int] = []

    def end(number: int, _: FrameType | None) -> NoReturn:
        asked.append(number)
        raise _ending(number)

    if threading.current_thread() is not threading.main_thread():
        yield lambda: None  # no other thread may say what a signal does
        return

    def end_if_asked() -> None:
        if asked:
            raise _ending(asked[0])

    before = {
        number: signal.signal(number, end)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) != signal.SIG_IGN  # as nohup has it
    }
    try:
        yield end_if_asked
    except Exception as error:
        # DuckDB makes an error of its own of what a handler raises while it works.
        if asked:
            raise _ending(asked[0]) from error
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _ending(number: int) -> BaseException:
    return KeyboardInterrupt() if number == signal.SIGINT else SystemExit(128 + number)
