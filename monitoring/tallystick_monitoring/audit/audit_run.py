"""One audit: it compares and explains what is new, and reports on all that is known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
from tallystick.records.record_store import ParityReport
from tallystick_monitoring.audit import audit_report
from tallystick_monitoring.audit.attribution import Attribution, Columns, NewFindings
from tallystick_monitoring.audit.audit_state import (
    AuditState,
    HistoryUpdate,
    Seen,
    folder_of,
    locked,
)
from tallystick_monitoring.audit.findings import request_names
from tallystick_monitoring.audit.history_changes import (
    ALWAYS,
    NEVER,
    history_changes,
    history_name,
    reopened,
)
from tallystick_monitoring.audit.hourly_counts import counted
from tallystick_monitoring.audit.log_changes import LogChanges, day_of, hours_of, log_changes
from tallystick_monitoring.audit.prediction_effect import scores
from tallystick_monitoring.audit.request_evidence import computed_differently, differing
from tallystick_monitoring.audit.value_comparison import ComparedPart, compared
from tallystick_monitoring.log_columns import (
    Bools,
    Int64s,
    hours_of_times,
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
        findings: Every mismatch of the requests in the span; :mod:`.findings` has the columns.
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
        repo: An applied repo; its sources are the history.
        model: Model whose log is read.
        start: First request time, included.
        end: Last request time, excluded.
        clock: When a row of history counts as visible. Under the event clock, what was only known
            later is expected too; under the served clock, what had been written online.
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


class AuditRun:
    """One audit of a model under a clock."""

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
        covered = int(known.max()) + 1 if len(known) else ALWAYS
        changes = log_changes(
            self._repo,
            self._model,
            self._state,
            hours=hours,
            frontier=covered - 1 if len(known) else ALWAYS,
            damaged=self.damaged,
        )
        self._contracts |= changes.contracts
        self._until = max(covered, hours[1])
        histories = self._histories(changes, covered=covered)
        since: dict[str, Int64s] = {}
        for _, definition, first_hours, _ in histories:
            found_before = since.get(definition, first_hours)
            since[definition] = np.minimum(found_before, first_hours)
        first = min((int(each.min()) for each in since.values()), default=NEVER)
        old = known[(known >= first) & ~np.isin(known, changes.hours)]
        found = NewFindings()
        whole = np.union1d(changes.hours, old)
        batches = list(self._batches(whole, changes))
        for span in batches:
            on_step(int((whole < span[0]).sum()), len(whole))
            parts = self._log(span)
            if len(batches) == 1 and not len(known) and span[0] <= self._begin_us // HOUR_US:
                # Everything that there is of the log so far is here.
                self._whole = parts
            for part in parts:
                self._take(part, changes.hours, old, since, found)
        attribution = Attribution(
            state=self._state,
            changes=changes,
            known=known,
            everything=changes.lost or self._is_other_log(changes.log, hours),
            begin_us=self._begin_us,
            contract_of=self.contract_of,
            read=self._whole_log,
        )
        days = attribution.days(found)
        updates = {name: update for name, _, _, update in histories if update is not None}
        seen = Seen(begin_us=self._begin_us, days=self._days_until(changes.log))
        if set(self.damaged) != excluded:
            return False
        if days or updates or seen != self._state.seen:
            self._state.commit(days, updates, seen)
        return True

    def _days_until(self, log: Mapping[str, str]) -> dict[str, str]:
        last = day_of(self._until - 1)
        return {day: version for day, version in log.items() if day <= last}

    def _is_other_log(self, log: Mapping[str, str], hours: tuple[int, int]) -> bool:
        """Whether the log in which evidence was looked for has changed beside these hours."""
        seen = self._state.seen
        if seen is None:
            return False
        if seen.begin_us != self._begin_us:
            return True
        last = max(seen.days, default="")
        begin = self._begin_us // HOUR_US
        for day in seen.days.keys() | {day for day in log if day <= last}:
            first, after = hours_of(day)
            first = max(first, begin) if day == day_of(begin) else first
            is_inside = hours[0] <= first and min(after, self._until) <= hours[1]
            if not is_inside and log.get(day) != seen.days.get(day):
                return True
        return False

    def contract_of(self, contract_hash: str) -> ModelContract:
        """A contract of the log."""
        if contract_hash not in self._contracts:
            self._contracts[contract_hash] = logged_contract(
                self._repo.state_dir, self._model, contract_hash
            )
        return self._contracts[contract_hash]

    def _histories(
        self, changes: LogChanges, *, covered: int
    ) -> list[tuple[str, str, Int64s, HistoryUpdate | None]]:
        """What has changed in each view's history, under each clock that is looked at.

        Returns:
            For each history its name, the definition of its view, and what
            :func:`history_changes` says of it.
        """
        hashes = set(self._units["contract"].unique().to_pylist()) | set(changes.contracts)
        uses: dict[str, list[tuple[str, ViewUse]]] = {}
        for contract_hash in sorted(hashes):
            for use in self.contract_of(contract_hash).views:
                uses.setdefault(use.spec.definition_hash, []).append((contract_hash, use))
        few = self._units.filter(pa.array(is_value(self._units["kind"], "unstamped")))
        unstamped = set(zip(few["contract"].to_pylist(), few["name"].to_pylist(), strict=True))
        # Evidence of what was online is of the source, also where the journal is expected.
        clocks = {self._clock}
        if self._clock is VisibilityClock.SERVED:
            clocks.add(KNOWLEDGE)
        return [
            (
                history_name(each[0][1], clock),
                definition,
                *history_changes(
                    self._repo,
                    [use for _, use in each],
                    self._state,
                    clock=clock,
                    covered=covered,
                    by_event=any((hash_, use.name) in unstamped for hash_, use in each),
                ),
            )
            for definition, each in sorted(uses.items())
            for clock in sorted(clocks)
        ]

    def _batches(self, hours: Int64s, changes: LogChanges) -> Iterator[tuple[int, int]]:
        """Spans of hours, each with about as many values as may be compared at once."""
        units = self._units
        counts: dict[tuple[str, int], int] = {}
        for table in (units.filter(pc.equal(units["kind"], "rows")), changes.rows):
            for hash_, hour, rows in zip(
                table["contract"].to_pylist(),
                table["hour"].to_pylist(),
                table["count"].to_pylist(),
                strict=True,
            ):
                width = len(self.contract_of(hash_).value_columns)
                counts[hash_, hour] = rows * width
        by_hour: dict[int, int] = {}
        for (_, hour), count in counts.items():
            by_hour[hour] = by_hour.get(hour, 0) + count
        span: list[int] = []
        values = 0
        for hour in hours.tolist():
            more = by_hour.get(hour, 0)
            if span and (values + more > VALUES_MAX or hour - span[1] > GAP_HOURS):
                yield span[0], span[1]
                span, values = [], 0
            span = [span[0] if span else hour, hour + 1]
            values += more
        if span:
            yield span[0], span[1]

    def _whole_log(self, columns: Columns) -> list[LogPart]:
        if self._whole is not None:
            return self._whole
        return self._log((self._begin_us // HOUR_US, self._until), columns)

    def _log(self, hours: tuple[int, int], columns: Columns | None = None) -> list[LogPart]:
        return read_log(
            self._repo.state_dir,
            self._model,
            start=from_us(hours[0] * HOUR_US),
            end=from_us(min(hours[1] * HOUR_US, _LAST_US)),
            columns=columns,
            damaged=self.damaged,
        )

    def _take(
        self,
        part: LogPart,
        new: Int64s,
        old: Int64s,
        since: Mapping[str, Int64s],
        found: NewFindings,
    ) -> None:
        """Compare the requests of a part that have to be."""
        hours = hours_of_times(part.table["request_time"])
        is_new = np.isin(hours, new)
        if is_new.any():
            found.units.append(counted(_only(part, is_new)))
        again = np.isin(hours, old)
        if again.any():
            again &= reopened(part, since) & ~is_new
        if again.any():
            names = request_names(part.table, part.contract.contract_hash)
            again = pc.is_in(names, names.filter(pa.array(again))).to_numpy(False)
            found.again.append(names.filter(pa.array(again)))
        part = _only(part, is_new | again)
        if not part.table.num_rows:
            return
        self.read += part.table.num_rows
        self.reopened += int(again.sum())
        transforms = self._transforms(part.contract) if part.contract.transforms else None
        result = compared(self._repo, part, transforms, clock=self._clock)
        tables: list[tuple[str | None, pa.Table]] = [
            (use.spec.name, differing(self._repo, result, use)) for use in part.contract.views
        ]
        for spec in part.contract.transforms:
            names = [f"{spec.name}__{column.name}" for column in spec.outputs]
            tables.append((None, computed_differently(result, spec.name, names)))
        if any(table.num_rows for _, table in tables):
            rows = np.flatnonzero(~result.all_equal())
            for view, table in self._scored(result, rows, tables):
                found.findings.setdefault(view, []).append(table)

    def _transforms(self, contract: ModelContract) -> Transforms:
        if contract.is_observed:
            return Transforms.from_repo(self._repo, contract)
        return self._bundle(contract).transforms

    def _bundle(self, contract: ModelContract) -> Bundle:
        name = contract.contract_hash
        if name not in self._bundles:
            self._bundles[name] = load_bundle(self._repo.state_dir, self._model, name)
        return self._bundles[name]

    def _scored(
        self, result: ComparedPart, rows: Int64s, tables: Sequence[tuple[str | None, pa.Table]]
    ) -> Iterator[tuple[str | None, pa.Table]]:
        """Put in what the model says to the values as served, and to the expected ones."""
        try:
            served, expected = scores(self._bundle(result.part.contract), result, rows)
        except (StateError, DamagedError):
            # Without a model the effect is unknown, and the report says so.
            yield from tables
            return
        few = result.part.table.take(rows)
        requested = request_names(few, result.part.contract.contract_hash)
        for view, table in tables:
            if not table.num_rows:
                continue
            place = pc.index_in(request_names(table), requested)
            yield (
                view,
                with_columns(
                    table,
                    {
                        "score_served": pa.array(served, from_pandas=True).take(place),
                        "score_expected": pa.array(expected, from_pandas=True).take(place),
                    },
                ),
            )


def _only(part: LogPart, rows: Bools) -> LogPart:
    if rows.all():
        return part
    return LogPart(part.contract, part.table.filter(pa.array(rows)))
