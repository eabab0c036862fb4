"""What a request's record and history say about a mismatch: evidence for :mod:`.cause_rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.definitions.contract import TransformSpec, ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.point_in_time.feature_status import Status
from tallystick_monitoring.audit.cause_rules import same_row
from tallystick_monitoring.audit.findings import ENTITY, evidence_of, schema
from tallystick_monitoring.audit.history_evidence import (
    rows_in_history,
    rows_with_values,
    with_identified_rows,
)
from tallystick_monitoring.audit.value_comparison import (
    ComparedPart,
    expected_times,
    key_columns,
    wrong_values,
)
from tallystick_monitoring.equality import equal_after_cast
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Bools,
    as_times,
    is_value,
    microseconds,
    one_chunk,
    texts,
    with_columns,
)


def differing(repo: Repo, found: ComparedPart, use: ViewUse) -> pa.Table:
    """The values of a view that differ, with all evidence but that of other requests.

    Returns:
        Findings without cause, by :func:`.findings.schema`; in no order.
    """
    log, contract = found.part.table, found.part.contract
    wrong = list(wrong_values(use, found.equal))
    entities = [log.schema.field(f"{ENTITY}{key.name}") for key in contract.entity_keys]
    if not wrong:
        return schema(entities).empty_table()
    every = np.concatenate([rows for _, rows in wrong])
    # What is of the request and not of the value is days up once.
    requests, place = np.unique(every, return_inverse=True)
    few = log.take(requests)
    event_us = microseconds(few[f"view.{use.name}.event_time"])
    created_us = microseconds(few[f"view.{use.name}.created_time"])
    write_us = microseconds(few[f"view.{use.name}.write_time"])
    created_us = np.where(created_us == NO_TIME, event_us, created_us)
    present = is_value(few[f"view.{use.name}.status"], Status.PRESENT)
    unstamped = ((event_us != NO_TIME) | present) & (write_us == NO_TIME)
    expected_rows = found.expected.take(requests)
    expected_event_us, expected_created_us = expected_times(expected_rows, use)
    keys = key_columns(few, use)
    logged_us = event_us
    unknown = np.flatnonzero(present & (event_us == NO_TIME))
    if len(unknown):
        event_us, created_us = rows_with_values(repo, use, few, among=unknown)
        # A row that no version has is taken for the right one, with other values.
        right = present & (event_us == NO_TIME)
        event_us = np.where(right, expected_event_us, event_us)
        created_us = np.where(right, expected_created_us, created_us)
    request_us = microseconds(few["request_time"])
    first_us, known = rows_in_history(repo, use, keys, event_us, created_us, request_us=request_us)
    request_facts = {
        "request_time": few["request_time"],
        "prediction_id": few["prediction_id"],
        "prediction": few["prediction"],
        **{field.name: few[field.name] for field in entities},
        "served_event_time": as_times(event_us),
        "served_created_time": as_times(created_us),
        "served_write_time": as_times(write_us),
        "expected_event_time": as_times(expected_event_us),
        "expected_created_time": as_times(expected_created_us),
        "evidence.logged_event_time": as_times(logged_us),
        "evidence.first_visible_time": as_times(first_us),
        "evidence.served_present": pa.array(present),
        "evidence.expected_present": pa.array(
            is_value(expected_rows[f"{use.name}__status"], Status.PRESENT)
        ),
        "evidence.definition_differs": pa.array(_differs(few, use)),
        "evidence.in_history": pa.array(known),
        "evidence.unstamped": pa.array(unstamped),
    }
    whole = pa.table(request_facts).take(place)
    served = [one_chunk(log[f"feature.{name}"].take(rows)) for name, rows in wrong]
    expected = [one_chunk(found.expected[name].take(rows)) for name, rows in wrong]
    names = [name for name, rows in wrong for _ in range(len(rows))]
    count = len(names)
    findings = _in_schema(
        with_columns(
            whole,
            {
                "contract": pa.array([contract.contract_hash] * count, pa.string()),
                "view": pa.array([use.name] * count, pa.string()),
                "source_view": pa.array([use.spec.name] * count, pa.string()),
                "feature": pa.array(names, pa.string()),
                "served": pa.concat_arrays([texts(each) for each in served]),
                "expected": pa.concat_arrays([texts(each) for each in expected]),
            },
        ),
        entities,
    )
    if (unstamped & (logged_us != NO_TIME)).any():
        findings = with_identified_rows(repo, findings, use)
    same = same_row(evidence_of(findings))
    equal = _equal_after_cast(served, expected, among=same)
    return with_columns(findings, {"evidence.cast_equal": pa.array(equal)})


def computed_differently(found: ComparedPart, spec: TransformSpec) -> pa.Table:
    """The values of an on-demand view that the contract's function does not give."""
    log, contract = found.part.table, found.part.contract
    entities = [log.schema.field(f"{ENTITY}{key.name}") for key in contract.entity_keys]
    tables = [schema(entities).empty_table()]
    for output in spec.outputs:
        name = f"{spec.name}__{output.name}"
        rows = np.flatnonzero(~found.computed_equal[name])
        if not len(rows) or found.computed is None:
            continue
        few = log.take(rows)
        columns = {
            "request_time": few["request_time"],
            "prediction_id": few["prediction_id"],
            "prediction": few["prediction"],
            **{field.name: few[field.name] for field in entities},
            "contract": pa.array([contract.contract_hash] * len(rows), pa.string()),
            "view": pa.array([spec.name] * len(rows), pa.string()),
            "source_view": pa.array([spec.name] * len(rows), pa.string()),
            "feature": pa.array([name] * len(rows), pa.string()),
            "cause": pa.array(["transform"] * len(rows), pa.string()),
            "served": texts(one_chunk(few[f"feature.{name}"])),
            "expected": texts(one_chunk(found.computed[name].take(rows))),
        }
        tables.append(_in_schema(pa.table(columns), entities))
    return pa.concat_tables(tables)


def _in_schema(table: pa.Table, entities: Sequence[Any]) -> pa.Table:
    """The table with every column of the schema, null where it has none, in its order."""
    whole = schema(entities)
    return pa.table(
        [
            table[field.name].cast(field.type)
            if field.name in table.column_names
            else pa.nulls(table.num_rows, field.type)
            for field in whole
        ],
        schema=whole,
    )


def _differs(log: pa.Table, use: ViewUse) -> Bools:
    """Whether the rows served were written under another definition than the contract's."""
    other = pc.not_equal(log[f"view.{use.name}.definition"], use.spec.definition_hash)
    return np.asarray(pc.fill_null(other, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _equal_after_cast(
    served: Sequence[pa.Array], expected: Sequence[pa.Array], *, among: Bools
) -> Bools:
    """Whether served and expected value are equal after a cast, for the values in ``among``.

    Values of different rows may be equal after a cast by chance.
    """
    result = np.zeros(len(among), dtype=np.bool_)
    begin = 0
    for one, other in zip(served, expected, strict=True):
        places = np.flatnonzero(among[begin : begin + len(one)])
        pairs = zip(one.take(places).to_pylist(), other.take(places).to_pylist(), strict=True)
        result[begin + places] = [equal_after_cast(*pair) for pair in pairs]
        begin += len(one)
    return result
