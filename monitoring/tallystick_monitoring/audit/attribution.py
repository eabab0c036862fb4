"""Causes for mismatches, with evidence from the whole log, sorted by day."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import HOUR_US
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.log_reader import LogPart
from tallystick_monitoring.audit.audit_state import AuditState, DayUpdate
from tallystick_monitoring.audit.cause_rules import classify
from tallystick_monitoring.audit.findings import evidence_of, request_names, together, with_entities
from tallystick_monitoring.audit.log_changes import LogChanges, day_of
from tallystick_monitoring.audit.log_evidence import (
    is_doubtful,
    may_change_cause,
    seen_in_log,
    sighting_columns,
    sightings,
)
from tallystick_monitoring.audit.value_comparison import key_columns
from tallystick_monitoring.log_columns import (
    Int64s,
    hours_of_times,
    is_value,
    microseconds,
    with_columns,
)

Columns = Callable[[ModelContract], Collection[str]]
"""Which columns of the log to read under a contract."""


@dataclass
class NewFindings:
    """What one run compared and found.

    Attributes:
        findings: Findings without cause, by the view's own name; of on-demand views under None.
        units: What was counted in new hours.
        again: Requests that were compared before, by :func:`request_names`.
    """

    findings: dict[str | None, list[pa.Table]] = field(default_factory=dict)
    units: list[pa.Table] = field(default_factory=list)
    again: list[pa.Array] = field(default_factory=list)


@dataclass(frozen=True)
class Attribution:
    """Gives mismatches their causes, by the evidence of the whole log.

    Attributes:
        state: What earlier audits found.
        changes: What of the log is not known as it is.
        known: Hours that were compared before, ascending.
        everything: Whether all findings have to be explained again, because what other requests
            saw has changed.
        begin_us: First request time of the log.
        contract_of: Contract hash → contract.
        read: Reads columns of the whole log, as far as audits have read it.
    """

    state: AuditState
    changes: LogChanges
    known: Int64s
    everything: bool
    begin_us: int
    contract_of: Callable[[str], ModelContract]
    read: Callable[[Columns], list[LogPart]]

    def days(self, found: NewFindings) -> dict[str, DayUpdate]:
        """The days that have changed, with units, findings by contract, and doubtful views."""
        hours = self.changes.hours
        names = pa.concat_arrays([pa.array([], pa.string()), *found.again])
        touched = self._days_touched(found)
        before = self.state.findings(touched)
        gone = pc.or_(
            pc.is_in(request_names(before), names),
            pa.array(np.isin(hours_of_times(before["request_time"]), hours)),
        )
        before = before.filter(pc.invert(gone))
        again = np.full(before.num_rows, self.everything, dtype=np.bool_)
        if len(hours):
            again |= may_change_cause(before)
        if self._is_late:
            again |= microseconds(before["request_time"]) >= int(hours.min()) * HOUR_US
        computed = is_value(before["cause"], "transform")
        again &= ~computed
        fresh = found.findings
        for view in before.filter(pa.array(again))["source_view"].unique().to_pylist():
            mine = again & is_value(before["source_view"], view)
            fresh.setdefault(view, []).append(before.filter(pa.array(mine)))
        results = [before.filter(pa.array(~again)), *fresh.pop(None, [])]
        results += [
            self._with_causes(view, together(tables)) for view, tables in fresh.items() if view
        ]
        return self._by_day(together(results), found, touched)

    @property
    def _is_late(self) -> bool:
        hours = self.changes.hours
        return bool(len(hours) and len(self.known) and hours.min() < self.known.max())

    def _days_touched(self, found: NewFindings) -> list[str]:
        """Days whose findings change, or may change."""
        hours = self.changes.hours
        touched = {day_of(int(hour)) for hour in hours} | set(self.changes.versions)
        for tables in found.findings.values():
            for table in tables:
                those = np.unique(hours_of_times(table["request_time"]))
                touched |= {day_of(int(hour)) for hour in those}
        if found.again or self.everything:
            # What was found before may be gone now, or have another cause.
            touched |= set(self.state.days)
        for day, each in self.state.days.items():
            is_later = self._is_late and day >= day_of(int(hours.min()))
            if is_later or (len(hours) and each.doubtful):
                touched.add(day)
        return sorted(touched)

    def _with_causes(self, view: str, findings: pa.Table) -> pa.Table:
        """Findings of one view with the evidence of the whole log, and a cause."""
        if not findings.num_rows:
            return findings
        features = findings.select(["feature", "view"]).filter(pa.array(is_doubtful(findings)))
        columns = sorted(
            {
                feature.removeprefix(f"{name}__")
                for feature, name in zip(
                    features["feature"].to_pylist(), features["view"].to_pylist(), strict=True
                )
            }
        )
        parts = self._sighted(view, columns)
        seen: dict[str, pa.Table | None] = {}
        pieces = []
        for contract_hash in findings["contract"].unique().to_pylist():
            for use in self.contract_of(contract_hash).views:
                mine = is_value(findings["contract"], contract_hash)
                mine &= is_value(findings["view"], use.name)
                if use.spec.name != view or not mine.any():
                    continue
                few = findings.filter(pa.array(mine))
                definition = use.spec.definition_hash
                if definition not in seen:
                    seen[definition] = sightings(parts, use.spec, columns=columns)
                sighted = seen[definition]
                if sighted is None:
                    # The log has lost them, and no audit has read their hours since.
                    pieces.append(few)
                    continue
                known = seen_in_log(few, pa.table(key_columns(few, use)), sighted)
                causes = classify(
                    evidence_of(known), ttl_us=use.spec.ttl_us, log_begin_us=self.begin_us
                )
                pieces.append(with_columns(known, {"cause": pa.array(causes, pa.string())}))
        return together(pieces)

    def _sighted(self, view: str, columns: Sequence[str]) -> list[LogPart]:
        """What the whole log, as far as audits have read it, says about a view."""

        def columns_of(contract: ModelContract) -> list[str]:
            names = [
                name
                for use in contract.views
                if use.spec.name == view
                for name in sighting_columns(use, columns=columns)
            ]
            return list(dict.fromkeys(names)) or ["request_time"]

        return self.read(columns_of)

    def _by_day(
        self, findings: pa.Table, found: NewFindings, touched: Sequence[str]
    ) -> dict[str, DayUpdate]:
        changes = self.changes
        units = self.state.units(touched)
        stays = ~np.isin(units["hour"].to_numpy(), changes.hours)
        rows = changes.rows
        rows = rows.filter(pa.array(np.isin(rows["hour"].to_numpy(), changes.hours)))
        units = pa.concat_tables([units.filter(pa.array(stays)), rows, *found.units])
        unit_days = units["hour"].to_numpy() // 24
        found_days = hours_of_times(findings["request_time"]) // 24
        doubtful = may_change_cause(findings)
        answer = {}
        for day in touched:
            number = int(np.datetime64(day, "D").astype(np.int64))
            mine = found_days == number
            of_day = findings.filter(pa.array(mine))
            views = findings["source_view"].filter(pa.array(mine & doubtful)).unique()
            contracts = of_day["contract"].unique().to_pylist()
            version = changes.versions.get(day)
            if version is None and day in self.state.days:
                same = all(day_of(int(hour)) != day for hour in changes.hours)
                version = self.state.days[day].version if same else None
            answer[day] = DayUpdate(
                version,
                units.filter(pa.array(unit_days == number)),
                [
                    with_entities(
                        of_day.filter(pc.equal(of_day["contract"], each)), [self.contract_of(each)]
                    )
                    for each in sorted(contracts)
                ],
                set(views.to_pylist()),
            )
        return answer
