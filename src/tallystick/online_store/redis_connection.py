"""Clients of Redis, and the conversion of their errors into Tallystick's.

Writers, the command line and Feast use redis-py's synchronous clients of a server, a cluster or a
server behind Sentinels. Serving reads with a client of its own for each event loop: one shared
connection to a server (:mod:`tallystick.online_store.shared_connection`), or to each node of a
cluster (:mod:`tallystick.online_store.cluster_reader`).
"""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final, TypeAlias
from weakref import WeakKeyDictionary

from redis import Redis
from redis.backoff import NoBackoff
from redis.cluster import ClusterNode, RedisCluster
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisClusterException, RedisError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry
from redis.sentinel import Sentinel

from tallystick.errors import InputError, Problem, UnavailableError
from tallystick.online_store.cluster_reader import ClusterReader
from tallystick.online_store.redis_address import RedisAddress, read_address
from tallystick.online_store.redis_options import EMBEDDED, RedisOptions
from tallystick.online_store.shared_connection import ReadTimeouts, SharedConnection

SyncClient: TypeAlias = Any
"""A ``redis.Redis`` or ``redis.cluster.RedisCluster``; the annotations of their commands mix
answers and awaitables."""
ReadClient: TypeAlias = SharedConnection | ClusterReader
"""An asynchronous client for the reads of serving."""

_ClusterNode: Final[Any] = ClusterNode
_Sentinel: Final[Any] = Sentinel
_ERRORS: Final = (RedisError, RedisClusterException, OSError)
"""All that redis-py raises; RedisClusterException is not a RedisError."""
_addresses: WeakKeyDictionary[Any, RedisAddress] = WeakKeyDictionary()
"""Client → its address, for errors."""


def _address(store: RedisOptions, repo_path: Path | None) -> RedisAddress:
    """The address of a Redis; starts the embedded server where that is configured."""
    if store.connection_string != EMBEDDED:
        return read_address(store)
    if repo_path is None:
        raise InputError("An embedded Redis needs the folder of a Feast repo for its data.")
    if store.redis_type != "redis":
        raise InputError(
            "The embedded Redis is one server.", [Problem("redis_type", "redis", store.redis_type)]
        )
    from tallystick.definitions.feature_repo import state_dir
    from tallystick.online_store.embedded_redis import start

    return RedisAddress(socket=str(start(state_dir(repo_path))))


def connect(store: RedisOptions, repo_path: Path | None = None) -> SyncClient:
    """A synchronous client of redis-py.

    It connects at its first command; the client of a cluster connects at once, to learn the nodes.
    A command whose connection turns out to be closed is sent once more: every command that is used
    here may be repeated.

    Args:
        store: Options of the online store.
        repo_path: Folder of the Feast repo, in whose state folder an embedded server lives.

    Raises:
        InputError: The connection string or a file that it names cannot be used.
        UnavailableError: The embedded server does not start, or the cluster does not answer.
    """
    address = _address(store, repo_path)
    timeouts = {
        "socket_connect_timeout": store.connect_timeout_s,
        "socket_timeout": store.read_timeout_s,
    }
    options: dict[str, Any] = {**address.options, **timeouts}
    client: SyncClient
    if address.redis_type == "redis_cluster":
        try:
            client = RedisCluster(
                startup_nodes=[_ClusterNode(*node) for node in address.nodes],
                # All nodes may have other addresses one day, except the configured ones.
                dynamic_startup_nodes=False,
                retry=Retry(NoBackoff(), 1),
                **options,
            )
        except _ERRORS as error:
            raise UnavailableError(str(address), _reason(error, address)) from error
    else:
        options["retry"] = Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,))
        if address.redis_type == "redis_sentinel":
            once = {"retry": Retry(NoBackoff(), 0), **timeouts}
            sentinels = _Sentinel(
                address.nodes, sentinel_kwargs={**address.sentinel_options, **once}
            )
            client = sentinels.master_for(address.sentinel_master, **options)
        elif address.socket:
            client = Redis(unix_socket_path=address.socket, **options)
        else:
            ((host, port),) = address.nodes
            client = Redis(host, port, **options)
    _addresses[client] = address
    return client


def connect_for_reads(
    store: RedisOptions, repo_path: Path | None = None, *, budget_s: float | None = None
) -> ReadClient:
    """The asynchronous client with which serving reads; it connects at its first command.

    Args:
        store: Options of the online store.
        repo_path: See :func:`connect`, as for the errors.
        budget_s: Seconds for a command in all, and so at most for each of its parts.
    """
    if budget_s is None:
        budget_s = store.connect_timeout_s + store.read_timeout_s
    address = _address(store, repo_path)
    connect_s = min(budget_s, store.connect_timeout_s)
    read_s = min(budget_s, store.read_timeout_s)
    timeouts = ReadTimeouts(connect_s, read_s, budget_s)
    client: ReadClient
    if address.redis_type == "redis_cluster":
        shorter = {"connect_timeout_s": connect_s, "read_timeout_s": read_s}
        make = partial(connect, store.model_copy(update=shorter))
        client = ClusterReader(address, make, timeouts)
    else:
        client = SharedConnection(address, timeouts)
    _addresses[client] = address
    return client


def shown_address(client: SyncClient | ReadClient) -> str:
    """The address of a client's Redis, without secrets."""
    return str(_addresses.get(client, "Redis"))


@contextmanager
def redis_errors(client: SyncClient | ReadClient) -> Iterator[None]:
    """Turn any error of Redis or of the connection into an UnavailableError with the address."""
    try:
        yield
    except _ERRORS as error:
        address = _addresses.get(client, RedisAddress())
        raise UnavailableError(shown_address(client), _reason(error, address)) from error


def _reason(error: BaseException, address: RedisAddress) -> str:
    """Why a command failed: for TLS and permissions, the error behind that of redis-py."""
    reason = str(error) or type(error).__name__
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"TLS failed: the certificate is not valid, {cause.verify_message}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {cause.reason or cause}"
        if isinstance(cause, NoPermissionError):  # redis-py reports a server that is not a cluster
            return str(cause)
        is_connecting = isinstance(cause, RedisTimeoutError) and "connecti" in str(cause)
        if is_connecting and address.options.get("ssl"):
            # A server without TLS waits for the rest of what it takes for a command.
            return f"{reason}: TLS failed, or no server listens there"
        cause = cause.__cause__ or cause.__context__
    return reason
