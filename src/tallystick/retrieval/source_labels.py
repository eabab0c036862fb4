"""Labels from a Feast source, as they were known at a given time."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from tallystick.definitions.contract import REQUEST_TIME, ModelInputs, label_identity
from tallystick.errors import DataError, Problem
from tallystick.retrieval.source_rows import SourceRows, cast_columns, source_rows

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model


def known_labels(
    repo: Repo,
    model: Model,
    inputs: ModelInputs,
    *,
    known_until: datetime,
    between: tuple[datetime, datetime],
) -> pa.Table:
    """The labels of a model known by ``known_until``, and of corrections the one known last.

    Args:
        repo: Where the label source is.
        model: Whose labels.
        inputs: What the model takes, for the types of the keys.
        known_until: Labels known later are left out.
        between: Only requests of [first, last).

    Returns:
        One row per labelled request: the label's keys, ``request_time``, ``label`` (int8, 0 or 1),
        and ``first_known_time``, when the first of its labels became known.

    Raises:
        DataError: The source cannot be read, or its labels cannot be used.
    """
    table = label_rows(repo, model).table(between=(REQUEST_TIME, *between))
    labels = usable_labels(model, inputs, table, known_until=known_until)
    return last_known(labels, label_identity(model.label.keys))


def last_known(labels: pa.Table, by: list[str]) -> pa.Table:
    """The last known label for each value of the columns ``by``.

    Returns:
        The columns ``by``, ``label``, and ``first_known_time``, when the first became known.
    """
    return (
        labels.sort_by([("known_time", "descending")])
        .group_by(by, use_threads=False)
        .aggregate([("label", "first"), ("known_time", "last")])
        .rename_columns([*by, "label", "first_known_time"])
    )


def label_rows(repo: Repo, model: Model) -> SourceRows:
    """The source of a model's labels: their keys, ``request_time``, ``label``, ``known_time``.

    Raises:
        DataError: The source cannot be read or lacks a column.
    """
    label = model.label
    return source_rows(
        repo,
        label.source,
        what=f"The label source of model {model.name!r}",
        columns={
            **{name: name for name in label.keys},
            REQUEST_TIME: label.source.timestamp_field,
            "label": label.column,
            "known_time": label.source.created_timestamp_column,
        },
    )


def usable_labels(
    model: Model, inputs: ModelInputs, table: pa.Table, *, known_until: datetime
) -> pa.Table:
    """Rows of :func:`label_rows` that were known by ``known_until``, in the inputs' types.

    A label is known from its created time on, so one without is refused, by the rule in
    :mod:`tallystick.point_in_time.rule`.

    Args:
        model: Whose labels.
        inputs: What the model takes, for the types of the keys.
        table: All rows, or some.
        known_until: Labels known later are left out.

    Returns:
        The same columns, with ``label`` as int8, corrections and what they correct included.

    Raises:
        DataError: A column has another type, a label lacks its created time, or there are other
            labels than 0 and 1.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    table = _in_label_types(model, inputs, table)
    table = table.filter(pc.is_valid(table["label"]))
    nulls = table["known_time"].null_count
    if nulls:
        column = f"column {model.label.source.created_timestamp_column}"
        raise DataError(
            f"The labels of model {model.name!r} must say when they became known.",
            [Problem(column, "a time beside every label", f"{nulls} nulls")],
            hint="Fill these times, or remove the rows.",
        )
    table = table.filter(pc.less_equal(table["known_time"], pa.scalar(known_until)))
    values = table["label"].cast(pa.float64(), safe=False)
    odd = table.filter(pc.invert(pc.is_in(values, pa.array([0.0, 1.0]))))
    if odd.num_rows:
        raise DataError(
            f"The labels of model {model.name!r} must be 0 or 1.",
            [Problem(f"column {model.label.column}", "0 or 1", str(odd["label"][0].as_py()))],
        )
    return table.set_column(table.schema.get_field_index("label"), "label", values.cast("int8"))


def _in_label_types(model: Model, inputs: ModelInputs, table: pa.Table) -> pa.Table:
    """Rows of a label source with their keys in the inputs' types.

    Raises:
        DataError: With every column of another type.
    """
    import pyarrow.types as pt

    label = model.label
    table, problems = cast_columns(table, inputs.label_key_columns(label.keys))
    kind = table["label"].type
    if not any(test(kind) for test in (pt.is_integer, pt.is_floating, pt.is_boolean, pt.is_null)):
        problems.append(Problem(f"column {label.column}", "0 or 1", str(kind)))
    for name, column in (
        (REQUEST_TIME, label.source.timestamp_field),
        ("known_time", label.source.created_timestamp_column),
    ):
        if not pt.is_timestamp(table[name].type):
            problems.append(Problem(f"column {column}", "a timestamp", str(table[name].type)))
    if problems:
        raise DataError(
            f"The label source of model {model.name!r} has columns of other types.",
            problems,
            hint="Correct the source, or name its columns in the model's Label.",
        )
    return table
