"""One connection to one Redis that all requests of an event loop share.

A request adds its command to what is being sent and waits for its answer; Redis answers in order.
So requests that come together travel together, and none waits for a free connection. redis-py's own
asynchronous client gives each command a connection for itself and several layers of policy, which
take longer than all else that a prediction needs. Parsing and packing are hiredis'.

A command whose connection turns out to be closed is sent once more: every command that is used here
may be repeated. One that is not answered in time is not, and takes the connection with it: nobody
knows what would come over it next.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, Final

import hiredis
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallystick.online_store.redis_address import Place

WAITING_MAX: Final = 10_000
"""Commands that may wait for their answers at once; the bound of requests in flight comes first."""


class Wire:
    """A client of one Redis for one event loop; it connects when it is first used.

    Args:
        place: Where the Redis is; no cluster.
        connect_timeout_s: Seconds to connect and log in.
        read_timeout_s: Seconds to wait for an answer.
        budget_s: Seconds for a command in all, whatever happens on its way.
    """

    def __init__(
        self,
        place: Place,
        *,
        connect_timeout_s: float,
        read_timeout_s: float,
        budget_s: float | None = None,
    ) -> None:
        assert not place.is_cluster
        self._budget_s = connect_timeout_s + read_timeout_s if budget_s is None else budget_s
        self.place = place
        self._connect_timeout_s = connect_timeout_s
        self._read_timeout_s = read_timeout_s
        self._line: _Line | None = None
        self._connecting: asyncio.Task[_Line] | None = None
        self._context = _tls(place.options)

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, in their order.

        Raises:
            RedisError: Redis refused, or did not answer in time.
        """
        values: list[bytes | None] = await self._ask(("MGET", *keys))
        return values

    async def hmget(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        """The values of fields of a hash, in their order; errors as in :meth:`mget`."""
        values: list[bytes | None] = await self._ask(("HMGET", key, *fields))
        return values

    async def ping(self) -> None:
        """Ask whether Redis answers; errors as in :meth:`mget`."""
        await self._ask(("PING",))

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._line is not None:
            self._line.close()

    async def _ask(self, words: tuple[bytes | str, ...]) -> Any:
        began = time.monotonic()
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]
        line = self._line
        if line is not None and line.is_open:
            with suppress(RedisConnectionError):
                return _checked(await line.ask(packed))
        try:
            # Above, the line itself sees to the time.
            async with asyncio.timeout(began + self._budget_s - time.monotonic()):
                line = await self._connected()
                return _checked(await line.ask(packed))
        except TimeoutError as error:
            raise RedisTimeoutError(f"no answer within {self._budget_s:g} s") from error

    async def _connected(self) -> _Line:
        """The line, made anew if need be; all who wait for it get the same."""
        if self._line is not None and self._line.is_open:
            return self._line
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._settle)
        # A caller whose time runs out leaves the others their connection.
        return await asyncio.shield(self._connecting)

    def _settle(self, task: asyncio.Task[_Line]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._line = task.result()

    async def _connect(self) -> _Line:
        loop = asyncio.get_running_loop()
        line = _Line(loop, self._read_timeout_s)
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if self.place.socket:
                    await loop.create_unix_connection(lambda: line, self.place.socket)
                else:
                    ((host, port),) = self.place.addresses
                    await loop.create_connection(lambda: line, host, port, ssl=self._context)
                for words in _greeting(self.place.options):
                    _checked(await line.ask(hiredis.pack_command(words)))  # type: ignore[arg-type]
        except TimeoutError as error:
            line.close()
            raise RedisTimeoutError(
                f"no connection within {self._connect_timeout_s:g} s"
            ) from error
        except BaseException:
            line.close()
            raise
        return line


class _Line(asyncio.Protocol):
    """A connection, and who waits for answers over it, in order.

    Attributes:
        is_open: Whether commands can be sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.is_open = False
        self._is_late = False
        self._loop = loop
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()
        self._transport: asyncio.Transport | None = None
        self._watch: asyncio.TimerHandle | None = None

    def ask(self, packed: bytes) -> asyncio.Future[Any]:
        """Send a command; give what its answer will be in."""
        if not self.is_open or self._transport is None:
            raise RedisConnectionError("the connection is closed")
        if len(self._waiting) >= WAITING_MAX:
            raise RedisTimeoutError(f"{WAITING_MAX} commands wait for their answers")
        answer: asyncio.Future[Any] = self._loop.create_future()
        self._waiting.append((answer, self._loop.time() + self._timeout_s))
        self._transport.write(packed)
        if self._watch is None:
            self._watch = self._loop.call_later(self._timeout_s, self._look)
        return answer

    def close(self) -> None:
        """Close the connection; who still waits is told."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        reader, waiting = self._reader, self._waiting
        reader.feed(data)
        try:
            while (answer := reader.gets()) is not False:
                waiter, _ = waiting.popleft()
                if not waiter.done():
                    waiter.set_result(answer)
        except (hiredis.ProtocolError, IndexError):  # nobody asked, or it is no Redis
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._watch is not None:
            self._watch.cancel()
        told = (
            RedisTimeoutError(f"no answer within {self._timeout_s:g} s")
            if self._is_late
            else RedisConnectionError(f"the connection was closed{f' ({exc})' if exc else ''}")
        )
        while self._waiting:
            waiter, _ = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(told)

    def _look(self) -> None:
        """Give the connection up if the longest wait has been too long."""
        self._watch = None
        if not self._waiting:
            return
        rest_s = self._waiting[0][1] - self._loop.time()
        if rest_s > 0:
            self._watch = self._loop.call_later(rest_s, self._look)
            return
        self._is_late = True
        self.close()


def _checked(answer: Any) -> Any:
    if isinstance(answer, hiredis.ReplyError):
        told = str(answer)
        kind = AuthenticationError if told.startswith(("NOAUTH", "WRONGPASS")) else ResponseError
        raise kind(told) from answer
    return answer


def _greeting(options: dict[str, Any]) -> list[tuple[str, ...]]:
    """What has to be said first on a connection."""
    words: list[tuple[str, ...]] = []
    if "password" in options:
        user = [options["username"]] if "username" in options else []
        words.append(("AUTH", *user, options["password"]))
    if options.get("db"):
        words.append(("SELECT", str(options["db"])))
    return words


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    """How a certificate is checked, as redis-py does it."""
    if not options.get("ssl"):
        return None
    context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
    requirement = options.get("ssl_cert_reqs", "required")
    context.check_hostname = options.get("ssl_check_hostname", requirement != "none")
    context.verify_mode = {
        "required": ssl.CERT_REQUIRED,
        "optional": ssl.CERT_OPTIONAL,
        "none": ssl.CERT_NONE,
    }[requirement]
    if certificate := options.get("ssl_certfile"):
        context.load_cert_chain(certificate, options.get("ssl_keyfile"))
    return context
