"""Connections to Redis; the one place where its errors become Tallystick's."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, overload

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError
from redis.retry import Retry

from tallystick.errors import InputError, Problem, UnavailableError

SyncClient: TypeAlias = Any
"""A ``redis.Redis``; the annotations of its commands mix answers and awaitables."""
AsyncClient: TypeAlias = Any
"""A ``redis.asyncio.Redis``."""

EMBEDDED: Final = "embedded"
CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 5.0
_FORM: Final = (
    "host:port[,username=…][,password=…][,ssl=true][,db=0], unix:///path/of/socket, or embedded"
)
_OPTIONS: Final[dict[str, tuple[str, Callable[[str], Any]]]] = {
    "port": ("a number", int),
    "db": ("a number", int),
    "ssl": ("true or false", lambda value: {"true": True, "false": False}[value.lower()]),
    "username": ("text", str),
    "password": ("text", str),
}


def connection_arguments(connection_string: str, state_dir: Path | None) -> dict[str, Any]:
    """What a Redis client has to be told to connect; starts the embedded server if it is meant.

    Raises:
        InputError: The text has another form; no part of it that may be secret is shown.
        UnavailableError: The embedded server does not start.
    """
    if connection_string == EMBEDDED:
        if state_dir is None:
            raise InputError("An embedded Redis needs the folder in which it keeps its data.")
        from tallystick.online_store.embedded import start

        return {"unix_socket_path": str(start(state_dir))}
    if connection_string.startswith("unix://"):
        return {"unix_socket_path": connection_string.removeprefix("unix://")}
    address, *options = connection_string.split(",")
    host, _, port = address.rpartition(":")
    problems = [] if host else [Problem("address", "host:port", "another text")]
    arguments: dict[str, Any] = {"host": host.strip("[]")}
    for option in (f"port={port}", *options):
        name, _, value = option.partition("=")
        if name not in _OPTIONS:
            problems.append(Problem("option", f"one of {', '.join(_OPTIONS)}", "another name"))
            continue
        expected, read = _OPTIONS[name]
        try:
            arguments[name] = read(value)
        except (KeyError, ValueError):
            problems.append(Problem(name, expected, "another value"))
    if problems:
        raise InputError(
            "The online store's connection_string cannot be used.", problems, hint=f"Form: {_FORM}"
        )
    return arguments


@overload
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    asynchronous: Literal[False] = False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> SyncClient: ...
@overload
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    asynchronous: Literal[True],
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> AsyncClient: ...
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    asynchronous: bool = False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Any:
    """A Redis client, which connects when it is first used.

    A command whose connection turns out to be closed is sent once more: every command that is used
    here may be repeated. A command that times out is not.

    Args:
        connection_string: ``host:port[,username=…][,password=…][,ssl=true][,db=0]``,
            ``unix:///path`` or ``embedded``.
        repo_path: Folder of the Feast repo, of which an embedded server is part.
        asynchronous: Whether to give a ``redis.asyncio.Redis``.
        connect_timeout_s: Seconds to connect.
        read_timeout_s: Seconds to wait for an answer.

    Raises:
        InputError: The connection string cannot be used.
        UnavailableError: The embedded server does not start.
    """
    from tallystick.repo import state_dir

    arguments = connection_arguments(
        connection_string, None if repo_path is None else state_dir(repo_path)
    )
    arguments |= {"socket_connect_timeout": connect_timeout_s, "socket_timeout": read_timeout_s}
    again: dict[str, Any] = {
        "backoff": NoBackoff(),
        "retries": 1,
        "supported_errors": (RedisConnectionError,),
    }
    if asynchronous:
        return redis_asyncio.Redis(retry=AsyncRetry(**again), **arguments)
    return Redis(retry=Retry(**again), **arguments)


def address(client: SyncClient | AsyncClient) -> str:
    """Where a client's Redis is, without anything secret."""
    arguments = client.connection_pool.connection_kwargs
    place = arguments.get("path") or f"{arguments.get('host')}:{arguments.get('port')}"
    return f"Redis at {place}"


@contextmanager
def redis_errors(client: SyncClient | AsyncClient) -> Iterator[None]:
    """Turn any error of Redis or of the connection into an UnavailableError that names the host."""
    try:
        yield
    except (RedisError, OSError) as error:
        raise UnavailableError(address(client), str(error) or type(error).__name__) from error
