"""The repos that are measured, and their data: four views of ten features for one entity.

One folder holds the data and three Feast repos with the same views: ``feast`` and
``feast_precomputed`` on Feast's own Redis store, ``tally`` on Tallystick's, which has an on-demand
view and a model as well. Every entity has an old row in each view, to learn from, and a fresh one,
which is what is online.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

VIEWS: Final = 4
DOUBLES, FLOATS, INTEGERS = 6, 2, 2
FEATURES: Final = VIEWS * (DOUBLES + FLOATS + INTEGERS)
KEY: Final = "account_id"
REQUEST_FIELD: Final = "amount"
SERVICE: Final = "accounts"
MODEL: Final = "buys"
LABELS: Final = 8_000
INTEGER_MAX: Final = 100_000
DAY_US: Final = 86_400_000_000
SEED: Final = 20_130_101

BARE_ROW: Final = struct.Struct(f"<{DOUBLES}d{FLOATS}f{INTEGERS}q")
"""How the bare MGET's rows are packed; the least that a row of a view can be."""

_STORE = """\
project: {project}
provider: local
registry: {{path: data/registry.db, cache_ttl_seconds: 0}}
offline_store: {{type: {offline}}}
online_store: {{type: {online}, connection_string: "{address}"}}
entity_key_serialization_version: 3
"""

_VIEWS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Float64, Int64

account = Entity(name="account", join_keys=["account_id"], value_type=ValueType.INT64)


def fields(number):
    return [
        *(Field(name=f"v{number}_double{place}", dtype=Float64) for place in range(6)),
        *(Field(name=f"v{number}_float{place}", dtype=Float32) for place in range(2)),
        *(Field(name=f"v{number}_integer{place}", dtype=Int64) for place in range(2)),
    ]


def view(number):
    return FeatureView(
        name=f"view_{number}",
        entities=[account],
        ttl=timedelta(days=60),
        schema=[Field(name="account_id", dtype=Int64), *fields(number)],
        source=FileSource(
            name=f"rows_{number}",
            path=f"FOLDER/view_{number}.parquet",
            timestamp_field="event_time",
            created_timestamp_column="created_time",
        ),
    )


view_0, view_1, view_2, view_3 = (view(number) for number in range(4))
accounts = FeatureService(
    name="accounts", features=[view_0, view_1, view_2, view_3], precompute_online=PRECOMPUTED
)
"""

_MODEL = """
from sklearn.ensemble import HistGradientBoostingClassifier
from tallystick import Label, Model, Retraining


@on_demand_feature_view(
    sources=[view_0, RequestSource(name="basket", schema=[Field(name="amount", dtype=Float64)])],
    schema=[Field(name="share", dtype=Float64), Field(name="above", dtype=Int64)],
    mode="python",
)
def spending(inputs):
    rows = list(zip(inputs["amount"], inputs["v0_double0"], inputs["v0_integer0"]))
    missing = [None in row for row in rows]
    return {
        "share": [
            None if gone else amount / (1.0 + abs(mean))
            for (amount, mean, _), gone in zip(rows, missing)
        ],
        "above": [
            None if gone else int(amount * 1000.0 > count)
            for (amount, _, count), gone in zip(rows, missing)
        ],
    }


buys = Model(
    name="buys",
    features=FeatureService(
        name="buys_features", features=[view_0, view_1, view_2, view_3, spending]
    ),
    label=Label(
        source=FileSource(
            name="labels",
            path="FOLDER/labels.parquet",
            timestamp_field="event_time",
            created_timestamp_column="created_time",
        ),
        column="bought",
        keys=("account_id", "amount"),
        matures_after=timedelta(days=1),
    ),
    estimator=HistGradientBoostingClassifier(max_iter=100, early_stopping=False, random_state=0),
    retraining=Retraining(holdout=timedelta(days=3)),
)
buys_features = buys.features
"""


def write_repos(folder: Path, *, entities: int, redis_port: int) -> dict[str, Path]:
    """Write data and definitions; give the folder of each repo."""
    data = folder / "data"
    data.mkdir()
    _write_data(data, entities)
    address = f"127.0.0.1:{redis_port}"
    feast = (_VIEWS, "file", "redis")
    repos = {}
    for name, (definitions, offline, online) in {
        "feast": feast,
        # A repo of its own: what is precomputed would make the rows of the other one larger.
        "feast_precomputed": feast,
        "tally": (
            _VIEWS + _MODEL,
            "tallystick.offline_store.DuckDBOfflineStore",
            "tallystick.online_store.RedisOnlineStore",
        ),
    }.items():
        repo = folder / name
        (repo / "data").mkdir(parents=True)
        (repo / "feature_store.yaml").write_text(
            _STORE.format(project=f"{name}_bench", offline=offline, online=online, address=address)
        )
        (repo / "declared.py").write_text(
            definitions.replace("FOLDER", str(data)).replace(
                "PRECOMPUTED", str(name == "feast_precomputed")
            )
        )
        repos[name] = repo
    return repos


def bare_key(view: int, entity: int) -> bytes:
    """Where the bare MGET's row of an entity lies."""
    return b"bare:%d:%d" % (view, entity)


