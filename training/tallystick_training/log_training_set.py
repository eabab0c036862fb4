"""Training sets from the prediction log: what the model saw, with what became of it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystick.clock import duration_us, from_us, to_us
from tallystick.definitions.contract import REQUEST_TIME, ModelContract, ModelInputs
from tallystick.errors import InputError, StateError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import LogPart, first_time, read_log
from tallystick.records.quarantine import Quarantine
from tallystick.retrieval.prediction_labels import labels_of, logged_as
from tallystick.storage.atomic_files import replacing
from tallystick_training.log_repair import logged_quarantine, repaired, touched_rows
from tallystick_training.row_selection import LABEL, Counts, RowSelection, row_schema
from tallystick_training.training_set import DatasetFile, room_for

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

_STEP: Final = timedelta(days=1)


def write_served_dataset(
    repo: Repo,
    model: Model,
    selection: RowSelection,
    *,
    out: Path,
    inputs: ModelInputs | None = None,
    progress: Callable[[str, float], None] = lambda *_: None,
) -> DatasetFile:
    """Write a training set of logged predictions to a Parquet file, whole or not at all.

    Its columns are those of :func:`tallystick_training.training_set.write_dataset`. Its values are
    those that the model saw. Nothing is computed again, except rows to repair: they get the values
    that should have been served, under the knowledge clock, by the definitions and functions of the
    contract under which they were logged. Each prediction is a row. The log is read a day at a
    time.

    Args:
        repo: The repo, applied.
        model: What to learn.
        selection: Which requests; none from before the first that was logged. Incidents of
            on-demand views count as well.
        out: The file.
        inputs: What the model takes; read from the registry by default. Predictions under a
            contract that has not all of it, in the same types, are left out, and counted.
        progress: Called with the present day, and the share that is done, from 0 to 1.

    Raises:
        InputError: The selection has no rows, or is to be repaired under another clock.
        StateError: Nothing was logged, or the disk is full; or, to repair, a bundle is missing.
        DamagedError: The log cannot be read; or, to repair, a contract's bundle.
        DataError: The label source is not as declared; or, to repair, a view's.
        DefinitionError: An on-demand view fails.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    if selection.repair and selection.clock is not VisibilityClock.KNOWLEDGE:
        raise InputError(
            "Logged rows are repaired as the audit expects them, under the knowledge clock: leave "
            "--clock out, or --repair."
        )
    logged = first_time(repo.state_dir, model.name)
    if logged is None:
        raise StateError(
            f"Model {model.name!r} has no logged predictions.",
            hint="Serve it first, or build the training set from history:  "
            f"tally dataset {model.name} --out {out}",
        )
    selection = replace(selection, start=max(selection.start, logged))
    selection.check(model)
    start, end = selection.start, selection.end
    inputs = repo.inputs(model) if inputs is None else inputs
    counts = Counts(0, 0, 0, 0, 0, repaired=0 if selection.repair else None)
    schema = row_schema(inputs.request_columns, inputs.value_columns)
    order = [(name, "ascending") for name in (REQUEST_TIME, *(k.name for k in inputs.entity_keys))]
    with (
        room_for(out, None),
        replacing(out) as draft,
        pq.ParquetWriter(draft, schema, compression="zstd") as writer,
    ):
        for first in _days(start, end):
            progress(f"{first.date().isoformat()}", (first - start) / (end - start))
            parts = read_log(
                repo.state_dir, model.name, start=max(first, start), end=min(first + _STEP, end)
            )
            tables = []
            for part in parts:
                table, found = _rows(
                    repo,
                    inputs,
                    part,
                    logged_quarantine(part, inputs, selection.incidents, repair=selection.repair),
                    schema,
                    known_until=selection.known_until,
                    until=selection.mature_until(model),
                )
                counts += found
                tables.append(table)
            if any(table.num_rows for table in tables):
                writer.write_table(pa.concat_tables(tables).sort_by(order))
    return DatasetFile(path=out, counts=counts, start=start, end=selection.last(model))


def _days(start: datetime, end: datetime) -> Iterator[datetime]:
    """The beginnings of all days that [start, end) touches, in UTC."""
    day_us = duration_us(_STEP)
    for moment in range(to_us(start) // day_us * day_us, to_us(end), day_us):
        yield from_us(moment)


def _rows(
    repo: Repo,
    inputs: ModelInputs,
    part: LogPart,
    quarantine: Quarantine,
    schema: pa.Schema,
    *,
    known_until: datetime,
    until: datetime,
) -> tuple[pa.Table, Counts]:
    """The labelled rows of a part, and what became of the others."""
    import numpy as np
    import pyarrow as pa

    total = part.table.num_rows
    if not _is_alike(part.contract, inputs):
        return schema.empty_table(), Counts(total, 0, 0, 0, 0, unlike=total)
    times = part.table[REQUEST_TIME].cast(pa.int64()).to_numpy()
    left_out = touched_rows(quarantine.left_out, part)
    young = ~left_out & (times >= to_us(until))
    mature = LogPart(part.contract, part.table.filter(pa.array(~left_out & ~young)))
    labels = labels_of(repo, mature, at=known_until).values
    found = LogPart(part.contract, mature.table.filter(pa.array(~np.isnan(labels))))
    labelled = repaired(repo, found, quarantine.repaired)
    names = (*(column.name for column in inputs.request_columns), *inputs.value_columns)
    columns = {name: labelled[logged_as(inputs, name)] for name in names}
    columns[REQUEST_TIME] = labelled[REQUEST_TIME]
    columns[LABEL] = pa.array(labels[~np.isnan(labels)].astype(np.int8))
    table = pa.table(columns, schema=schema)
    return table, Counts(
        population=total,
        quarantined=int(left_out.sum()),
        immature=int(young.sum()),
        unlabelled=mature.table.num_rows - table.num_rows,
        rows=table.num_rows,
        repaired=(
            int(touched_rows(quarantine.repaired, found).sum()) if quarantine.repairs else None
        ),
    )


def _is_alike(contract: ModelContract, inputs: ModelInputs) -> bool:
    """Whether what was logged under a contract has all that the model takes, in the same types."""

    def requested(of: ModelInputs) -> set[tuple[str, str]]:
        return {(each.name, each.dtype) for each in of.request_columns}

    return requested(contract) == requested(inputs) and (
        contract.value_columns.items() >= inputs.value_columns.items()
    )
