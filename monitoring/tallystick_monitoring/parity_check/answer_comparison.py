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
from tallystick_monitoring.parity_check.subjects import PREDICTION, Subject

EXAMPLES_MAX: Final = 3
PREDICTION_TOLERANCE: Final = 1e-9
"""Linear algebra adds up one row and many in another order."""
_SHOWN_MAX: Final = 80


@dataclass(frozen=True)
class _Difference:
    where: Where
    value: str
    row: int
    hint: str


def same(one: Sequence[Any], other: Sequence[Any], dtype: str) -> Bools:
    """Compare plain values in their declared type, bit for bit. The result has shape (values,).

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


class Comparison:
    """Compares the answers of one subject.

    A computed value is compared only where the values of which it is computed are the same
    everywhere: what is wrong with these is counted with them.

    Args:
        subject: What is compared.
        entity_rows: The requests.
        offline: What history says.
        online: What the online store gives, or None where it did not answer.
        api: What the API gives, or None where it did not answer.
        left_out: Requests that are not compared, of shape (requests,).
    """

    def __init__(
        self,
        subject: Subject,
        entity_rows: pa.Table,
        *,
        offline: Answers,
        online: Answers | None,
        api: Answers | None,
        left_out: Bools,
    ) -> None:
        self._subject = subject
        self._requests = entity_rows.drop_columns([REQUEST_TIME]).to_pylist()
        self._offline, self._online, self._api = offline, online, api
        self._included = ~left_out
        self._differences: list[_Difference] = []
        self._values = self._present = 0
        self._unequal: dict[str, Bools] = {}

    def report(
        self, *, kinds: dict[str, int], notes: Sequence[str], failures: Sequence[str]
    ) -> SubjectReport:
        """What is found, beside what is known of the subject already."""
        inputs: dict[str, Sequence[str]] = {
            **self._subject.computed,
            PREDICTION: self._subject.inputs.feature_names,
        }
        for name in sorted(self._offline.values, key=lambda name: name in inputs):
            self._compare_value(name, inputs.get(name, ()))
        if not self._values and not failures:
            notes = (*notes, "nothing was left to compare")
        elif self._values and not self._present:
            notes = (*notes, "every value is null at that moment: only nulls were compared")
        differing = len({(each.value, each.row) for each in self._differences})
        ways = {"offline": True, "online": self._online, "API": self._api}
        return SubjectReport(
            kind=self._subject.kind,
            name=self._subject.name,
            requests=int(self._included.sum()),
            kinds=kinds,
            values=self._values,
            present=self._present,
            equal=self._values - differing,
            ways=tuple(way for way, answers in ways.items() if answers),
            differences=dict(Counter(each.where for each in self._differences)),
            hints=dict(Counter(each.hint for each in self._differences).most_common()),
            examples=tuple(self._example(each) for each in self._examples()),
            notes=tuple(notes),
            failures=tuple(failures),
        )

    def _compare_value(self, name: str, inputs: Sequence[str]) -> None:
        """Compare one value, and note its unequal rows for the values computed from it."""
        differs = np.zeros_like(self._included)
        looked_at = self._included
        for source in inputs:
            looked_at = looked_at & ~self._unequal.get(source, differs)
        offline, steps = self._offline.values[name], self._steps(name)
        is_counted = name in (*self._subject.compared, PREDICTION)
        for where, one, other in steps:
            found = looked_at & ~self._same(name, one, other)
            differs = differs | found
            if is_counted:
                self._differences += [
                    _Difference(where, name, int(row), self._hint(where, name, int(row)))
                    for row in np.flatnonzero(found)
                ]
        self._unequal[name] = differs
        if steps and is_counted:
            self._values += int(looked_at.sum())
            self._present += sum(
                value is not None for value, take in zip(offline, looked_at, strict=True) if take
            )

    def _same(self, name: str, one: list[Any], other: list[Any]) -> Bools:
        if name != PREDICTION:
            return same(one, other, self._subject.inputs.value_columns[name])
        assert self._subject.bundle is not None
        compiled = self._subject.bundle.contract.compiled
        tolerance = max(PREDICTION_TOLERANCE, compiled.tolerance if compiled else 0.0)
        close = np.abs(np.subtract(one, other)) <= tolerance
        return np.asarray(close, dtype=np.bool_)

    def _steps(self, name: str) -> list[tuple[Where, list[Any], list[Any]]]:
        """The pairs of answers to compare: offline and online, online and API."""
        offline = self._offline.values[name]
        online = self._online.values.get(name) if self._online else None
        api = self._api.values.get(name) if self._api else None
        steps: list[tuple[Where, list[Any], list[Any]]] = []
        if online is not None:
            steps.append(("offline to online", offline, online))
        if api is not None and online is not None:
            steps.append(("online to API", online, api))
        elif api is not None:
            steps.append(("offline to API", offline, api))
        return steps

    def _hint(self, where: Where, name: str, row: int) -> str:
        """What it means that a value changes there."""
        if name == PREDICTION:
            return "the server's model gives another probability for the same features"
        is_api = where == "online to API"
        before = self._online if is_api else self._offline
        after = self._online if where == "offline to online" else self._api
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
        status = self._offline.statuses[view][row]
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
        times = (self._time(self._offline, view, row), self._time(online, view, row))
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
            online.values[name][row] is None
            for name, (owner, _) in self._subject.parts.items()
            if owner == view and name in online.values
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
            values = answers.values.get(difference.value)
            return None if values is None else _shown(values[difference.row])

        return Example(
            where=difference.where,
            value=difference.value,
            keys={name: _shown(value) for name, value in self._requests[difference.row].items()},
            offline=value_in(self._offline) or "",
            online=value_in(self._online),
            api=value_in(self._api),
            hint=difference.hint,
        )


def _shown(value: Any) -> str:
    text = "null" if value is None else value if isinstance(value, str) else repr(value)
    if isinstance(value, datetime):
        text = value.isoformat()
    return text if len(text) <= _SHOWN_MAX else f"{text[: _SHOWN_MAX - 1]}…"
