"""The audit: every served value against the one that history says, and a cause for each mismatch.

Stored features are recomputed by the fold under the knowledge clock, once for each contract; they
are compared bit for bit. On-demand features are recomputed from the *logged* inputs with the
contract's frozen functions, so that a wrong input is counted where it is wrong, and once.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.bundle import load_transforms
from tallystick.clock import from_us, to_us
from tallystick.contract import ModelContract, ViewUse
from tallystick.dtypes import JSON_TEXT, arrow_type
from tallystick.errors import StateError
from tallystick.prediction_log.reader import LogPart, first_time, read_log
from tallystick.records import Cause, Exemplar, ParityReport
from tallystick.retrieval import REQUEST_TIME, computed_values, stored_values
from tallystick_monitoring.causes import CAUSES, NO_TIME, Evidence, Int64s, classify, sentence
from tallystick_monitoring.comparison import Bools, same_bits
from tallystick_monitoring.evidence import (
    Mismatches,
    Rows,
    as_logged,
    flat,
    fold_clock,
    gather,
    history,
    microseconds,
    sightings,
)

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.repo import Repo

EXEMPLARS_MAX = 3
"""Mismatches shown in full for each cause."""


@dataclass(frozen=True)
class Findings:
    """Mismatching values of one view in one part of the log, with causes; shape (mismatches,).

    Attributes:
        part: The part of the log.
        view: Name of the view, or of the on-demand view.
        rows: Row of the part.
        features: Names of the features, as ``codes`` of ``feature`` count them.
        feature: Position of the feature in ``features``.
        causes: Names of the causes, as ``cause`` counts them.
        cause: Position of the cause in ``causes``.
        visible_us: When the expected row became visible, ``NO_TIME`` where there is none.
        evidence: What the causes were found by; None for on-demand views.
    """

    part: LogPart
    view: str
    rows: Int64s
    features: tuple[str, ...]
    feature: Int64s
    causes: tuple[Cause, ...]
    cause: Int64s
    visible_us: Int64s
    evidence: Evidence | None
    expected: pa.Table


@dataclass(frozen=True)
class Audited:
    """What an audit found, in sum and in full.

    Attributes:
        report: The record.
        parts: The log that was looked at.
        findings: Every mismatch.
    """

    report: ParityReport
    parts: list[LogPart]
    findings: list[Findings]


def audit(repo: Repo, model_name: str, *, start: datetime, end: datetime) -> ParityReport:
    """Compare what was served for the requests of [start, end) with what should have been.

    Args:
        repo: An applied repo; its sources are the history.
        model_name: Model whose log is read.
        start: First request time, included.
        end: Last request time, excluded.

    Raises:
        InputError: There is no such model.
        StateError: The model has no log yet.
        DamagedError: A log file or the bundle of a contract cannot be read.
        DataError: A source is not as declared.
    """
    return audit_log(repo, model_name, start=start, end=end).report


def audit_log(repo: Repo, model_name: str, *, start: datetime, end: datetime) -> Audited:
    """As :func:`audit`, with every mismatch."""
    repo.model(model_name)
    first_logged(repo, model_name)
    parts = read_log(repo.state_dir, model_name, start=start, end=end)
    histories: dict[str, Rows] = {}
    findings: list[Findings] = []
    values = requests = 0
    for part in parts:
        requests += part.table.num_rows
        values += part.table.num_rows * len(part.contract.value_columns)
        findings += _audit_part(repo, part, parts, histories, start=start)
    report = _report(
        model_name,
        start,
        end,
        requests=requests,
        values=values,
        findings=findings,
        unstamped=_unstamped(parts),
    )
    return Audited(report=report, parts=parts, findings=findings)


def _unstamped(parts: Sequence[LogPart]) -> list[str]:
    """The views whose online store did not say when its rows were written."""
    found = {
        use.name
        for part in parts
        for use in part.contract.views
        if sightings([part], use.spec.name).unstamped.any()
    }
    return sorted(found)


def first_logged(repo: Repo, model_name: str) -> datetime:
    """The first request time in a model's log.

    Raises:
        StateError: It has none.
    """
    found = first_time(repo.state_dir, model_name)
    if found is None:
        raise StateError(
            f"Model {model_name!r} has no logged predictions.",
            hint="Serve it, ask it something, and look again:  tally serve",
        )
    return found


def _audit_part(
    repo: Repo,
    part: LogPart,
    parts: Sequence[LogPart],
    histories: dict[str, Rows],
    *,
    start: datetime,
) -> Iterator[Findings]:
    """Find and explain the mismatches of one contract's predictions."""
    expected = _expected(repo, part)
    types = part.contract.stored_columns
    equal: dict[str, Bools] = {
        name: same_bits(
            flat(part.table[f"feature.{name}"]), flat(expected[name]).cast(arrow_type(types[name]))
        )
        for name in types
    }
    for use in part.contract.views:
        mismatches = _mismatches(use, equal)
        if not len(mismatches.rows):
            continue
        view = use.spec.name
        seen = sightings(parts, view)
        if view not in histories:
            values = use.spec.column_names if seen.unstamped.any() else ()
            histories[view] = history(repo, use, columns=values)
        evidence = gather(
            part,
            expected,
            mismatches,
            equal=equal,
            seen=seen,
            known=histories[view],
        )
        yield Findings(
            part=part,
            view=use.name,
            rows=mismatches.rows,
            features=tuple(f"{use.name}__{column}" for column in use.columns),
            feature=mismatches.feature,
            causes=CAUSES,
            cause=classify(evidence, ttl_us=use.spec.ttl_us, window_start_us=to_us(start)),
            visible_us=np.maximum(evidence.expected_event_us, evidence.expected_created_us),
            evidence=evidence,
            expected=expected,
        )
    yield from _audit_transforms(repo, part)


