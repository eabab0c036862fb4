"""Labels from their source, as they were known at a moment."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from tallystick.clock import utc
from tallystick.contract import ModelInputs
from tallystick.dtypes import arrow_type
from tallystick.errors import DataError, Problem

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions import Model
    from tallystick.repo import Repo


def known_labels(
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    *,
    known_until: datetime,
    between: tuple[datetime, datetime] | None = None,
) -> pa.Table:
    """The labels of a model that were known by ``known_until``; of corrections the last known.

    Args:
        repo: Where the label source is.
        model: Whose labels.
        inputs: What the model takes, for the types of the keys.
        known_until: Labels known later are left out.
        between: Only requests of [first, last); all by default.

    Returns:
        One row per labelled request: the label's keys, ``request_time``, ``label`` (int8, 0 or 1)
        and ``known_time``.

    Raises:
        DataError: The source cannot be read, lacks a column, or holds other labels than 0 and 1.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    label = model.label
    table = read_source(
        repo,
        label.source,
        what=f"The label source of model {model.name!r}",
        columns={
            **{name: name for name in label.keys},
            "request_time": label.source.timestamp_field,
            "label": label.column,
            "known_time": label.source.created_timestamp_column,
        },
        between=between and (label.source.timestamp_field, *between),
    )
    types = {column.name: column.dtype for column in (*inputs.entity_keys, *inputs.request_fields)}
    _check_label_types(model, table, {name: arrow_type(types[name]) for name in label.keys})
    table = table.filter(
        pc.and_(
            pc.less_equal(table["known_time"], pa.scalar(known_until)),
            pc.is_valid(table["label"]),
        )
    )
    values = table["label"].cast(pa.float64(), safe=False)
    odd = table.filter(pc.invert(pc.is_in(values, pa.array([0.0, 1.0]))))
    if odd.num_rows:
        raise DataError(
            f"The labels of model {model.name!r} must be 0 or 1.",
            [Problem(f"column {label.column}", "0 or 1", str(odd["label"][0].as_py()))],
        )
    table = table.set_column(table.schema.get_field_index("label"), "label", values.cast("int8"))
    for name in label.keys:
        position = table.schema.get_field_index(name)
        table = table.set_column(position, name, table[name].cast(arrow_type(types[name])))
    # Of corrections the last known counts: the first of each group once sorted that way.
    ordered = table.sort_by([("known_time", "descending")])
    keys = [*label.keys, "request_time"]
    return (
        ordered.group_by(keys, use_threads=False)
        .aggregate([("label", "first"), ("known_time", "first")])
        .rename_columns([*keys, "label", "known_time"])
    )


def _check_label_types(model: Model, table: pa.Table, keys: dict[str, pa.DataType]) -> None:
    """Compare the types of a label source with what they must be.

    Raises:
        DataError: With every column of another type.
    """
    import pyarrow as pa
    import pyarrow.types as pt

    label = model.label
    kind = table["label"].type
    problems = []
    if not any(test(kind) for test in (pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_null)):
        problems.append(Problem(f"column {label.column}", "0 or 1", str(kind)))
    for name, column in (
        ("request_time", label.source.timestamp_field),
        ("known_time", label.source.created_timestamp_column),
    ):
        if not pt.is_timestamp(table[name].type):
            problems.append(Problem(f"column {column}", "a timestamp", str(table[name].type)))
    for name, wanted in keys.items():
        try:
            table[name].cast(wanted)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            problems.append(Problem(f"column {name}", str(wanted), str(table[name].type)))
    if problems:
        raise DataError(
            f"The label source of model {model.name!r} has columns of other types.",
            problems,
            hint="Mend the source, or name its columns in the model's Label.",
        )


def read_source(
    repo: Repo,
    source: object,
    *,
    what: str,
    columns: dict[str, str],
    between: tuple[str, datetime, datetime] | None = None,
) -> pa.Table:
    """Read columns of a Feast file source under other names; times in UTC at microseconds.

    Args:
        repo: Relative paths are resolved against its folder.
        source: Feast ``FileSource``.
        what: What the source is, for messages.
        columns: Name in the result → name in the source.
        between: A time column of the source, and the first and last time [first, last) to read.

    Raises:
        DataError: The source cannot be read or lacks a column; all missing ones are listed.
    """
    import pyarrow as pa
    import pyarrow.dataset as ds

    path = str(getattr(source, "path", ""))
    location = path if "://" in path else str(repo.path / path)
    try:
        dataset = ds.dataset(location)
        names = set(dataset.schema.names)
        missing = [name for name in columns.values() if name not in names]
        if missing:
            raise DataError(
                f"{what} ({location}) lacks columns.",
                [Problem(f"column {name}", "present", "absent") for name in missing],
                hint=f"It has: {', '.join(sorted(names))}",
            )
        table = dataset.to_table(
            columns=sorted(set(columns.values())),
            filter=None if between is None else _inside(dataset.schema, *between),
        )
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{what} ({location}) cannot be read: {error}") from error
    table = table.select(list(columns.values())).rename_columns(list(columns))
    moment = pa.timestamp("us", tz="UTC")
    for position, field in enumerate(table.schema):
        if pa.types.is_timestamp(field.type):
            column = table[position].cast(pa.timestamp("us", tz=field.type.tz), safe=False)
            table = table.set_column(position, field.name, column.cast(moment))
    return table


def _inside(schema: pa.Schema, column: str, start: datetime, end: datetime) -> Any:
    """A filter for times in [start, end), in the column's own type; a naive column is in UTC."""
    import pyarrow as pa
    import pyarrow.compute as pc

    kind = schema.field(column).type
    if not pa.types.is_timestamp(kind):
        return None
    zone = None if kind.tz is None else UTC
    first, last = (
        pa.scalar(utc(moment).replace(tzinfo=zone), pa.timestamp("us", tz=kind.tz)).cast(
            kind, safe=False
        )
        for moment in (start, end)
    )
    return (pc.field(column) >= first) & (pc.field(column) < last)
