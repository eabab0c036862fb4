"""Which requests a training set is made of, and what became of the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tallystick.definitions.contract import REQUEST_TIME
from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import InputError, Problem
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.record_store import Incident

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_view import Column
    from tallystick.definitions.model import Model

LABEL: Final = "label"
"""Column of the labels."""


@dataclass(frozen=True, kw_only=True)
class RowSelection:
    """Which requests a training set is made of, and how their features are read.

    A request whose label is not mature at ``known_until`` is left out even if its label is known
    already: labels that come quickly are not like the others, and only they would be in the newest
    part of the set.

    Attributes:
        start: First request time, included.
        end: Last request time, excluded.
        known_until: Labels that became known later are not used.
        clock: When a row of history counts as visible.
        incidents: Spells of skew. Requests that those of the model's views touched are left out.
            One that is open has no end yet.
        repair: Whether to keep the touched requests where history is not in doubt, with the values
            that should have been served.
    """

    start: datetime
    end: datetime
    known_until: datetime
    clock: VisibilityClock = VisibilityClock.KNOWLEDGE
    incidents: Sequence[Incident] = ()
    repair: bool = False

    def mature_until(self, model: Model) -> datetime:
        """Requests from then on have labels that are not mature yet."""
        return self.known_until - model.label.matures_after

    def last(self, model: Model) -> datetime:
        """The last request time of the set, excluded: the end, or before it the last mature one."""
        return min(self.end, self.mature_until(model))

    def check(self, model: Model) -> None:
        """Refuse a selection that has no rows, or cannot be repaired.

        Raises:
            InputError: The end is not after the start, or the clock is the served one.
        """
        if self.end <= self.start:
            raise InputError(
                f"The training set of model {model.name!r} would be empty.",
                [Problem("end", f"later than {self.start.isoformat()}", self.end.isoformat())],
            )
        if self.repair and self.clock is VisibilityClock.SERVED:
            raise InputError(
                "Rows cannot be repaired under the served clock, which gives the values that were "
                "served: leave --repair out, or take --clock knowledge."
            )


def row_schema(columns: Iterable[Column], values: Mapping[str, str] | None = None) -> pa.Schema:
    """The schema of a training set: keys and request fields, request time, values, label.

    Args:
        columns: Keys and request fields.
        values: Feature → its type in Feast.
    """
    import pyarrow as pa

    return pa.schema(
        [
            *((column.name, arrow_type(column.dtype)) for column in columns),
            (REQUEST_TIME, pa.timestamp("us", tz="UTC")),
            *((name, arrow_type(dtype)) for name, dtype in (values or {}).items()),
            (LABEL, pa.int8()),
        ]
    )


@dataclass(frozen=True)
class Counts:
    """What became of the population's rows in [start, end).

    Attributes:
        population: All of them.
        quarantined: Left out because an incident touched them.
        immature: Left out because their label was not mature yet, whether or not it was known.
        unlabelled: Left out because their label never came.
        rows: Rows of the training set.
        unlike: Logged rows left out because they were made under a contract of other inputs.
        repaired: Rows of the training set that an incident touched, with the values that were
            expected; None if nothing was to be repaired.
        repeated: Rows of the population that are the same as another one, and count all the same.
    """

    population: int
    quarantined: int
    immature: int
    unlabelled: int
    rows: int
    unlike: int = 0
    repaired: int | None = None
    repeated: int = 0

    def __add__(self, other: Counts) -> Counts:
        return Counts(
            self.population + other.population,
            self.quarantined + other.quarantined,
            self.immature + other.immature,
            self.unlabelled + other.unlabelled,
            self.rows + other.rows,
            self.unlike + other.unlike,
            None if self.repaired is None else self.repaired + (other.repaired or 0),
            self.repeated + other.repeated,
        )

    def __str__(self) -> str:
        return (
            f"left out: {self.quarantined:,} quarantined, "
            f"{self.immature:,} with a label not mature yet, {self.unlabelled:,} without one"
            + (f", {self.unlike:,} of a contract with other inputs" if self.unlike else "")
            + ("" if self.repaired is None else f"; repaired: {self.repaired:,}")
            + (
                f"; {self.repeated:,} rows of the population repeat another one: was a file loaded "
                "twice?"
                if self.repeated
                else ""
            )
        )
