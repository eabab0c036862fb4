"""What an entity takes in Redis, in Feast's store and in Tallystick's, by kind of columns.

    python -m benchmarks.online.memory --redis-port 6379 --entities 10000 --folder DIR --out FILE

Four views of ten columns each, the same rows through each store's own ``online_write_batch``. The
Redis must be for this alone: it is emptied. Bytes are the growth of ``used_memory`` (keys, tables
and rows; buffers of clients taken off), divided by the entities.
"""

from __future__ import annotations

import argparse
import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from feast import Entity, FeatureStore, FeatureView, Field, FileSource, RepoConfig, ValueType
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.types import Float32, Float64, Int64
from redis import Redis

VIEWS: Final = 4
INTEGER_MAX: Final = 100_000
SEED: Final = 11
BATCH: Final = 1_000
STORES: Final = {
    "feast": "redis",
    "tallystick": "tallystick.online_store.RedisOnlineStore",
}
_DOUBLE, _FLOAT, _INTEGER = Float64, Float32, Int64
KINDS: Final = {
    "doubles": (_DOUBLE,) * 10,
    "floats": (_FLOAT,) * 10,
    "integers": (_INTEGER,) * 10,
    "mixed": (*(_DOUBLE,) * 6, *(_FLOAT,) * 2, *(_INTEGER,) * 2),
}
"""Kind → types of a view's ten columns; integers are below :data:`INTEGER_MAX`."""


def main() -> None:
    """Measure every kind in both stores."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--redis-port", type=int, required=True)
    parser.add_argument("--entities", type=int, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    figures: dict[str, dict[str, float]] = {name: {} for name in STORES}
    for kind in KINDS:
        for name in STORES:
            figures[name][kind] = measure(
                name, kind, options.folder, options.redis_port, options.entities
            )
            print(f"{kind}: {figures[name][kind]:.0f} bytes an entity in {name}", flush=True)
    options.out.write_text(json.dumps(figures))


def measure(name: str, kind: str, folder: Path, redis_port: int, entities: int) -> float:
    """Bytes an entity in one store."""
    redis = Redis(host="127.0.0.1", port=redis_port)
    redis.flushall()
    store = _store(name, kind, folder, redis_port)
    views = [store.get_feature_view(f"view_{number}") for number in range(VIEWS)]
    before = _settled(redis)
    online = store._get_provider().online_store  # noqa: SLF001 - the store itself is measured
    for number, view in enumerate(views):
        rows = _rows(kind, number, entities)
        for start in range(0, entities, BATCH):
            online.online_write_batch(store.config, view, rows[start : start + BATCH], None)
    return (_settled(redis) - before) / entities


def _store(name: str, kind: str, folder: Path, redis_port: int) -> FeatureStore:
    store = FeatureStore(
        config=RepoConfig(
            project=f"{name}_{kind}",
            provider="local",
            registry=str(folder / f"{name}-{kind}.db"),
            offline_store={"type": "file"},
            online_store={
                "type": STORES[name],
                "connection_string": f"127.0.0.1:{redis_port}",
            },
            entity_key_serialization_version=3,
        )
    )
    entity = Entity(name="account", join_keys=["account_id"], value_type=ValueType.INT64)
    views = [
        FeatureView(
            name=f"view_{number}",
            entities=[entity],
            ttl=timedelta(days=60),
            schema=[
                Field(name="account_id", dtype=Int64),
                *(
                    Field(name=f"v{number}_{place}", dtype=dtype)
                    for place, dtype in enumerate(KINDS[kind])
                ),
            ],
            source=FileSource(
                name=f"rows_{number}",
                path=str(folder / "none.parquet"),
                timestamp_field="event_time",
                created_timestamp_column="created_time",
            ),
        )
        for number in range(VIEWS)
    ]
    store.apply([entity, *views])
    return store


def _rows(kind: str, view: int, entities: int) -> list[tuple[Any, Any, datetime, datetime]]:
    """Rows as Feast gives them to a store; the same for both."""
    rng = np.random.default_rng(SEED + view)
    columns = [_values(rng, dtype, entities) for dtype in KINDS[kind]]
    now = datetime.now(UTC).replace(microsecond=0)
    ages = rng.integers(3_600, 7_200, size=entities).tolist()
    rows = []
    for number in range(entities):
        event = now - timedelta(seconds=ages[number])
        rows.append(
            (
                EntityKey(join_keys=["account_id"], entity_values=[Value(int64_val=number)]),
                {f"v{view}_{place}": values[number] for place, values in enumerate(columns)},
                event,
                event + timedelta(seconds=60),
            )
        )
    return rows


def _values(rng: np.random.Generator, dtype: Any, rows: int) -> list[Any]:
    if dtype == _INTEGER:
        return [
            Value(int64_val=value) for value in rng.integers(0, INTEGER_MAX, size=rows).tolist()
        ]
    drawn = rng.normal(size=rows).tolist()
    if dtype == _FLOAT:
        return [Value(float_val=value) for value in drawn]
    return [Value(double_val=value) for value in drawn]


def _settled(redis: Any) -> int:
    """Memory in use, once tables have stopped growing and buffers have been given back."""
    last = None
    while True:
        memory = redis.info("memory")
        used = int(memory["used_memory"]) - int(memory["mem_clients_normal"])
        if last is not None and abs(used - last) < 1_024:
            return used
        last = used
        time.sleep(0.5)


if __name__ == "__main__":
    main()
