"""Daemon threads for blocking calls, so that the event loop never blocks.

A call that hangs occupies its thread and nothing else: a caller gives up when its request's time is
over, and a daemon thread does not delay the end of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from queue import SimpleQueue
from threading import Thread
from typing import Any, TypeVar

from tallystick_serving.error_responses import BusyError

Result = TypeVar("Result")


class ThreadPool:
    """Runs calls in threads; to be made and used on one event loop.

    Args:
        service: What the calls wait for, in the error that says that too many wait.
        threads: Calls that run at once.
        waiting_max: Calls that may wait for a thread; further ones are refused at once.
    """

    def __init__(self, service: str, *, threads: int, waiting_max: int) -> None:
        self._service = service
        self._threads = threads
        self._free = asyncio.Semaphore(threads)
        self._waiting = 0
        self._waiting_max = waiting_max
        # A call is put here only once a thread is free for it, so that it never grows.
        self._calls: SimpleQueue[tuple[Callable[[], Any], Future[Any]] | None] = SimpleQueue()
        for number in range(threads):
            Thread(target=self._work, name=f"pool-{number}", daemon=True).start()

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run a call in a thread; its result and its exception are the caller's.

        Raises:
            BusyError: Too many calls wait for a thread.
        """
        if self._waiting >= self._waiting_max:
            raise BusyError(self._service, f"{self._waiting} calls are waiting for it")
        self._waiting += 1
        try:
            await self._free.acquire()
        finally:
            self._waiting -= 1
        loop = asyncio.get_running_loop()
        future: Future[Result] = Future()
        # When the call has ended, not when its caller has given up: the thread is free only then.
        future.add_done_callback(lambda _: self._release(loop))
        self._calls.put((call, future))
        return await asyncio.wrap_future(future)

    def close(self) -> None:
        """Let every thread end after its present call; do not wait."""
        for _ in range(self._threads):
            self._calls.put(None)

    def _release(self, loop: asyncio.AbstractEventLoop) -> None:
        with suppress(RuntimeError):  # the loop is closed: a call outlived the server
            loop.call_soon_threadsafe(self._free.release)

    def _work(self) -> None:
        while (item := self._calls.get()) is not None:
            call, future = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                result = call()
            except BaseException as error:  # noqa: BLE001 the caller raises it
                future.set_exception(error)
            else:
                future.set_result(result)
