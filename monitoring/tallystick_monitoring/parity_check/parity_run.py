"""``tally check --parity``: apply, sample keys, materialize, serve, read three ways, compare."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from tallystick.clock import EPOCH, from_us, process_clock, to_us
from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_repo import Repo, apply, open_repo
from tallystick.errors import DataError, DefinitionError, StateError, TallystickError
from tallystick.materialization.materializer import Materializer
from tallystick.progress import progress
from tallystick.signals import ending_on_signals
from tallystick.storage.atomic_files import write_text
from tallystick_monitoring.parity_check import subject_answers
from tallystick_monitoring.parity_check.answer_comparison import Comparison
from tallystick_monitoring.parity_check.check_requests import Requests
from tallystick_monitoring.parity_check.key_sampling import (
    HistoryEnd,
    SampledKeys,
    draw_keys,
    history_end,
    known_at,
)
from tallystick_monitoring.parity_check.parity_report import ParityCheck, SubjectReport, text
from tallystick_monitoring.parity_check.scratch_repo import (
    ScratchRepo,
    foreign_code,
    scratch_repo,
)
from tallystick_monitoring.parity_check.scratch_server import ScratchServer
from tallystick_monitoring.parity_check.subject_answers import CARRIED, Answers
from tallystick_monitoring.parity_check.subjects import Subject, subjects

OnStep = Callable[[str], None]

NOTHING: Final = "There is nothing to compare: "


def check_parity(
    path: Path,
    *,
    sample: int,
    at: datetime | None,
    seed: int,
    json_path: Path | None,
    fail_over: float,
) -> tuple[str, bool]:
    """Serve a repo from a scratch store, and compare offline, online and API.

    Nothing of the repo is written: no registry, no online store, no state folder.

    Returns:
        The report as text, and whether no more than ``fail_over`` of the values differ and all
        could be compared.

    Raises:
        InputError: There is no Feast repo at ``path``.
        DefinitionError: The definitions cannot be used.
        StateError: There is nothing to compare, or the server does not come up.
        DataError: No view's history can be read.
    """
    with ending_on_signals() as end_if_signalled, _without_bytecode():
        repo = open_repo(path)
        with progress(lines=False) as bar:

            def on_step(text: str) -> None:
                end_if_signalled()
                bar.step(text)

            now_us = process_clock().now_us()
            on_step("applying the definitions to a scratch registry")
            with scratch_repo(repo) as scratch:
                with foreign_code(f"Feast cannot apply {repo.path}", DefinitionError):
                    apply(scratch.repo)
                run = ParityRun(scratch, sample=sample, seed=seed, on_step=on_step)
                check = run.result(at, now_us=now_us)
    if json_path is not None:
        write_text(json_path, check.model_dump_json(indent=1))
    return text(check), check.passed(fail_over)


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
        keys = self._bring_online([uses[name] for name in ends_of_views], at)
        self._on_step("starting the server")
        with ScratchServer(self._scratch) as api:
            requests = Requests(self._repo, keys, at=at, count=self._sample, seed=self._seed)
            compared = []
            for each in found:
                self._on_step(f"comparing {each.kind} {each.name}")
                report = self._checked(each, requests, api) if isinstance(each, Subject) else each
                compared.append(report)
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
        """Where the history of each view ends that can be read and has rows."""
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

    def _bring_online(self, uses: Iterable[ViewUse], at: datetime) -> dict[str, SampledKeys]:
        """Fill the scratch store as the repo's own is filled, and give the keys drawn by view."""
        materializer = Materializer(self._repo) if self._scratch.is_packed else None
        keys = {}
        for use in uses:
            name = use.name
            self._on_step(f"bringing view {name} online")
            with self._unless_unreadable(name):
                keys[name] = draw_keys(
                    self._repo, use, at_us=to_us(at), count=self._sample, seed=self._seed
                )
                if materializer is not None:
                    materializer.run(views=[name], until=at)
                else:
                    with foreign_code(f"feast materialize fails for view {name}"):
                        self._repo.store.materialize(EPOCH, at, feature_views=[name])
        return keys

    def _checked(self, subject: Subject, requests: Requests, api: ScratchServer) -> SubjectReport:
        """What is found of a subject."""
        names = [use.spec.name for use in subject.inputs.views]
        failures = [f"view {name} cannot be compared" for name in names if name in self._unreadable]
        if failures and subject.kind == "view":
            failures = [self._unreadable[subject.name]]
        if not failures:
            try:
                return self._compared(subject, requests, api)
            except TallystickError as error:
                failures = [str(error)]
        return SubjectReport(kind=subject.kind, name=subject.name, failures=tuple(failures))

    def _compared(self, subject: Subject, requests: Requests, api: ScratchServer) -> SubjectReport:
        entity_rows = requests.entity_rows(
            subject.inputs, subject.name, populated=subject.kind != "view"
        )
        notes: list[str] = []
        if unanswered := subject_answers.unanswered(subject):
            notes.append(
                f"not compared: {', '.join(unanswered)}, which Feast leaves out where "
                "features are asked for with the names of their views, as two of one name must be"
            )
        failures: list[str] = []
        entity_rows, offline = self._offline(subject, entity_rows, notes)
        left_out = np.zeros(entity_rows.num_rows, dtype=np.bool_)
        if not self._scratch.is_packed:
            left_out = subject_answers.not_yet_known(self._repo, subject.inputs, entity_rows)
        if left_out.any():
            notes.append(
                f"left out are {int(left_out.sum())} requests with a row that was known only "
                "later: Feast, which filled the store, does not ask when a row became known"
            )
        online = served = None
        if entity_rows.num_rows and subject.bundle is None:
            with _noting(failures):
                online = subject_answers.online(self._repo, subject, entity_rows)
        if entity_rows.num_rows:
            with _noting(failures):
                served = _served(api, subject, entity_rows, notes)
        return Comparison(
            subject, entity_rows, offline=offline, online=online, api=served, left_out=left_out
        ).report(
            kinds=requests.keys[subject.name].kinds if subject.kind == "view" else {},
            notes=notes,
            failures=failures,
        )

    def _offline(
        self, subject: Subject, entity_rows: pa.Table, notes: list[str]
    ) -> tuple[pa.Table, Answers]:
        """What history says, and the requests without those that make something fail."""
        table, found = subject_answers.stored(self._repo, subject.inputs, entity_rows)
        try:
            computed = subject_answers.computed(subject, table)
        except DefinitionError:
            passing, reason = subject_answers.passing_rows(subject, table)
            if not passing:
                raise
            failing = entity_rows.num_rows - len(passing)
            entity_rows = entity_rows.take(passing)
            table, found = subject_answers.stored(self._repo, subject.inputs, entity_rows)
            computed = subject_answers.computed(subject, table)
            notes.append(f"left out are {failing} requests that fail: {reason}")
        found.values |= computed
        return entity_rows, found

    @contextmanager
    def _unless_unreadable(self, name: str) -> Iterator[None]:
        """Keep why a view cannot be read or written, and go on with the others."""
        try:
            yield
        except TallystickError as error:
            self._unreadable[name] = str(error)


