"""Features of more requests than fit into memory: from file to file, view after view.

The spine's keys are written to a file per view, and so is what the engine answers to them, which
spills what does not fit. Then spine and answers are read side by side, a batch at a time. The
result appears whole, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import arrow_to_us
from tallystick.errors import InputError, Problem
from tallystick.offline_store.duckdb_connection import (
    DefaultLimits,
    EngineLimits,
    connection_to,
    engine_errors,
    own_database,
)
from tallystick.offline_store.point_in_time_join import (
    asked_sql,
    check_spine,
    spine_keys,
    times_of,
)
from tallystick.offline_store.sources.consistent_read import read_steadily
from tallystick.offline_store.sources.pruning import Span
from tallystick.offline_store.sources.snapshot import Snapshots
from tallystick.offline_store.view_history import (
    History,
    ViewRead,
    open_history,
    require_times,
    typed,
)
from tallystick.point_in_time.rule import VisibilityClock, as_of_sql, values_sql
from tallystick.storage.atomic_files import replacing, scratch_folder

if TYPE_CHECKING:
    import pyarrow as pa

BATCH: Final = 100_000
"""Rows that are in memory at once, apart from the engine's."""

Tell = Callable[[str, int, int], None]
"""Is called with what is done now, and how many of how many steps are behind."""


@dataclass(frozen=True)
class Workshop:
    """Where a long run works.

    Attributes:
        folder: For what is written on the way.
        database: DuckDB's, by :func:`tallystick.offline_store.duckdb_connection.own_database`.
        config: What the engine may take.
    """

    folder: Path
    database: Any
    config: EngineLimits

    @property
    def spill(self) -> Path:
        """Folder for what does not fit into memory."""
        return self.folder / "spill"

    def execute(self, sql: str, *, what: str) -> list[Any]:
        """Run one statement, and give its rows.

        Raises:
            DataError: What it reads cannot be read, or memory is too small.
            OSError: There is no room on the disk.
        """
        with (
            engine_errors(what, config=self.config, spill=self.spill),
            closing(connection_to(self.database)) as connection,
        ):
            return list(connection.execute(sql).fetchall())


@contextmanager
def workshop(out: Path, config: EngineLimits | None) -> Iterator[Workshop]:
    """Give a place to work on ``out``: in the limits' ``spill_dir``, or else beside it.

    What is in there goes after the block; what a killed process left there goes as well.
    """
    limits = config or DefaultLimits()
    beside = Path(limits.spill_dir) / out.name if limits.spill_dir else out
    with (
        scratch_folder(beside) as folder,
        own_database(limits, spill=folder / "spill") as database,
    ):
        yield Workshop(folder, database, limits)


def write_point_in_time(
    *,
    spine: Path,
    request_time: str,
    reads: Sequence[ViewRead],
    clock: VisibilityClock,
    out: Path,
    config: EngineLimits | None = None,
    repo_path: Path | str | None = None,
    with_times: bool = False,
    progress: Tell = lambda *_: None,
) -> int:
    """The features of every row of a spine at its request time, from a file to a file.

    Args:
        spine: A Parquet file as ``point_in_time`` takes it
            as a table.
        request_time: The spine's column of request times.
        reads: The views to read.
        clock: When a row counts as visible.
        out: The Parquet file to write; it is there once it is whole.
        config: What the engine may take. In its ``spill_dir``, or else beside ``out``, there has to
            be room for keys and answers of all views.
        repo_path: Folder from which relative source paths are taken.
        with_times: As for ``point_in_time``.
        progress: Called with what is done, and how many of how many steps are behind.

    Returns:
        Number of rows.

    Raises:
        InputError: The spine cannot be used.
        DataError: A source does not fit its view, or ``memory_limit`` is too small.
        OSError: There is no room on the disk.
    """
    import pyarrow.parquet as pq

    rows = 0
    steps = len(reads) + 1
    with (
        workshop(out, config) as place,
        streamed(
            spine=spine,
            request_time=request_time,
            reads=reads,
            clock=clock,
            place=place,
            repo_path=repo_path,
            with_times=with_times,
            progress=lambda text, done: progress(text, done, steps),
        ) as batches,
        replacing(out) as temporary,
    ):
        progress(f"writing {out.name}", len(reads), steps)
        first = next(batches)
        rows = int(first.num_rows)
        with pq.ParquetWriter(temporary, first.schema) as writer:
            writer.write_table(first)
            for table in batches:
                writer.write_table(table)
                rows += table.num_rows
    progress("done", steps, steps)
    return rows


