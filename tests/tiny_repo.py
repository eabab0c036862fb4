"""A small Feast repo whose truth is known, for tests of training and of monitoring.

Shops sell items. A view with a ttl has a composite key (text and integer), one without has a text
key; a python-mode on-demand view takes a request field. About 2,000 requests lie in sixty days from
:data:`START`. Of the labels some are late, some corrected, and some never come.
"""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

START = datetime(2024, 1, 1, tzinfo=UTC)
DAYS = 60
END = START + timedelta(days=DAYS)
REQUESTS = 2_000
SHOPS = tuple(f"shop-{letter}" for letter in "abcdef")
ITEMS = (11, 12, 13, 14, 15)
MATURES_AFTER = timedelta(days=5)
STEP_US = 12 * 3_600_000_000
HOUR_US = 3_600_000_000
MODEL = "demo_model"

FEATURE_STORE = """\
project: tiny
provider: local
registry: data/registry.db
offline_store: {type: tallystick.offline_store.DuckDBOfflineStore}
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""

DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Float64, Int64, String
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.impute import SimpleImputer
from sklearn.preprocessing import StandardScaler

from tallystick import Gate, Label, Model, Retraining


def source(name):
    return FileSource(
        name=name,
        path=f"data/{name}.parquet",
        timestamp_field="event_time",
        created_timestamp_column="created_time",
    )


shop = Entity(name="shop", join_keys=["shop"], value_type=ValueType.STRING)
item = Entity(name="item", join_keys=["item"], value_type=ValueType.INT64)

shop_stats = FeatureView(
    name="shop_stats",
    entities=[shop],
    ttl=timedelta(0),
    schema=[
        Field(name="shop", dtype=String),
        Field(name="load", dtype=Float64),
        Field(name="orders", dtype=Int64),
    ],
    source=source("shop_stats"),
)
item_stats = FeatureView(
    name="item_stats",
    entities=[shop, item],
    ttl=timedelta(days=2),
    schema=[
        Field(name="shop", dtype=String),
        Field(name="item", dtype=Int64),
        Field(name="price", dtype=Float32),
        Field(name="stock", dtype=Int64),
    ],
    source=source("item_stats"),
)


@on_demand_feature_view(
    sources=[item_stats, RequestSource(name="order", schema=[Field(name="quantity", dtype=Int64)])],
    schema=[Field(name="total", dtype=Float64)],
    mode="python",
)
def order_value(inputs):
    return {
        "total": [
            None if price is None or quantity is None else price * quantity
            for price, quantity in zip(inputs["price"], inputs["quantity"])
        ]
    }


demo_features = FeatureService(name="demo_features", features=[shop_stats, item_stats, order_value])

demo_model = Model(
    name="demo_model",
    features=demo_features,
    label=Label(
        source=source("labels"),
        column="returned",
        keys=("shop", "item", "quantity"),
        matures_after=timedelta(days=5),
    ),
    population=source("requests"),
    estimator=make_pipeline(SimpleImputer(), StandardScaler(), LogisticRegression()),
    slices=("shop",),
    gates=(
        Gate(metric="log_loss", max_regression=0.0, per_slice=True),
        Gate(metric="auc", limit=0.55),
    ),
    retraining=Retraining(
        min_interval=timedelta(days=7),
        min_labels=200,
        horizon=timedelta(days=28),
        cost=1.0,
        holdout=timedelta(days=7),
    ),
)
"""


def make_tiny_repo(path: Path, *, seed: int = 0) -> Path:
    """Write the repo (definitions and sources) to ``path`` and give it; it is not applied yet."""
    rng = np.random.default_rng(seed)
    data = path / "data"
    data.mkdir(parents=True)
    (path / "feature_store.yaml").write_text(FEATURE_STORE)
    (path / "tiny_definitions.py").write_text(DEFINITIONS)
    load = _write_shops(data, rng)
    price = _write_items(data, rng)
    requests = _write_requests(data, rng)
    _write_labels(data, rng, requests, load=load, price=price)
    return path


def copy_tiny_repo(template: Path, path: Path) -> Path:
    """Copy an applied repo: its paths are relative, so that the copy is applied as well."""
    shutil.copytree(template, path, ignore=shutil.ignore_patterns("__pycache__"))
    return path


def _write(path: Path, columns: dict[str, np.ndarray]) -> None:
    moment = pa.timestamp("us", tz="UTC")
    arrays = {
        name: pa.array(values.astype(np.int64)).cast(moment)
        if name.endswith("_time")
        else pa.array(values)
        for name, values in columns.items()
    }
    pq.write_table(pa.table(arrays), path)


