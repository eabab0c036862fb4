"""Waits until rows that a request appended to a log are on disk."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future

from tallystick_serving.error_responses import BusyError, NotLoggedError


async def append_durably(
    append: Callable[[Callable[[bool], None]], bool], *, log: str, timeout_s: float
) -> None:
    """Append rows to a log, and return once they are on disk.

    Args:
        append: Appends them, and returns whether the log took them. The log calls its argument,
            from another thread, with whether it wrote them.
        log: The log in messages.
        timeout_s: Seconds that it may take.

    Raises:
        BusyError: The log's buffer is full; the log took none of the rows.
        NotLoggedError: The log did not write them in time.
    """
    written: Future[bool] = Future()
    if not append(written.set_result):
        raise BusyError(log, "its buffer is full, and it took none of these rows")
    try:
        async with asyncio.timeout(timeout_s):
            # Shielded, as the log may report later than the request waits.
            is_written = await asyncio.shield(asyncio.wrap_future(written))
    except TimeoutError:
        is_written = False
    if not is_written:
        raise NotLoggedError(log, "it did not write the rows in time")
