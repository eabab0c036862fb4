"""One connection to one Redis that all requests of an event loop share.

A request adds its command to what is being sent and waits for its answer; Redis answers in order.
So requests that arrive together travel together, and none waits for a free connection. redis-py's
asynchronous client gives each command a connection of its own and several layers of policy: a read
takes twice as long (docs/adr/0012-redis-clients-and-row-layout.md). Parsing and packing are
hiredis'.

A command whose connection turns out to be closed is sent once more: every command that is used here
may be repeated. A command without an answer in time is not, and the connection is closed: what
would arrive over it next is unknown.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import hiredis
from redis.asyncio.retry import Retry
from redis.asyncio.sentinel import Sentinel
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from tallystick.online_store.redis_address import RedisAddress

PENDING_MAX: Final = 10_000
"""Commands that may wait for their answers at once; the bound of requests in flight is lower."""
_Sentinel: Final[Any] = Sentinel
_ReplyError: Final = hiredis.ReplyError


class ReadTimeouts(NamedTuple):
    """How long a read may take, in seconds.

    Attributes:
        connect_s: To connect and log in.
        read_s: To wait for an answer.
        budget_s: For a command in all, reconnecting and redirections included.
    """

    connect_s: float
    read_s: float
    budget_s: float


class SharedConnection:
    """A client of one Redis for one event loop; it connects at its first command.

    Behind Sentinels each new connection goes to the server that they name at that moment.

    Args:
        address: One Redis, or one behind Sentinels.
        timeouts: How long a command may take.
    """

    def __init__(self, address: RedisAddress, timeouts: ReadTimeouts) -> None:
        assert address.redis_type != "redis_cluster"
        self._address = address
        self._timeouts = timeouts
        self._connection: _Connection | None = None
        self._connecting: asyncio.Task[_Connection] | None = None
        self._context = _tls(address.options)

    async def mget(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """The values of keys, in their order.

        Raises:
            RedisError: Redis refused, or did not answer in time.
        """
        values: list[bytes | None] = await self._run(("MGET", *keys)) if keys else []
        return values

    async def hmget(self, key: bytes, fields: Sequence[bytes]) -> list[bytes | None]:
        """The values of fields of a hash, in their order; errors as in :meth:`mget`."""
        values: list[bytes | None] = await self._run(("HMGET", key, *fields))
        return values

    async def ping(self) -> None:
        """Check that Redis answers; errors as in :meth:`mget`."""
        await self._run(("PING",))

    async def run_many(self, commands: Sequence[tuple[bytes | str, ...]]) -> list[Any]:
        """The answers to commands that are sent at once; a refusal is an answer.

        Raises:
            RedisError: Redis did not answer in time.
        """
        packed = b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]
        return await self._sent(packed, len(commands))

    async def aclose(self) -> None:
        """Close the connection."""
        if self._connecting is not None:
            self._connecting.cancel()
        if self._connection is not None:
            self._connection.close()

    async def _run(self, words: tuple[bytes | str, ...]) -> Any:
        packed = hiredis.pack_command(words)  # type: ignore[arg-type]
        return _checked(await self._sent(packed, 1))

    async def _sent(self, packed: bytes, count: int) -> list[Any]:
        began = time.monotonic()
        connection = self._connection
        if connection is not None and connection.is_open:
            with suppress(RedisConnectionError):
                return await connection.send(packed, count)
        try:
            # Above, the connection itself watches the time.
            async with asyncio.timeout(began + self._timeouts.budget_s - time.monotonic()):
                connection = await self._connected()
                return await connection.send(packed, count)
        except TimeoutError as error:
            raise RedisTimeoutError(f"no answer within {self._timeouts.budget_s:g} s") from error

    async def _connected(self) -> _Connection:
        """The connection, renewed if it is closed; all waiting commands get the same one."""
        if self._connection is not None and self._connection.is_open:
            return self._connection
        if self._connecting is None:
            self._connecting = asyncio.create_task(self._connect())
            self._connecting.add_done_callback(self._settle)
        connecting = self._connecting
        try:
            # A caller whose time runs out must not take the connection from the others.
            return await asyncio.shield(connecting)
        except asyncio.CancelledError:
            if connecting.cancelled():
                raise RedisConnectionError("the client was closed") from None
            raise

    def _settle(self, task: asyncio.Task[_Connection]) -> None:
        self._connecting = None
        if not task.cancelled() and task.exception() is None:
            self._connection = task.result()

    async def _connect(self) -> _Connection:
        loop = asyncio.get_running_loop()
        connection = _Connection(loop, self._timeouts.read_s)
        try:
            async with asyncio.timeout(self._timeouts.connect_s):
                if self._address.socket:
                    await loop.create_unix_connection(lambda: connection, self._address.socket)
                else:
                    host, port = await self._server()
                    await loop.create_connection(lambda: connection, host, port, ssl=self._context)
                for words in _login(self._address.options):
                    packed = hiredis.pack_command(words)  # type: ignore[arg-type]
                    _checked(await connection.send(packed, 1))
        except TimeoutError as error:
            connection.close()
            raise RedisTimeoutError(
                f"no connection within {self._timeouts.connect_s:g} s"
            ) from error
        except BaseException:
            connection.close()
            raise
        return connection

    async def _server(self) -> tuple[str, int]:
        """Host and port of the Redis, from Sentinels where there are any."""
        address = self._address
        if address.redis_type == "redis":
            return address.nodes[0]
        each_s = self._timeouts.connect_s / len(address.nodes)
        sentinels = _Sentinel(
            address.nodes,
            sentinel_kwargs={
                **address.sentinel_options,
                "socket_connect_timeout": each_s,
                "socket_timeout": each_s,
                "retry": Retry(NoBackoff(), 0),
            },
        )
        try:
            host, port = await sentinels.discover_master(address.sentinel_master)
        finally:
            for sentinel in sentinels.sentinels:
                await sentinel.aclose()
        return host, port


@dataclass(slots=True)
class _Batch:
    """Commands that were sent at once, and their answers so far."""

    future: asyncio.Future[list[Any]]
    count: int
    answers: list[Any]
    deadline_s: float


class _Connection(asyncio.Protocol):
    """A connection, and the commands that wait for their answers over it, in order.

    Attributes:
        is_open: Whether commands can be sent.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, timeout_s: float) -> None:
        self.is_open = False
        self._is_late = False
        self._loop = loop
        self._timeout_s = timeout_s
        self._reader = hiredis.Reader()
        self._pending: deque[_Batch] = deque()
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None

    def send(self, packed: bytes, count: int) -> asyncio.Future[list[Any]]:
        """Send commands at once; the future gets their answers."""
        if not self.is_open or self._transport is None:
            raise RedisConnectionError("the connection is closed")
        if len(self._pending) >= PENDING_MAX:
            raise RedisTimeoutError(f"{PENDING_MAX} commands wait for their answers")
        future: asyncio.Future[list[Any]] = self._loop.create_future()
        self._pending.append(_Batch(future, count, [], self._loop.time() + self._timeout_s))
        self._transport.write(packed)
        if self._timer is None:
            self._timer = self._loop.call_later(self._timeout_s, self._check_time)
        return future

    def close(self) -> None:
        """Close the connection; commands that still wait fail."""
        self.is_open = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        self.is_open = True

    def data_received(self, data: bytes) -> None:
        reader, pending = self._reader, self._pending
        reader.feed(data)
        try:
            while (answer := reader.gets()) is not False:
                batch = pending[0]
                batch.answers.append(_error(answer) if type(answer) is _ReplyError else answer)
                if len(batch.answers) == batch.count:
                    pending.popleft()
                    if not batch.future.done():
                        batch.future.set_result(batch.answers)
        except (hiredis.ProtocolError, IndexError):  # an answer without command, or not Redis
            self.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        error = (
            RedisTimeoutError(f"no answer within {self._timeout_s:g} s")
            if self._is_late
            else RedisConnectionError(f"the connection was closed{f' ({exc})' if exc else ''}")
        )
        while self._pending:
            future = self._pending.popleft().future
            if not future.done():
                future.set_exception(error)

    def _check_time(self) -> None:
        """Close the connection if the oldest command has waited too long."""
        self._timer = None
        if not self._pending:
            return
        rest_s = self._pending[0].deadline_s - self._loop.time()
        if rest_s > 0:
            self._timer = self._loop.call_later(rest_s, self._check_time)
            return
        self._is_late = True
        self.close()


def _checked(answers: Sequence[Any]) -> Any:
    (answer,) = answers
    if isinstance(answer, Exception):
        raise answer
    return answer


def _error(answer: hiredis.ReplyError) -> ResponseError | AuthenticationError:
    text = str(answer)
    kind = AuthenticationError if text.startswith(("NOAUTH", "WRONGPASS")) else ResponseError
    return kind(text)


def _login(options: dict[str, Any]) -> list[tuple[str, ...]]:
    """The first commands of a connection."""
    words: list[tuple[str, ...]] = []
    if "password" in options:
        user = [options["username"]] if "username" in options else []
        words.append(("AUTH", *user, options["password"]))
    if options.get("db"):
        words.append(("SELECT", str(options["db"])))
    return words


def _tls(options: dict[str, Any]) -> ssl.SSLContext | None:
    """How a certificate is checked: as redis-py does it, but by the named authorities alone."""
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
