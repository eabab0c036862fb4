"""Connections to DuckDB: one database in memory per process and limits, or per long run."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

from tallystick.errors import DataError
from tallystick.storage.locations import attach

if TYPE_CHECKING:
    import pyarrow as pa

_NO_ROOM: Final = ("No space left", "File too large", "quota exceeded", "max_temp_directory_size")
"""What DuckDB's messages contain when a disk, or the allowed part of it, is full."""


class EngineLimits(Protocol):
    """Limits of the engine. ``DuckDBOfflineStoreConfig`` has these fields.

    Attributes:
        memory_limit: For example ``4GB``, or None for 80% of the machine's memory.
        threads: None for one per core.
        spill_dir: Folder for what does not fit into memory, or None for one in the system's
            temporary folder.
    """

    memory_limit: str | None
    threads: int | None
    spill_dir: str | None


@dataclass
class DefaultLimits:
    """The whole machine."""

    memory_limit: str | None = None
    threads: int | None = None
    spill_dir: str | None = None


def connect(config: EngineLimits | None = None) -> Any:
    """A DuckDB connection for one thread. Close it after use.

    Every connection of a process with the same limits shares one database in memory, and so its
    limits. The session's time zone is UTC. It reads from the object stores whose files were looked
    up.

    Args:
        config: The limits, or None for the whole machine.
    """
    limits = config or DefaultLimits()
    return connection_to(
        database(os.getpid(), limits.memory_limit, limits.threads, limits.spill_dir)
    )


@cache
def database(
    process: int, memory_limit: str | None, threads: int | None, spill_dir: str | None
) -> Any:
    """The database in memory. A database does not survive a fork, so the process is an argument."""
    spill = spill_dir or Path(tempfile.gettempdir(), f"tallystick-spill-{process}").as_posix()
    return _opened(DefaultLimits(memory_limit, threads, spill_dir), spill=spill)


@contextmanager
def own_database(config: EngineLimits | None, *, spill: Path) -> Iterator[Any]:
    """Give a database in memory for one long run. Its memory is free after the block.

    Take a connection to it by :func:`connection_to`.

    Args:
        config: The limits, or None for the whole machine.
        spill: Folder for what does not fit into memory, in place of that of the limits.

    Raises:
        DataError: The limits cannot be used.
    """
    opened = _opened(config or DefaultLimits(), spill=spill.as_posix())
    try:
        yield opened
    finally:
        opened.close()


def connection_to(opened: Any) -> Any:
    """A connection to a database. It reads from the object stores whose files were looked up."""
    connection = opened.cursor()
    attach(connection)
    return connection


def _opened(limits: EngineLimits, *, spill: str) -> Any:
    import duckdb

    settings: dict[str, Any] = {"temp_directory": spill}
    if limits.memory_limit is not None:
        settings["memory_limit"] = limits.memory_limit
    if limits.threads is not None:
        settings["threads"] = limits.threads
    try:
        opened = duckdb.connect(":memory:", config=settings)
        opened.execute("SET GLOBAL TimeZone = 'UTC'")
    except duckdb.Error as error:
        raise DataError(
            f"DuckDB does not start with memory_limit={limits.memory_limit}, "
            f"threads={limits.threads}, spill_dir={limits.spill_dir}: {error}",
            hint="Correct offline_store in feature_store.yaml, or the limits of the command.",
        ) from error
    return opened


def read_table(connection: Any, sql: str, *, what: str) -> pa.Table:
    """The answer to a query, as one Arrow table.

    Args:
        connection: By :func:`connect`.
        sql: One SELECT.
        what: What is read, for the message: ``view X from FILE``.

    Raises:
        DataError: DuckDB could not read it.
    """
    import duckdb

    try:
        return connection.sql(sql).to_arrow_table()
    except duckdb.Error as error:
        raise DataError(f"Cannot read {what}: {error}") from error


def query_table(config: EngineLimits | None, sql: str, *, what: str) -> pa.Table:
    """As :func:`read_table`, on a connection of its own."""
    with closing(connect(config)) as connection:
        return read_table(connection, sql, what=what)


@contextmanager
def engine_errors(what: str, *, config: EngineLimits | None, spill: Path) -> Iterator[None]:
    """Translate DuckDB's errors in a long run.

    Args:
        what: What is read: ``view X from FILE``.
        config: The limits.
        spill: Folder of what does not fit into memory.

    Raises:
        DataError: Memory is too small, or the source cannot be read.
        OSError: The disk is full (``ENOSPC``).
    """
    import duckdb

    try:
        yield
    except duckdb.Error as error:
        text = str(error)
        if any(sign in text for sign in _NO_ROOM):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), spill.as_posix()) from error
        if isinstance(error, duckdb.OutOfMemoryException):
            limit = config.memory_limit if config and config.memory_limit else "all there is"
            raise DataError(
                f"The memory_limit ({limit}) is too small to read {what}: {text.splitlines()[0]}",
                hint="Raise memory_limit, or lower threads, each of which takes some of it.",
            ) from error
        raise DataError(f"Cannot read {what}: {error}") from error
