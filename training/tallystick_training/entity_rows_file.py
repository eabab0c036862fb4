"""The requests of a training set with their labels, chosen from file to file.

Rows go through the engine, which spills what does not fit. It compares and sorts; what comes out is
bit for bit what came in: it would make -0.0 of a sorted column 0.0, so floats travel as integers of
the same bits, beside a copy to sort by.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import arrow_from_us, arrow_to_us, to_us
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.definitions.feature_types import arrow_type
from tallystick.offline_store.streaming_join import Workshop, parquet_sql, text_sql
from tallystick.records.quarantine import Quarantine, touched
from tallystick.retrieval.source_labels import label_rows, usable_labels
from tallystick_training.population import (
    in_input_types,
    population_rows,
    refuse,
    repeats_requests,
    time_problems,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.feature_view import Column
    from tallystick.definitions.model import Model

LABEL = "label"


@dataclass(frozen=True)
class Counts:
    """What became of the population's rows in [start, end).

    Attributes:
        population: All of them.
        quarantined: Left out because an incident touched them.
        immature: Left out because their label was not mature yet, whether or not it was known.
        unlabelled: Left out because their label never came.
        rows: What is left.
        unlike: Logged rows left out because they were made under a contract of other inputs.
        repaired: Of what is left, the rows that an incident touched, and that have the values
            expected; None if nothing was to be repaired.
    """

    population: int
    quarantined: int
    immature: int
    unlabelled: int
    rows: int
    unlike: int = 0
    repaired: int | None = None

    def __str__(self) -> str:
        return (
            f"left out: {self.quarantined:,} quarantined, "
            f"{self.immature:,} with a label not mature yet, {self.unlabelled:,} without one"
            + (f", {self.unlike:,} of a contract with other inputs" if self.unlike else "")
            + ("" if self.repaired is None else f"; repaired: {self.repaired:,}")
        )


@dataclass(frozen=True)
class Wanted:
    """Which requests a training set is made of.

    Attributes:
        start: First request time, included.
        end: Last request time, excluded.
        known_until: Labels that became known later are not used.
        mature_until: Requests from then on have labels that are not mature yet.
        quarantine: What becomes of requests that incidents touched.
    """

    start: datetime
    end: datetime
    known_until: datetime
    mature_until: datetime
    quarantine: Quarantine


def write_spine(
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    wanted: Wanted,
    *,
    place: Workshop,
    out: Path,
    batch_rows: int,
) -> Counts:
    """Write the requests of a training set to a Parquet file.

    Its columns are the entity keys and request fields in the inputs' types, ``request_time`` and
    ``label`` (int8); its order that of the request time, then of the other columns.

    Args:
        repo: Where population and labels are.
        model: What is to be learned.
        inputs: What the model takes.
        wanted: Which requests.
        place: Where to work.
        out: The file.
        batch_rows: Rows that are in memory at once, apart from the engine's.

    Raises:
        DataError: The population or the labels cannot be used, or ``memory_limit`` is too small.
        OSError: There is no room on the disk.
    """
    columns = inputs.request_columns
    requests = _Files(place, f"The population of model {model.name!r}", columns)
    asked, labels, chosen = (
        place.folder / f"{name}.parquet" for name in ("population", "labels", "chosen")
    )
    _write_population(repo, model, inputs, wanted, out=asked, batch_rows=batch_rows)
    if repeats_requests(model):
        once = place.folder / "requests.parquet"
        requests.write(_once_sql(asked, columns), once)
        asked.unlink()
        asked = once
    population, kept, mature = requests.numbers(_counts_sql(asked, wanted))
    _write_labels(repo, model, inputs, wanted, out=labels, batch_rows=batch_rows)
    requests.write(_chosen_sql(asked, labels, model, columns, wanted), chosen)
    asked.unlink()
    labels.unlink()
    rows, repaired = requests.decode(chosen, out, batch_rows=batch_rows)
    chosen.unlink()
    return Counts(
        population=population,
        quarantined=population - kept,
        immature=kept - mature,
        unlabelled=mature - rows,
        rows=rows,
        repaired=repaired if wanted.quarantine.repairs else None,
    )


@dataclass(frozen=True)
class _Files:
    """Files of requests in the form in which they go through the engine."""

    place: Workshop
    what: str
    columns: Sequence[Column]

    def write(self, sql: str, out: Path) -> None:
        self.place.execute(f"COPY ({sql}) TO {text_sql(out)} (FORMAT parquet)", what=self.what)

    def numbers(self, sql: str) -> list[int]:
        (row,) = self.place.execute(sql, what=self.what)
        return [int(number) for number in row]

    def decode(self, chosen: Path, out: Path, *, batch_rows: int) -> tuple[int, int]:
        """Write the requests as they were; give their number, and that of the repaired ones."""
        import pyarrow as pa
        import pyarrow.compute as pc
        import pyarrow.parquet as pq

        kinds = [arrow_type(column.dtype) for column in self.columns]
        names = [column.name for column in self.columns]
        schema = pa.schema(
            [
                *zip(names, kinds, strict=True),
                (REQUEST_TIME, pa.timestamp("us", tz="UTC")),
                (LABEL, pa.int8()),
            ]
        )
        rows = repaired = 0
        with pq.ParquetFile(chosen) as file, pq.ParquetWriter(out, schema) as writer:
            for batch in file.iter_batches(batch_size=batch_rows):
                values = [_decoded(batch[f"key_{at}"], kind) for at, kind in enumerate(kinds)]
                times = arrow_from_us(batch["request_us"])
                writer.write_batch(
                    pa.record_batch([*values, times, batch["label"].cast(pa.int8())], schema=schema)
                )
                rows += batch.num_rows
                repaired += pc.sum(batch["repaired"].cast(pa.int64())).as_py() or 0
        return rows, repaired


def _write_population(
    repo: Repo, model: Model, inputs: ModelInputs, wanted: Wanted, *, out: Path, batch_rows: int
) -> None:
    """Write the population's requests in [start, end), numbered, in the engine's form.

    Raises:
        DataError: With every column that has another type than the inputs say.
    """
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = population_rows(repo, model, inputs)
    kind = rows.type_of(REQUEST_TIME)
    problems = {
        problem.where: problem
        for problem in (
            *time_problems(model, kind, nulls=rows.nulls(REQUEST_TIME)),
            *in_input_types(rows.empty(), model, inputs)[1],
        )
    }
    columns = inputs.request_columns
    count = 0
    empty = _typed_empty(columns)
    form = _encoded(empty, columns, row=pa.array([], pa.int64()))
    form = _with_quarantine(form, empty, inputs, wanted.quarantine)
    with pq.ParquetWriter(out, form.schema) as writer:
        between = (REQUEST_TIME, wanted.start, wanted.end)
        for batch in rows.batches(rows_max=batch_rows, between=between):
            table, found = in_input_types(batch, model, inputs)
            # The first of each column, of all batches: mismatches are told all at once.
            problems = {problem.where: problem for problem in found} | problems
            if problems:
                continue
            numbers = pa.array(np.arange(count, count + table.num_rows))
            encoded = _encoded(table, columns, row=numbers)
            writer.write_table(_with_quarantine(encoded, table, inputs, wanted.quarantine))
            count += table.num_rows
    refuse(model, list(problems.values()))


def _write_labels(
    repo: Repo, model: Model, inputs: ModelInputs, wanted: Wanted, *, out: Path, batch_rows: int
) -> None:
    """Write the labels that were known in time, numbered, with their keys in the engine's form."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = inputs.label_key_columns(model.label.keys)
    rows = label_rows(repo, model)
    last = min(wanted.end, wanted.mature_until)
    count = 0
    empty = usable_labels(model, inputs, rows.empty(), known_until=wanted.known_until)
    form = _with_label(_encoded(empty, columns, row=pa.array([], pa.int64())), empty)
    with pq.ParquetWriter(out, form.schema) as writer:
        for batch in rows.batches(rows_max=batch_rows, between=(REQUEST_TIME, wanted.start, last)):
            table = usable_labels(model, inputs, batch, known_until=wanted.known_until)
            numbers = pa.array(np.arange(count, count + table.num_rows))
            writer.write_table(_with_label(_encoded(table, columns, row=numbers), table))
            count += table.num_rows