def _start_us() -> int:
    return int(START.timestamp()) * 1_000_000


def _grid() -> np.ndarray:
    """Event times of the views' rows: every twelve hours, from two days before the start."""
    return _start_us() + STEP_US * np.arange(-4, 2 * DAYS)


def _write_shops(data: Path, rng: np.random.Generator) -> np.ndarray:
    """Write the shops' history and give ``load``, of shape (shops, times)."""
    times = _grid()
    load = rng.normal(size=(len(SHOPS), len(times)))
    event = np.tile(times, len(SHOPS))
    _write(
        data / "shop_stats.parquet",
        {
            "shop": np.repeat(SHOPS, len(times)),
            "load": load.ravel(),
            "orders": rng.integers(0, 50, size=load.size),
            "event_time": event,
            "created_time": event + rng.integers(60, 1_800, size=load.size) * 1_000_000,
        },
    )
    return load


def _write_items(data: Path, rng: np.random.Generator) -> np.ndarray:
    """Write the items' history, a tenth of it corrected later, and give the first ``price``.

    A pair has no rows for a while now and then, so that its value expires.
    """
    times = _grid()
    pairs = [(shop, item) for shop in SHOPS for item in ITEMS]
    price = rng.gamma(4.0, 5.0, size=(len(pairs), len(times))).astype(np.float32)
    event = np.tile(times, len(pairs))
    created = event + rng.integers(60, 1_800, size=price.size) * 1_000_000
    present = np.ones(price.shape, dtype=bool)
    for row in range(0, len(pairs), 7):
        present[row, 40:50] = False
    present = present.ravel()
    again = present & (rng.random(price.size) < 0.1)
    columns = {
        "shop": np.repeat([shop for shop, _ in pairs], len(times)),
        "item": np.repeat([item for _, item in pairs], len(times)),
        "price": price.ravel(),
        "stock": rng.integers(0, 9, size=price.size),
    }
    _write(
        data / "item_stats.parquet",
        {
            **{
                name: np.concatenate(
                    [values[present], values[again] + 1 if name == "stock" else values[again]]
                )
                for name, values in columns.items()
            },
            "event_time": np.concatenate([event[present], event[again]]),
            "created_time": np.concatenate([created[present], created[again] + 3 * HOUR_US]),
        },
    )
    return price


def _write_requests(data: Path, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Write the requests: no two at one time."""
    spread = np.sort(rng.choice(DAYS * 24 * 3_600, size=REQUESTS, replace=False))
    requests = {
        "shop": rng.choice(SHOPS, size=REQUESTS),
        "item": rng.choice(ITEMS, size=REQUESTS),
        "quantity": rng.integers(1, 6, size=REQUESTS),
        "event_time": _start_us() + spread.astype(np.int64) * 1_000_000,
    }
    _write(data / "requests.parquet", {**requests, "created_time": requests["event_time"]})
    return requests


def _write_labels(
    data: Path,
    rng: np.random.Generator,
    requests: dict[str, np.ndarray],
    *,
    load: np.ndarray,
    price: np.ndarray,
) -> None:
    """Write the labels: known after hours; 1 in 20 wrong at first, 3 in 100 never."""
    shop = np.searchsorted(SHOPS, requests["shop"])
    item = np.searchsorted(ITEMS, requests["item"])
    # The row of two hours ago was known for certain: created times lag half an hour at most.
    step = (requests["event_time"] - 2 * HOUR_US - _grid()[0]) // STEP_US
    total = price[shop * len(ITEMS) + item, step] * requests["quantity"]
    logit = -0.6 + 1.2 * load[shop, step] + 0.03 * (total - 60)
    truth = (rng.random(REQUESTS) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    comes = rng.random(REQUESTS) >= 0.03
    wrong = comes & (rng.random(REQUESTS) < 0.05)
    known = requests["event_time"] + (1 + rng.integers(0, 36, size=REQUESTS)) * HOUR_US
    # A first label that was wrong comes in time; its correction half a day to two days later.
    right_known = np.where(wrong, known + rng.integers(12, 48, size=REQUESTS) * HOUR_US, known)
    names = ("shop", "item", "quantity", "event_time")
    _write(
        data / "labels.parquet",
        {
            **{
                name: np.concatenate([requests[name][comes], requests[name][wrong]])
                for name in names
            },
            "returned": np.concatenate([truth[comes], 1 - truth[wrong]]),
            "created_time": np.concatenate([right_known[comes], known[wrong]]),
        },
    )
