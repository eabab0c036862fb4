"""The point-in-time join on DuckDB: features of entity rows at their request times.

There is one way from entity rows to the features of a view. Its keys and request times become a
relation, the engine answers one query about it, and the answer is appended to the entity rows.
:func:`point_in_time` keeps these relations in memory. :func:`stream_point_in_time` keeps them in
files, for more entity rows than fit into memory. docs/adr/0015-one-retrieval-path.md has the
figures.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import arrow_from_us, arrow_to_us
from tallystick.errors import InputError
from tallystick.offline_store.duckdb_connection import (
    DefaultLimits,
    EngineLimits,
    connect,
    connection_to,
    engine_errors,
    own_database,
    read_table,
)
from tallystick.offline_store.entity_rows import (
    check_entity_rows,
    check_request_times,
    entity_keys,
)
from tallystick.offline_store.known_late import KnownLate, known_late
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.sources.file_source import Snapshots
from tallystick.offline_store.sources.pruning import Span, span_of
from tallystick.offline_store.view_history import open_history, require_times, typed
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.point_in_time.feature_status import Status
from tallystick.point_in_time.rule import VisibilityClock, as_of_sql, text_sql, values_sql
from tallystick.storage.atomic_files import scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa

_TIMES: Final = ("event_us", "created_us")

BATCH_ROWS: Final = 100_000
"""Entity rows of a stream that are in memory at once."""


def point_in_time(
    *,
    entity_rows: pa.Table,
    request_time: str,
    reads: Sequence[ViewRead],
    clock: VisibilityClock,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
    with_times: bool = False,
    snapshots: Snapshots | None = None,
    late: list[KnownLate] | None = None,
) -> pa.Table:
    """The features of entity rows at their request times.

    Args:
        entity_rows: Entity keys and request times, with any other columns. One row per request.
        request_time: Their column of request times: timestamps, naive ones in UTC.
        reads: The views to read.
        clock: When a row counts as visible.
        config: Limits of the engine, or None for the whole machine.
        repo_path: Folder from which relative source paths are taken.
        with_times: Add, per view, the winning row's ``view__event_time`` and
            ``view__created_time`` (timestamp[us, UTC], also where it is too old) and
            ``view__status`` (``PRESENT``, ``NOT_FOUND`` or ``OUTSIDE_MAX_AGE``).
        snapshots: The versions of tables that the answer is made of, or None for the newest.
        late: Is given the values that were not known at the time of their request.

    Returns:
        The entity rows, unchanged and in their order, and after their columns ``view__feature`` for
        each feature in the declared type.

    Raises:
        InputError: The entity rows lack columns, or have some of a wrong type, or a null request
            time.
        DataError: A source does not fit its view, or lacks the time that the clock needs.
    """
    check_entity_rows(entity_rows.schema, request_time, reads, with_times=with_times)
    check_request_times(request_time, nulls=entity_rows[request_time].null_count)
    shared = Snapshots() if snapshots is None else snapshots
    answer = entity_rows
    for read in reads:
        keys = entity_keys(entity_rows, request_time, read)
        span = span_of(keys["request_us"], with_times=with_times)
        opened = partial(
            open_history, read, clock=clock, repo_path=repo_path, span=span, snapshots=shared
        )
        work = partial(
            _in_memory,
            keys=keys,
            read=read,
            clock=clock,
            config=config,
            with_times=with_times,
            counts_late=late is not None and read.spec.created_column is not None,
        )
        columns, found = read_steadily(opened, lambda history: [history.files], work)
        if late is not None:
            late += found
        for name, column in columns.items():
            answer = answer.append_column(name, column)
    return answer


def _in_memory(
    history: History,
    *,
    keys: pa.Table,
    read: ViewRead,
    clock: VisibilityClock,
    config: EngineLimits | None,
    with_times: bool,
    counts_late: bool,
) -> tuple[dict[str, Any], list[KnownLate]]:
    """The columns that one view adds, and its values that were not known."""
    times = _TIMES if with_times else ("created_us",) if counts_late else ()
    with closing(connect(config)) as connection:
        connection.register("entity_rows", history.joined_by(keys))
        require_times(partial(read_table, connection, what=history.what), history, read, clock)
        sql = _answer_sql(history, read, rows=keys.num_rows, times=times)
        found = read_table(connection, sql, what=history.what)
    late = known_late(read, found, keys["request_us"]) if counts_late else []
    return _columns(found, history, read, with_times=with_times), late


@dataclass(frozen=True)
class Workspace:
    """Folder and database of one long run.

    Attributes:
        folder: For intermediate files.
        database: By :func:`tallystick.offline_store.duckdb_connection.own_database`.
        config: Limits of the engine.
    """

    folder: Path
    database: Any
    config: EngineLimits

    @contextmanager
    def connection(self, *, what: str) -> Iterator[Any]:
        """Give a connection to the database.

        Args:
            what: What is read, for messages.

        Raises:
            DataError: It cannot be read, or memory is too small.
            OSError: The disk is full.
        """
        with (
            engine_errors(what, config=self.config, spill=self.folder / "spill"),
            closing(connection_to(self.database)) as connection,
        ):
            yield connection


@contextmanager
def workspace(out: Path, config: EngineLimits | None) -> Iterator[Workspace]:
    """Give a workspace for writing ``out``: in the limits' ``spill_dir``, or else beside it.

    The folder is removed after the block. A folder that a killed process left is removed as well.
    """
    limits = config or DefaultLimits()
    beside = Path(limits.spill_dir) / out.name if limits.spill_dir else out
    with (
        scratch_folder(beside) as folder,
        own_database(limits, spill=folder / "spill") as database,
    ):
        yield Workspace(folder, database, limits)


@contextmanager
def stream_point_in_time(
    *,
    entity_rows: Path,
    request_time: str,
    reads: Sequence[ViewRead],
    clock: VisibilityClock,
    workspace: Workspace,
    repo_path: Path | str | None = None,
    with_times: bool = False,
    batch_rows: int = BATCH_ROWS,
    progress: Callable[[str, int], None] = lambda *_: None,
) -> Iterator[Iterator[pa.Table]]:
    """Give the answer of :func:`point_in_time` in batches: at least one, which may be empty.

    Args:
        entity_rows: A Parquet file of entity rows.
        request_time: Their column of request times.
        reads: The views to read.
        clock: When a row counts as visible.
        workspace: Where keys and answers of all views are written.
        repo_path: Folder from which relative source paths are taken.
        with_times: Whether to add times and status of the winning rows.
        batch_rows: Rows per batch.
        progress: Called with the name of the view and the number of views before it.

    Raises:
        InputError: The entity rows cannot be used.
        DataError: A source does not fit its view, or ``memory_limit`` is too small.
        OSError: The disk is full.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(entity_rows)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The entity rows {entity_rows} cannot be read: {error}") from error
    with ExitStack() as stack:
        stack.callback(file.close)
        check_entity_rows(file.schema_arrow, request_time, reads, with_times=with_times)
        span = _span_of(file, request_time, rows=batch_rows, with_times=with_times)
        answers = []
        snapshots = Snapshots()
        for number, read in enumerate(reads):
            progress(f"view {read.name}", number)
            opened = partial(
                open_history, read, clock=clock, repo_path=repo_path, span=span, snapshots=snapshots
            )
            out = workspace.folder / f"answer-{number}.parquet"
            work = partial(
                _to_file,
                file=file,
                request_time=request_time,
                read=read,
                clock=clock,
                workspace=workspace,
                batch_rows=batch_rows,
                with_times=with_times,
                out=out,
            )
            history = read_steadily(opened, lambda history: [history.files], work)
            answer = pq.ParquetFile(out)
            stack.callback(answer.close)
            answers.append((read, history, answer))
        yield _side_by_side(file, answers, with_times=with_times, rows=batch_rows)


