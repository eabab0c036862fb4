"""The repo that is audited: histories with late rows and corrections, requests, a champion.

Everything becomes known on the hour, and a run of materialization takes place on the hour: so the
online store of a clean replay is never behind, and a clean log has no mismatch at all. Requests
come at any time, some of them on the hour as well.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from benchmarks.audit.declared import DEFINITIONS, KEYS, MODEL
from benchmarks.wide_views import (
    TALLYSTICK_STORES,
    TIMESTAMP,
    Array,
    write_columns,
    write_repo,
)

from tallystick.clock import to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo, apply, open_repo
from tallystick.model_bundle.bundle import Bundle, Champion, publish_champion, write_bundle
from tallystick.point_in_time.on_demand import Transforms
from tallystick.prediction_log.log_import import observed_contract

START: Final = datetime(2024, 5, 6, tzinfo=UTC)
START_US: Final = to_us(START)
HOUR_US: Final = 3_600_000_000
WARM_HOURS: Final = 72
AFTER_HOURS: Final = 8


@dataclass(frozen=True)
class Sizes:
    """How large a scene is.

    Attributes:
        requests: Predictions requested.
        hours: Length of the log; a run of materialization on each hour.
        batch_rows: Predictions of one request.
        seed: Of everything random.
    """

    requests: int = 50_000
    hours: int = 96
    batch_rows: int = 64
    seed: int = 11

    @property
    def members(self) -> int:
        """Keys of the views by member; those by venue have as many."""
        return max(40, self.requests // 25)

    @property
    def pairs(self) -> int:
        """Keys of the view by both."""
        return 2 * self.members

    @property
    def end(self) -> datetime:
        """Where the log ends."""
        return START + timedelta(hours=self.hours)


@dataclass(frozen=True)
class Batch:
    """One request.

    Attributes:
        hour: The hour in which it came, from 0.
        request_us: Request time.
        first: Number of its first row among all requests.
        columns: Entity keys and request field, one value per row.
    """

    hour: int
    request_us: int
    first: int
    columns: dict[str, list[Any]]

    @property
    def rows(self) -> int:
        """How many predictions it requests."""
        return len(self.columns["amount"])


@dataclass(frozen=True)
class Scene:
    """A repo with a champion that has not been served yet.

    Attributes:
        path: Folder of the repo.
        sizes: How large it is.
        batches: Its requests, in order of time.
        contract: The champion's.
    """

    path: Path
    sizes: Sizes
    batches: tuple[Batch, ...]
    contract: ModelContract


@dataclass(frozen=True)
class _Feed:
    """How the rows of a view come: mean hours between them, shares that are late or corrected."""

    gap_hours: float
    late_share: float = 0.0
    corrected_share: float = 0.0


_FEEDS: Final = {
    "activity": _Feed(8.0, late_share=0.05, corrected_share=0.02),
    "state": _Feed(6.0, late_share=0.05, corrected_share=0.1),
    "pairing": _Feed(12.0, late_share=0.02, corrected_share=0.3),
    "profile": _Feed(36.0),
}
_CORRECTED_AGAIN: Final = 0.25
_UNKNOWN, _NEW = 0.02, 0.03


def make_scene(path: Path, sizes: Sizes, *, address: str) -> Scene:
    """Write the repo, apply it, and make a champion.

    Args:
        path: Folder to make.
        sizes: How large.
        address: Redis, as ``connection_string`` has it.
    """
    rng = np.random.default_rng(sizes.seed)
    data = path / "data"
    pairs = _pairs(rng, sizes)
    write_repo(path, DEFINITIONS, stores=TALLYSTICK_STORES, address=address, project="audit_bench")
    for view in KEYS:
        _write_history(data, view, rng, sizes, pairs)
    write_columns(
        data / "labels.parquet",
        {
            "member": member_names(np.arange(2)),
            "venue": np.arange(2),
            "accepted": np.array([0, 1]),
            "event_time": np.full(2, START_US),
            "created_time": np.full(2, START_US + HOUR_US),
        },
    )
    repo = open_repo(path)
    apply(repo)
    contract = _make_champion(repo, sizes)
    return Scene(path, sizes, _requests(rng, sizes, pairs), contract)


def member_names(numbers: Array) -> Array:
    """Keys of members."""
    return np.array([f"m-{number:06d}" for number in numbers.tolist()], dtype=object)


def prediction_id(number: int) -> str:
    """Id of the prediction of that number among all; the same in each replay."""
    return f"00000000-0000-7000-8000-{number:012x}"


def _pairs(rng: np.random.Generator, sizes: Sizes) -> Array:
    """Distinct numbers of member and venue, of shape (pairs, 2)."""
    codes = rng.choice(sizes.members**2, size=sizes.pairs, replace=False)
    return np.stack(np.divmod(codes, sizes.members), axis=1)


def _write_history(
    data: Path, view: str, rng: np.random.Generator, sizes: Sizes, pairs: Array
) -> None:
    keys = sizes.pairs if view == "pairing" else sizes.members
    key, event, created = _times(rng, _FEEDS[view], keys, sizes.hours)
    if view == "pairing":
        names = {"member": member_names(pairs[key, 0]), "venue": pairs[key, 1]}
    else:
        names = {"member": member_names(key)} if view == "activity" else {"venue": key}
    times = {"event_time": START_US + event * HOUR_US}
    if view != "profile":
        times["created_time"] = START_US + created * HOUR_US
    write_columns(data / f"{view}.parquet", {**names, **_values(view, rng, len(key)), **times})


def _times(
    rng: np.random.Generator, feed: _Feed, keys: int, hours: int
) -> tuple[Array, Array, Array]:
    """Key, event hour and created hour of each row, in order of the created hour."""
    span = WARM_HOURS + hours + AFTER_HOURS
    there = rng.random((keys, span)) < 1 / feed.gap_hours
    there[:, 0] = True
    kind = rng.random(keys)
    there[kind < _UNKNOWN] = False
    new = (kind >= _UNKNOWN) & (kind < _UNKNOWN + _NEW)
    there[new, :WARM_HOURS] = False
    key, event = np.nonzero(there)
    event = event - WARM_HOURS
    if not feed.corrected_share:
        order = np.argsort(event, kind="stable")
        return key[order], event[order], event[order]
    delay = rng.choice([0, 1, 2], p=[0.2, 0.7, 0.1], size=len(key))
    late = rng.random(len(key)) < feed.late_share
    created = event + np.where(late, rng.integers(4, 16, size=len(key)), delay)
    again = rng.random(len(key)) < feed.corrected_share
    second = created[again] + rng.integers(1, 7, size=again.sum())
    more = rng.random(len(second)) < _CORRECTED_AGAIN
    third = second[more] + rng.integers(1, 7, size=more.sum())
    key = np.concatenate([key, key[again], key[again][more]])
    event = np.concatenate([event, event[again], event[again][more]])
    created = np.concatenate([created, second, third])
    order = np.argsort(created, kind="stable")
    return key[order], event[order], created[order]


def _values(view: str, rng: np.random.Generator, rows: int) -> dict[str, Any]:
    """Random values; few are the same in two rows of a key."""

    def sparse(values: Array, kind: pa.DataType) -> pa.Array:
        return pa.array(values, kind, mask=rng.random(rows) < 0.2)

    def moments() -> pa.Array:
        return pa.array(START_US - rng.integers(1, 10**12, size=rows)).cast(TIMESTAMP)

    normal = 10.0 * rng.normal(size=(rows, 3))
    whole = rng.integers(1, 10**6, size=(rows, 2))
    flags = rng.random(rows) < 0.5
    if view == "activity":
        return {
            "score": normal[:, 0],
            "spend": normal[:, 1].astype(np.float32),
            "visits": whole[:, 0],
            "grade": rng.choice(["low", "middle", "highest"], size=rows).astype(object),
            "active": flags,
            "last_seen": moments(),
        }
    if view == "state":
        return {
            "price": normal[:, 0],
            "load": sparse(normal[:, 1].astype(np.float32), pa.float32()),
            "stock": sparse(whole[:, 0], pa.int64()),
            "is_open": flags,
            "checked": moments(),
        }
    if view == "pairing":
        return {
            "ratio": sparse(normal[:, 0], pa.float64()),
            "total": normal[:, 1],
            # Beyond what a double holds exactly.
            "count": whole[:, 0] + (1 << 55),
            "rank": whole[:, 1].astype(np.int32),
            "mean": normal[:, 2].astype(np.float32),
        }
    return {
        "size": normal[:, 0],
        "weight": normal[:, 1].astype(np.float32),
        "kind": whole[:, 0],
        "capacity": sparse(whole[:, 1], pa.int64()),
    }


def _requests(rng: np.random.Generator, sizes: Sizes, pairs: Array) -> tuple[Batch, ...]:
    """Requests of members for venues: mostly of known pairs, some for keys without history."""
    per_hour = max(1, round(sizes.requests / sizes.hours / sizes.batch_rows))
    liking = rng.gamma(4.0, size=len(pairs))
    liking /= liking.sum()
    batches: list[Batch] = []
    for hour in range(sizes.hours):
        seconds = rng.choice(np.arange(1, 3_600), size=per_hour - 1, replace=False)
        for offset in [0, *np.sort(seconds).tolist()]:
            rows = sizes.batch_rows
            chosen = pairs[rng.choice(len(pairs), size=rows, p=liking)]
            stray = rng.random(rows) < 0.05
            chosen[stray] = rng.integers(0, sizes.members + 5, size=(stray.sum(), 2))
            batches.append(
                Batch(
                    hour=hour,
                    request_us=START_US + hour * HOUR_US + offset * 1_000_000,
                    first=len(batches) * rows,
                    columns={
                        "member": member_names(chosen[:, 0]).tolist(),
                        "venue": chosen[:, 1].tolist(),
                        "amount": np.round(rng.gamma(2.0, 20.0, size=rows), 2).tolist(),
                    },
                )
            )
    return tuple(batches)


def _make_champion(repo: Repo, sizes: Sizes) -> ModelContract:
    """Freeze a contract over the clean repo; the estimator always gives the same."""
    from sklearn.dummy import DummyClassifier

    inputs = repo.inputs(repo.model(MODEL))
    observed = observed_contract(repo, f"{MODEL}_features")
    data = observed.data.model_copy(update={"rows": sizes.requests})
    contract = observed.model_copy(update={**dict(inputs), "data": data})
    width = len(contract.features)
    estimator = DummyClassifier().fit(np.zeros((2, width)), [0, 1])
    transforms = Transforms.from_repo(repo, inputs)
    write_bundle(repo.state_dir, Bundle(contract, estimator, transforms))
    publish_champion(
        repo.state_dir,
        Champion(model=MODEL, version="1", contract_hash=contract.contract_hash),
    )
    return contract
