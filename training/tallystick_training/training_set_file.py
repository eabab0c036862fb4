"""Training sets larger than memory: the rows of ``build_dataset``, written batch after batch."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.errors import StateError
from tallystick.offline_store.duckdb_connection import EngineLimits
from tallystick.offline_store.streaming_join import BATCH, streamed, workshop
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.record_store import Incident
from tallystick.retrieval.model_features import computed_values, view_reads
from tallystick.storage.atomic_files import replacing
from tallystick_training.entity_rows_file import LABEL, Counts, Wanted, write_spine
from tallystick_training.training_set import (
    KNOWLEDGE,
    quarantine_of,
    require_expected,
    require_rows,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

VALUES_AT_ONCE: Final = 4_000_000
"""Values that are in memory at once, apart from the engine's: rows times columns of a batch."""

_FULL: Final = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@dataclass(frozen=True)
class DatasetFile:
    """A training set in a file.

    Attributes:
        path: The Parquet file; its columns are those of :attr:`Dataset.table`.
        counts: Rows in and out.
        start: First request time, included.
        end: Last request time, excluded; earlier than was asked for where labels are not mature.
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


def write_dataset(
    repo: Repo,
    model: Model,
    *,
    out: Path,
    start: datetime,
    end: datetime,
    known_until: datetime,
    clock: VisibilityClock = KNOWLEDGE,
    incidents: Sequence[Incident] = (),
    repair: bool = False,
    inputs: ModelInputs | None = None,
    config: EngineLimits | None = None,
    batch_rows: int | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> DatasetFile:
    """Write the training set of a model to a Parquet file, whole or not at all.

    Columns, types, order and values are those of
    :func:`tallystick_training.training_set.build_dataset`, but nothing is held in memory beyond the
    engine's limits and a batch. Rows of population and labels outside [start, end) are not looked
    at, except for request times that are null.

    On-demand functions are called once per batch, with all of its rows.

    Args:
        repo: The repo, applied.
        model: What to learn.
        out: The file. Beside it, or in the limits' ``spill_dir``, there has to be room for the
            requests, and for their keys and values of every view.
        start: First request time, included.
        end: Last request time, excluded.
        known_until: Labels that became known later are not used.
        clock: When a row of history counts as visible.
        incidents: Spells of skew; see ``build_dataset``.
        repair: Whether to keep what can be repaired; see there.
        inputs: What the model takes; read from the registry by default.
        config: What the engine may take; None for all of the machine.
        batch_rows: Rows per batch; by default as many as make :data:`VALUES_AT_ONCE`.
        progress: Called with what is done now, and the share that is behind, from 0 to 1.

    Raises:
        InputError: The end is not after the start, or there is no repairing under the clock.
        DataError: A source cannot be used, or ``memory_limit`` is too small.
        StateError: The repo has not been applied, there is no room on the disk, or under the
            served clock no journal.
        DefinitionError: The definitions cannot serve a model, or an on-demand view fails.
    """
    require_rows(model, start=start, end=end)
    require_expected(clock, repair=repair)
    inputs = repo.inputs(model) if inputs is None else inputs
    rows = batch_rows or _rows_at_once(inputs)
    mature_until = known_until - model.label.matures_after
    wanted = Wanted(
        start=start,
        end=end,
        known_until=known_until,
        mature_until=mature_until,
        quarantine=quarantine_of(model, inputs, incidents, repair=repair),
    )
    steps = len(inputs.views) + 2
    with room_for(out, config), workshop(out, config) as place:
        spine = place.folder / "spine.parquet"
        progress("requests and labels", 0.0)
        counts = write_spine(repo, model, inputs, wanted, place=place, out=spine, batch_rows=rows)
        with streamed(
            spine=spine,
            request_time=REQUEST_TIME,
            reads=view_reads(repo, inputs.views),
            clock=clock,
            place=place,
            repo_path=repo.path,
            batch_rows=rows,
            progress=lambda text, done: progress(text, (1 + done) / steps),
        ) as batches:
            _write(
                _finished(batches, inputs, Transforms.from_repo(repo, inputs)),
                out,
                tell=lambda done: progress(
                    f"{done:,} of {counts.rows:,} rows",
                    1 - (counts.rows - done) / max(1, counts.rows) / steps,
                ),
            )
    return DatasetFile(path=out, counts=counts, start=start, end=min(end, mature_until))


def _rows_at_once(inputs: ModelInputs) -> int:
    columns = len(inputs.entity_keys) + len(inputs.request_fields) + len(inputs.value_columns)
    return max(1_000, min(BATCH, VALUES_AT_ONCE // columns))


def _finished(
    batches: Iterator[pa.Table], inputs: ModelInputs, transforms: Transforms
) -> Iterator[pa.Table]:
    """Batches with what is computed on demand, and with the label last."""
    for batch in batches:
        table = computed_values(inputs, transforms, batch.drop_columns([LABEL]))
        yield table.append_column(LABEL, batch[LABEL])


def _write(batches: Iterator[pa.Table], out: Path, *, tell: Callable[[int], None]) -> None:
    """Write the batches to a file; after each say how many rows are written."""
    import pyarrow.parquet as pq

    first = next(batches)
    with (
        replacing(out) as draft,
        pq.ParquetWriter(draft, first.schema, compression="zstd") as writer,
    ):
        rows = 0
        for batch in chain([first], batches):
            writer.write_table(batch)
            rows += batch.num_rows
            tell(rows)


@contextmanager
def room_for(out: Path, config: EngineLimits | None) -> Iterator[None]:
    """Say in one sentence that a disk is full.

    Raises:
        StateError: There is no room for the file, or for what is needed on the way to it.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _FULL:
            raise
        spill = config.spill_dir if config is not None and config.spill_dir else out.parent
        raise StateError(
            f"There is no room left to write {out}, with what is put aside for it in {spill} "
            f"({os.strerror(error.errno)}): make room, or name another folder with --spill-dir.",
        ) from error
