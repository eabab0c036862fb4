"""The entity rows of a training set: its requests with their labels, from file to file.

Rows go through DuckDB, which spills rows that do not fit into memory. It compares and sorts, and
each value comes out bit for bit as it went in: DuckDB would turn -0.0 in a sorted column into 0.0,
so floats are stored as integers of the same bits, beside a copy to sort by.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.clock import arrow_from_us, arrow_to_us, to_us
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.definitions.feature_types import arrow_type
from tallystick.offline_store.point_in_time_join import Workspace, parquet_sql
from tallystick.point_in_time.rule import text_sql
from tallystick.records.quarantine import Quarantine, touched, view_names
from tallystick.retrieval.source_labels import label_rows, usable_labels
from tallystick_training.population import (
    in_input_types,
    population_rows,
    refuse,
    repeats_requests,
    time_problems,
)
from tallystick_training.row_selection import LABEL, Counts, RowSelection, row_schema

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
            connection.execute(f"COPY ({sql}) TO {text_sql(path.as_posix())} (FORMAT parquet)")

        _write_population(
            repo, model, inputs, selection, quarantine, out=population, batch_rows=batch_rows
        )
        repeated = 0
        if repeats_requests(model):
            write(f"SELECT DISTINCT * FROM {parquet_sql(population)}", requests)
            population.unlink()
        else:
            requests = population
            (repeated,) = connection.execute(
                f"SELECT (SELECT count(*) FROM {parquet_sql(requests)}) - "
                f"(SELECT count(*) FROM (SELECT DISTINCT * FROM {parquet_sql(requests)}))"
            ).fetchall()[0]
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
        repeated=int(repeated),
    )


def _decode(
    chosen: Path, out: Path, columns: Sequence[Column], *, batch_rows: int
) -> tuple[int, int]:
    """Write the requests in their own types; return their number, and that of repaired ones."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    kinds = [arrow_type(column.dtype) for column in columns]
    schema = row_schema(columns)
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
    """Write the population's requests in [start, end) in the engine's form.

    The columns ``left_out`` and ``repaired`` say which incidents touched them.

    Raises:
        DataError: With every column that has another type than the inputs say.
    """
    import pyarrow as pa

    columns = inputs.request_columns
    rows = population_rows(repo, model, [column.name for column in columns])
    between = (REQUEST_TIME, selection.start, selection.end)
    nulls = time_problems(model, rows.type_of(REQUEST_TIME), nulls=rows.nulls(REQUEST_TIME))
    problems = {problem.where: problem for problem in nulls}

    def tables() -> Iterator[pa.Table]:
        yield row_schema(columns).empty_table()
        for batch in chain([rows.empty()], rows.batches(rows_max=batch_rows, between=between)):
            table, found = in_input_types(batch, model, inputs)
            # The first problem of each column in any batch, so that all are reported at once.
            for problem in found:
                problems.setdefault(problem.where, problem)
            if not problems:
                yield table

    def encoded(table: pa.Table) -> pa.Table:
        keys = {key.name: table[key.name] for key in inputs.entity_keys}
        made = _encoded(table, columns)
        for name in ("left_out", "repaired"):
            mask = touched(getattr(quarantine, name), table[REQUEST_TIME], keys)
            made = made.append_column(name, pa.array(mask))
        return made

    _write(out, map(encoded, tables()))
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
    """Write the labels that were known in time, with their keys in the engine's form."""
    columns = inputs.label_key_columns(model.label.keys)
    rows = label_rows(repo, model)
    between = (REQUEST_TIME, selection.start, selection.last(model))

    def encoded(batch: pa.Table) -> pa.Table:
        table = usable_labels(model, inputs, batch, known_until=selection.known_until)
        made = _encoded(table, columns).append_column(LABEL, table[LABEL])
        return made.append_column("known_us", arrow_to_us(table["known_time"]))

    batches = chain([rows.empty()], rows.batches(rows_max=batch_rows, between=between))
    _write(out, map(encoded, batches))


def _write(path: Path, tables: Iterator[pa.Table]) -> None:
    """Write tables of one schema, at least one, to a Parquet file."""
    import pyarrow.parquet as pq

    first = next(tables)
    with pq.ParquetWriter(path, first.schema) as writer:
        for table in chain([first], tables):
            writer.write_table(table)


def _encoded(table: pa.Table, columns: Sequence[Column]) -> pa.Table:
    """Rows as they go through the engine: ``key_0…``, ``order_0…``, ``request_us``."""
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
    return pa.table(values)


def _decoded(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """The inverse of :func:`_encoded`, for one column."""
    import pyarrow.types as pt

    if pt.is_floating(kind):
        return column.view(kind)
    return arrow_from_us(column) if pt.is_timestamp(kind) else column.cast(kind)


def _order(columns: Sequence[Column]) -> list[str]:
    """By what requests are ordered after the request time."""
    import pyarrow.types as pt

    return [
        f"order_{at}" if pt.is_floating(arrow_type(column.dtype)) else f"key_{at}"
        for at, column in enumerate(columns)
    ]


def _chosen_sql(
    requests: Path, labels: Path, model: Model, columns: Sequence[Column], is_mature: str
) -> str:
    """The requests that have a label, with it, in their order; of corrections the last known."""
    names = [column.name for column in columns]
    of_label = [names.index(name) for name in model.label.keys]
    same = ", ".join((*(f"key_{at}" for at in range(len(of_label))), "request_us"))
    last_known = (
        f"SELECT * FROM read_parquet({text_sql(labels.as_posix())}, file_row_number = true) "
        f"QUALIFY row_number() OVER "
        f"(PARTITION BY {same} ORDER BY known_us DESC, file_row_number) = 1"
    )
    matches = " AND ".join(
        (
            *(f"requests.key_{key} = labels.key_{at}" for at, key in enumerate(of_label)),
            "requests.request_us = labels.request_us",
        )
    )
    keys = [f"key_{at}" for at in range(len(columns))]
    # After the numbers their bits, so that -0.0 and 0.0 have one order as well.
    order = ", ".join(f"requests.{name} ASC NULLS LAST" for name in (*_order(columns), *keys))
    found = ", ".join(f"requests.{key}" for key in (*keys, "request_us"))
    return (
        f"SELECT {found}, requests.repaired, labels.label FROM "
        f"(SELECT * FROM {parquet_sql(requests)} WHERE {is_mature}) AS requests "
        f"JOIN ({last_known}) AS labels ON {matches} "
        f"ORDER BY requests.request_us, {order}"
    )