def _typed_empty(columns: Sequence[Column]) -> pa.Table:
    import pyarrow as pa

    fields = [(column.name, arrow_type(column.dtype)) for column in columns]
    return pa.schema([*fields, (REQUEST_TIME, pa.timestamp("us", tz="UTC"))]).empty_table()


def _encoded(table: pa.Table, columns: Sequence[Column], *, row: pa.Array) -> pa.Table:
    """Rows as they go through the engine: ``key_0…``, ``order_0…``, ``request_us``, ``row``."""
    import pyarrow as pa
    import pyarrow.types as pt

    values: dict[str, Any] = {}
    for at, column in enumerate(columns):
        found = table[column.name].combine_chunks()
        bits = {pa.float32(): pa.int32(), pa.float64(): pa.int64()}.get(found.type)
        if bits is not None:
            values[f"order_{at}"] = found
            found = found.view(bits)
        elif pt.is_timestamp(found.type):
            found = found.cast(pa.int64())
        values[f"key_{at}"] = found
    values["request_us"] = arrow_to_us(table[REQUEST_TIME])
    values["row"] = row
    return pa.table(values)


def _with_quarantine(
    encoded: pa.Table, requests: pa.Table, inputs: ModelInputs, quarantine: Quarantine
) -> pa.Table:
    """With ``left_out`` and ``repaired``: which incidents touched them, as the rule says."""
    import pyarrow as pa

    keys = {key.name: requests[key.name] for key in inputs.entity_keys}
    for name, incidents in (("left_out", quarantine.left_out), ("repaired", quarantine.repaired)):
        mask = touched(incidents, requests[REQUEST_TIME], keys)
        encoded = encoded.append_column(name, pa.array(mask))
    return encoded


