"""One DuckDB database in memory per process and limits; a connection to it per call."""

from __future__ import annotations

import os
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tallystick.errors import DataError
from tallystick.offline_store.places import attach

if TYPE_CHECKING:
    import pyarrow as pa


class EngineLimits(Protocol):
    """What the engine may take; ``DuckDBOfflineStoreConfig`` has these fields.

    Attributes:
        memory_limit: For example ``4GB``; None for 80% of the machine's memory.
        threads: None for one per core.
        spill_dir: Folder for what does not fit; None for one in the system's temporary folder.
    """

    @property
    def memory_limit(self) -> str | None:
        """Memory that the engine may take."""

    @property
    def threads(self) -> int | None:
        """Threads that the engine may run."""

    @property
    def spill_dir(self) -> str | None:
        """Folder for what does not fit into memory."""


@dataclass(frozen=True)
class DefaultLimits:
    """All of the machine."""

    memory_limit: str | None = None
    threads: int | None = None
    spill_dir: str | None = None


def connect(config: EngineLimits | None = None) -> Any:
    """A DuckDB connection for one thread; close it after use.

    Every connection of a process with the same limits shares one database in memory, and so its
    limits. The session's time zone is UTC. It reads from the object stores whose files were looked
    up before.

    Args:
        config: The limits; None for all of the machine.
    """
    limits = config or DefaultLimits()
    shared = database(os.getpid(), limits.memory_limit, limits.threads, limits.spill_dir)
    connection = shared.cursor()
    attach(connection)
    return connection


@cache
def database(
    process: int, memory_limit: str | None, threads: int | None, spill_dir: str | None
) -> Any:
    """The database in memory; the process is an argument because none survives a fork."""
    import duckdb

    spill = spill_dir or Path(tempfile.gettempdir(), f"tallystick-spill-{process}").as_posix()
    settings: dict[str, Any] = {"temp_directory": spill}
    if memory_limit is not None:
        settings["memory_limit"] = memory_limit
    if threads is not None:
        settings["threads"] = threads
    try:
        opened = duckdb.connect(":memory:", config=settings)
        opened.execute("SET GLOBAL TimeZone = 'UTC'")
    except duckdb.Error as error:
        raise DataError(
            f"DuckDB does not start with memory_limit={memory_limit}, threads={threads}, "
            f"spill_dir={spill_dir}: {error}",
            hint="Correct offline_store in feature_store.yaml.",
        ) from error
    return opened


def memory_limit(connection: Any) -> int:
    """Bytes that the engine may take."""
    ((text,),) = connection.execute("SELECT current_setting('memory_limit')").fetchall()
    number, unit = str(text).split()
    powers = {"bytes": 0, "KiB": 1, "MiB": 2, "GiB": 3, "TiB": 4}
    return int(float(number) * 1024 ** powers[unit])


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
