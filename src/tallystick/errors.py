"""What can go wrong, ordered by what the caller can do about it.

::

    TallystickError
    ├── InputError         request, argument or entity rows are wrong      → correct the call
    ├── DefinitionError    the repo's definitions cannot be used        → edit the repo
    ├── ContractError      two sides that must agree do not             → train again, or undo
    ├── DataError          a source, file or column is not as declared  → mend data or declaration
    ├── DamagedError       a file fails its checksum or schema          → restore it
    ├── StateError         something else has to be run first           → run it
    ├── MissingExtraError  an optional part is not installed            → install it
    └── UnavailableError   a service did not answer (transient)         → try again

Third-party errors are translated into these at one boundary each, chained.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass


class TallystickError(Exception):
    """Base of every error that Tallystick raises on purpose."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where, what was expected, what was found."""

    where: str
    expected: str
    got: str

    def __str__(self) -> str:
        return f"{self.where}: expected {self.expected}, got {self.got}"


class ProblemsError(TallystickError):
    """An error that lists every mismatch at once rather than the first.

    Args:
        what: One sentence that says what failed.
        problems: All mismatches found.
        hint: What to do next, if one thing helps in every case.
    """

    def __init__(self, what: str, problems: Iterable[Problem] = (), *, hint: str = "") -> None:
        self.what = what
        self.problems = tuple(problems)
        self.hint = hint
        lines = [what, *(f"  ✗ {problem}" for problem in self.problems)]
        if hint:
            lines.append(hint)
        super().__init__("\n".join(lines))


class InputError(ProblemsError):
    """What the caller sent cannot be used."""


class DefinitionError(ProblemsError):
    """The definitions of a repo cannot be used."""


class ContractError(ProblemsError):
    """Two sides that must agree (contract, repo, log, stored row) do not."""


class DataError(ProblemsError):
    """A source, a file or a column is not as it was declared."""


class DamagedError(ProblemsError):
    """A file that Tallystick wrote fails its checksum or its schema."""


class StateError(ProblemsError):
    """Something else has to be run first."""


class UnavailableError(TallystickError):
    """A service did not answer; the same call may succeed later.

    Args:
        service: What did not answer, for example ``Redis at localhost:6379``.
        cause: What it said instead.
    """

    def __init__(self, service: str, cause: str) -> None:
        self.service = service
        super().__init__(f"{service} did not answer ({cause}); start it, or try again later.")


class MissingExtraError(TallystickError):
    """An optional part is not installed.

    Args:
        feature: What was requested.
        extra: The extra that brings it.
    """

    def __init__(self, feature: str, extra: str) -> None:
        self.extra = extra
        super().__init__(f"{feature} needs an extra: run  pip install 'tallystick[{extra}]'")


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """Name the closest known spelling, or list what is known.

    >>> did_you_mean("late_arival", ["late_arrival", "cancellation"])
    'did you mean late_arrival?'
    """
    import difflib

    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return f"known: {', '.join(names)}" if names else "none is defined"
