"""Training sets: requests, their features as they could be known, and their labels.

There is one path. :func:`tallystick_training.entity_rows_file.write_entity_rows` chooses the
requests and joins their labels, from file to file. The offline store then adds the stored features,
and the on-demand features are computed from them: batch by batch in :func:`write_dataset`, for all
rows at once in :func:`build_dataset`.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.errors import StateError
from tallystick.offline_store.duckdb_connection import EngineLimits
from tallystick.offline_store.point_in_time_join import BATCH_ROWS, stream_point_in_time, workspace
from tallystick.point_in_time.on_demand import Transforms
from tallystick.retrieval.model_features import (
    computed_values,
    stored_values,
    view_reads,
)
from tallystick.storage.atomic_files import replacing
from tallystick_training.entity_rows_file import write_entity_rows
from tallystick_training.row_selection import LABEL, Counts, RowSelection

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

VALUES_AT_ONCE: Final = 4_000_000
"""Values that are in memory at once, apart from the engine's: rows times columns of a batch."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class Dataset:
    """A training set in memory.

    Attributes:
        inputs: What the model takes.
        table: Entity keys, request fields, ``request_time``, every ``view__feature`` value and
            ``label`` (int8, 0 or 1); ordered by the request time, then by the keys.
        times: For the same rows ``view__event_time``, ``view__created_time`` and ``view__status``.
        counts: Rows in and out.
        start: First request time, included.
        end: Last request time, excluded; earlier than selected where labels are not mature.
    """

    inputs: ModelInputs
    table: pa.Table
    times: pa.Table
    counts: Counts
    start: datetime
    end: datetime


@dataclass(frozen=True)
class DatasetFile:
    """A training set in a file.

    Attributes:
        path: The Parquet file; its columns are those of :attr:`Dataset.table`.
        counts: Rows in and out.
        start: First request time, included.
        end: Last request time, excluded; earlier than selected where labels are not mature.
    """

    path: Path
    counts: Counts
    start: datetime
    end: datetime

    def __str__(self) -> str:
        return (
            f"Wrote {self.counts.rows:,} rows to {self.path}: requests from "
            f"{self.start.isoformat()} to {self.end.isoformat()}; {self.counts}"
        )


def build_dataset(repo: Repo, model: Model, selection: RowSelection) -> Dataset:
    """Build the training set of a model in memory.

    Args:
        repo: The repo, applied.
        model: What to learn.
        selection: Which requests.

    Raises:
        InputError: The selection has no rows, or cannot be repaired.
        DataError: A source cannot be used; all mismatches of it are listed.
        StateError: The repo has not been applied, or the disk is full.
        DefinitionError: The definitions cannot serve a model, or an on-demand view fails.
    """
    import pyarrow.parquet as pq

    from tallystick.offline_store.duckdb_store import offline_config

    selection.check(model)
    inputs = repo.inputs(model)
    config = offline_config(repo)
    with tempfile.TemporaryDirectory(prefix="tallystick-") as folder:
        out = Path(folder, "training_set")
        with room_for(out, config), workspace(out, config) as space:
            path = space.folder / "entity_rows.parquet"
            counts = write_entity_rows(
                repo, model, inputs, selection, workspace=space, out=path, batch_rows=BATCH_ROWS
            )
            entity_rows = pq.read_table(path)
    labels = entity_rows[LABEL]
    values = stored_values(
        repo,
        inputs.views,
        entity_rows.drop_columns([LABEL]),
        clock=selection.clock,
        with_times=True,
    )
    times = [
        f"{use.name}__{part}"
        for use in inputs.views
        for part in ("event_time", "created_time", "status")
    ]
    table = computed_values(inputs, Transforms.from_repo(repo, inputs), values.drop_columns(times))
    return Dataset(
        inputs=inputs,
        table=table.append_column(LABEL, labels),
        times=values.select(times),
        counts=counts,
        start=selection.start,
        end=selection.last(model),
    )


