"""Connections to Redis; the one place where its errors become Tallystick's."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final, Literal, TypeAlias, overload

from redis import Redis
from redis import asyncio as redis_asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import AskError, NoPermissionError, RedisClusterException, RedisError
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from tallystick.errors import InputError, Problem, UnavailableError
from tallystick.online_store.redis_address import Place, read_place
from tallystick.online_store.redis_cluster import AsyncCluster, Cluster
from tallystick.online_store.redis_wire import Wire

SyncClient: TypeAlias = Any
"""A ``redis.Redis`` or ``Cluster``; the annotations of their
commands mix answers and awaitables."""
AsyncClient: TypeAlias = Any
"""A ``redis.asyncio.Redis`` or :class:`tallystick.online_store.redis_cluster.AsyncCluster`."""

ReadClient: TypeAlias = Wire | AsyncCluster
"""What serving reads with."""

EMBEDDED: Final = "embedded"
CONNECT_TIMEOUT_S: Final = 1.0
READ_TIMEOUT_S: Final = 5.0
_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""All that redis-py raises; its errors of a cluster are no RedisError."""


def place_of(
    connection_string: str, repo_path: Path | None = None, redis_type: str = "redis"
) -> Place:
    """Where a Redis is; starts the embedded server if that is meant.

    Args:
        connection_string: As :mod:`tallystick.online_store.redis_address` has it, or ``embedded``.
        repo_path: Folder of the Feast repo, of which an embedded server is part.
        redis_type: ``redis``, or ``redis_cluster`` for a cluster of which one node is named.

    Raises:
        InputError: The connection string cannot be used, or a file that it names.
        UnavailableError: The embedded server does not start.
    """
    if connection_string != EMBEDDED:
        return read_place(connection_string, redis_type)
    if repo_path is None:
        raise InputError("An embedded Redis needs the folder in which it keeps its data.")
    if redis_type != "redis":
        raise InputError(
            "The embedded Redis is one server.", [Problem("redis_type", "redis", repr(redis_type))]
        )
    from tallystick.definitions.feature_repo import state_dir
    from tallystick.online_store.embedded_redis import start

    return Place(socket=str(start(state_dir(repo_path))))


@overload
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    redis_type: str = "redis",
    asynchronous: Literal[False] = False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> SyncClient: ...
@overload
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    redis_type: str = "redis",
    asynchronous: Literal[True],
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> AsyncClient: ...
def connect(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    redis_type: str = "redis",
    asynchronous: bool = False,
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
) -> Any:
    """A client of Redis or of a Redis Cluster, which connects when it is first used.

    A synchronous client of a cluster connects at once, to learn which nodes there are.

    A command whose connection turns out to be closed is sent once more: every command that is used
    here may be repeated. A command that times out is not.

    Args:
        connection_string: As :mod:`tallystick.online_store.redis_address` has it, or ``embedded``.
        repo_path: Folder of the Feast repo, of which an embedded server is part.
        redis_type: ``redis``, or ``redis_cluster`` for a cluster of which one node is named.
        asynchronous: Whether to give a client for asyncio.
        connect_timeout_s: Seconds to connect.
        read_timeout_s: Seconds to wait for an answer.

    Raises:
        InputError: The connection string cannot be used, or a file that it names.
        UnavailableError: The embedded server does not start, or the cluster does not answer.
    """
    place = place_of(connection_string, repo_path, redis_type)
    options: dict[str, Any] = {
        **place.options,
        "socket_connect_timeout": connect_timeout_s,
        "socket_timeout": read_timeout_s,
    }
    if place.is_cluster:
        if asynchronous:
            return AsyncCluster(place, **options)
        try:
            return Cluster(place, **options)
        except _ERRORS as error:
            raise UnavailableError(str(place), _told(error, place)) from error
    if place.socket:
        options["unix_socket_path"] = place.socket
    else:
        ((options["host"], options["port"]),) = place.addresses
    again: dict[str, Any] = {
        "backoff": NoBackoff(),
        "retries": 1,
        "supported_errors": (RedisConnectionError,),
    }
    if asynchronous:
        return redis_asyncio.Redis(retry=AsyncRetry(**again), **options)
    return Redis(retry=Retry(**again), **options)


def connect_for_reads(
    connection_string: str,
    repo_path: Path | None = None,
    *,
    redis_type: str = "redis",
    connect_timeout_s: float = CONNECT_TIMEOUT_S,
    read_timeout_s: float = READ_TIMEOUT_S,
    budget_s: float | None = None,
) -> ReadClient:
    """What serving reads Redis with: the quickest that the place allows.

    Args and errors are those of :func:`connect`, and ``budget_s``: seconds for a command in all,
    which a cluster's client does not keep by itself.
    """
    place = place_of(connection_string, repo_path, redis_type)
    if not place.is_cluster:
        return Wire(
            place,
            connect_timeout_s=connect_timeout_s,
            read_timeout_s=read_timeout_s,
            budget_s=budget_s,
        )
    return AsyncCluster(
        place,
        **place.options,
        socket_connect_timeout=connect_timeout_s,
        socket_timeout=read_timeout_s,
    )


def address(client: SyncClient | AsyncClient) -> str:
    """Where a client's Redis is, without anything secret."""
    return str(_place_of_client(client))


@contextmanager
def redis_errors(client: SyncClient | AsyncClient) -> Iterator[None]:
    """Turn any error of Redis or of the connection into an UnavailableError that names the host."""
    try:
        yield
    except _ERRORS as error:
        if isinstance(error, RedisClusterException) and isinstance(client, Cluster | AsyncCluster):
            client.start_over()
        place = _place_of_client(client)
        raise UnavailableError(str(place), _told(error, place)) from error


def _place_of_client(client: SyncClient | AsyncClient) -> Place:
    place = getattr(client, "place", None)
    if isinstance(place, Place):
        return place
    arguments = client.connection_pool.connection_kwargs
    if socket := arguments.get("path"):
        return Place(socket=socket)
    own = (arguments.get("host", "localhost"), arguments.get("port", 6379))
    return Place((own,), options={"ssl": "ssl_cert_reqs" in arguments})


def _told(error: BaseException, place: Place) -> str:
    """What an error says; why TLS or a user was refused is behind the error to which that led."""
    told = str(error) or type(error).__name__
    if isinstance(error, AskError):
        told = "a slot of the cluster does not stop moving"
    behind: BaseException | None = error
    while behind is not None:
        if isinstance(behind, ssl.SSLCertVerificationError):
            return f"TLS failed: the certificate does not hold, {behind.verify_message}"
        if isinstance(behind, ssl.SSLError):
            return f"TLS failed: {behind.reason or behind}"
        if isinstance(behind, NoPermissionError):  # redis-py takes it for a server of no cluster
            return str(behind)
        is_connecting = isinstance(behind, RedisTimeoutError) and "connecti" in str(behind)
        if is_connecting and place.options.get("ssl"):
            # A server without TLS waits for the rest of what it takes for a command.
            return f"{told}: TLS failed, or nobody is there"
        behind = behind.__cause__ or behind.__context__
    return told
