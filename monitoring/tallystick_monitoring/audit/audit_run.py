"""One audit: it compares and explains what is new, and reports on all that is known."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import HOUR_US, from_us, to_us
from tallystick.definitions.contract import ModelContract, ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import DamagedError, StateError
from tallystick.model_bundle.bundle import Bundle, load_bundle
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import (
    DamagedFile,
    LogPart,
    first_time,
    logged_contract,
    read_log,
)
from tallystick.records.causes import Cause
from tallystick.records.record_store import ParityReport
from tallystick_monitoring.audit import audit_report
from tallystick_monitoring.audit.audit_state import (
    AuditState,
    Day,
    HistoryMark,
    Seen,
    folder_of,
    locked,
)
from tallystick_monitoring.audit.cause_rules import classify
from tallystick_monitoring.audit.findings import (
    evidence_of,
    joined,
    request_names,
    together,
    with_entities,
)
from tallystick_monitoring.audit.history_changes import (
    ALWAYS,
    NEVER,
    history_changes,
    history_name,
    reopened,
)
from tallystick_monitoring.audit.hourly_counts import counted
from tallystick_monitoring.audit.log_changes import (
    LogChanges,
    counts_of_rows,
    day_of,
    hours_of,
    log_changes,
)
from tallystick_monitoring.audit.log_evidence import (
    is_doubtful,
    may_change_cause,
    seen_in_log,
    sighting_columns,
    sightings,
)
from tallystick_monitoring.audit.prediction_effect import with_scores
from tallystick_monitoring.audit.request_evidence import computed_differently, differing
from tallystick_monitoring.audit.value_comparison import compared, key_columns
from tallystick_monitoring.log_columns import (
    Bools,
    Int64s,
    hours_of_times,
    is_true,
    is_value,
    with_columns,
)

VALUES_MAX: Final = 20_000_000
"""Values compared at once, unless one hour alone has more."""

GAP_HOURS: Final = 24
"""Hours without anything to compare that are read to keep a span whole."""

KNOWLEDGE: Final = VisibilityClock.KNOWLEDGE
_LAST_US: Final = to_us(datetime.max.replace(tzinfo=UTC))


@dataclass(frozen=True)
class Audited:
    """What an audit found, in sum and in full.

    Attributes:
        report: The record.
        findings: Every mismatch of the requests in the span, with the columns of :mod:`.findings`.
    """

    report: ParityReport
    findings: pa.Table


def audit(
    repo: Repo,
    model: str,
    *,
    start: datetime,
    end: datetime,
    clock: VisibilityClock = KNOWLEDGE,
    again: bool = False,
    on_step: Callable[[int, int], None] = lambda _, __: None,
) -> Audited:
    """Compare what was served for the requests of [start, end) with what should have been.

    What an earlier audit compared is not compared again, unless the log or the history behind it
    has changed since. The same log and history give the same findings, in one audit or in many.

    Args:
        repo: An applied repo, whose sources are the history.
        model: Model whose log is read.
        start: First request time, included.
        end: Last request time, excluded.
        clock: When a row of history counts as visible. Under the event clock, what was only known
            later is expected too. Under the served clock it is what had been written online.
        again: Whether to compare everything again.
        on_step: Called with the hours of the log that are done, and all that there are to do.

    Raises:
        InputError: There is no such model.
        StateError: The model has no log yet, or another audit does not end.
        DamagedError: A manifest of the log, or the bundle of a contract cannot be read.
        DataError: A source is not as declared, or the findings cannot be written.
    """
    begin = first_logged(repo, model)
    folder = folder_of(repo.state_dir, model, clock)
    with locked(folder):
        state = AuditState(folder, is_new=again)
        damaged: dict[str, DamagedFile] = {}
        while True:
            run = AuditRun(repo, model, clock, state, begin=begin, damaged=damaged)
            if run.go(hours=(to_us(start) // HOUR_US, -(-to_us(end) // HOUR_US)), on_step=on_step):
                break
        report, findings = audit_report.report(
            repo,
            model,
            state,
            start=start,
            end=end,
            clock=clock,
            damaged=damaged,
            contract_of=run.contract_of,
        )
    return Audited(
        report=report.model_copy(update={"read": run.read, "reopened": run.reopened}),
        findings=findings,
    )


def first_logged(repo: Repo, model: str) -> datetime:
    """The first request time in a model's log.

    Raises:
        InputError: There is no such model, nor anything logged under that name.
        StateError: It has none.
    """
    found = first_time(repo.state_dir, model)
    if found is None:
        # A feature service is not a model, but another server's log of it can be imported.
        repo.model(model)
        raise StateError(
            f"Model {model!r} has no logged predictions.",
            hint="Serve it, send it a request, and audit again:  tally serve",
        )
    return found


Columns = Callable[[ModelContract], Collection[str]]
"""Which columns of the log to read under a contract."""


class AuditRun:
    """One audit of a model under a clock: compare what is new, and explain all that may differ."""

    def __init__(
        self,
        repo: Repo,
        model: str,
        clock: VisibilityClock,
        state: AuditState,
        *,
        begin: datetime,
        damaged: dict[str, DamagedFile],
    ) -> None:
        self._repo, self._model, self._clock, self._state = repo, model, clock, state
        self._begin_us = to_us(begin)
        self._bundles: dict[str, Bundle] = {}
        self._contracts: dict[str, ModelContract] = {}
        self._units = state.units()
        self._until = 0
        self._whole: list[LogPart] | None = None
        self._new_units: list[pa.Table] = []
        self._new_findings: list[pa.Table] = []
        self._again: list[pa.Array] = []
        self.damaged = damaged
        self.read = 0
        self.reopened = 0

    def go(self, *, hours: tuple[int, int], on_step: Callable[[int, int], None]) -> bool:
        """Compare what is new in these hours, and what late history has changed anywhere.

        Returns:
            Whether the result was saved. It is not if damaged files were found on the way: then
            the audit has to begin again without them.
        """
        excluded = set(self.damaged)
        known = np.unique(self._units["hour"].to_numpy())
        frontier = int(known.max()) if len(known) else ALWAYS
        covered = frontier + 1 if len(known) else ALWAYS
        changes = log_changes(
            self._repo,
            self._model,
            self._state,
            hours=hours,
            frontier=frontier,
            damaged=self.damaged,
        )
        self._contracts |= changes.contracts
        self._until = max(covered, hours[1])
        since, marks = self._histories(changes, covered=covered)
        first = min((int(each.min()) for each in since.values()), default=NEVER)
        old = known[(known >= first) & ~np.isin(known, changes.hours)]
        whole = np.union1d(changes.hours, old)
        batches = list(self._batches(whole, changes))
        for span in batches:
            on_step(int((whole < span[0]).sum()), len(whole))
            parts = self._log(span)
            if len(batches) == 1 and not len(known) and span[0] <= self._begin_us // HOUR_US:
                # Everything that there is of the log so far is here.
                self._whole = parts
            for part in parts:
                self._take(part, changes.hours, old, since)
        days = self._days(changes, everything=changes.lost or self._is_other_log(changes, hours))
        last = day_of(self._until - 1)
        seen = Seen(
            begin_us=self._begin_us,
            days={day: version for day, version in changes.log.items() if day <= last},
        )
        if set(self.damaged) != excluded:
            return False
        if days or marks or seen != self._state.seen:
            self._state.commit(days, {name: write() for name, write in marks.items()}, seen)
        return True

    def contract_of(self, contract_hash: str) -> ModelContract:
        """A contract of the log."""
        if contract_hash not in self._contracts:
            self._contracts[contract_hash] = logged_contract(
                self._repo.state_dir, self._model, contract_hash
            )
        return self._contracts[contract_hash]

    def _is_other_log(self, changes: LogChanges, hours: tuple[int, int]) -> bool:
        """Whether the log in which evidence was looked for has changed beside these hours."""
        seen = self._state.seen
        if seen is None:
            return False
        if seen.begin_us != self._begin_us:
            return True
        last = max(seen.days, default="")
        begin = self._begin_us // HOUR_US
        for day in seen.days.keys() | {day for day in changes.log if day <= last}:
            first, after = hours_of(day)
            first = max(first, begin) if day == day_of(begin) else first
            is_inside = hours[0] <= first and min(after, self._until) <= hours[1]
            if not is_inside and changes.log.get(day) != seen.days.get(day):
                return True
        return False

    def _histories(
        self, changes: LogChanges, *, covered: int
    ) -> tuple[dict[str, Int64s], dict[str, Callable[[], HistoryMark]]]:
        """What has changed in each view's history, under each clock that is looked at.

        Returns:
            Definition of a view → first hours by bucket, and name of a history → what
            writes its new mark; :func:`history_changes` gives both.
        """
        few = self._units.filter(pc.equal(self._units["kind"], "unstamped"))
        unstamped = set(zip(few["contract"].to_pylist(), few["name"].to_pylist(), strict=True))
        uses: dict[str, list[ViewUse]] = {}
        by_event = set()
        for contract_hash in sorted(
            {*self._units["contract"].unique().to_pylist(), *changes.contracts}
        ):
            for use in self.contract_of(contract_hash).views:
                uses.setdefault(use.spec.definition_hash, []).append(use)
                if (contract_hash, use.name) in unstamped:
                    by_event.add(use.spec.definition_hash)
        clocks = {self._clock}
        if self._clock is VisibilityClock.SERVED:
            # Evidence of what was online is of the source, also where the journal is expected.
            clocks.add(KNOWLEDGE)
        since: dict[str, Int64s] = {}
        marks = {}
        for definition, same in sorted(uses.items()):
            for clock in sorted(clocks):
                first_hours, mark = history_changes(
                    self._repo,
                    same,
                    self._state,
                    clock=clock,
                    covered=covered,
                    by_event=definition in by_event,
                )
                since[definition] = np.minimum(since.get(definition, NEVER), first_hours)
                if mark is not None:
                    marks[history_name(same[0], clock)] = mark
        return since, marks

    def _batches(self, hours: Int64s, changes: LogChanges) -> Iterator[tuple[int, int]]:
        """Spans of hours, each with about as many values as may be compared at once."""
        known = self._units.filter(pc.equal(self._units["kind"], "rows"))
        rows = {**counts_of_rows(known), **counts_of_rows(changes.rows)}
        by_hour = Counter[int]()
        for (contract_hash, hour), count in rows.items():
            by_hour[hour] += count * len(self.contract_of(contract_hash).value_columns)
        span: list[int] = []
        values = 0
        for hour in hours.tolist():
            more = by_hour[hour]
            if span and (values + more > VALUES_MAX or hour - span[1] > GAP_HOURS):
                yield span[0], span[1]
                span, values = [], 0
            span = [span[0] if span else hour, hour + 1]
            values += more
        if span:
            yield span[0], span[1]

    def _log(self, hours: tuple[int, int], columns: Columns | None = None) -> list[LogPart]:
        return read_log(
            self._repo.state_dir,
            self._model,
            start=from_us(hours[0] * HOUR_US),
            end=from_us(min(hours[1] * HOUR_US, _LAST_US)),
            columns=columns,
            damaged=self.damaged,
        )

    def _take(self, part: LogPart, new: Int64s, old: Int64s, since: Mapping[str, Int64s]) -> None:
        """Compare the requests of a part that have to be."""
        hours = hours_of_times(part.table["request_time"])
        is_new = np.isin(hours, new)
        if is_new.any():
            self._new_units.append(counted(_only(part, is_new)))
        again = np.isin(hours, old)
        if again.any():
            again &= reopened(part, since) & ~is_new
        if again.any():
            names = request_names(part.table, part.contract.contract_hash)
            again = pc.is_in(names, names.filter(pa.array(again))).to_numpy(False)
            self._again.append(names.filter(pa.array(again)))
        part = _only(part, is_new | again)
        if not part.table.num_rows:
            return
        self.read += part.table.num_rows
        self.reopened += int(again.sum())
        transforms = self._transforms(part.contract) if part.contract.transforms else None
        result = compared(self._repo, part, transforms, clock=self._clock)
        found = joined(
            [
                *(differing(self._repo, result, use) for use in part.contract.views),
                *(computed_differently(result, spec) for spec in part.contract.transforms),
            ]
        )
        if not found.num_rows:
            return
        with suppress(StateError, DamagedError):
            # Without a model the effect is unknown, and the report says so.
            found = with_scores(found, self._bundle(part.contract), result)
        self._new_findings.append(found)

    def _transforms(self, contract: ModelContract) -> Transforms:
        if contract.is_observed:
            return Transforms.from_repo(self._repo, contract)
        return self._bundle(contract).transforms

    def _bundle(self, contract: ModelContract) -> Bundle:
        name = contract.contract_hash
        if name not in self._bundles:
            self._bundles[name] = load_bundle(self._repo.state_dir, self._model, name)
        return self._bundles[name]

    def _days(self, changes: LogChanges, *, everything: bool) -> dict[str, Day | None]:
        """The days that have changed, with the findings explained. A day without requests is None.

        Args:
            changes: What of the log is not known as it is.
            everything: Whether all findings have to be explained again, because what other requests
                saw has changed.
        """
        hours = changes.hours
        touched = {day_of(int(hour)) for hour in hours} | set(changes.versions)
        for table in self._new_findings:
            touched |= _days_of(table["request_time"])
        if self._again or everything:
            # What was found before may be gone now, or have another cause.
            touched |= set(self._state.days)
        if len(hours):
            touched |= {day for day, each in self._state.days.items() if each.doubtful}
        before = self._state.findings(touched)
        again = pa.concat_arrays([pa.array([], pa.string()), *self._again])
        gone = is_true(pc.is_in(request_names(before), again))
        gone |= np.isin(hours_of_times(before["request_time"]), hours)
        findings = joined([before.filter(pa.array(~gone)), *self._new_findings])
        unexplained = np.asarray(findings["cause"].is_null().to_numpy(), dtype=np.bool_)
        if everything:
            unexplained[:] = True
        elif len(hours):
            unexplained |= may_change_cause(findings)
        unexplained &= ~is_value(findings["cause"], Cause.TRANSFORM)
        pending = findings.filter(pa.array(unexplained))
        findings = together(
            [
                findings.filter(pa.array(~unexplained)),
                *(
                    self._with_causes(view, pending.filter(pc.equal(pending["source_view"], view)))
                    for view in pending["source_view"].unique().to_pylist()
                ),
            ]
        )
        rows = changes.rows
        rows = rows.filter(pa.array(np.isin(rows["hour"].to_numpy(), hours)))
        units = self._state.units(touched)
        stay = units.filter(pa.array(~np.isin(units["hour"].to_numpy(), hours)))
        units = pa.concat_tables([stay, rows, *self._new_units]).combine_chunks()
        return {day: self._day(day, findings, units, changes) for day in sorted(touched)}

    def _with_causes(self, view: str, findings: pa.Table) -> pa.Table:
        """Findings of one view with the evidence of the whole log, and a cause."""
        doubtful = findings.filter(pa.array(is_doubtful(findings)))
        names = zip(doubtful["feature"].to_pylist(), doubtful["view"].to_pylist(), strict=True)
        columns = sorted({feature.removeprefix(f"{name}__") for feature, name in names})

        def columns_of(contract: ModelContract) -> list[str]:
            uses = [use for use in contract.views if use.spec.name == view]
            names = [name for use in uses for name in sighting_columns(use, columns=columns)]
            return list(dict.fromkeys(names)) or ["request_time"]

        parts = self._whole
        if parts is None:
            parts = self._log((self._begin_us // HOUR_US, self._until), columns_of)
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
                    evidence_of(known), ttl_us=use.spec.ttl_us, log_begin_us=self._begin_us
                )
                pieces.append(with_columns(known, {"cause": pa.array(causes, pa.string())}))
        return joined(pieces)

    def _day(
        self, day: str, findings: pa.Table, units: pa.Table, changes: LogChanges
    ) -> Day | None:
        """What is known of a day now, written beside what was known before."""
        first, after = hours_of(day)
        hours = units["hour"].to_numpy()
        begin, end = np.searchsorted(hours_of_times(findings["request_time"]), (first, after))
        findings = findings.slice(begin, end - begin)
        version = changes.versions.get(day)
        known = self._state.days.get(day)
        if version is None and known is not None:
            is_same = not ((changes.hours >= first) & (changes.hours < after)).any()
            version = known.version if is_same else None
        doubtful = findings.filter(pa.array(may_change_cause(findings)))
        return self._state.write_day(
            day,
            version=version,
            units=units.filter(pa.array((hours >= first) & (hours < after))),
            findings=[
                with_entities(
                    findings.filter(pc.equal(findings["contract"], each)), [self.contract_of(each)]
                )
                for each in sorted(findings["contract"].unique().to_pylist())
            ],
            doubtful=doubtful["source_view"].unique().to_pylist(),
        )


def _days_of(times: pa.ChunkedArray) -> set[str]:
    return {day_of(int(hour)) for hour in np.unique(hours_of_times(times))}


def _only(part: LogPart, rows: Bools) -> LogPart:
    if rows.all():
        return part
    return LogPart(part.contract, part.table.filter(pa.array(rows)))
