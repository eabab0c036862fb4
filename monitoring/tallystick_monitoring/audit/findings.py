"""The table of findings: one row for each served value that is not the expected one.

================================  ==================================================================
``prediction_id``                 the prediction that it was part of
``request_time``                  request time
``contract``                      hash of the contract under which it was made
``view``, ``feature``             the view, as the contract calls it, and ``view__feature``
``cause``                         why, by docs/causes.md
``served``, ``expected``          both values as text, null where there is none
``served_event_time``…            event, created and write time of the row that was served
``expected_event_time``…          event and created time of the row that should have been
``prediction``                    as it was logged
``score_served``                  what the model says to the values as served
``score_expected``                what it says to the expected ones, null without a model
``entity.<key>``                  entity keys of the request
``evidence.<fact>``               what the cause was found by: :class:`Evidence` has the meaning
================================  ==================================================================

Times are in UTC to the microsecond.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import DataError
from tallystick.storage.atomic_files import replacing
from tallystick_monitoring.audit.cause_rules import Evidence
from tallystick_monitoring.log_columns import Bools, Int64s, is_true, microseconds, one_chunk

ORDER: Final = (
    ("request_time", "ascending"),
    ("prediction_id", "ascending"),
    ("feature", "ascending"),
)
FLAGS: Final = tuple(each.name for each in fields(Evidence) if not each.name.endswith("_us"))
"""Evidence that is true or false."""

TIMES: Final = (
    "served_event_time",
    "served_created_time",
    "served_write_time",
    "expected_event_time",
    "expected_created_time",
    "evidence.first_visible_time",
    "evidence.logged_event_time",
)
ENTITY: Final = "entity."
"""Begin of the columns with the request's entity keys."""

_PLAIN: Final = ("prediction_id", "contract", "view", "source_view", "feature", "cause")
_SCORES: Final = ("prediction", "score_served", "score_expected")


def schema(entities: Sequence[Any] = ()) -> pa.Schema:
    """The schema of findings whose entity keys are these Arrow fields, named ``entity.<key>``."""
    moment = pa.timestamp("us", tz="UTC")
    return pa.schema(
        [
            pa.field("request_time", moment),
            *(pa.field(name, pa.string()) for name in (*_PLAIN, "served", "expected")),
            *(pa.field(name, moment) for name in TIMES),
            *(pa.field(name, pa.float64()) for name in _SCORES),
            *(pa.field(f"evidence.{name}", pa.bool_()) for name in FLAGS),
            *entities,
        ]
    )


def together(tables: Iterable[pa.Table]) -> pa.Table:
    """Findings of several contracts as one table, in the order of requests and features."""
    return joined(tables).sort_by(list(ORDER)).combine_chunks()


def joined(tables: Iterable[pa.Table]) -> pa.Table:
    """Findings of several contracts as one table, in no order.

    An entity key that one contract lacks is null there. One of several types becomes text.
    """
    full = [table for table in tables if table.num_rows]
    if not full:
        return schema().empty_table()
    kinds: dict[str, set[Any]] = {}
    for table in full:
        for field in table.schema:
            kinds.setdefault(field.name, set()).add(field.type)
    for name, found in kinds.items():
        if len(found) > 1:
            full = [_as_text(table, name) for table in full]
    return pa.concat_tables(full, promote_options="default")


def request_names(table: pa.Table, contract: str | None = None) -> pa.Array:
    """A name for the request of each row of findings, or of a contract's part of the log.

    Another server's log may give an id of its own more than once: so time and contract are in it.
    """
    times = table["request_time"].cast(pa.int64()).cast(pa.string())
    owner = table["contract"] if contract is None else contract
    return one_chunk(pc.binary_join_element_wise(times, owner, table["prediction_id"], " "))


def with_entities(findings: pa.Table, contracts: Sequence[ModelContract]) -> pa.Table:
    """Findings with the entity keys that these contracts have, in their order, and no others.

    A key of several types is text.
    """
    kinds: dict[str, set[Any]] = {}
    for contract in contracts:
        for key in contract.entity_keys:
            kinds.setdefault(f"{ENTITY}{key.name}", set()).add(arrow_type(key.dtype))
    names = [name for name in findings.column_names if not name.startswith(ENTITY)]
    columns = {name: findings[name] for name in names}
    for name, found in kinds.items():
        kind = found.pop() if len(found) == 1 else pa.string()
        columns[name] = findings[name].cast(kind)
    return pa.table(columns)


def _as_text(table: pa.Table, name: str) -> pa.Table:
    if name not in table.column_names:
        return table
    index = table.schema.get_field_index(name)
    return table.set_column(index, name, table[name].cast(pa.string()))


def evidence_of(findings: pa.Table) -> Evidence:
    """What the causes of findings of stored features are found by."""

    def times(name: str) -> Int64s:
        return microseconds(findings[name])

    flags = {name: flag(findings, name) for name in FLAGS}
    return Evidence(
        request_us=times("request_time"),
        served_event_us=times("served_event_time"),
        served_created_us=times("served_created_time"),
        expected_event_us=times("expected_event_time"),
        expected_created_us=times("expected_created_time"),
        first_visible_us=times("evidence.first_visible_time"),
        **flags,
    )


def flag(findings: pa.Table, name: str) -> Bools:
    """A column of evidence, false where it does not apply."""
    return is_true(findings[f"evidence.{name}"])


def write_findings(path: Path, findings: pa.Table) -> None:
    """Write findings to a Parquet file, whole or not at all.

    Raises:
        DataError: It cannot be written.
    """
    try:
        with replacing(path) as draft:
            pq.write_table(findings, draft, compression="zstd")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written: {error.strerror or error}",
            hint="Name another file, or make room on the disk.",
        ) from error
