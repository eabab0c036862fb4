"""The rows of a view that an online store does not have yet, read in batches.

The source shows which rows can be new. Of files that were added or changed since the last run these
are all rows, because rows land late. Of files that were read before these are the rows that have
become visible since, which are found by statistics of files and row groups.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from tallystick.clock import arrow_from_us
from tallystick.definitions.exact_cast import converted
from tallystick.definitions.feature_view import digest
from tallystick.errors import DataError
from tallystick.offline_store.duckdb_connection import EngineLimits, connect, read_table
from tallystick.offline_store.sources.consistent_read import changed_files, read_steadily
from tallystick.offline_store.sources.pruning import Bounds, pruned
from tallystick.offline_store.sources.source_files import SourceFiles
from tallystick.offline_store.view_history import history_of, open_history, require_times, typed
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.rule import VisibilityClock, newest_sql

if TYPE_CHECKING:
    import pyarrow as pa

BATCH_ROWS: Final = 100_000
"""Rows of a batch, at most."""


@dataclass(frozen=True)
class Covered:
    """What was read before: the rows of some files that were visible by some moment.

    Attributes:
        files: Their digests, by :func:`file_digests`.
        until_us: The moment, included, in microseconds since 1970 in UTC.
    """

    files: frozenset[str]
    until_us: int


def read_newly_visible(
    read: ViewRead,
    write: Callable[[pa.Table], None],
    *,
    clock: VisibilityClock,
    until_us: int,
    covered: Covered | None = None,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
) -> SourceFiles:
    """Read the rows that became visible, and pass them on.

    Memory is that of the engine, which has its limit, and of one batch.

    Args:
        read: The view. Its ``name`` and ``key_map`` do not matter here.
        write: Takes a batch: the view's key columns, its features in their declared types, and its
            time columns (timestamp[us, UTC]). Rows with a null key are left out. If a file was
            replaced during the read, batches are passed on again.
        clock: When a row counts as visible: by its event time or by when it was known.
        until_us: Rows visible up to here are read, in microseconds since 1970 in UTC.
        covered: What was read before, or None for nothing.
        config: Limits of the engine, or None for the whole machine.
        repo_path: Folder from which relative source paths are taken.

    Returns:
        All files of the source, as they were when they were read.

    Raises:
        DataError: A source does not fit its view, or lacks the time that the clock needs.
    """

    def opened() -> tuple[SourceFiles, list[_Part]]:
        whole = open_history(read, clock=clock, repo_path=repo_path).whole
        return whole, list(_parts(read, whole, clock, covered, until_us))

    def pass_on(source: tuple[SourceFiles, list[_Part]]) -> SourceFiles:
        whole, parts = source
        for part in parts:
            _pass_on(part, read, write, clock, config)
        return whole

    return read_steadily(opened, lambda source: [part.history.files for part in source[1]], pass_on)


def file_digests(files: SourceFiles) -> list[str]:
    """Sixteen hexadecimal digits for each file, which differ once the file has changed."""
    return [digest(repr(state)) for state in files.states]


class _Part(NamedTuple):
    """Files of a source, the query for their new rows, and whether they were not read before."""

    history: History
    sql: str
    is_added: bool


def _parts(
    read: ViewRead,
    whole: SourceFiles,
    clock: VisibilityClock,
    covered: Covered | None,
    until_us: int,
) -> Iterator[_Part]:
    created = read.spec.created_column if clock is VisibilityClock.KNOWLEDGE else None
    names = filter(None, (read.spec.event_column, created))
    times = dict.fromkeys(map(read.source_column, names))
    until = dict.fromkeys(times, Bounds(None, until_us))
    is_known = [covered is not None and each in covered.files for each in file_digests(whole)]
    added, old = whole.only([not each for each in is_known]), whole.only(is_known)
    if added.signature:
        history = history_of(read, added, clock=clock, bounds=until)
        rows = f"(SELECT * FROM {history.sql} WHERE visible_us <= {until_us})"
        sql = newest_sql(rows, keys=history.keys)
        yield _Part(history, sql, is_added=True)
    if covered is None:
        return
    # A row becomes visible at one of its times, so one of them lies in between.
    since = Bounds(covered.until_us + 1, until_us)
    parts = [pruned(old, {column: since}, may_be_empty=True) for column in times]
    chosen = {state for part in parts for state in part.states}
    old = old.only([state in chosen for state in old.states])
    if old.signature:
        bounds = until if len(times) > 1 else dict.fromkeys(times, since)
        history = history_of(read, old, clock=clock, bounds=bounds)
        condition = f"visible_us > {covered.until_us} AND visible_us <= {until_us}"
        yield _Part(history, f"SELECT * FROM {history.sql} WHERE {condition}", is_added=False)


def _pass_on(
    part: _Part,
    read: ViewRead,
    write: Callable[[pa.Table], None],
    clock: VisibilityClock,
    config: EngineLimits | None,
) -> None:
    history = part.history
    with closing(connect(config)) as connection:
        if part.is_added:
            query = partial(read_table, connection, what=history.what)
            require_times(query, history, read, clock)
        for batch in _batches(connection, part.sql, what=history.what):
            if changed_files([history.files]):
                raise DataError(f"{history.what} was replaced while it was being read.")
            write(_named(batch, history, read))


def _batches(connection: Any, sql: str, *, what: str) -> Iterator[pa.Table]:
    import duckdb
    import pyarrow as pa

    try:
        for batch in connection.sql(sql).to_arrow_reader(BATCH_ROWS):
            yield pa.Table.from_batches([batch])
    # From the first batch on, errors of the engine come as errors of the stream.
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        raise DataError(f"Cannot read {what}: {error}") from error


def _named(found: pa.Table, history: History, read: ViewRead) -> pa.Table:
    """Rows of a history under the view's own names and types."""
    import pyarrow as pa

    spec = read.spec
    keys = {
        key.name: converted(found[f"key_{at}"], key.dtype, where=f"Key {key.name}")
        for at, key in enumerate(read.keys)
    }
    # A time column may be a feature as well, and then has the same values.
    times = {spec.event_column: arrow_from_us(found["event_us"])}
    if spec.created_column is not None:
        times[spec.created_column] = arrow_from_us(found["created_us"])
    return pa.table({**keys, **typed(found, history, read), **times})
