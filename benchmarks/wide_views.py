"""The views that the benches of the stores measure: ten features each for one entity.

Repos of the benches import :func:`wide_view`, so that Feast, Tallystick and the steps that run in
one process declare the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.types import Float32, Float64, Int64

KEY: Final = "account_id"
VIEWS: Final = 4
INTEGER_MAX: Final = 100_000
DAY_US: Final = 86_400_000_000
TIMESTAMP: Final = pa.timestamp("us", tz="UTC")
KINDS: Final = {
    "doubles": ("double",) * 10,
    "floats": ("float",) * 10,
    "integers": ("integer",) * 10,
    "mixed": (*("double",) * 6, *("float",) * 2, *("integer",) * 2),
}
"""Kind of view → types of its ten columns."""
MIXED: Final = KINDS["mixed"]
FEATURES: Final = VIEWS * len(MIXED)
_FEAST_TYPES: Final = {"double": Float64, "float": Float32, "integer": Int64}

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]

STORE: Final = """\
project: {project}
provider: local
registry: {{path: data/registry.db, cache_ttl_seconds: 0}}
offline_store: {{type: {offline}}}
online_store: {{type: {online}, connection_string: "{address}"}}
entity_key_serialization_version: 3
"""
FEAST_STORES: Final = ("file", "redis")
TALLYSTICK_STORES: Final = (
    "tallystick.offline_store.DuckDBOfflineStore",
    "tallystick.online_store.RedisOnlineStore",
)

account = Entity(name="account", join_keys=[KEY], value_type=ValueType.INT64)


def feature_names(view: int, types: Sequence[str] = MIXED) -> list[str]:
    """Names of a view's features: ``v0_double0`` and so on."""
    numbers = [types[:column].count(kind) for column, kind in enumerate(types)]
    return [f"v{view}_{kind}{number}" for kind, number in zip(types, numbers, strict=True)]


def wide_view(
    number: int, path: str | Path, *, ttl: timedelta, types: Sequence[str] = MIXED
) -> FeatureView:
    """A view over a Parquet file."""
    names = feature_names(number, types)
    return FeatureView(
        name=f"view_{number}",
        entities=[account],
        ttl=ttl,
        schema=[
            Field(name=KEY, dtype=Int64),
            *(
                Field(name=name, dtype=_FEAST_TYPES[kind])
                for name, kind in zip(names, types, strict=True)
            ),
        ],
        source=FileSource(
            name=f"rows_{number}",
            path=str(path),
            timestamp_field="event_time",
            created_timestamp_column="created_time",
        ),
    )


def wide_columns(
    rng: np.random.Generator, view: int, rows: int, types: Sequence[str] = MIXED
) -> dict[str, Array]:
    """Random values of a view's features; integers are below :data:`INTEGER_MAX`."""
    return {
        name: rng.integers(0, INTEGER_MAX, size=rows)
        if kind == "integer"
        else rng.normal(size=rows).astype(np.float32 if kind == "float" else np.float64)
        for name, kind in zip(feature_names(view, types), types, strict=True)
    }


def as_table(columns: dict[str, Any]) -> pa.Table:
    """Columns as a table; those that end in ``_time`` are microseconds in UTC."""
    return pa.table(
        {
            name: pa.array(values).cast(TIMESTAMP) if name.endswith("_time") else pa.array(values)
            for name, values in columns.items()
        }
    )


def write_columns(path: Path, columns: dict[str, Any]) -> None:
    """Write a Parquet file; columns that end in ``_time`` are microseconds in UTC."""
    pq.write_table(as_table(columns), path)


def write_repo(
    repo: Path, definitions: str, *, stores: tuple[str, str], address: str, project: str
) -> Path:
    """Write a Feast repo; give its folder.

    Args:
        repo: The folder, to be made.
        definitions: Text of its module.
        stores: Types of its offline and its online store.
        address: Redis, as ``connection_string`` has it.
        project: Its name.
    """
    (repo / "data").mkdir(parents=True)
    offline, online = stores
    (repo / "feature_store.yaml").write_text(
        STORE.format(project=project, offline=offline, online=online, address=address)
    )
    (repo / "declared.py").write_text(definitions)
    return repo


def open_store(
    folder: Path, views: Sequence[FeatureView], *, offline: dict[str, Any], online: dict[str, Any]
) -> FeatureStore:
    """A Feast store of this process in which the views are applied."""
    config = RepoConfig(
        project="bench",
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store=offline,
        online_store=online,
        entity_key_serialization_version=3,
        repo_path=folder,
    )
    store = FeatureStore(config=config)
    store.apply([account, *views])
    return store