def _served(
    api: ScratchServer, subject: Subject, entity_rows: pa.Table, notes: list[str]
) -> Answers | None:
    if subject.bundle is not None:
        reasons = [
            reason
            for reason in api.reasons_not_ready()
            if reason.startswith(f"model {subject.name} ")
        ]
        if reasons:
            raise DataError("; ".join(reasons))
        return subject_answers.served_predictions(api, subject, entity_rows)
    uncarried = [
        f"{column.name} ({column.dtype})"
        for column in subject.inputs.request_columns
        if column.dtype not in CARRIED
    ]
    if uncarried:
        notes.append(
            f"the API was not compared: Feast cannot take {', '.join(uncarried)} from JSON, "
            "only a model's route can"
        )
        return None
    return subject_answers.served_features(api, subject, entity_rows)


@contextmanager
def _without_bytecode() -> Iterator[None]:
    """Keep Python from writing compiled files beside the definitions."""
    before = sys.dont_write_bytecode
    sys.dont_write_bytecode = True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


@contextmanager
def _noting(failures: list[str]) -> Iterator[None]:
    """Note why one way cannot answer, and go on with the others."""
    try:
        yield
    except TallystickError as error:
        failures.append(str(error))


def _moment(
    repo: Repo,
    at: datetime | None,
    now_us: int,
    uses: dict[str, ViewUse],
    ends_of_views: dict[str, HistoryEnd],
) -> tuple[datetime, str]:
    """The time as of which everything is read.

    By default now. If nothing that can expire is alive any more, a moment near the end of some
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
