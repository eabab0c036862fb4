"""Plays a scene: each hour what became known goes online, then the hour's requests are answered.

Rows go online by Tallystick's own materialization and are read by its own server's predictor, under
a clock that is set. With faults, the two steps of a materialization are done one by one: a fault
stands between them in the way of some keys' rows, writes to Redis past them, or is a server that is
not as it should be.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import cached_property
from pathlib import Path
from typing import Any, Final, TypeAlias

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from benchmarks.audit.declared import KEYS, MODEL, ON_DEMAND
from benchmarks.audit.scene import START, Batch, Scene, prediction_id

from tallystick.clock import SimulatedClock, process_clock, to_us
from tallystick.definitions.feature_repo import Repo, open_repo
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.materialization.materializer import Materializer
from tallystick.model_bundle.bundle import Bundle, load_bundle, read_champion
from tallystick.offline_store.newly_visible import Covered, file_digests, read_newly_visible
from tallystick.offline_store.view_read import ViewRead
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.redis_connection import connect
from tallystick.online_store.table_writer import write_table
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.prediction_log.log_reader import read_log
from tallystick.prediction_log.log_writer import PredictionLog
from tallystick.prediction_log.record import Predictions
from tallystick.records.causes import Cause
from tallystick.settings import Settings, override
from tallystick_serving.feature_readers import RedisStoreClient
from tallystick_serving.predictor import Predictor
from tallystick_serving.store_config import read_store_config

Key: TypeAlias = tuple[Any, ...]
Cell: TypeAlias = tuple[str, str]
"""Prediction id and ``view__feature``."""

HOUR: Final = timedelta(hours=1)
TIMEOUT_S: Final = 30.0
LATENCY_US: Final = 1_000
_WAL: Final = Settings(log_window_s=60.0, log_buffer_rows_max=10**9, log_budget_bytes=1 << 40)


@dataclass(frozen=True)
class Played:
    """What a replay left.

    Attributes:
        repo: The repo, with the log in its state folder.
        table: The log, ordered by prediction id.
        edited: Computed values that another function than the contract's made otherwise.
    """

    repo: Repo
    table: pa.Table
    edited: frozenset[Cell]


@contextmanager
def simulated(folder: Path) -> Iterator[SimulatedClock]:
    """A clock of this process that is set, within the block."""
    path = folder / "clock"
    clock = SimulatedClock(path, start=START)
    override(clock_file=path)
    process_clock.cache_clear()
    try:
        yield clock
    finally:
        override(clock_file=None)
        process_clock.cache_clear()


def play(
    scene: Scene,
    folder: Path,
    *,
    clock: SimulatedClock,
    faults: Sequence[Fault] = (),
    histories: Iterable[Path] = (),
    commit_batches: int = 0,
    visibility: VisibilityClock | None = None,
) -> Played:
    """Answer and log all requests of a scene over an emptied online store.

    Args:
        scene: What is played; it stays as it is.
        folder: Where its copy goes.
        clock: This process's clock.
        faults: What goes wrong.
        histories: Parquet files that stand in place of the scene's of the same name.
        commit_batches: Requests after which the log is committed; only at the end if 0.
        visibility: When rows go online, of all views; by default when they become known, as a
            materialization has it.
    """
    shutil.copytree(scene.path, folder, ignore=shutil.ignore_patterns("__pycache__"))
    for history in histories:
        shutil.copy(history, folder / "data" / history.name)
    world = World(open_repo(folder), clock, visibility=visibility)
    world.client.flushall()
    edited = asyncio.run(_Replay(scene, world, faults, commit_batches).run())
    world.client.close()
    for fault in faults:
        fault.rewrite(world.repo)
    return Played(world.repo, logged(world.repo, scene), frozenset(edited))


def logged(repo: Repo, scene: Scene) -> pa.Table:
    """The log of a replay, ordered by prediction id."""
    (part,) = read_log(repo.state_dir, MODEL, start=START, end=scene.sizes.end)
    return part.table.sort_by("prediction_id").combine_chunks()


class World:
    """The repo of a replay and its online store.

    Attributes:
        repo: The repo.
        clock: This process's clock.
        bundle: The champion's.
        specs: View → how it is defined.
        redefined: View → its definition with narrower numbers.
        visibility: When rows of all views go online; None for when they become known.
    """

    def __init__(
        self,
        repo: Repo,
        clock: SimulatedClock,
        *,
        visibility: VisibilityClock | None,
    ) -> None:
        self.repo = repo
        self.clock = clock
        self.visibility = visibility
        champion = read_champion(repo.state_dir, MODEL)
        self.bundle = load_bundle(repo.state_dir, MODEL, champion.contract_hash)
        self.champion = champion
        self.specs = {use.spec.name: use.spec for use in self.bundle.contract.views}
        self.redefined = {view: _narrower(spec) for view, spec in self.specs.items()}
        self._sources = {view: repo.view_source(view) for view in self.specs}
        self._files: dict[str, frozenset[str]] = {}
        self._empty = {
            view: self._read(view, datetime(2100, 1, 1, tzinfo=UTC), None)[0].slice(0, 0)
            for view in self.specs
        }

    @cached_property
    def client(self) -> Any:
        """Redis, to write."""
        return connect(self.repo.store.config.online_store, self.repo.path)

    def visible(self, view: str, *, after: datetime | None, until: datetime) -> pa.Table:
        """The newest row of each key of those that became visible in (after, until]."""
        covered = None if after is None else Covered(self._files[view], to_us(after))
        rows = pa.concat_tables([self._empty[view], *self._read(view, until, covered)])
        times = [stamps_us(rows, name).tolist() for name in _times(self.specs[view])]
        newest: dict[Key, tuple[tuple[int, ...], int]] = {}
        for number, (key, *order) in enumerate(zip(keys_of(rows, view), *times, strict=True)):
            before = newest.get(key)
            if before is None or tuple(order) > before[0]:
                newest[key] = (tuple(order), number)
        return rows.take(pa.array(sorted(number for _, number in newest.values()), pa.int64()))

    def _read(self, view: str, until: datetime, covered: Covered | None) -> list[pa.Table]:
        spec = self.specs[view]
        batches: list[pa.Table] = []
        known = VisibilityClock.KNOWLEDGE if spec.created_column else VisibilityClock.EVENT
        files = read_newly_visible(
            ViewRead(
                spec=spec,
                source=self._sources[view],
                name=view,
                key_map={},
                columns=spec.column_names,
            ),
            batches.append,
            clock=self.visibility or known,
            until_us=to_us(until),
            covered=covered,
            repo_path=self.repo.path,
        )
        self._files[view] = frozenset(file_digests(files))
        return batches

    def write(self, spec: ViewSpec, rows: pa.Table) -> None:
        """Fold rows into the online store."""
        if rows.num_rows:
            write_us = self.clock.now_us()
            write_table(self.client, self.repo.project, spec, rows, write_us=write_us)

    def redis_keys(self, view: str, keys: Iterable[Key]) -> list[bytes]:
        """The Redis keys of entities."""
        columns = [list(column) for column in zip(*keys, strict=True)]
        made = EntityKeys(self.repo.project, self.specs[view].join_keys)
        return [name for name in made.of(columns) if name is not None] if columns else []


@dataclass(frozen=True, slots=True)
class Refresh:
    """A run of materialization: rows that became visible in (after, until] go online."""

    world: World
    after: datetime | None
    until: datetime


Written: TypeAlias = list[tuple[ViewSpec, pa.Table]]
"""Rows that go online, by the definition under which they are written."""


@dataclass(frozen=True, kw_only=True)
class Fault:
    """Something that goes wrong for some keys of one view; the base class changes nothing.

    Attributes:
        cause: The cause that each value has to get that is wrong because of it.
        view: The view.
        keys: Keys of that view.
    """

    cause: Cause
    view: str
    keys: frozenset[Key] = frozenset()

    def feed(self, refresh: Refresh, rows: pa.Table) -> Written:
        """The rows that a run of materialization writes for the keys, instead of ``rows``."""
        return [(refresh.world.specs[self.view], rows)]

    def write_past(self, world: World, hour: int) -> None:
        """Write to Redis past Tallystick, once the hour's rows are online."""

    def rewrite(self, repo: Repo) -> None:
        """Change history, once all requests have been served."""

    def cause_at(self, right: pa.Table, served: pa.Table, row: int) -> Cause:
        """The cause that a wrong value has to get.

        Args:
            right: The log without faults.
            served: The log with them.
            row: The value's row in both.
        """
        del right, served, row
        return self.cause