@contextmanager
def streamed(
    *,
    spine: Path,
    request_time: str,
    reads: Sequence[ViewRead],
    clock: VisibilityClock,
    place: Workshop,
    repo_path: Path | str | None,
    with_times: bool = False,
    batch_rows: int | None = None,
    progress: Callable[[str, int], None] = lambda *_: None,
) -> Iterator[Iterator[pa.Table]]:
    """Give the spine with its features, in order, a batch at a time; at least one, maybe empty.

    Args:
        spine: As for :func:`write_point_in_time`.
        request_time: Likewise.
        reads: Likewise.
        clock: Likewise.
        place: Where to work.
        repo_path: Folder from which relative source paths are taken.
        with_times: As for ``point_in_time``.
        batch_rows: Rows per batch; :data:`BATCH` by default.
        progress: Called with what is done, and how many views are behind.

    Raises:
        InputError: The spine cannot be used.
        DataError: A source does not fit its view, or ``memory_limit`` is too small.
        OSError: There is no room on the disk.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = BATCH if batch_rows is None else batch_rows
    try:
        file = pq.ParquetFile(spine)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The spine {spine} cannot be read: {error}") from error
    with ExitStack() as stack:
        stack.callback(file.close)
        check_spine(file.schema_arrow.empty_table(), request_time, reads, with_times=with_times)
        span = _span_of(file, request_time, rows=rows, with_times=with_times)
        answers = []
        snapshots = Snapshots()
        for number, read in enumerate(reads):
            progress(f"view {read.name}", number)
            keys = place.folder / f"keys-{number}.parquet"
            answer = place.folder / f"answer-{number}.parquet"
            history = read_steadily(
                partial(
                    open_history,
                    read,
                    clock=clock,
                    repo_path=repo_path,
                    span=span,
                    snapshots=snapshots,
                ),
                lambda history: [history.files],
                partial(
                    _answered,
                    file,
                    request_time,
                    read,
                    clock=clock,
                    place=place,
                    rows=rows,
                    keys=keys,
                    answer=answer,
                ),
            )
            opened = pq.ParquetFile(answer)
            stack.callback(opened.close)
            answers.append((read, history, opened))
        yield _joined(file, answers, with_times=with_times, rows=rows)


def _answered(
    file: Any,
    request_time: str,
    read: ViewRead,
    history: History,
    *,
    clock: VisibilityClock,
    place: Workshop,
    rows: int,
    keys: Path,
    answer: Path,
) -> History:
    """Write what one view answers, and give its history."""
    _write_keys(file, request_time, read, history, rows=rows, out=keys)
    _write_answer(keys, read, history, clock=clock, place=place, out=answer)
    keys.unlink()
    return history


def _span_of(file: Any, request_time: str, *, rows: int, with_times: bool) -> Span | None:
    """The span of a spine's request times; None if it has no rows.

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
    if nulls:
        raise InputError(
            "The spine cannot be used.",
            [Problem(f"request time {request_time}", "a time in every row", f"{nulls} nulls")],
        )
    return Span(ends[0], ends[1], with_times) if ends else None


def _write_keys(
    file: Any, request_time: str, read: ViewRead, history: History, *, rows: int, out: Path
) -> None:
    """Write the spine as the fold reads it for one view."""
    import pyarrow.parquet as pq

    names = sorted({request_time, *(read.spine_key(key.name) for key in read.keys)})
    with ExitStack() as stack:
        writer = None
        first_row = 0
        for table in _batches(file, columns=names, rows=rows):
            keys = spine_keys(table, request_time, read, first_row=first_row)
            keys = history.asked(keys)
            first_row += table.num_rows
            if writer is None:
                writer = stack.enter_context(pq.ParquetWriter(out, keys.schema))
            writer.write_table(keys)


def _write_answer(
    keys: Path,
    read: ViewRead,
    history: History,
    *,
    clock: VisibilityClock,
    place: Workshop,
    out: Path,
) -> None:
    """Write what one view answers, in the spine's order."""
    import pyarrow.parquet as pq

    matched = as_of_sql(
        asked_sql(history, pq.read_metadata(keys).num_rows),
        spine="spine",
        keys=history.keys,
        position=history.position,
        ttl_us=read.spec.ttl_us,
    )
    sql = values_sql(
        history.sql,
        f"({history.told(matched)})",
        values=history.values,
        position=history.position,
    )
    with (
        engine_errors(history.what, config=place.config, spill=place.spill),
        closing(connection_to(place.database)) as connection,
    ):
        connection.execute(f"CREATE TEMP VIEW spine AS FROM {parquet_sql(keys)}")
        require_times(connection, history, read, clock)
        connection.execute(f"COPY ({sql}) TO {text_sql(out)} (FORMAT parquet)")


def text_sql(path: Path) -> str:
    """A path as an SQL text."""
    return "'" + path.as_posix().replace("'", "''") + "'"


def parquet_sql(path: Path) -> str:
    """The rows of a Parquet file, as a relation."""
    return f"read_parquet([{text_sql(path)}], hive_partitioning = false)"


def _joined(
    spine: Any,
    answers: Sequence[tuple[ViewRead, History, Any]],
    *,
    with_times: bool,
    rows: int,
) -> Iterator[pa.Table]:
    """Batches of the spine with what the views answered, side by side."""
    parts = [_batches(file, rows=rows) for file in (spine, *(file for _, _, file in answers))]
    for batch, *found in zip(*parts, strict=True):
        table = batch.replace_schema_metadata()
        for (read, history, _), answer in zip(answers, found, strict=True):
            columns = typed(answer, history, read)
            if with_times:
                columns |= times_of(answer)
            for name, column in columns.items():
                table = table.append_column(f"{read.name}__{name}", column)
        yield table


def _batches(file: Any, *, rows: int, columns: list[str] | None = None) -> Iterator[pa.Table]:
    """A file in tables of ``rows`` rows; the last, or only one, may have fewer."""
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
