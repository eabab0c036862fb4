"""One parity check: apply, sample keys, materialize, serve, read three ways, compare."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from typing import Final

from tallystick.clock import EPOCH, from_us, process_clock, to_us
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo, apply
from tallystick.errors import DataError, DefinitionError, StateError, TallystickError
from tallystick.materialization.materializer import Materializer
from tallystick.settings import settings
from tallystick_monitoring.parity_check.check_requests import Requests
from tallystick_monitoring.parity_check.key_sampling import (
    HistoryEnd,
    SampledKeys,
    draw_keys,
    history_end,
    known_at,
)
from tallystick_monitoring.parity_check.parity_report import ParityCheck
from tallystick_monitoring.parity_check.scratch_repo import ScratchRepo, quiet, scratch_repo
from tallystick_monitoring.parity_check.scratch_server import ScratchServer
from tallystick_monitoring.parity_check.subject_check import SubjectCheck
from tallystick_monitoring.parity_check.subjects import Subject, subjects

OnStep = Callable[[str], None]

NOTHING: Final = "There is nothing to compare: "


def run(repo: Repo, *, sample: int, at: datetime | None, seed: int, on_step: OnStep) -> ParityCheck:
    """Check the parity of a repo; see :func:`tallystick_monitoring.parity_check.parity_command`."""
    now_us = process_clock().now_us()
    on_step("applying the definitions to a scratch registry")
    with scratch_repo(repo) as scratch:
        _apply(scratch)
        return ParityRun(scratch, sample=sample, seed=seed, on_step=on_step).result(
            at, now_us=now_us
        )


def _apply(scratch: ScratchRepo) -> None:
    with quiet():
        try:
            apply(scratch.repo)
        except TallystickError:
            raise
        except Exception as error:
            # Any exception: the online store may be anybody's code.
            raise DefinitionError(
                f"Feast cannot apply {scratch.repo.path}: {type(error).__name__}: {error}"
            ) from error


class ParityRun:
    """The state of one parity check: the scratch repo, and the views that cannot be read."""

    def __init__(self, scratch: ScratchRepo, *, sample: int, seed: int, on_step: OnStep) -> None:
        self._scratch, self._repo = scratch, scratch.repo
        self._sample, self._seed, self._on_step = sample, seed, on_step
        self._unreadable: dict[str, str] = {}

    def result(self, at: datetime | None, *, now_us: int) -> ParityCheck:
        """Run the check as of a time, or of one near the end of history."""
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
        self._on_step("reading history")
        ends_of_views = self._history_ends(uses)
        at, reason = _moment(self._repo, at, now_us, uses, ends_of_views)
        self._scratch.clock.set(at)
        keys = self._keys(uses, ends_of_views, at)
        self._bring_online(list(keys), at)
        self._on_step("starting the server")
        with ScratchServer(self._scratch) as api:
            check = SubjectCheck(
                self._scratch,
                api,
                Requests(self._repo, keys, at=at, count=self._sample, seed=self._seed),
                keys,
                self._unreadable,
                rows_max=settings().request_rows_max,
            )
            compared = []
            for each in found:
                self._on_step(f"comparing {each.kind} {each.name}")
                compared.append(check.compared(each))
        return ParityCheck(
            repo=str(self._repo.path),
            moment=at,
            moment_reason=reason,
            store=self._scratch.store,
            configured=self._scratch.configured,
            filled_by="tally materialize" if self._scratch.is_packed else "feast materialize",
            seed=self._seed,
            values=sum(one.values for one in compared),
            equal=sum(one.equal for one in compared),
            compared=tuple(compared),
        )

    def _history_ends(self, uses: dict[str, ViewUse]) -> dict[str, HistoryEnd]:
        """Where each view's history ends; of those that can be read and have rows."""
        ends_of_views = {}
        for name, use in uses.items():
            with self._unless_unreadable(name):
                last = history_end(self._repo, use)
                if last is None:
                    self._unreadable[name] = f"View {name} has no rows in its source."
                else:
                    ends_of_views[name] = last
        if not ends_of_views:
            raise DataError(
                "\n".join((f"{NOTHING}no view has history.", *self._unreadable.values()))
            )
        return ends_of_views

    def _keys(
        self, uses: dict[str, ViewUse], ends_of_views: dict[str, HistoryEnd], at: datetime
    ) -> dict[str, SampledKeys]:
        keys = {}
        for name in ends_of_views:
            with self._unless_unreadable(name):
                keys[name] = draw_keys(
                    self._repo, uses[name], at_us=to_us(at), count=self._sample, seed=self._seed
                )
        return keys

    def _bring_online(self, views: list[str], at: datetime) -> None:
        """Fill the scratch store as the repo's own is filled."""
        materializer = Materializer(self._repo) if self._scratch.is_packed else None
        for name in views:
            self._on_step(f"bringing view {name} online")
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
    ends_of_views: dict[str, HistoryEnd],
) -> tuple[datetime, str]:
    """The time as of which everything is read.

    By default now; if nothing that can expire is alive any more, a moment near the end of some
    view's history: the one with the most views alive, and then with the fewest views of which
    something had happened that was not known yet.
    """
    if at is not None:
        return at, "as requested"
    ttls = {
        name: ttl_us for name in ends_of_views if (ttl_us := uses[name].spec.ttl_us) is not None
    }
    if not ttls or any(
        ends_of_views[name].event_us >= now_us - ttl_us for name, ttl_us in ttls.items()
    ):
        return from_us(now_us), ""
    ends = sorted({ends_of_views[name].visible_us for name in ttls})
    known = [known_at(repo, uses[name], ends) for name in ends_of_views]
    settled = [max(each[index].settled_us for each in known) for index in range(len(ends))]
    candidates = sorted({min(moment_us, now_us) for moment_us in (*ends, *settled)})
    found = {name: known_at(repo, uses[name], candidates) for name in ends_of_views}

    def rank(index: int) -> tuple[int, int, int]:
        moment_us = candidates[index]
        alive = sum(found[name][index].newest_us >= moment_us - ttls[name] for name in ttls)
        complete = sum(found[name][index].settled_us <= moment_us for name in ends_of_views)
        return alive, complete, index

    return (
        from_us(candidates[max(range(len(candidates)), key=rank)]),
        "near the end of history, as every value that can expire has expired by now",
    )
