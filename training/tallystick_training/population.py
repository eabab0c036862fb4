"""The population of a model: the requests that it learns from, checked against its inputs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tallystick.clock import utc
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.errors import DataError, Problem
from tallystick.retrieval.source_rows import SourceRows, cast_columns, source_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

_ROWS_AT_ONCE: Final = 1_000_000
"""Request times that are in memory at once."""


def population_rows(repo: Repo, model: Model, columns: Iterable[str] = ()) -> SourceRows:
    """The source of a model's population, with some columns and ``request_time``.

    Raises:
        DataError: The source cannot be read or lacks columns; all of them are listed.
    """
    return source_rows(
        repo,
        model.requests,
        what=_what(model),
        columns={name: name for name in columns} | {REQUEST_TIME: model.requests.timestamp_field},
    )


def repeats_requests(model: Model) -> bool:
    """Whether a request may be in the population more than once, and counts once."""
    return model.population is None or model.population == model.label.source


def in_input_types(
    table: pa.Table, model: Model, inputs: ModelInputs
) -> tuple[pa.Table, list[Problem]]:
    """Rows of a population in the inputs' types, and the problems of its columns.

    Args:
        table: All rows, or some.
        model: Whose population.
        inputs: What the model takes.
    """
    table, problems = cast_columns(table, inputs.request_columns)
    times = table[REQUEST_TIME]
    problems += time_problems(model, times.type, nulls=times.null_count)
    return table, problems


def time_problems(model: Model, kind: pa.DataType, *, nulls: int) -> list[Problem]:
    """What is wrong with the request times of a population."""
    import pyarrow as pa

    name = f"column {model.requests.timestamp_field}"
    if not pa.types.is_timestamp(kind):
        return [Problem(name, "a timestamp", str(kind))]
    return [Problem(name, "a time in every row", f"{nulls} nulls")] if nulls else []


def refuse(model: Model, problems: Sequence[Problem]) -> None:
    """Refuse a population that has problems.

    Raises:
        DataError: With all of them.
    """
    if problems:
        raise DataError(
            f"{_what(model)} does not have the types of the model's inputs.",
            problems,
            hint="Mend the source, or the entity and request field types in the definitions.",
        )


def training_start(repo: Repo, model: Model, *, end: datetime) -> datetime:
    """The first request time to train on: the model's window before ``end``, or all history.

    Raises:
        DataError: The population is empty, or cannot be used.
    """
    if model.retraining.window is not None:
        return end - model.retraining.window
    return request_span(repo, model)[0]


def request_span(repo: Repo, model: Model) -> tuple[datetime, datetime]:
    """The first and the last request time of a population.

    Raises:
        DataError: It is empty, or cannot be used.
    """
    import pyarrow.compute as pc

    rows = population_rows(repo, model)
    refuse(model, time_problems(model, rows.type_of(REQUEST_TIME), nulls=rows.nulls(REQUEST_TIME)))
    ends = [
        pc.min_max(table[REQUEST_TIME]).as_py() for table in rows.batches(rows_max=_ROWS_AT_ONCE)
    ]
    known = [end for end in ends if end["min"] is not None]
    if not known:
        raise DataError(f"The population of model {model.name!r} has no rows.")
    return min(utc(end["min"]) for end in known), max(utc(end["max"]) for end in known)


def _what(model: Model) -> str:
    return f"The population of model {model.name!r}"
