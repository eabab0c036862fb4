"""What an entity takes in Redis, in Feast's store and in Tallystick's, by kind of columns.

    python -m benchmarks.online.memory REDIS_PORT ENTITIES FOLDER

Four views of ten columns each, the same rows through each store's own ``online_write_batch``. The
Redis must be for this alone: it is emptied. Bytes are the growth of ``used_memory`` (keys, tables
and rows; buffers of clients taken off), divided by the entities. Prints them as JSON.
"""

from __future__ import annotations

import json
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Final

import numpy as np
from benchmarks.wide_views import (
    FEAST_STORES,
    KEY,
    KINDS,
    TALLYSTICK_STORES,
    VIEWS,
    open_store,
    wide_columns,
    wide_view,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from redis import Redis

SEED: Final = 11
BATCH: Final = 1_000
STORES: Final = {"feast": FEAST_STORES[1], "tallystick": TALLYSTICK_STORES[1]}


def main() -> None:
    """Measure every kind in both stores."""
    port, entities, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    figures = {
        name: {kind: measure(name, kind, folder, port, entities) for kind in KINDS}
        for name in STORES
    }
    print(json.dumps(figures))


def measure(name: str, kind: str, folder: Path, port: int, entities: int) -> float:
    """Bytes an entity in one store."""
    redis = Redis(port=port)
    redis.flushall()
    own = folder / f"{name}-{kind}"
    own.mkdir()
    views = [
        wide_view(number, own / "none.parquet", ttl=timedelta(days=60), types=KINDS[kind])
        for number in range(VIEWS)
    ]
    online_store = {"type": STORES[name], "connection_string": f"127.0.0.1:{port}"}
    store = open_store(own, views, offline={"type": "file"}, online=online_store)
    before = _settled(redis)
    online = store._get_provider().online_store  # noqa: SLF001 - the store itself is measured
    for number in range(VIEWS):
        view = store.get_feature_view(f"view_{number}")
        rows = _rows(kind, number, entities)
        for start in range(0, entities, BATCH):
            online.online_write_batch(store.config, view, rows[start : start + BATCH], None)
    return (_settled(redis) - before) / entities


def _rows(kind: str, view: int, entities: int) -> list[tuple[Any, Any, datetime, datetime]]:
    """Rows as Feast gives them to a store; the same for both."""
    rng = np.random.default_rng(SEED + view)
    fields = {"doubles": "double_val", "floats": "float_val", "integers": "int64_val"}
    columns = {
        name: [
            Value(**{fields[f"{name.split('_')[1].rstrip('0123456789')}s"]: value})
            for value in values.tolist()
        ]
        for name, values in wide_columns(rng, view, entities, KINDS[kind]).items()
    }
    now = datetime.now(UTC).replace(microsecond=0)
    events = [now - timedelta(seconds=age) for age in rng.integers(3_600, 7_200, entities).tolist()]
    return [
        (
            EntityKey(join_keys=[KEY], entity_values=[Value(int64_val=number)]),
            {name: values[number] for name, values in columns.items()},
            event,
            event + timedelta(seconds=60),
        )
        for number, event in enumerate(events)
    ]


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
