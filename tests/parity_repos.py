"""Repos for the parity check: one with every kind of fault, one with every kind of definition."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from tallystick.clock import to_us
from tiny_repo import END, make_tiny_repo

DAY = timedelta(days=1)
MOMENT = pa.timestamp("us", tz="UTC")
SQLITE = "{type: sqlite, path: data/online.db}"

FAULTY_STORE = '''
from typing import Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig


class FaultyOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["faulty_store.FaultyOnlineStore"] = "faulty_store.FaultyOnlineStore"


class FaultyOnlineStore(SqliteOnlineStore):
    """Drops the keys of one view, and rounds the numbers of another."""

    @staticmethod
    def _get_db_path(config):
        return config.online_store.path

    def online_write_batch(self, config, table, data, progress):
        if table.name == "dropped":
            data = [row for row in data if row[0].entity_values[0].string_val != "shop-c"]
        if table.name == "rounded":
            for _, values, *_ in data:
                values["load"].double_val = round(values["load"].double_val, 3)
        super().online_write_batch(config, table, data, progress)
'''
FAULTY_VIEWS = """

from feast.types import UnixTimestamp


def shop_view(name, source_name, *fields):
    return FeatureView(
        name=name, entities=[shop], ttl=timedelta(0), source=source(source_name),
        schema=[Field(name="shop", dtype=String), *fields],
    )


load = Field(name="load", dtype=Float64)
dropped = shop_view("dropped", "shop_stats", load)
rounded = shop_view("rounded", "shop_stats", load)
big = shop_view("big", "big", Field(name="number", dtype=Int64))
cut = shop_view("cut", "big", Field(name="seen", dtype=UnixTimestamp))


@on_demand_feature_view(
    sources=[shop_stats], schema=[Field(name="share", dtype=Float64)], mode="python"
)
def among_others(inputs):
    total = sum(value or 0 for value in inputs["orders"])
    return {"share": [(value or 0) / (total or 1) for value in inputs["orders"]]}


@on_demand_feature_view(
    sources=[shop_stats], schema=[Field(name="luck", dtype=Float64)], mode="python"
)
def by_chance(inputs):
    import random

    return {"luck": [random.random() for _ in inputs["orders"]]}
"""

MANIFOLD_VIEWS = """

import pandas as pd
from feast.types import Array, Bool, Bytes, UnixTimestamp

site = FeatureView(
    name="site", entities=[], ttl=timedelta(days=1), source=source("site"),
    schema=[Field(name="visits", dtype=Int64)],
)
kinds = FeatureView(
    name="kinds", entities=[item], ttl=timedelta(0), source=source("kinds"),
    schema=[
        Field(name="item", dtype=Int64),
        Field(name="flag", dtype=Bool),
        Field(name="raw", dtype=Bytes),
        Field(name="text", dtype=String),
        Field(name="number", dtype=Float64),
        Field(name="shares", dtype=Array(Float32)),
        Field(name="counts", dtype=Array(Int64)),
        Field(name="words", dtype=Array(String)),
    ],
)
two_shops = FeatureService(
    name="two_shops",
    features=[
        shop_stats.with_name("home").with_join_key_map({"shop": "home_shop"}),
        shop_stats.with_name("away").with_join_key_map({"shop": "away_shop"}),
        site,
    ],
)
fields = RequestSource(
    name="fields",
    schema=[
        Field(name="label", dtype=String),
        Field(name="urgent", dtype=Bool),
        Field(name="weight", dtype=Float32),
    ],
)
moments = RequestSource(name="moments", schema=[Field(name="due", dtype=UnixTimestamp)])


@on_demand_feature_view(
    sources=[item_stats, site, fields], schema=[Field(name="tag", dtype=String)], mode="python"
)
def tagged(inputs):
    columns = (inputs["label"], inputs["urgent"], inputs["weight"], inputs["visits"])
    return {"tag": [repr(row) for row in zip(*columns)]}