def _with_label(encoded: pa.Table, labels: pa.Table) -> pa.Table:
    known = arrow_to_us(labels["known_time"])
    return encoded.append_column("label", labels["label"]).append_column("known_us", known)


def _decoded(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`_encoded`, for one column."""
    import pyarrow.types as pt

    if pt.is_floating(kind):
        return column.view(kind)
    return arrow_from_us(column) if pt.is_timestamp(kind) else column.cast(kind)


def _keys(columns: Sequence[Column]) -> list[str]:
    return [f"key_{at}" for at in range(len(columns))]


def _order(columns: Sequence[Column]) -> list[str]:
    """By what requests are ordered after the request time."""
    import pyarrow.types as pt

    return [
        f"order_{at}" if pt.is_floating(arrow_type(column.dtype)) else f"key_{at}"
        for at, column in enumerate(columns)
    ]


def _once_sql(asked: Path, columns: Sequence[Column]) -> str:
    """Each request once: its first row."""
    same = ", ".join((*_keys(columns), "request_us"))
    # Equal requests are touched alike.
    copies = [name for name in _order(columns) if name.startswith("order")]
    copies += ["left_out", "repaired"]
    kept = "".join(f", any_value({name}) AS {name}" for name in copies)
    return f'SELECT {same}{kept}, min("row") AS "row" FROM {parquet_sql(asked)} GROUP BY {same}'


def _mature_sql(wanted: Wanted) -> str:
    return f"NOT left_out AND request_us < {to_us(wanted.mature_until)}"


def _counts_sql(asked: Path, wanted: Wanted) -> str:
    return (
        "SELECT count(*), count(*) FILTER (NOT left_out), "
        f"count(*) FILTER ({_mature_sql(wanted)}) FROM {parquet_sql(asked)}"
    )


def _chosen_sql(
    asked: Path, labels: Path, model: Model, columns: Sequence[Column], wanted: Wanted
) -> str:
    """The requests that have a label, with it, in their order; of corrections the last known."""
    names = [column.name for column in columns]
    places = [names.index(name) for name in model.label.keys]
    same = ", ".join((*(f"key_{at}" for at in range(len(places))), "request_us"))
    last_known = (
        f"SELECT * FROM {parquet_sql(labels)} QUALIFY row_number() OVER "
        f'(PARTITION BY {same} ORDER BY known_us DESC, "row") = 1'
    )
    matches = " AND ".join(
        (
            *(f"asked.key_{place} = labels.key_{at}" for at, place in enumerate(places)),
            "asked.request_us = labels.request_us",
        )
    )
    order = "".join(f"asked.{name} ASC NULLS LAST, " for name in _order(columns))
    kept = ", ".join(f"asked.{key}" for key in (*_keys(columns), "request_us"))
    return (
        f"SELECT {kept}, asked.repaired, labels.label FROM "
        f"(SELECT * FROM {parquet_sql(asked)} WHERE {_mature_sql(wanted)}) AS asked "
        f"JOIN ({last_known}) AS labels ON {matches} "
        f'ORDER BY asked.request_us, {order}asked."row"'
    )
