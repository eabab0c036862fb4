"""Which requests an incident touched: one rule, for training and for monitoring alike.

An incident touches a request of its time whose key is among the affected ones: one of the keys that
its record lists, or, if it lists none, one from the first to the last. Keys are compared part by
part: text by code points, numbers as numbers, and null comes first. A record cannot contain NaN, so
a NaN counts as null. Where a key cannot be compared, because the definitions have changed since,
every key counts as touched.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self

import numpy as np

from tallystick.clock import arrow_to_us, to_us
from tallystick.definitions.contract import ViewUse
from tallystick.point_in_time.rule import quoted
from tallystick.records.record_store import Incident, KeyValue

if TYPE_CHECKING:
    import pyarrow as pa

Bools = np.ndarray[Any, np.dtype[np.bool_]]
Bound = tuple[Any, int]
"""The value of a column's type next to a recorded value, and the sign of what lies between them."""

_INT64: Final = np.iinfo(np.int64)


@dataclass(frozen=True)
class Quarantine:
    """What happens to the requests that incidents touched.

    A request that incidents of both kinds touched is left out.

    Attributes:
        left_out: Incidents whose requests are left out.
        repaired: Incidents whose requests stay, with the expected values.
        repairs: Whether requests are repaired at all.
    """

    left_out: tuple[Incident, ...] = ()
    repaired: tuple[Incident, ...] = ()
    repairs: bool = False

    @classmethod
    def of(
        cls, incidents: Iterable[Incident], *, model: str, views: Collection[str], repair: bool
    ) -> Self:
        """Sort the incidents of a model's views.

        Args:
            incidents: Of any model and view.
            model: The model's name.
            views: Names of its views.
            repair: Whether to repair what can be repaired. If not, all is left out.
        """
        mine = [each for each in incidents if each.model == model and each.view in views]
        repaired = tuple(each for each in mine if repair and each.cause.description.is_repairable)
        left_out = tuple(each for each in mine if each not in repaired)
        return cls(left_out=left_out, repaired=repaired, repairs=repair)


def view_names(uses: Iterable[ViewUse]) -> set[str]:
    """The names that incidents use for views: their own, and their aliases."""
    return {name for use in uses for name in (use.name, use.spec.name)}


def touched(
    incidents: Iterable[Incident], times: pa.ChunkedArray, keys: Mapping[str, pa.ChunkedArray]
) -> Bools:
    """Whether any of the incidents touched each request.

    Args:
        incidents: The incidents. An open one has no end.
        times: Request times, without null.
        keys: Entity key → its value in each request.

    Returns:
        An array of shape (requests,).
    """
    import pyarrow as pa

    from tallystick.offline_store.duckdb_connection import connect

    result = np.zeros(len(times), dtype=np.bool_)
    columns = {name: _comparable(column) for name, column in keys.items()}
    joins: dict[tuple[str, pa.Schema], list[dict[str, Any]]] = {}
    for incident in incidents:
        condition, schema, rows = _join(incident, columns)
        joins.setdefault((condition, schema), []).extend(rows)
    if not joins or not len(result):
        return result
    requests = {
        "at_us": arrow_to_us(times),
        "request": pa.array(np.arange(len(result))),
        **{f"key {name}": column for name, column in columns.items() if column is not None},
    }
    with closing(connect()) as connection:
        connection.register("requests", pa.table(requests))
        for (condition, schema), rows in joins.items():
            connection.register("incidents", pa.Table.from_pylist(rows, schema))
            found = connection.sql(
                "SELECT request FROM requests SEMI JOIN incidents "
                f"ON at_us BETWEEN start_us AND end_us{condition}"
            ).to_arrow_table()
            result[found["request"].to_numpy()] = True
    return result


