"""The report of a parity check: a record, and its text."""

from __future__ import annotations

from datetime import datetime
from typing import Literal

from pydantic import Field

from tallystick.definitions.feature_view import Frozen

Where = Literal["offline to online", "online to API", "offline to API"]
"""Between which two a value changes."""
_WIDTH = 44


class Example(Frozen):
    """One value that differs.

    Attributes:
        where: Between which two.
        value: ``view__feature``, or ``prediction``.
        keys: Entity keys and request fields of the request.
        offline: What history says.
        online: What the online store gives through Feast, or None where it was not compared.
        api: What the API answers, or None where it was not compared.
        hint: What that means, in one sentence.
    """

    where: Where
    value: str
    keys: dict[str, str]
    offline: str
    online: str | None
    api: str | None
    hint: str


class SubjectReport(Frozen):
    """What was found of one view, on-demand view, feature service or model.

    Attributes:
        kind: Which of these it is.
        name: Its name.
        requests: Requests that were compared.
        kinds: Of a stored view: how many keys are current, expired, known later, or unknown.
        values: Values compared.
        present: Values of these that are not null in history.
        equal: Values that are the same everywhere, bit for bit.
        ways: What was compared, of offline, online and API.
        differences: Where a value changes → number of values.
        hints: What that means → number of values.
        examples: Up to three values that differ, each with another hint if there are several.
        notes: What was left out, and why.
        failures: Why something could not be compared at all.
    """

    kind: str
    name: str
    requests: int = 0
    kinds: dict[str, int] = Field(default_factory=dict)
    values: int = 0
    present: int = 0
    equal: int = 0
    ways: tuple[str, ...] = ()
    differences: dict[Where, int] = Field(default_factory=dict)
    hints: dict[str, int] = Field(default_factory=dict)
    examples: tuple[Example, ...] = ()
    notes: tuple[str, ...] = ()
    failures: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all could be compared and nothing differs."""
        return not self.failures and self.equal == self.values


class ParityCheck(Frozen):
    """What a parity check found.

    Attributes:
        repo: Folder of the repo.
        moment: The time as of which everything was read.
        moment_reason: Why that time, if it is not the one of now.
        store: Type of the online store that was compared, on scratch data.
        configured: Type of the repo's online store.
        filled_by: What brought history online.
        seed: Of what was drawn.
        values: Values compared.
        equal: Values that are the same everywhere.
        compared: What was found of each.
    """

    repo: str
    moment: datetime
    moment_reason: str
    store: str
    configured: str
    filled_by: str
    seed: int
    values: int
    equal: int
    compared: tuple[SubjectReport, ...]

    @property
    def failures(self) -> int:
        """What could not be compared."""
        return sum(len(one.failures) for one in self.compared)

    def passed(self, fail_over: float) -> bool:
        """Whether all could be compared, something was, and no more than that share differs."""
        differing = self.values - self.equal
        return self.values > 0 and not self.failures and differing <= fail_over * self.values


def text(check: ParityCheck) -> str:
    """The report for people."""
    store = f"store     {check.store} on scratch data, filled by {check.filled_by}"
    if check.store != check.configured:
        store += f" in place of {check.configured}, which cannot be started on scratch data"
    moment = f"moment    {check.moment.isoformat()}"
    lines = [
        moment + (f": {check.moment_reason}" if check.moment_reason else ""),
        store,
        *(line for one in check.compared for line in _lines(one)),
        _summary(check),
    ]
    return "\n".join(lines)


def _lines(one: SubjectReport) -> list[str]:
    """A line for what was compared, and under it what is to be said of it."""
    mark = "✓" if one.passed else "✗"
    head = f"{mark} {one.kind} {one.name}".ljust(_WIDTH)
    if one.values:
        kinds = ", ".join(f"{count} {kind}" for kind, count in one.kinds.items())
        ways = ", ".join(one.ways)
        what = "keys" if one.kind == "view" else "requests"
        head += (
            f" {one.requests:,} {what}{f' ({kinds})' if kinds else ''}, "
            f"{one.equal:,} of {one.values:,} values equal ({ways})"
        )
    lines = [head.rstrip()]
    lines += [f"    {where}: {count:,} change" for where, count in one.differences.items()]
    lines += [f"    {count:,}: {hint}" for hint, count in one.hints.items()]
    lines += [f"    e.g. {_shown(example)}" for example in one.examples]
    lines += [f"    ✗ {failure}" for failure in one.failures]
    lines += [f"    ! {note}" for note in one.notes]
    return lines


def _shown(example: Example) -> str:
    keys = ", ".join(f"{name}={value}" for name, value in example.keys.items())
    ways = {"offline": example.offline, "online": example.online, "API": example.api}
    values = ", ".join(f"{way} {value}" for way, value in ways.items() if value is not None)
    return f"{example.value} of {keys or 'any request'}: {values}"


def _summary(check: ParityCheck) -> str:
    share = check.equal / check.values if check.values else 0.0
    summary = f"{check.equal:,} of {check.values:,} values equal ({share:.3%})"
    if check.failures:
        summary += f"; {check.failures} could not be compared"
    mark = "✓" if check.passed(0) else "✗"
    return f"{mark} parity: {summary}"
