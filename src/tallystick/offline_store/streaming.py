"""Features of more requests than fit into memory: from file to file, view after view.

Each view's answer is written to a file of its own by the engine, which spills what does not fit;
then spine and answers are read side by side, a batch at a time. The result appears whole, or not at
all.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.errors import DataError, InputError
from tallystick.files import replacing
from tallystick.fold import VisibilityClock, as_of_sql, values_sql
from tallystick.offline_store.connection import EngineLimits, connect
from tallystick.offline_store.history import (
    History,
    ViewRead,
    open_history,
    require_times,
    typed,
)
from tallystick.offline_store.pruning import span_of
from tallystick.offline_store.retrieval import asked_sql, check_spine, spine_keys, times_of
from tallystick.offline_store.snapshots import Snapshots

if TYPE_CHECKING:
    import pyarrow as pa

BATCH: Final = 100_000
"""Rows that are in memory at once, apart from the engine's."""


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
    progress: Callable[[str, int, int], None] = lambda *_: None,
) -> int:
    """The features of every row of a spine at its request time, from a file to a file.

    Args:
        spine: A Parquet file as :func:`tallystick.offline_store.retrieval.point_in_time` takes it
            as a table. Its keys and request times are held in memory.
        request_time: The spine's column of request times.
        reads: The views to read.
        clock: When a row counts as visible.
        out: The Parquet file to write; it is there once it is whole.
        config: What the engine may take.
        repo_path: Folder from which relative source paths are taken.
        with_times: As for ``point_in_time``.
        progress: Called with what is done, and how many of how many steps are behind.

    Returns:
        Number of rows.

    Raises:
        InputError: The spine cannot be used.
        DataError: A source does not fit its view, or there is not enough room for what spills.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(spine)
    except (pa.ArrowException, OSError) as error:
        raise InputError(f"The spine {spine} cannot be read: {error}") from error
    steps = len(reads) + 1
    out.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.callback(file.close)
        whole = file.schema_arrow.empty_table()
        check_spine(whole, request_time, reads, with_times=with_times)
        keys = {read.spine_key(key.name) for read in reads for key in read.keys}
        asked = file.read(columns=sorted({request_time, *keys}))
        check_spine(asked, request_time, reads, with_times=with_times)
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix=".dataset-", dir=out.parent))
        )
        answers = []
        snapshots = Snapshots()
        for number, read in enumerate(reads):
            progress(f"view {read.name}", number, steps)
            own = spine_keys(asked, request_time, read)
            span = span_of(own["request_us"], with_times=with_times)
            history = open_history(
                read, clock=clock, repo_path=repo_path, span=span, snapshots=snapshots
            )
            answer = folder / f"{number}.parquet"
            _write_answer(
                own,
                read,
                history,
                clock=clock,
                config=config,
                out=answer,
            )
            answers.append((read, history, answer))
        del asked
        progress(f"writing {out.name}", len(reads), steps)
        batches = _joined(file, answers, with_times=with_times)
        first = next(batches)
        rows = int(first.num_rows)
        with replacing(out) as temporary, pq.ParquetWriter(temporary, first.schema) as writer:
            writer.write_table(first)
            for table in batches:
                writer.write_table(table)
                rows += table.num_rows
        progress("done", steps, steps)
    return rows


def _write_answer(
    keys: pa.Table,
    read: ViewRead,
    history: History,
    *,
    clock: VisibilityClock,
    config: EngineLimits | None,
    out: Path,
) -> None:
    """Write what one view answers, in the spine's order."""
    import duckdb

    connection = connect(config)
    try:
        connection.register("spine", history.asked(keys))
        require_times(connection, history, read, clock)
        matched = as_of_sql(
            asked_sql(history, keys.num_rows),
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
        place = out.as_posix().replace("'", "''")
        connection.execute(f"COPY ({sql}) TO '{place}' (FORMAT parquet)")
    except duckdb.Error as error:
        raise DataError(
            f"Cannot read {history.what}: {error}",
            hint="If memory or disk ran out, raise memory_limit or give spill_dir more room.",
        ) from error
    finally:
        connection.close()


def _joined(
    spine: Any, answers: Sequence[tuple[ViewRead, History, Path]], *, with_times: bool
) -> Iterator[pa.Table]:
    """Batches of the spine with what the views answered, side by side."""
    import pyarrow.parquet as pq

    files = [pq.ParquetFile(path) for _, _, path in answers]
    try:
        parts = [_batches(file) for file in (spine, *files)]
        for batch, *found in zip(*parts, strict=True):
            table = batch.replace_schema_metadata()
            for (read, history, _), answer in zip(answers, found, strict=True):
                columns = typed(answer, history, read)
                if with_times:
                    columns |= times_of(answer)
                for name, column in columns.items():
                    table = table.append_column(f"{read.name}__{name}", column)
            yield table
    finally:
        for file in files:
            file.close()


def _batches(file: Any) -> Iterator[pa.Table]:
    """A file's rows in tables of :data:`BATCH` rows; the last, or only one, may have fewer."""
    import pyarrow as pa

    schema = file.schema_arrow
    waiting: list[Any] = []
    rows = 0
    is_first = True
    for batch in file.iter_batches(batch_size=BATCH):
        waiting.append(batch)
        rows += batch.num_rows
        while rows >= BATCH:
            table = pa.Table.from_batches(waiting, schema)
            yield table.slice(0, BATCH).combine_chunks()
            is_first = False
            rest = table.slice(BATCH)
            rows, waiting = rest.num_rows, rest.to_batches()
    if rows or is_first:
        yield pa.Table.from_batches(waiting, schema).combine_chunks()