def bare_rows(folder: Path) -> dict[bytes, bytes]:
    """The rows that are online, packed as :data:`BARE_ROW`."""
    rows = {}
    for view in range(VIEWS):
        table = pq.read_table(folder / "data" / f"view_{view}.parquet")
        fresh = table.slice(table.num_rows // 2)
        keys = fresh[KEY].to_pylist()
        columns = [
            fresh[name].to_pylist() for name in fresh.column_names if name.startswith(f"v{view}_")
        ]
        for key, values in zip(keys, zip(*columns, strict=True), strict=True):
            rows[bare_key(view, key)] = BARE_ROW.pack(*values)
    return rows


def view_columns(rng: np.random.Generator, view: int, rows: int) -> dict[str, np.ndarray[Any, Any]]:
    """Random values of a view's features."""
    return {
        **{f"v{view}_double{place}": rng.normal(size=rows) for place in range(DOUBLES)},
        **{
            f"v{view}_float{place}": rng.normal(size=rows).astype(np.float32)
            for place in range(FLOATS)
        },
        **{
            f"v{view}_integer{place}": rng.integers(0, INTEGER_MAX, size=rows)
            for place in range(INTEGERS)
        },
    }


def _write_data(data: Path, entities: int) -> None:
    rng = np.random.default_rng(SEED)
    # Whole seconds: the times in two answers shall not differ by how they are rounded.
    now_us = int(time.time()) * 1_000_000
    keys = np.arange(entities)
    first: dict[str, np.ndarray[Any, Any]] = {}
    for view in range(VIEWS):
        old_us = now_us - 30 * DAY_US + rng.integers(0, 86_400, size=entities) * 1_000_000
        fresh_us = now_us - rng.integers(1_800, 7_200, size=entities) * 1_000_000
        event = np.concatenate([old_us, fresh_us])
        columns = view_columns(rng, view, 2 * entities)
        first |= {name: values[:entities] for name, values in columns.items()}
        _write(
            data / f"view_{view}.parquet",
            {
                KEY: np.concatenate([keys, keys]),
                **columns,
                "event_time": event,
                "created_time": event + rng.integers(60, 600, size=event.size) * 1_000_000,
            },
        )
    _write_labels(data, rng, now_us, first)


def _write_labels(
    data: Path,
    rng: np.random.Generator,
    now_us: int,
    first: dict[str, np.ndarray[Any, Any]],
) -> None:
    """Write requests of two weeks, all after the old rows and before the fresh ones."""
    chosen = rng.integers(0, first["v0_double0"].size, size=LABELS)
    amount = np.round(rng.gamma(2.0, 20.0, size=LABELS), 2)
    score = (
        first["v0_double0"][chosen]
        + first["v1_double1"][chosen] * first["v2_float0"][chosen]
        + amount / 40.0
        - 1.0
    )
    asked = np.sort(now_us - 16 * DAY_US + rng.integers(0, 14 * 86_400, size=LABELS) * 1_000_000)
    _write(
        data / "labels.parquet",
        {
            KEY: chosen,
            REQUEST_FIELD: amount,
            "bought": (rng.random(LABELS) < 1 / (1 + np.exp(-score))).astype(np.int64),
            "event_time": asked,
            "created_time": asked + 3_600_000_000,
        },
    )


def _write(path: Path, columns: dict[str, np.ndarray[Any, Any]]) -> None:
    moment = pa.timestamp("us", tz="UTC")
    arrays = {
        name: pa.array(values).cast(moment) if name.endswith("_time") else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)
