"""The cases of the bench: a clean log, each cause at each rate, causes mixed, a damaged log."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from benchmarks.audit.damage import copy_repo, damage_file, damage_segments
from benchmarks.audit.declared import KEYS, MODEL
from benchmarks.audit.faults import Rewritten
from benchmarks.audit.plans import Chooser, Clean, mixture, plan, stacked
from benchmarks.audit.replay import Cell, Fault, Key, Played, keys_of, play
from benchmarks.audit.scene import START, Scene
from benchmarks.audit.truth import Score, scored, wrong_values

from tallystick.clock import SimulatedClock
from tallystick.definitions.feature_repo import Repo
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.causes import Cause
from tallystick_monitoring.audit.audit_run import Audited, audit

RATES: Final = (0.001, 0.01, 0.1)
DAMAGE: Final = "log_damage"
LATE: Final[Cause] = Cause.LATE_ARRIVAL
POOL_SHARE: Final = 0.5
"""Requests of the keys at which overlapping faults strike, for each that shall be wrong."""


@dataclass(frozen=True)
class Case:
    """What came of one case.

    Attributes:
        name: ``clean``, ``single``, ``disjoint``, ``overlapping``, ``stacked``, ``segment``,
            ``file`` or ``event_clock``.
        rate: Share of the requests that were to have a wrong value.
        causes: What was injected.
        wrong_share: Share of the requests that have one.
        several_share: Share of those that have wrong values of several causes.
        score: What was found; of damage to the log in predictions, else in values.
        astray: Some values whose cause is not the injected one: value, injected, found.
    """

    name: str
    rate: float
    causes: tuple[str, ...]
    wrong_share: float
    score: Score
    several_share: float = 0.0
    astray: list[tuple[str, str, str | None, str | None]] = field(default_factory=list)


class Bench:
    """Plays cases over one scene.

    Args:
        scene: What is played.
        folder: Where the copies of its repo lie while they are looked at.
        clock: This process's clock.
        seed: Of what is random in the choice of keys.
    """

    def __init__(self, scene: Scene, folder: Path, *, clock: SimulatedClock, seed: int = 5) -> None:
        self._scene = scene
        self._folder = folder
        self._clock = clock
        self._seed = seed
        self._numbers = count()
        # Committed after each request, so that a damaged frame is a small part of the log.
        played = play(scene, folder / "clean", clock=clock, commit_batches=1)
        self.clean = Clean(scene, played)

    @property
    def _requests(self) -> int:
        return int(self.clean.played.table.num_rows)

    @contextmanager
    def _folder_of_case(self) -> Iterator[Path]:
        """A folder that is gone after the block."""
        path = self._folder / f"case-{next(self._numbers)}"
        try:
            yield path
        finally:
            shutil.rmtree(path, ignore_errors=True)

    def without_fault(self) -> Case:
        """The clean log: whatever is found is false."""
        findings = self._audited(self.clean.played.repo).findings
        return self._case("clean", 0.0, (), {}, findings)

    def single(self, cause: Cause, rate: float) -> Case:
        """One cause alone."""
        chooser = Chooser(np.random.default_rng(self._seed), {})
        faults = plan(cause, self.clean, requests=rate * self._requests, chooser=chooser)
        return self._with_faults("single", rate, faults)

    def mixed(self, rate: float, *, overlapping: bool) -> Case:
        """All causes at once, each with its share of the rate, none at another's key of a view.

        Args:
            rate: Share of the requests that shall have a wrong value of any cause.
            overlapping: Whether all strike the same few members and venues, so that a request has
                wrong values of several views and causes; else that is chance.
        """
        rng = np.random.default_rng(self._seed)
        pool = self._pool(rng, POOL_SHARE * rate) if overlapping else None
        chooser = Chooser(rng, {}, pool)
        faults = mixture(self.clean, requests=rate * self._requests, chooser=chooser)
        return self._with_faults("overlapping" if overlapping else "disjoint", rate, faults)

    def stacked(self, rate: float) -> Case:
        """Two causes at once at the same keys of a view, so that the evidence has to decide."""
        chooser = Chooser(np.random.default_rng(self._seed), {})
        faults = stacked(self.clean, requests=rate * self._requests, chooser=chooser)
        return self._with_faults("stacked", rate, faults)

    def damaged(self, kind: str, rate: float) -> Case:
        """Damage to the log: bytes of a segment, or of a Parquet file."""
        log = self.clean.played.table
        with self._folder_of_case() as folder:
            repo = copy_repo(self.clean.played.repo, folder, with_log=kind == "segment")
            if kind == "segment":
                lost = damage_segments(repo, self._scene, share=rate, seed=self._seed)
            else:
                lost = damage_file(repo, self._scene, log, share=rate, seed=self._seed)
            whole = self._audited(repo)
        lost_rows = sum(each.rows for each in whole.report.damage)
        score = scored({}, whole.findings) + Score(
            Counter({DAMAGE: len(lost)}),
            Counter({DAMAGE: lost_rows}),
            Counter({DAMAGE: min(lost_rows, len(lost))}),
        )
        return Case(kind, rate, (DAMAGE,), len(lost) / self._requests, score)

    def by_event_time(self) -> Case:
        """The clean log under the event clock: what is late, and nothing else, differs."""
        audited = self._audited(self.clean.played.repo, clock=VisibilityClock.EVENT)
        return self._case("event_clock", 0.0, (LATE,), self.late_values(), audited.findings)

    def late_values(self) -> dict[Cell, str]:
        """Values of the clean log that a store would have had otherwise, had nothing been late."""
        with self._folder_of_case() as folder:
            hasty = play(self._scene, folder, clock=self._clock, visibility=VisibilityClock.EVENT)
        served = self.clean.played
        late = [Fault(cause=LATE, view=view, keys=_all_keys(served, view)) for view in KEYS]
        return wrong_values(self._scene.contract, hasty.table, served.table, faults=late)

    def _with_faults(self, name: str, rate: float, faults: Sequence[Fault]) -> Case:
        with self._folder_of_case() as folder, self._folder_of_case() as again:
            played = play(self._scene, folder, clock=self._clock, faults=faults)
            right = self.clean.played.table
            rewritten = {
                played.repo.path / "data" / f"{fault.view}.parquet"
                for fault in faults
                if isinstance(fault, Rewritten)
            }
            if rewritten:
                right = play(self._scene, again, clock=self._clock, histories=rewritten).table
            truth = wrong_values(
                self._scene.contract, right, played.table, faults=faults, edited=played.edited
            )
            causes = tuple(sorted({*truth.values()}))
            return self._case(name, rate, causes, truth, self._audited(played.repo).findings)

    def _audited(self, repo: Repo, clock: VisibilityClock = VisibilityClock.KNOWLEDGE) -> Audited:
        return audit(repo, MODEL, start=START, end=self._scene.sizes.end, clock=clock, again=True)

    def _case(
        self,
        name: str,
        rate: float,
        causes: tuple[str, ...],
        truth: dict[Cell, str],
        findings: pa.Table,
    ) -> Case:
        by_request: dict[str, set[str]] = {}
        for (prediction, _), cause in truth.items():
            by_request.setdefault(prediction, set()).add(cause)
        several = sum(len(found) > 1 for found in by_request.values())
        return Case(
            name,
            rate,
            causes,
            wrong_share=len(by_request) / self._requests,
            several_share=several / max(1, len(by_request)),
            score=scored(truth, findings),
            astray=_astray(truth, findings),
        )

    def _pool(self, rng: np.random.Generator, share: float) -> dict[str, set[Key]]:
        """Keys of every view that so large a share of the requests has."""
        served = self.clean.served("pairing")
        requests = np.bincount(served.key)
        order = rng.permutation(len(served.names))
        enough = np.searchsorted(np.cumsum(requests[order]), share * self._requests) + 1
        pairs = [served.names[number] for number in order[:enough].tolist()]
        venues = {(venue,) for _, venue in pairs}
        return {
            "pairing": set(pairs),
            "activity": {(member,) for member, _ in pairs},
            "state": venues,
            "profile": venues,
        }


def _all_keys(played: Played, view: str) -> frozenset[Key]:
    return frozenset(keys_of(played.table, view, prefix="entity."))


def _astray(
    truth: dict[Cell, str], findings: pa.Table, limit: int = 5
) -> list[tuple[str, str, str | None, str | None]]:
    columns: list[list[Any]] = [
        findings[name].to_pylist() for name in ("prediction_id", "feature", "cause")
    ]
    named = {
        (prediction, feature): cause for prediction, feature, cause in zip(*columns, strict=True)
    }
    astray = [
        (*cell, truth.get(cell), named.get(cell))
        for cell in truth.keys() | named.keys()
        if truth.get(cell) != named.get(cell)
    ]
    return astray[:limit]