def _to_file(
    history: History,
    *,
    file: Any,
    request_time: str,
    read: ViewRead,
    clock: VisibilityClock,
    workspace: Workspace,
    batch_rows: int,
    with_times: bool,
    out: Path,
) -> History:
    """Write the answer of one view to a file."""
    import pyarrow.parquet as pq

    path = workspace.folder / "keys.parquet"
    names = sorted({request_time, *(read.entity_column(key.name) for key in read.keys)})
    first_row = 0
    with ExitStack() as stack:
        writer = None
        for table in _batches(file, columns=names, rows=batch_rows):
            keys = history.joined_by(entity_keys(table, request_time, read, first_row=first_row))
            first_row += table.num_rows
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(path, keys.schema))
            writer.write_table(keys)
    with workspace.connection(what=history.what) as connection:
        connection.execute(f"CREATE TEMP VIEW entity_rows AS FROM {parquet_sql(path)}")
        require_times(partial(read_table, connection, what=history.what), history, read, clock)
        sql = _answer_sql(history, read, rows=first_row, times=_TIMES if with_times else ())
        connection.execute(f"COPY ({sql}) TO {text_sql(out.as_posix())} (FORMAT parquet)")
    path.unlink()
    return history


def _answer_sql(history: History, read: ViewRead, *, rows: int, times: Sequence[str]) -> str:
    """The query for a view's values at the ``rows`` rows of the relation ``entity_rows``."""
    relation = history.sql
    if rows * 2 <= history.files.rows:
        # Few requests: rows of other keys are left out before the sort.
        matches = " AND ".join(f"entity_rows.{key} = history.{key}" for key in history.keys)
        relation = (
            f"(SELECT * FROM {relation} AS history "
            f"WHERE EXISTS (SELECT 1 FROM entity_rows WHERE {matches}))"
        )
    matched = as_of_sql(
        relation,
        entity_rows="entity_rows",
        keys=history.keys,
        ttl_us=read.spec.ttl_us,
    )
    if "created_us" in times:
        matched = history.with_created_time(matched)
    return values_sql(history.sql, f"({matched})", values=history.values, times=times)


