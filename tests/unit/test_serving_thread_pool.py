"""Threads for blocking calls: as many as there are, and nothing piles up behind one that hangs."""

from __future__ import annotations

import asyncio
import threading

import pytest

from tallystick_serving.error_responses import BusyError
from tallystick_serving.thread_pool import ThreadPool


def run(workers_test):
    async def whole():
        workers = ThreadPool("The store", threads=2, waiting_max=3)
        try:
            return await workers_test(workers)
        finally:
            workers.close()

    return asyncio.run(whole())


async def until(condition):
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 - what is awaited happens in threads
            await asyncio.sleep(0.001)


def test_a_call_gives_what_it_gave_or_raises_what_it_raised():
    def fails():
        raise KeyError("no")

    async def ask(workers):
        threads = {await workers.run(threading.current_thread) for _ in range(9)}
        assert threading.current_thread() not in threads
        # Else a call that never returns would keep the process from ending.
        assert all(thread.daemon for thread in threads)
        assert await asyncio.gather(*(workers.run(lambda: 7) for _ in range(5))) == [7] * 5
        with pytest.raises(KeyError):
            await workers.run(fails)
        return await workers.run(lambda: "goes on")

    assert run(ask) == "goes on"


def test_calls_that_hang_take_their_threads_and_no_more():
    gate, running, most = threading.Event(), [], []

    def hangs():
        running.append(1)
        most.append(len(running))
        gate.wait()
        running.pop()

    async def ask(workers):
        for _ in range(20):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await workers.run(hangs)
        # Those that gave up before they had a thread are never run.
        assert len(most) == 2
        assert workers._calls.empty()
        gate.set()
        assert await workers.run(lambda: "back") == "back"
        await until(lambda: not running)
        assert max(most) == 2

    try:
        run(ask)
    finally:
        gate.set()


def test_more_than_may_wait_are_refused_at_once():
    gate = threading.Event()

    async def ask(workers):
        tasks = [asyncio.create_task(workers.run(gate.wait)) for _ in range(2 + 3)]
        await until(lambda: workers._waiting == 3)
        with pytest.raises(BusyError, match="The store did not answer"):
            await workers.run(gate.wait)
        gate.set()
        assert await asyncio.gather(*tasks) == [True] * 5
        assert await workers.run(gate.wait)

    try:
        run(ask)
    finally:
        gate.set()


def test_a_call_may_outlive_the_loop():
    gate = threading.Event()

    async def ask(workers):
        task = asyncio.create_task(workers.run(gate.wait))
        await asyncio.sleep(0.01)
        task.cancel()

    run(ask)
    gate.set()
    for thread in threading.enumerate():
        if thread.name.startswith("online-"):
            thread.join(20)
            assert not thread.is_alive()