@on_demand_feature_view(
    sources=[item_stats, moments], schema=[Field(name="hour", dtype=Int64)], mode="python"
)
def at_hour(inputs):
    return {"hour": [None if due is None else due.hour for due in inputs["due"]]}


@on_demand_feature_view(
    sources=[item_stats], schema=[Field(name="twice", dtype=Int64)], mode="pandas"
)
def in_pandas(frame):
    return pd.DataFrame({"twice": frame["stock"] * 2})


@on_demand_feature_view(
    sources=[item_stats], schema=[Field(name="cents", dtype=Float64)], mode="python", singleton=True
)
def single(inputs):
    return {"cents": None if inputs["price"] is None else inputs["price"] * 100}


archive = FeatureView(
    name="archive", entities=[shop], ttl=timedelta(0), source=source("shop_stats"), online=False,
    schema=[Field(name="shop", dtype=String), Field(name="load", dtype=Float64)],
)
not_served = FeatureService(name="not_served", features=[archive])
mixed = FeatureService(name="mixed", features=[kinds, shop_stats, in_pandas, single])
"""
"""Every kind of view and function, and a value of every type that needs care."""


def make_faulty_repo(path: Path) -> Path:
    """The tiny repo with :data:`FAULTY_VIEWS` on Feast's default offline store."""
    make_tiny_repo(path)
    (path / "faulty_store.py").write_text(FAULTY_STORE)
    with (path / "tiny_definitions.py").open("a") as file:
        file.write(FAULTY_VIEWS)
    write_big(path)
    return with_stores(path, online="{type: faulty_store.FaultyOnlineStore}", offline="file")


def make_manifold_repo(path: Path) -> Path:
    """The tiny repo with :data:`MANIFOLD_VIEWS`."""
    make_tiny_repo(path)
    with (path / "tiny_definitions.py").open("a") as file:
        file.write(MANIFOLD_VIEWS)
    first_us = to_us(END - 30 * DAY) + 345_678
    times = pa.array(first_us + 12 * 3_600_000_000 * np.arange(59)).cast(MOMENT)
    site = {"visits": range(59), "event_time": times, "created_time": times}
    pq.write_table(pa.table(site), path / "data" / "site.parquet")
    time = pa.array([END - 20 * DAY] * 6, MOMENT)
    kinds = {
        "item": [11, 12, 13, 14, 15, 16],
        "flag": [True, None, False, True, True, None],
        "raw": [b"\x00\xff", b"", None, b"a", b"b", b"c"],
        "text": ["", "ü", None, 'x"y', "\n", "z"],
        "number": [float("nan"), -0.0, 0.0, float("inf"), 1e-310, None],
        "shares": pa.array([[0.1, 0.2], [], None, [1.5], [2.0], [3.0]], pa.list_(pa.float32())),
        "counts": [[1, 2**60 + 1], [], None, [3], [4], [5]],
        "words": [["a", ""], [], None, ["b"], ["c"], ["d"]],
        "event_time": time,
        "created_time": time,
    }
    pq.write_table(pa.table(kinds), path / "data" / "kinds.parquet")
    return path


def with_stores(repo: Path, *, online: str = SQLITE, offline: str | None = None) -> Path:
    file = repo / "feature_store.yaml"
    text = file.read_text().replace(SQLITE, online)
    if offline is not None:
        text = text.replace("tallystick.offline_store.DuckDBOfflineStore", offline)
    file.write_text(text)
    return repo


def write_big(repo: Path) -> None:
    """Integers that no double holds, beside nulls, and times of odd microseconds."""
    time_us = to_us(END - DAY)
    shops = [f"shop-{letter}" for letter in "abcdef"]
    moment = pa.timestamp("us", tz="UTC")
    event = pa.array([time_us] * len(shops)).cast(moment)
    table = {
        "shop": shops,
        "number": pa.array([2**60 + 1, None, 2**60 + 3, 4, 5, None], pa.int64()),
        "seen": pa.array(np.arange(len(shops)) + time_us + 123_456).cast(moment),
        "event_time": event,
        "created_time": event,
    }
    pq.write_table(pa.table(table), repo / "data" / "big.parquet")