@dataclass(frozen=True, kw_only=True)
class ServerFault(Fault):
    """A server that is not as it should be, and gets some of the requests."""

    def routed(self, batch: Batch) -> Sequence[bool]:
        """Which rows of a request this server answers."""
        columns = (batch.columns[name] for name in KEYS[self.view])
        return [key in self.keys for key in zip(*columns, strict=True)]

    def serve(self, bundle: Bundle) -> Bundle:
        """The bundle that the server serves instead of the champion's."""
        raise NotImplementedError


def _narrower(spec: ViewSpec) -> ViewSpec:
    """A view whose doubles are floats."""
    columns = [
        Column(name=column.name, dtype="FLOAT" if column.dtype == "DOUBLE" else column.dtype)
        for column in spec.columns
    ]
    # Made anew: a copy would keep the hash of the definition.
    return ViewSpec(**spec.model_dump() | {"columns": columns})


def _times(spec: ViewSpec) -> list[str]:
    """The time columns of a view, in the order in which they decide."""
    return [name for name in (spec.event_column, spec.created_column) if name is not None]


def keys_of(table: pa.Table, view: str, prefix: str = "") -> list[Key]:
    """The key of a view in each row of a table."""
    columns = [table[prefix + name].to_pylist() for name in KEYS[view]]
    return list(zip(*columns, strict=True))


