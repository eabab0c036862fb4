"""What a request's record and history say about a mismatch: evidence for :mod:`.cause_rules`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.definitions.contract import TransformSpec, ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.point_in_time.feature_status import Status
from tallystick.records.causes import Cause
from tallystick_monitoring.audit.cause_rules import same_row
from tallystick_monitoring.audit.findings import ENTITY, evidence_of, schema
from tallystick_monitoring.audit.history_evidence import (
    rows_in_history,
    rows_with_values,
    with_identified_rows,
)
from tallystick_monitoring.audit.value_comparison import ComparedPart, expected_times, key_columns
from tallystick_monitoring.equality import equal_after_cast
from tallystick_monitoring.log_columns import (
    NO_TIME,
    Bools,
    Int64s,
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
        Findings without cause, by :func:`.findings.schema`, in no order.
    """
    log = found.part.table
    wrong = found.wrong(use.name, use.columns)
    if not wrong:
        return schema().empty_table()
    # What is of the request and not of the value is looked up once.
    requests, request_of = np.unique(np.concatenate([*wrong.values()]), return_inverse=True)
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
    facts = {
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
    findings = _findings(
        found,
        wrong,
        view=use.name,
        source_view=use.spec.name,
        facts=pa.table(facts).take(request_of),
    )
    if (unstamped & (logged_us != NO_TIME)).any():
        findings = with_identified_rows(repo, findings, use)
    same = same_row(evidence_of(findings))
    equal = _equal_after_cast(found, wrong, among=same)
    return with_columns(findings, {"evidence.cast_equal": pa.array(equal)})


def computed_differently(found: ComparedPart, spec: TransformSpec) -> pa.Table:
    """The values of an on-demand view that the contract's function does not give."""
    wrong = found.wrong(spec.name, [output.name for output in spec.outputs])
    causes = [Cause.TRANSFORM] * sum(map(len, wrong.values()))
    facts = pa.table({"cause": pa.array(causes, pa.string())})
    return _findings(found, wrong, view=spec.name, source_view=spec.name, facts=facts)


def _findings(
    found: ComparedPart,
    wrong: Mapping[str, Int64s],
    *,
    view: str,
    source_view: str,
    facts: pa.Table,
) -> pa.Table:
    """Findings for the wrong values of one view, with these facts about each."""
    log, contract = found.part.table, found.part.contract
    entities = [log.schema.field(f"{ENTITY}{key.name}") for key in contract.entity_keys]
    if not wrong:
        return schema(entities).empty_table()
    names = ["request_time", "prediction_id", "prediction", *(field.name for field in entities)]
    findings = log.select(names).take(np.concatenate([*wrong.values()]))
    columns = {
        "contract": pa.repeat(contract.contract_hash, findings.num_rows),
        "view": pa.repeat(view, findings.num_rows),
        "source_view": pa.repeat(source_view, findings.num_rows),
        "feature": pa.array(np.repeat([*wrong], [len(rows) for rows in wrong.values()])),
        "served": _texts(log, wrong, "feature."),
        "expected": _texts(found.expected, wrong, ""),
        **{name: facts[name] for name in facts.column_names},
    }
    # What no fact is known of is null.
    whole = [schema(entities).empty_table(), with_columns(findings, columns)]
    return pa.concat_tables(whole, promote_options="default")


def _texts(table: pa.Table, wrong: Mapping[str, Int64s], prefix: str) -> pa.Array:
    columns = ((table[f"{prefix}{name}"], rows) for name, rows in wrong.items())
    return pa.concat_arrays([texts(one_chunk(column.take(rows))) for column, rows in columns])


def _differs(log: pa.Table, use: ViewUse) -> Bools:
    """Whether the rows served were written under another definition than the contract's."""
    other = pc.not_equal(log[f"view.{use.name}.definition"], use.spec.definition_hash)
    return np.asarray(pc.fill_null(other, False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _equal_after_cast(found: ComparedPart, wrong: Mapping[str, Int64s], *, among: Bools) -> Bools:
    """Whether served and expected value are equal after a cast, for the values in ``among``.

    Values of different rows may be equal after a cast by chance.
    """
    pieces = []
    begin = 0
    for name, rows in wrong.items():
        equal = among[begin : begin + len(rows)].copy()
        begin += len(rows)
        few = rows[equal]
        served = found.part.table[f"feature.{name}"].take(few).to_pylist()
        expected = found.expected[name].take(few).to_pylist()
        equal[equal] = [equal_after_cast(*pair) for pair in zip(served, expected, strict=True)]
        pieces.append(equal)
    return np.concatenate(pieces)