def _join(
    incident: Incident, columns: Mapping[str, pa.ChunkedArray | None]
) -> tuple[str, pa.Schema, list[dict[str, Any]]]:
    """How requests are joined with an incident: a condition on keys, and the incident's rows."""
    import pyarrow as pa

    end_us = _INT64.max if incident.is_open else to_us(incident.end)
    span: dict[str, Any] = {"start_us": to_us(incident.start), "end_us": end_us}
    schema = pa.schema([("start_us", pa.int64()), ("end_us", pa.int64())])
    keys = incident.keys
    if keys is None or not keys.names:
        return "", schema, [span]
    types = [None if (each := columns.get(name)) is None else each.type for name in keys.names]
    listed = bool(keys.values)
    recorded = [
        [_bound(part, kind) for part, kind in zip(key, types, strict=True)]
        for key in (keys.values or (keys.first, keys.last))
    ]
    if any(bound is None for key in recorded for bound in key):
        return "", schema, [span]
    bounds: list[list[Bound]] = recorded  # type: ignore[assignment]
    own = [quoted(f"key {name}") for name in keys.names]
    if listed:
        for at, kind in enumerate(types):
            schema = schema.append(pa.field(f"key_{at}", kind))
        same = (f" AND {name} IS NOT DISTINCT FROM key_{at}" for at, name in enumerate(own))
        exact = [[near for near, side in key if not side] for key in bounds]
        rows = [
            span | {f"key_{at}": value for at, value in enumerate(key)}
            for key in exact
            if len(key) == len(own)
        ]
        return "".join(same), schema, rows
    row = dict(span)
    for role, key in zip(("first", "last"), bounds, strict=True):
        for at, ((near, side), kind) in enumerate(zip(key, types, strict=True)):
            schema = schema.append(pa.field(f"{role}_{at}", kind))
            schema = schema.append(pa.field(f"{role}_{at}_side", pa.int64()))
            row |= {f"{role}_{at}": near, f"{role}_{at}_side": side}
    zeros = ["''" if pa.types.is_large_string(kind) else "0" for kind in types]

    def ordered(names: Sequence[str], sides: Sequence[str]) -> str:
        """A key as a row of SQL, which is compared part by part; null comes before all values."""
        parts = (
            f"{name} IS NOT NULL, coalesce({name}, {zero}), {side}"
            for name, zero, side in zip(names, zeros, sides, strict=True)
        )
        return f"row({', '.join(parts)})"

    least, most = (
        ordered(
            *zip(*((f"{role}_{at}", f"{role}_{at}_side") for at in range(len(own))), strict=True)
        )
        for role in ("first", "last")
    )
    between = f" AND {ordered(own, ['0::BIGINT'] * len(own))} BETWEEN {least} AND {most}"
    return between, schema, [row]


def _comparable(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The column in the widest type of its kind; None for a type that no record can contain."""
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.types as pt

    kind = column.type.value_type if pt.is_dictionary(column.type) else column.type
    if pt.is_floating(kind):
        values = column.cast(pa.float64())
        return pc.if_else(pc.is_nan(values), None, values)
    if pt.is_integer(kind) or pt.is_boolean(kind):
        return column.cast(pa.int64())
    if pt.is_string(kind) or pt.is_large_string(kind):
        return column.cast(pa.large_string())
    return None


def _bound(value: KeyValue, kind: pa.DataType | None) -> Bound | None:
    """The value of a column's type with none between it and a recorded value; None if unlike.

    Python compares integers with floats exactly, where a cast would round the integer.
    """
    import pyarrow.types as pt

    if kind is None:
        return None
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None, 0
    if isinstance(value, str) or pt.is_large_string(kind):
        return (value, 0) if isinstance(value, str) and pt.is_large_string(kind) else None
    if pt.is_integer(kind):
        near: float = math.floor(min(max(value, int(_INT64.min)), int(_INT64.max)))
    else:
        try:
            near = float(value)
        except OverflowError:
            near = math.inf if value > 0 else -math.inf
    return near, int(near < value) - int(near > value)