def _expected(repo: Repo, part: LogPart) -> pa.Table:
    """The stored features of a part under the knowledge clock, with times, row by row."""
    import pyarrow as pa

    contract, log = part.contract, part.table
    spine = pa.table(
        {
            REQUEST_TIME: log["request_time"],
            **{key.name: log[f"entity.{key.name}"] for key in contract.entity_keys},
        }
    )
    expected = spine
    clocks = {fold_clock(use) for use in contract.views}
    for clock in sorted(clocks):
        uses = [use for use in contract.views if fold_clock(use) is clock]
        folded = stored_values(repo, uses, spine, clock=clock, with_times=True)
        for name in folded.column_names:
            if name not in expected.column_names:
                dtype = contract.stored_columns.get(name)
                expected = expected.append_column(name, as_logged(folded[name], dtype))
    return expected


def _mismatches(use: ViewUse, equal: dict[str, Bools]) -> Mismatches:
    rows = [np.flatnonzero(~equal[f"{use.name}__{column}"]) for column in use.columns]
    positions = [np.full(len(found), place) for place, found in enumerate(rows)]
    return Mismatches(
        use=use,
        rows=np.concatenate([np.empty(0, dtype=np.int64), *rows]),
        feature=np.concatenate([np.empty(0, dtype=np.int64), *positions]),
    )


def _audit_transforms(repo: Repo, part: LogPart) -> Iterator[Findings]:
    """Compute on-demand features again from logged inputs, and compare."""
    import pyarrow as pa

    contract, log = part.contract, part.table
    if not contract.transforms:
        return
    transforms = load_transforms(repo.state_dir, contract.model, contract.contract_hash)
    given = pa.table(
        {
            source: _as_given(log[column], contract.stored_columns.get(source))
            for source, column in _input_columns(contract).items()
        }
    )
    computed = computed_values(contract, transforms, given)
    for spec in contract.transforms:
        names = tuple(f"{spec.name}__{column.name}" for column in spec.outputs)
        rows, positions = [], []
        for position, name in enumerate(names):
            same = same_bits(flat(log[f"feature.{name}"]), flat(computed[name]))
            rows.append(np.flatnonzero(~same))
            positions.append(np.full(len(rows[-1]), position))
        found = np.concatenate(rows)
        if not len(found):
            continue
        yield Findings(
            part=part,
            view=spec.name,
            rows=found,
            features=names,
            feature=np.concatenate(positions),
            causes=("transform",),
            cause=np.zeros(len(found), dtype=np.int64),
            visible_us=np.full(len(found), NO_TIME),
            evidence=None,
            expected=computed,
        )


def _as_given(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of the log in the form in which on-demand functions take its type."""
    import orjson
    import pyarrow as pa

    if dtype not in JSON_TEXT or dtype == "JSON":
        return column
    values = [None if text is None else orjson.loads(text) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values)])


def _input_columns(contract: ModelContract) -> dict[str, str]:
    """Input of an on-demand view → column of the log."""
    sources = {source for spec in contract.transforms for source in spec.inputs.values()}
    fields = {field.name for field in contract.request_fields}
    return {
        source: f"request.{source}" if source in fields else f"feature.{source}"
        for source in sorted(sources)
    }


def _report(
    model: str,
    start: datetime,
    end: datetime,
    *,
    requests: int,
    values: int,
    findings: Sequence[Findings],
    unstamped: list[str],
) -> ParityReport:
    causes: Counter[Cause] = Counter()
    views: dict[str, Counter[Cause]] = {}
    exemplars: dict[Cause, list[Exemplar]] = {}
    for found in findings:
        for position, cause in enumerate(found.causes):
            places = np.flatnonzero(found.cause == position)
            if not len(places):
                continue
            causes[cause] += len(places)
            views.setdefault(found.view, Counter())[cause] += len(places)
            shown = exemplars.setdefault(cause, [])
            shown += [
                _exemplar(found, cause, int(place))
                for place in places[: EXEMPLARS_MAX - len(shown)]
            ]
    return ParityReport(
        model=model,
        start=start,
        end=end,
        requests=requests,
        values=values,
        equal=values - causes.total(),
        causes=dict(causes),
        views={view: dict(counts) for view, counts in views.items()},
        exemplars=exemplars,
        unstamped=unstamped,
    )


def _exemplar(found: Findings, cause: Cause, place: int) -> Exemplar:
    log, row = found.part.table, int(found.rows[place])
    feature = found.features[int(found.feature[place])]
    evidence = found.evidence
    return Exemplar(
        prediction_id=log["prediction_id"][row].as_py(),
        request_time=from_us(int(microseconds(log["request_time"].slice(row, 1))[0])),
        feature=feature,
        keys={
            key.name: str(log[f"entity.{key.name}"][row].as_py())
            for key in found.part.contract.entity_keys
        },
        served=repr(log[f"feature.{feature}"][row].as_py()),
        expected=repr(found.expected[feature][row].as_py()),
        served_event_time=None if evidence is None else _moment(evidence.served_event_us[place]),
        expected_event_time=(
            None if evidence is None else _moment(evidence.expected_event_us[place])
        ),
        evidence=(
            "The contract's function gives another value for the logged inputs."
            if evidence is None
            else sentence(cause, evidence, place)
        ),
    )


def _moment(moment_us: Any) -> datetime | None:
    return None if moment_us == NO_TIME else from_us(int(moment_us))
