"""The entity rows of a training set: its requests with their labels, from file to file.

Rows go through DuckDB, which spills rows that do not fit into memory. It compares and sorts, and
each value comes out bit for bit as it went in: DuckDB would turn -0.0 in a sorted column into 0.0,
so floats are stored as integers of the same bits, beside a copy to sort by.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import arrow_from_us, arrow_to_us, to_us
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.definitions.feature_types import arrow_type
from tallystick.offline_store.point_in_time_join import Workspace, parquet_sql, text_sql
from tallystick.records.quarantine import Quarantine, touched, view_names
from tallystick.retrieval.source_labels import label_rows, usable_labels
from tallystick_training.population import (
    in_input_types,
    population_rows,
    refuse,
    repeats_requests,
    time_problems,
)
from tallystick_training.row_selection import LABEL, Counts, RowSelection

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.feature_view import Column
    from tallystick.definitions.model import Model


def write_entity_rows(
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    selection: RowSelection,
    *,
    workspace: Workspace,
    out: Path,
    batch_rows: int,
) -> Counts:
    """Write the requests of a training set to a Parquet file.

    Its columns are the entity keys and request fields in the inputs' types, ``request_time`` and
    ``label`` (int8). Its order is that of the request time, then of the other columns. Requests and
    labels outside [start, end) are not read, except to refuse request times that are null.

    Args:
        repo: Where population and labels are.
        model: What to learn.
        inputs: What the model takes.
        selection: Which requests.
        workspace: Where intermediate files are written.
        out: The file.
        batch_rows: Rows that are in memory at once, apart from the engine's.

    Raises:
        DataError: The population or the labels cannot be used, or ``memory_limit`` is too small.
        OSError: The disk is full.
    """
    # On-demand features are computed again from history, so only incidents of stored views count.
    quarantine = Quarantine.of(
        selection.incidents,
        model=model.name,
        views=view_names(inputs.views),
        repair=selection.repair,
    )
    columns = inputs.request_columns
    population, requests, labels, chosen = (
        workspace.folder / f"{name}.parquet"
        for name in ("population", "requests", "labels", "chosen")
    )
    with workspace.connection(what=f"The population of model {model.name!r}") as connection:

        def write(sql: str, path: Path) -> None:
            connection.execute(f"COPY ({sql}) TO {text_sql(path)} (FORMAT parquet)")

        _write_population(
            repo, model, inputs, selection, quarantine, out=population, batch_rows=batch_rows
        )
        if repeats_requests(model):
            write(_once_sql(population, columns), requests)
            population.unlink()
        else:
            requests = population
        is_mature = f"NOT left_out AND request_us < {to_us(selection.mature_until(model))}"
        (counts,) = connection.execute(
            f"SELECT count(*), count(*) FILTER (NOT left_out), count(*) FILTER ({is_mature}) "
            f"FROM {parquet_sql(requests)}"
        ).fetchall()
        _write_labels(repo, model, inputs, selection, out=labels, batch_rows=batch_rows)
        write(_chosen_sql(requests, labels, model, columns, is_mature), chosen)
    requests.unlink()
    labels.unlink()
    rows, repaired = _decode(chosen, out, columns, batch_rows=batch_rows)
    chosen.unlink()
    total, left, mature = map(int, counts)
    return Counts(
        population=total,
        quarantined=total - left,
        immature=left - mature,
        unlabelled=mature - rows,
        rows=rows,
        repaired=repaired if quarantine.repairs else None,
    )


def _decode(
    chosen: Path, out: Path, columns: Sequence[Column], *, batch_rows: int
) -> tuple[int, int]:
    """Write the requests in their own types; return their number, and that of repaired ones."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kinds = [arrow_type(column.dtype) for column in columns]
    schema = pa.schema(
        [
            *((column.name, kind) for column, kind in zip(columns, kinds, strict=True)),
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
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    selection: RowSelection,
    quarantine: Quarantine,
    *,
    out: Path,
    batch_rows: int,
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
    form = _with_quarantine(form, empty, inputs, quarantine)
    with pq.ParquetWriter(out, form.schema) as writer:
        between = (REQUEST_TIME, selection.start, selection.end)
        for batch in rows.batches(rows_max=batch_rows, between=between):
            table, found = in_input_types(batch, model, inputs)
            # The first problem of each column in any batch, so that all are reported at once.
            problems = {problem.where: problem for problem in found} | problems
            if problems:
                continue
            numbers = pa.array(np.arange(count, count + table.num_rows))
            encoded = _encoded(table, columns, row=numbers)
            writer.write_table(_with_quarantine(encoded, table, inputs, quarantine))
            count += table.num_rows
    refuse(model, list(problems.values()))


def _write_labels(
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    selection: RowSelection,
    *,
    out: Path,
    batch_rows: int,
) -> None:
    """Write the labels that were known in time, numbered, with their keys in the engine's form."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = inputs.label_key_columns(model.label.keys)
    rows = label_rows(repo, model)
    last = min(selection.end, selection.mature_until(model))
    count = 0
    empty = usable_labels(model, inputs, rows.empty(), known_until=selection.known_until)
    form = _with_label(_encoded(empty, columns, row=pa.array([], pa.int64())), empty)
    with pq.ParquetWriter(out, form.schema) as writer:
        for batch in rows.batches(
            rows_max=batch_rows, between=(REQUEST_TIME, selection.start, last)
        ):
            table = usable_labels(model, inputs, batch, known_until=selection.known_until)
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


def _once_sql(population: Path, columns: Sequence[Column]) -> str:
    """Each request once: its first row."""
    same = ", ".join((*_keys(columns), "request_us"))
    # Equal requests are touched alike.
    copies = [name for name in _order(columns) if name.startswith("order")]
    copies += ["left_out", "repaired"]
    same_in_all = "".join(f", any_value({name}) AS {name}" for name in copies)
    return (
        f'SELECT {same}{same_in_all}, min("row") AS "row" FROM {parquet_sql(population)} '
        f"GROUP BY {same}"
    )


def _chosen_sql(
    requests: Path, labels: Path, model: Model, columns: Sequence[Column], is_mature: str
) -> str:
    """The requests that have a label, with it, in their order; of corrections the last known."""
    names = [column.name for column in columns]
    of_label = [names.index(name) for name in model.label.keys]
    same = ", ".join((*(f"key_{at}" for at in range(len(of_label))), "request_us"))
    last_known = (
        f"SELECT * FROM {parquet_sql(labels)} QUALIFY row_number() OVER "
        f'(PARTITION BY {same} ORDER BY known_us DESC, "row") = 1'
    )
    matches = " AND ".join(
        (
            *(f"requests.key_{key} = labels.key_{at}" for at, key in enumerate(of_label)),
            "requests.request_us = labels.request_us",
        )
    )
    order = "".join(f"requests.{name} ASC NULLS LAST, " for name in _order(columns))
    found = ", ".join(f"requests.{key}" for key in (*_keys(columns), "request_us"))
    return (
        f"SELECT {found}, requests.repaired, labels.label FROM "
        f"(SELECT * FROM {parquet_sql(requests)} WHERE {is_mature}) AS requests "
        f"JOIN ({last_known}) AS labels ON {matches} "
        f'ORDER BY requests.request_us, {order}requests."row"'
    )
