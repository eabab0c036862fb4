"""The requests that a model learns from, checked against its inputs."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.clock import utc
from tallystick.contract import ModelInputs
from tallystick.dtypes import arrow_type
from tallystick.errors import DataError, Problem
from tallystick.retrieval import REQUEST_TIME
from tallystick.truth import read_source

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions import Model
    from tallystick.repo import Repo


def read_population(repo: Repo, model: Model, inputs: ModelInputs) -> pa.Table:
    """Read all requests of a model's population.

    Where the population is the label's source, a correction repeats its request; such repeats count
    once. A population of its own is taken as it is.

    Returns:
        Entity keys and request fields in the inputs' types, and ``request_time``; ordered by the
        request time, then by the other columns.

    Raises:
        DataError: The source cannot be read, lacks columns, or holds other types than the inputs;
            all mismatches are listed.
    """
    columns = (*inputs.entity_keys, *inputs.request_fields)
    source = model.requests
    what = f"The population of model {model.name!r}"
    table = read_source(
        repo,
        source,
        what=what,
        columns={
            **{column.name: column.name for column in columns},
            REQUEST_TIME: source.timestamp_field,
        },
    )
    problems = []
    for column in columns:
        wanted = arrow_type(column.dtype)
        cast = _cast(table[column.name], wanted)
        if isinstance(cast, str):
            problems.append(Problem(f"column {column.name}", column.dtype, cast))
        else:
            position = table.schema.get_field_index(column.name)
            table = table.set_column(position, column.name, cast)
    problems += _time_problems(table[REQUEST_TIME], str(source.timestamp_field))
    if problems:
        raise DataError(
            f"{what} does not have the types of the model's inputs.",
            problems,
            hint="Mend the source, or the entity and request field types in the definitions.",
        )
    names = [column.name for column in columns]
    if model.population is None or model.population == model.label.source:
        table = table.group_by([*names, REQUEST_TIME], use_threads=False).aggregate([])
    return table.sort_by([(name, "ascending") for name in (REQUEST_TIME, *names)])


def earliest(population: pa.Table) -> datetime | None:
    """The first request time of a population; None if it is empty."""
    return utc(population[REQUEST_TIME][0].as_py()) if population.num_rows else None


def _cast(column: pa.ChunkedArray, wanted: pa.DataType) -> pa.ChunkedArray | str:
    """The column in the type wanted, or what stands in the way.

    Arrow would parse text as numbers and the reverse: a key "1" is not the key 1.
    """
    import pyarrow as pa

    if _kind(column.type) != _kind(wanted) and not pa.types.is_null(column.type):
        return str(column.type)
    try:
        return column.cast(wanted)
    except pa.ArrowInvalid as error:
        return f"{column.type} ({str(error).splitlines()[0]})"


def _kind(dtype: pa.DataType) -> str:
    import pyarrow as pa

    if pa.types.is_dictionary(dtype):
        return _kind(dtype.value_type)
    if pa.types.is_integer(dtype) or pa.types.is_floating(dtype):
        return "number"
    if pa.types.is_string(dtype) or pa.types.is_large_string(dtype):
        return "text"
    return "time" if pa.types.is_timestamp(dtype) else str(dtype)


def _time_problems(times: pa.ChunkedArray, name: str) -> list[Problem]:
    import pyarrow as pa

    if not pa.types.is_timestamp(times.type):
        return [Problem(f"column {name}", "a timestamp", str(times.type))]
    if times.null_count:
        return [Problem(f"column {name}", "a time in every row", f"{times.null_count} nulls")]
    return []
