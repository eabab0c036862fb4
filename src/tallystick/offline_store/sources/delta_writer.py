"""Rows added to a Delta table, or replacing all of its rows: one commit each."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Final, Literal

from tallystick.definitions.exact_cast import converted, family
from tallystick.errors import DataError, Problem, UnavailableError
from tallystick.offline_store.sources.delta_table import (
    opened,
    require_readable,
    storage_options,
    translated,
)
from tallystick.storage.locations import Location

if TYPE_CHECKING:
    import pyarrow as pa

COMMIT_TRIES_MAX: Final = 1000
"""How often a commit is tried again because another writer's came first."""

WRITE_TRIES_MAX: Final = 10
"""How often rows are written again because another writer made or changed the table."""


def commit_rows(
    location: Location,
    label: str,
    rows: pa.Table,
    *,
    mode: Literal["append", "create", "replace"] = "append",
    fitted: Callable[[pa.Table, pa.Schema], pa.Table] = lambda rows, _: rows,
) -> None:
    """Write rows to a Delta table in one commit. Readers see none of them, or all.

    A table that is made has times in UTC and microseconds, naive ones taken as UTC, and whole
    numbers with a sign, since Delta has no others.

    Args:
        location: The table's folder.
        label: It, as its owner wrote it, for messages.
        rows: What is written.
        mode: ``append`` adds the rows to the table, which is made if there is none. ``create``
            makes it. ``replace`` replaces all of its rows and columns.
        fitted: Gives rows in the columns and types of the table to which they are added.

    Raises:
        DataError: The rows do not fit the table, or have an empty text as the value of a partition,
            or the table cannot be read or written to.
        MissingExtraError: The package for Delta is not installed.
        UnavailableError: The object store did not answer, or other writers were always first.
    """
    lost = ""
    for _ in range(WRITE_TRIES_MAX):
        table = opened(location, label)
        how: dict[str, Any] = {"mode": "error"}
        if table is None or mode != "append":
            written = _as_delta_has_it(rows, label)
        else:
            require_readable(table, label)
            written = fitted(rows, _schema(table, label))
            how = {"mode": "append"}
        if mode == "replace" and table is not None:
            how = {"mode": "overwrite", "schema_mode": "overwrite"}
        if table is not None:
            _refuse_empty_partitions(table, written, label)
        lost = _lost_to(location, label, written, table, how)
        if not lost:
            return
        if mode == "create":
            break
    raise UnavailableError(f"The Delta table {label}", f"another writer was first: {lost}")


def _lost_to(
    location: Location, label: str, rows: pa.Table, table: Any, how: dict[str, Any]
) -> str:
    """Try to write rows, and return why not if another writer made or changed the table."""
    from deltalake import CommitProperties, write_deltalake
    from deltalake.exceptions import CommitFailedError, DeltaError

    with translated(label):
        try:
            write_deltalake(
                str(location) if table is None else table,
                rows,
                storage_options=storage_options(location),
                commit_properties=CommitProperties(max_commit_retries=COMMIT_TRIES_MAX),
                **how,
            )
        except CommitFailedError as error:
            return str(error)
        except DeltaError as error:
            if table is None and opened(location, label) is not None:
                return str(error)
            raise
    return ""


def _refuse_empty_partitions(table: Any, rows: pa.Table, label: str) -> None:
    """Refuse an empty text as the value of a partition, which the Delta protocol reads as null.

    Raises:
        DataError: With every column that has one.
    """
    import pyarrow.compute as pc

    with translated(label):
        by = table.metadata().partition_columns
    empty = [
        Problem(f"column {name}", "a text that is not empty, or null", "an empty text")
        for name in by
        if name in rows.column_names
        and family(rows[name].type) == "text"
        and pc.any(pc.equal(rows[name], "")).as_py()
    ]
    if empty:
        raise DataError(
            f"The Delta table {label} is partitioned by columns of these rows that have an empty "
            "text, which Delta would turn into null.",
            empty,
            hint="Write another text or null, or a table that is not partitioned by the column.",
        )


def _schema(table: Any, label: str) -> pa.Schema:
    import pyarrow as pa

    with translated(label):
        return pa.schema(table.schema().to_arrow()).remove_metadata()


def _as_delta_has_it(rows: pa.Table, label: str) -> pa.Table:
    """Rows in types that Delta has.

    Raises:
        DataError: A column has only nulls and no type, or a number that is too large.
    """
    import pyarrow as pa

    untyped = [
        Problem(f"column {each.name}", "a type", "nulls alone")
        for each in rows.schema
        if pa.types.is_null(each.type)
    ]
    if untyped:
        raise DataError(
            f"The Delta table {label} cannot be made of these rows.",
            untyped,
            hint="Give the columns types, or make the table first.",
        )
    columns = {
        each.name: converted(
            rows[each.name], _delta_type(each.type), where=f"Column {each.name} for {label}"
        )
        for each in rows.schema
    }
    return pa.table(columns)


def _delta_type(kind: pa.DataType) -> pa.DataType:
    """The type in which Delta holds values of an Arrow type."""
    import pyarrow as pa

    if pa.types.is_dictionary(kind):
        return _delta_type(kind.value_type)
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(_delta_type(kind.value_type))
    if pa.types.is_timestamp(kind):
        return pa.timestamp("us", tz="UTC")
    signed = {
        pa.uint8(): pa.int16(),
        pa.uint16(): pa.int32(),
        pa.uint32(): pa.int64(),
        pa.uint64(): pa.int64(),
        pa.float16(): pa.float32(),
        pa.large_string(): pa.string(),
        pa.large_binary(): pa.binary(),
    }
    return signed.get(kind, kind)