def _columns(
    found: pa.Table, history: History, read: ViewRead, *, with_times: bool
) -> dict[str, Any]:
    """The columns that one view adds to the entity rows, by name."""
    import pyarrow as pa
    import pyarrow.compute as pc

    columns = typed(found, history, read)
    if with_times:
        status = pc.if_else(found["too_old"], str(Status.OUTSIDE_MAX_AGE), str(Status.PRESENT))
        status = pc.if_else(pc.is_null(found["event_us"]), str(Status.NOT_FOUND), status)
        columns |= {
            "event_time": arrow_from_us(found["event_us"]),
            "created_time": arrow_from_us(found["created_us"]),
            "status": status.cast(pa.string()),
        }
    return {f"{read.name}__{name}": column for name, column in columns.items()}


def _span_of(file: Any, request_time: str, *, rows: int, with_times: bool) -> Span | None:
    """The span of the request times in a file, or None if it has no rows.

    Raises:
        InputError: A request time is null.
    """
    import pyarrow.compute as pc

    ends: list[int] = []
    nulls = 0
    for batch in file.iter_batches(batch_size=rows, columns=[request_time]):
        times = batch[request_time]
        nulls += times.null_count
        both = pc.min_max(arrow_to_us(times)).as_py()
        ends += [end for end in both.values() if end is not None]
        ends = [min(ends), max(ends)] if ends else []
    check_request_times(request_time, nulls=nulls)
    return Span(ends[0], ends[1], with_times) if ends else None


def parquet_sql(path: Path) -> str:
    """The rows of a Parquet file, as a relation."""
    return f"read_parquet([{text_sql(path.as_posix())}], hive_partitioning = false)"


def _side_by_side(
    entity_rows: Any,
    answers: Sequence[tuple[ViewRead, History, Any]],
    *,
    with_times: bool,
    rows: int,
) -> Iterator[pa.Table]:
    """Batches of the entity rows with the answers of all views."""
    files = (entity_rows, *(file for _, _, file in answers))
    for batch, *found in zip(*(_batches(file, rows=rows) for file in files), strict=True):
        table = batch.replace_schema_metadata()
        for (read, history, _), answer in zip(answers, found, strict=True):
            columns = _columns(answer, history, read, with_times=with_times)
            for name, column in columns.items():
                table = table.append_column(name, column)
        yield table


def _batches(file: Any, *, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A file in tables of ``rows`` rows. The last one may have fewer."""
    import pyarrow as pa

    schema = file.schema_arrow
    if columns is not None:
        schema = pa.schema([schema.field(name) for name in columns])
    waiting: list[Any] = []
    count = 0
    is_first = True
    for batch in file.iter_batches(batch_size=rows, columns=columns):
        waiting.append(batch.select(schema.names))
        count += batch.num_rows
        while count >= rows:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, rows).combine_chunks()
            is_first = False
            rest = table.slice(rows)
            count, waiting = rest.num_rows, rest.to_batches()
    if count or is_first:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()
