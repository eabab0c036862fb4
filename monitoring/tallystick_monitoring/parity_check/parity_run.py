"""One parity check: apply, draw, bring online, serve, ask three ways, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Final

from tallystick.clock import EPOCH, from_us, process_clock, to_us
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import apply
from tallystick.errors import DataError, DefinitionError, StateError, TallystickError
from tallystick.materialization.materializer import Materializer
from tallystick.settings import settings
from tallystick_monitoring.parity_check.check_requests import Requests
from tallystick_monitoring.parity_check.key_sampling import Keys, Last, draw_keys, known_at, last_of
from tallystick_monitoring.parity_check.parity_report import ParityCheck
from tallystick_monitoring.parity_check.scratch_repo import Scratch, quiet, scratch
from tallystick_monitoring.parity_check.scratch_server import Api
from tallystick_monitoring.parity_check.subject_check import Asking
from tallystick_monitoring.parity_check.subjects import Subject, subjects

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

Tell = Callable[[str], None]

NOTHING: Final = "There is nothing to compare: "


def run(repo: Repo, *, sample: int, at: datetime | None, seed: int, tell: Tell) -> ParityCheck:
    """Check the parity of a repo; see :func:`tallystick_monitoring.parity_check.parity_command`.

    Args:
        repo: The repo, as it was opened.
        sample: Keys of each view, and requests for everything else.
        at: The time as of which everything is read, or None.
        seed: Of what is drawn.
        tell: Called with one sentence before each step.
    """
    now_us = process_clock().now_us()
    tell("applying the definitions to a scratch registry")
    with scratch(repo) as place:
        _apply(place)
        return _Run(place, sample=sample, seed=seed, tell=tell).result(at, now_us=now_us)


def _apply(place: Scratch) -> None:
    with quiet():
        try:
            apply(place.repo)
        except TallystickError:
            raise
        except Exception as error:
            # Any exception: the online store may be anybody's code.
            raise DefinitionError(
                f"Feast cannot apply {place.repo.path}: {type(error).__name__}: {error}"
            ) from error


@dataclass(frozen=True)
class _Moment:
    at: datetime
    reason: str


class _Run:
    def __init__(self, place: Scratch, *, sample: int, seed: int, tell: Tell) -> None:
        self._place = place
        self._repo = place.repo
        self._sample = sample
        self._seed = seed
        self._tell = tell
        self._rows_max = settings().request_rows_max
        self._unreadable: dict[str, str] = {}

    def result(self, at: datetime | None, *, now_us: int) -> ParityCheck:
        found = list(subjects(self._repo))
        uses = {
            each.name: each.inputs.views[0]
            for each in found
            if isinstance(each, Subject) and each.kind == "view"
        }
        if not uses:
            raise StateError(
                f"{NOTHING}{self._repo.path} defines no feature view that is online.",
                hint="Define one in a file of the repo, with online=True.",
            )
        self._tell("reading history")
        lasts = self._lasts(uses)
        moment = _moment(self._repo, at, now_us, uses, lasts)
        self._place.clock.set(moment.at)
        keys = self._keys(uses, lasts, moment.at)
        self._bring_online(list(keys), moment.at)
        self._tell("starting the server")
        with Api(self._place) as api:
            asking = Asking(
                self._place,
                api,
                Requests(self._repo, keys, at=moment.at, count=self._sample, seed=self._seed),
                keys,
                self._unreadable,
                rows_max=self._rows_max,
            )
            compared = []
            for each in found:
                self._tell(f"comparing {each.kind} {each.name}")
                compared.append(asking.compared(each))
        return ParityCheck(
            repo=str(self._repo.path),
            moment=moment.at,
            moment_reason=moment.reason,
            store=self._place.store,
            configured=self._place.configured,
            filled_by="tally materialize" if self._place.is_packed else "feast materialize",
            seed=self._seed,
            values=sum(one.values for one in compared),
            equal=sum(one.equal for one in compared),
            compared=tuple(compared),
        )

    def _lasts(self, uses: dict[str, ViewUse]) -> dict[str, Last]:
        """Where each view's history ends; of those that can be read and have rows."""
        lasts = {}
        for name, use in uses.items():
            with self._unless_unreadable(name):
                last = last_of(self._repo, use)
                if last is None:
                    self._unreadable[name] = f"View {name} has no rows in its source."
                else:
                    lasts[name] = last
        if not lasts:
            raise DataError(
                "\n".join((f"{NOTHING}no view has history.", *self._unreadable.values()))
            )
        return lasts

    def _keys(
        self, uses: dict[str, ViewUse], lasts: dict[str, Last], at: datetime
    ) -> dict[str, Keys]:
        keys = {}
        for name in lasts:
            with self._unless_unreadable(name):
                keys[name] = draw_keys(
                    self._repo, uses[name], at_us=to_us(at), count=self._sample, seed=self._seed
                )
        return keys

    def _bring_online(self, views: list[str], at: datetime) -> None:
        """Fill the scratch store as the repo's own is filled."""
        materializer = Materializer(self._repo) if self._place.is_packed else None
        for name in views:
            self._tell(f"bringing view {name} online")
            with self._unless_unreadable(name):
                if materializer is not None:
                    materializer.run(views=[name], until=at)
                else:
                    self._materialize_by_feast(name, at)

    def _materialize_by_feast(self, name: str, at: datetime) -> None:
        with quiet():
            try:
                self._repo.store.materialize(EPOCH, at, feature_views=[name])
            except Exception as error:
                # Any exception: the stores may be anybody's code.
                raise DataError(
                    f"feast materialize fails for view {name}: {type(error).__name__}: {error}"
                ) from error

    @contextmanager
    def _unless_unreadable(self, name: str) -> Iterator[None]:
        """Keep why a view cannot be read or written, and go on with the others."""
        try:
            yield
        except TallystickError as error:
            self._unreadable[name] = str(error)


def _moment(
    repo: Repo,
    at: datetime | None,
    now_us: int,
    uses: dict[str, ViewUse],
    lasts: dict[str, Last],
) -> _Moment:
    """The time as of which everything is read.

    By default now; if nothing that can expire is alive any more, a moment near the end of some
    view's history: the one with the most views alive, and then with the fewest views of which
    something had happened that was not known yet.
    """
    if at is not None:
        return _Moment(at, "as asked for")
    ttls = {name: ttl_us for name in lasts if (ttl_us := uses[name].spec.ttl_us) is not None}
    if not ttls or any(lasts[name].event_us >= now_us - ttl_us for name, ttl_us in ttls.items()):
        return _Moment(from_us(now_us), "")
    ends = sorted({lasts[name].visible_us for name in ttls})
    known = [known_at(repo, uses[name], ends) for name in lasts]
    settled = [max(each[place].settled_us for each in known) for place in range(len(ends))]
    candidates = sorted({min(moment_us, now_us) for moment_us in (*ends, *settled)})
    found = {name: known_at(repo, uses[name], candidates) for name in lasts}

    def rank(place: int) -> tuple[int, int, int]:
        moment_us = candidates[place]
        alive = sum(found[name][place].newest_us >= moment_us - ttls[name] for name in ttls)
        complete = sum(found[name][place].settled_us <= moment_us for name in lasts)
        return alive, complete, place

    return _Moment(
        from_us(candidates[max(range(len(candidates)), key=rank)]),
        "near the end of history, as every value that can expire has expired by now",
    )