class _Replay:
    """One pass over a scene's requests."""

    def __init__(
        self, scene: Scene, world: World, faults: Sequence[Fault], commit_batches: int
    ) -> None:
        self._scene = scene
        self._world = world
        self._commit_batches = commit_batches
        self._materializer = Materializer(world.repo)
        self._is_usual = world.visibility is None and not faults
        self._faults = faults
        self._servers = [fault for fault in faults if isinstance(fault, ServerFault)]
        self._predictors: dict[tuple[int, ...], Predictor] = {}
        self._edited: set[Cell] = set()

    async def run(self) -> set[Cell]:
        """Play all hours; give the computed values that were made otherwise."""
        config = read_store_config(self._world.repo.path)
        assert config.redis is not None
        self._readers = RedisStoreClient(config, config.redis, timeout_s=TIMEOUT_S)
        self._log = PredictionLog(self._world.repo.state_dir, _WAL)
        before: datetime | None = None
        batches = iter(self._scene.batches)
        batch = next(batches, None)
        try:
            for hour in range(self._scene.sizes.hours):
                moment = START + hour * HOUR
                self._world.clock.set(moment)
                self._refresh(before, moment)
                for fault in self._faults:
                    fault.write_past(self._world, hour)
                while batch is not None and batch.hour == hour:
                    await self._answer(batch)
                    batch = next(batches, None)
                before = moment
        finally:
            await self._readers.close()
            self._log.close()
        return self._edited

    def _refresh(self, after: datetime | None, until: datetime) -> None:
        if self._is_usual:
            self._materializer.run(until=until)
            return
        refresh = Refresh(self._world, after, until)
        for view in KEYS:
            faults = [fault for fault in self._faults if fault.view == view]
            rows = self._world.visible(view, after=after, until=until)
            owner = {key: number for number, fault in enumerate(faults) for key in fault.keys}
            owners = pa.array([owner.get(key, -1) for key in keys_of(rows, view)], pa.int64())
            self._world.write(self._world.specs[view], rows.filter(pc.equal(owners, -1)))
            for number, fault in enumerate(faults):
                own = rows.filter(pc.equal(owners, number))
                for written, table in fault.feed(refresh, own):
                    self._world.write(written, table)

    async def _answer(self, batch: Batch) -> None:
        """Answer a request; its rows may go to several servers."""
        servers: dict[tuple[int, ...], list[int]] = {}
        masks = [fault.routed(batch) for fault in self._servers]
        for row in range(batch.rows):
            by = tuple(number for number, mask in enumerate(masks) if mask[row])
            servers.setdefault(by, []).append(row)
        for by, rows in servers.items():
            await self._answer_rows(batch, by, rows)
        done = batch.first // batch.rows + 1
        if self._commit_batches and done % self._commit_batches == 0:
            self._log.flush()

    async def _answer_rows(self, batch: Batch, by: tuple[int, ...], rows: list[int]) -> None:
        columns = {name: [values[row] for row in rows] for name, values in batch.columns.items()}
        predictor = self._predictors.get(by)
        if predictor is None:
            predictor = self._predictors[by] = self._server(by)
        views, values = await predictor.features(columns, request_us=batch.request_us)
        ids = [prediction_id(batch.first + row) for row in rows]
        record = Predictions(
            prediction_id=ids,
            request_us=batch.request_us,
            model_version=self._world.champion.version,
            keys=columns,
            views=views,
            values=values,
            prediction=predictor.probabilities(values),
            latency_us=LATENCY_US,
        )
        if not self._log.append(self._world.bundle.contract, record):
            raise AssertionError("the log dropped a prediction")
        if any(self._servers[number].view == ON_DEMAND for number in by):
            self._note_edited(ids, columns, values)

    def _server(self, by: tuple[int, ...]) -> Predictor:
        """A server with the faults of these numbers."""
        bundle = self._world.bundle
        for number in by:
            bundle = self._servers[number].serve(bundle)
        return Predictor(self._world.champion, bundle, self._readers)

    def _note_edited(self, ids: list[str], columns: Any, values: Any) -> None:
        bundle = self._world.bundle
        right = bundle.transforms.compute(bundle.contract, {**columns, **values})
        self._edited |= {
            (ids[row], name)
            for name, expected in right.items()
            for row, value in enumerate(expected)
            if repr(value) != repr(values[name][row])
        }


def history_of(repo: Repo, view: str) -> pa.Table:
    """All rows of a view's history, as its file has them."""
    return pq.read_table(repo.path / "data" / f"{view}.parquet")


def stamped_rows(table: pa.Table, view: str) -> list[tuple[Key, int, int]]:
    """Key, event and created time of each row of a history; the event time without the latter."""
    event = stamps_us(table, "event_time").tolist()
    has_created = "created_time" in table.column_names
    created = stamps_us(table, "created_time").tolist() if has_created else event
    return list(zip(keys_of(table, view), event, created, strict=True))


def stamps_us(table: pa.Table, column: str) -> Any:
    """A column of times as int64 microseconds; the least number for null."""
    numbers = table[column].cast(pa.int64()).fill_null(-(2**63))
    return numbers.to_numpy()
