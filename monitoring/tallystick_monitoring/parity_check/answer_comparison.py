"""Comparison of answers, bit for bit, and an explanation of each mismatch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

import numpy as np
import pyarrow as pa

from tallystick.definitions.contract import REQUEST_TIME
from tallystick.definitions.feature_types import arrow_type
from tallystick.point_in_time.feature_status import Status
from tallystick_monitoring.equality import equal_after_cast, same_bits
from tallystick_monitoring.log_columns import Bools
from tallystick_monitoring.parity_check.parity_report import Example, SubjectReport, Where
from tallystick_monitoring.parity_check.subject_answers import Answers
from tallystick_monitoring.parity_check.subjects import Subject

EXAMPLES_MAX: Final = 3
PREDICTION: Final = "prediction"
PREDICTION_TOLERANCE: Final = 1e-9
"""Linear algebra adds up one row and many in another order."""
_SHOWN_MAX: Final = 80


@dataclass(frozen=True)
class Ways:
    """The answers of one subject.

    Attributes:
        offline: What history says.
        online: What the online store gives; None where it did not answer.
        api: What the API gives; None where it did not answer.
        left_out: Requests that are not compared, of shape (requests,).
    """

    offline: Answers
    online: Answers | None
    api: Answers | None
    left_out: Bools


@dataclass(frozen=True)
class _Difference:
    where: Where
    value: str
    row: int
    hint: str


def compare(
    subject: Subject,
    entity_rows: pa.Table,
    ways: Ways,
    *,
    kinds: dict[str, int] | None = None,
    notes: Sequence[str] = (),
    failures: Sequence[str] = (),
) -> SubjectReport:
    """Compare the answers of one subject.

    A computed value is compared only where the stored values of which it is computed are the same
    everywhere: what is wrong with these is counted with them.
    """
    return _Comparison(subject, entity_rows, ways).result(
        kinds=kinds or {}, notes=tuple(notes), failures=tuple(failures)
    )


def same(one: Sequence[Any], other: Sequence[Any], dtype: str) -> Bools:
    """Compare plain values in their declared type, bit for bit; of shape (values,).

    A value that the type does not hold equals itself only.
    """
    kind = arrow_type(dtype)
    try:
        return same_bits(pa.array(one, kind), pa.array(other, kind))
    except (pa.ArrowException, TypeError, ValueError, OverflowError):
        if len(one) <= 1:
            return np.array([repr(one) == repr(other)] * len(one), dtype=np.bool_)
        pairs = zip(one, other, strict=True)
        return np.array(
            [bool(same([left], [right], dtype)[0]) for left, right in pairs], dtype=np.bool_
        )


class _Comparison:
    def __init__(self, subject: Subject, entity_rows: pa.Table, ways: Ways) -> None:
        self._subject = subject
        self._requests = entity_rows.drop_columns([REQUEST_TIME]).to_pylist()
        self._ways = ways
        self._rows = entity_rows.num_rows
        self._differences: list[_Difference] = []
        self._values = self._present = 0
        self._unequal: dict[str, Bools] = {}

    def result(
        self, *, kinds: dict[str, int], notes: tuple[str, ...], failures: tuple[str, ...]
    ) -> SubjectReport:
        computed = self._subject.computed
        for name in sorted(self._ways.offline.values, key=lambda name: name in computed):
            self._compare_value(name, computed.get(name, ()))
        if self._subject.bundle is not None and self._ways.api is not None:
            self._compare_predictions()
        if not self._values and not failures:
            notes = (*notes, "nothing was left to compare")
        elif self._values and not self._present:
            notes = (*notes, "every value is null at that moment: only nulls were compared")
        differing = len({(each.value, each.row) for each in self._differences})
        ways = {"offline": True, "online": self._ways.online, "API": self._ways.api}
        return SubjectReport(
            kind=self._subject.kind,
            name=self._subject.name,
            requests=int((~self._ways.left_out).sum()),
            kinds=kinds,
            values=self._values,
            present=self._present,
            equal=self._values - differing,
            ways=tuple(way for way, answers in ways.items() if answers),
            differences=dict(Counter(each.where for each in self._differences)),
            hints=dict(Counter(each.hint for each in self._differences).most_common()),
            examples=tuple(self._example(each) for each in self._examples()),
            notes=notes,
            failures=failures,
        )

    def _compare_value(self, name: str, inputs: Sequence[str]) -> None:
        """Compare one feature, and note its unequal rows for the features computed from it."""
        dtype = self._subject.inputs.value_columns[name]
        differs = np.zeros(self._rows, dtype=np.bool_)
        looked_at = ~self._ways.left_out
        for source in inputs:
            looked_at = looked_at & ~self._unequal.get(source, differs)
        offline = self._ways.offline.values[name]
        steps = self._steps(name)
        for where, one, other in steps:
            found = looked_at & ~same(one, other, dtype)
            differs = differs | found
            if name in self._subject.compared:
                self._differences += [
                    _Difference(where, name, int(row), self._hint(where, name, int(row)))
                    for row in np.flatnonzero(found)
                ]
        self._unequal[name] = differs
        if steps and name in self._subject.compared:
            self._values += int(looked_at.sum())
            self._present += sum(
                value is not None for value, take in zip(offline, looked_at, strict=True) if take
            )

    def _steps(self, name: str) -> list[tuple[Where, list[Any], list[Any]]]:
        """The pairs of answers to compare: offline and online, online and API."""
        offline = self._ways.offline.values[name]
        online = self._ways.online.values.get(name) if self._ways.online else None
        api = self._ways.api.values.get(name) if self._ways.api else None
        steps: list[tuple[Where, list[Any], list[Any]]] = []
        if online is not None:
            steps.append(("offline to online", offline, online))
        if api is not None and online is not None:
            steps.append(("online to API", online, api))
        elif api is not None:
            steps.append(("offline to API", offline, api))
        return steps

    def _compare_predictions(self) -> None:
        """Compare probabilities where the model saw on both sides the same."""
        assert self._subject.bundle is not None
        assert self._ways.api is not None
        looked_at = ~self._ways.left_out
        for name in self._subject.inputs.feature_names:
            looked_at = looked_at & ~self._unequal[name]
        expected = np.array(self._ways.offline.predictions)
        served = np.array(self._ways.api.predictions)
        compiled = self._subject.bundle.contract.compiled
        tolerance = max(PREDICTION_TOLERANCE, compiled.tolerance if compiled else 0.0)
        wrong = looked_at & ~(np.abs(expected - served) <= tolerance)
        hint = "the server's model gives another probability for the same features"
        self._differences += [
            _Difference("offline to API", PREDICTION, int(row), hint)
            for row in np.flatnonzero(wrong)
        ]
        self._values += int(looked_at.sum())
        self._present += int(looked_at.sum())

    def _hint(self, where: Where, name: str, row: int) -> str:
        """What it means that a value changes there."""
        is_api = where == "online to API"
        before = self._ways.online if is_api else self._ways.offline
        after = self._ways.online if where == "offline to online" else self._ways.api
        assert before is not None
        assert after is not None
        is_cast = equal_after_cast(after.values[name][row], before.values[name][row])
        if name in self._subject.computed:
            what = (
                "the same inputs give another value: its function depends on which rows come "
                "together, or on more than its inputs"
                if is_api
                else "equal after a cast: its function sees other types, or returns another one "
                "than it declares"
                if is_cast
                else "the same inputs give another value: its function sees other types, or "
                "depends on other rows, the time or chance"
            )
            return f"on-demand view {self._subject.parts[name][0]}: {what}"
        if is_api and is_cast:
            return "equal after a cast: the API's JSON does not keep the declared type exactly"
        if is_api:
            return "the server reads another value than Feast's SDK does from the same store"
        return self._hint_of_store(after, name, row, is_cast=is_cast)

    def _hint_of_store(self, online: Answers, name: str, row: int, *, is_cast: bool) -> str:
        view = self._subject.parts[name][0]
        status = self._ways.offline.statuses[view][row]
        found = online.values[name][row]
        if status == Status.OUTSIDE_MAX_AGE and found is not None:
            return (
                "older than the view's ttl, and the online store gives it all the same: it does "
                "not enforce the ttl"
            )
        if status == Status.NOT_FOUND and found is not None:
            return "the online store has a value that history did not know at that moment"
        if status == Status.PRESENT and found is None and self._lacks_row(online, view, row):
            return "the online store has no row of that key: it was not written, or was dropped"
        times = (self._time(self._ways.offline, view, row), self._time(online, view, row))
        if None not in times and times[0] != times[1]:
            return "the online store holds another row of that key than history's last"
        if is_cast:
            return (
                "equal after a cast: the online store, or what fills it, does not keep the "
                "declared type exactly"
            )
        return "the right row, with another value: the online store changes what it is given"

    def _lacks_row(self, online: Answers, view: str, row: int) -> bool:
        """Whether all that was read of the view is null there."""
        return all(
            values[row] is None
            for name, values in online.values.items()
            if self._subject.parts[name][0] == view
        )

    @staticmethod
    def _time(answers: Answers, view: str, row: int) -> datetime | None:
        """The event time of the row, to the second: some stores keep no more."""
        times = answers.event_times.get(view)
        time = None if times is None else times[row]
        return None if time is None else time.replace(microsecond=0)

    def _examples(self) -> list[_Difference]:
        """Differences to show: one of each hint first."""
        seen: Counter[str] = Counter()
        shown: set[tuple[str, int]] = set()
        ranked: list[tuple[int, int, _Difference]] = []
        for each in self._differences:
            if (each.value, each.row) in shown:
                continue
            shown.add((each.value, each.row))
            ranked.append((seen[each.hint], len(ranked), each))
            seen[each.hint] += 1
        return [each for _, _, each in sorted(ranked, key=lambda rank: rank[:2])[:EXAMPLES_MAX]]

    def _example(self, difference: _Difference) -> Example:
        def value_in(answers: Answers | None) -> str | None:
            if answers is None:
                return None
            if difference.value == PREDICTION:
                return repr(answers.predictions[difference.row]) if answers.predictions else None
            values = answers.values.get(difference.value)
            return None if values is None else _shown(values[difference.row])

        return Example(
            where=difference.where,
            value=difference.value,
            keys={name: _shown(value) for name, value in self._requests[difference.row].items()},
            offline=value_in(self._ways.offline) or "",
            online=value_in(self._ways.online),
            api=value_in(self._ways.api),
            hint=difference.hint,
        )


def _shown(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else repr(value)
    if isinstance(value, datetime):
        text = value.isoformat()
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 1]}…"