def write_dataset(
    repo: Repo,
    model: Model,
    selection: RowSelection,
    *,
    out: Path,
    config: EngineLimits | None = None,
    batch_rows: int | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> DatasetFile:
    """Write the training set of a model to a Parquet file, whole or not at all.

    Columns, types, order and values are those of :func:`build_dataset`, but nothing is held in
    memory beyond the engine's limits and a batch. On-demand functions are called once per batch,
    with all of its rows.

    Args:
        repo: The repo, applied.
        model: What to learn.
        selection: Which requests.
        out: The file. Beside it, or in the limits' ``spill_dir``, there has to be room for the
            requests, and for their keys and values of every view.
        config: Limits of the engine; None for the whole machine.
        batch_rows: Rows per batch; by default as many as make :data:`VALUES_AT_ONCE`.
        progress: Called with the present step, and the share that is done, from 0 to 1.

    Raises:
        InputError: The selection has no rows, or cannot be repaired.
        DataError: A source cannot be used, or ``memory_limit`` is too small.
        StateError: The repo has not been applied, the disk is full, or there is no journal under
            the served clock.
        DefinitionError: The definitions cannot serve a model, or an on-demand view fails.
    """
    selection.check(model)
    inputs = repo.inputs(model)
    columns = len(inputs.request_columns) + len(inputs.value_columns)
    rows = batch_rows or max(1_000, min(BATCH_ROWS, VALUES_AT_ONCE // columns))
    steps = len(inputs.views) + 2
    with room_for(out, config), workspace(out, config) as space:
        path = space.folder / "entity_rows.parquet"
        progress("requests and labels", 0.0)
        counts = write_entity_rows(
            repo, model, inputs, selection, workspace=space, out=path, batch_rows=rows
        )
        with stream_point_in_time(
            entity_rows=path,
            request_time=REQUEST_TIME,
            reads=view_reads(repo, inputs.views),
            clock=selection.clock,
            workspace=space,
            repo_path=repo.path,
            batch_rows=rows,
            progress=lambda text, done: progress(text, (1 + done) / steps),
        ) as batches:
            _write(
                _finished(batches, inputs, Transforms.from_repo(repo, inputs)),
                out,
                report=lambda done: progress(
                    f"{done:,} of {counts.rows:,} rows",
                    1 - (counts.rows - done) / max(1, counts.rows) / steps,
                ),
            )
    return DatasetFile(path=out, counts=counts, start=selection.start, end=selection.last(model))


def _finished(
    batches: Iterator[pa.Table], inputs: ModelInputs, transforms: Transforms
) -> Iterator[pa.Table]:
    """Batches with the on-demand features, and with the label last."""
    for batch in batches:
        table = computed_values(inputs, transforms, batch.drop_columns([LABEL]))
        yield table.append_column(LABEL, batch[LABEL])


def _write(batches: Iterator[pa.Table], out: Path, *, report: Callable[[int], None]) -> None:
    """Write the batches to a file, and report the number of rows after each."""
    import pyarrow.parquet as pq

    first = next(batches)
    with (
        replacing(out) as draft,
        pq.ParquetWriter(draft, first.schema, compression="zstd") as writer,
    ):
        writer.write_table(first)
        rows = first.num_rows
        report(rows)
        for batch in batches:
            writer.write_table(batch)
            rows += batch.num_rows
            report(rows)


@contextmanager
def room_for(out: Path, config: EngineLimits | None) -> Iterator[None]:
    """Translate the errors of a full disk.

    Raises:
        StateError: There is no room for the file, or for the intermediate files.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        spill = config.spill_dir if config is not None and config.spill_dir else out.parent
        raise StateError(
            f"There is no room left to write {out}, with its intermediate files in {spill} "
            f"({os.strerror(error.errno)}): make room, or name another folder with --spill-dir.",
        ) from error


def content_hash(table: pa.Table) -> str:
    """SHA-256 of a table's names, types and values, in the order of its rows.

    It does not depend on how the columns are cut into chunks, nor on the bytes under a null.
    """
    import numpy as np
    import pyarrow as pa

    whole = hashlib.sha256()
    for field, column in zip(table.schema, table.columns, strict=True):
        whole.update(f"{field.name}:{field.type}:{len(column)};".encode())
        valid = np.asarray(column.is_valid().to_numpy(zero_copy_only=False), dtype=bool)
        whole.update(np.packbits(valid).tobytes())
        values = pa.concat_arrays([pa.array([], field.type), *column.drop_null().chunks])
        batch = pa.record_batch([values], names=[""])
        whole.update(memoryview(batch.serialize()))
    return whole.hexdigest()
