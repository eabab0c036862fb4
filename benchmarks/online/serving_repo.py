"""The repos that are served, and their data: four wide views, and a model of ours.

One folder holds the data and three Feast repos with the same views: ``feast`` and
``feast_precomputed`` on Feast's own Redis store, ``tally`` on Tallystick's, which has an on-demand
view and a model as well. Every entity has an old row in each view, to learn from, and a fresh one,
which is what is online.
"""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow.parquet as pq
from benchmarks.wide_views import (
    DAY_US,
    FEAST_STORES,
    KEY,
    MIXED,
    TALLYSTICK_STORES,
    VIEWS,
    Array,
    feature_names,
    wide_columns,
    write_columns,
    write_repo,
)

REQUEST_FIELD: Final = "amount"
SERVICE: Final = "accounts"
MODEL: Final = "buys"
LABELS: Final = 8_000
SEED: Final = 20_130_101

BARE_ROW: Final = struct.Struct(
    "<" + "".join({"double": "d", "float": "f", "integer": "q"}[kind] for kind in MIXED)
)
"""How the bare MGET's rows are packed; the least that a row of a view can be."""

_VIEWS = """\
from datetime import timedelta

from benchmarks.wide_views import VIEWS, account, wide_view
from feast import FeatureService, Field, FileSource, RequestSource
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64

view_0, view_1, view_2, view_3 = (
    wide_view(number, f"FOLDER/view_{number}.parquet", ttl=timedelta(days=60))
    for number in range(VIEWS)
)
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
    # What is precomputed would make the rows of the plain repo larger, so it has a repo of its own.
    return {
        name: write_repo(
            folder / name,
            definitions.replace("FOLDER", str(data)).replace(
                "PRECOMPUTED", str(name == "feast_precomputed")
            ),
            stores=stores,
            address=f"127.0.0.1:{redis_port}",
            project=f"{name}_bench",
        )
        for name, definitions, stores in (
            ("feast", _VIEWS, FEAST_STORES),
            ("feast_precomputed", _VIEWS, FEAST_STORES),
            ("tally", _VIEWS + _MODEL, TALLYSTICK_STORES),
        )
    }


def bare_key(view: int, entity: int) -> bytes:
    """Key of the bare MGET's row of an entity."""
    return b"bare:%d:%d" % (view, entity)


def bare_rows(folder: Path) -> dict[bytes, bytes]:
    """The rows that are online, packed as :data:`BARE_ROW`."""
    rows = {}
    for view in range(VIEWS):
        table = pq.read_table(folder / "data" / f"view_{view}.parquet")
        fresh = table.slice(table.num_rows // 2)
        columns = [fresh[name].to_pylist() for name in feature_names(view)]
        for key, *values in zip(fresh[KEY].to_pylist(), *columns, strict=True):
            rows[bare_key(view, key)] = BARE_ROW.pack(*values)
    return rows


def _write_data(data: Path, entities: int) -> None:
    rng = np.random.default_rng(SEED)
    # Whole seconds: the times in two answers shall not differ by how they are rounded.
    now_us = int(time.time()) * 1_000_000
    keys = np.arange(entities)
    first: dict[str, Array] = {}
    for view in range(VIEWS):
        old_us = now_us - 30 * DAY_US + rng.integers(0, 86_400, size=entities) * 1_000_000
        fresh_us = now_us - rng.integers(1_800, 7_200, size=entities) * 1_000_000
        event = np.concatenate([old_us, fresh_us])
        columns = wide_columns(rng, view, 2 * entities)
        first |= {name: values[:entities] for name, values in columns.items()}
        write_columns(
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
    data: Path, rng: np.random.Generator, now_us: int, first: dict[str, Array]
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
    request_us = np.sort(
        now_us - 16 * DAY_US + rng.integers(0, 14 * 86_400, size=LABELS) * 1_000_000
    )
    write_columns(
        data / "labels.parquet",
        {
            KEY: chosen,
            REQUEST_FIELD: amount,
            "bought": (rng.random(LABELS) < 1 / (1 + np.exp(-score))).astype(np.int64),
            "event_time": request_us,
            "created_time": request_us + 3_600_000_000,
        },
    )
