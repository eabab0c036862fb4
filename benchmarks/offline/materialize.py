"""Bringing entities online: Tallystick's way and Feast's, each into a Redis of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from benchmarks.offline.scene import KEY, feature_names, write_history
from benchmarks.online.installation import QUIET, start_redis
from benchmarks.online.servers import ROOT

_DECLARED = """\
from datetime import timedelta

from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float32, Float64, Int64

account = Entity(name="account", join_keys=["{key}"], value_type=ValueType.INT64)
kinds = {{"double": Float64, "float": Float32, "integer": Int64}}
view_0 = FeatureView(
    name="view_0",
    entities=[account],
    ttl=timedelta(days=100_000),
    schema=[
        Field(name="{key}", dtype=Int64),
        *(
            Field(name=name, dtype=kinds[name.split("_")[1].rstrip("0123456789")])
            for name in {names}
        ),
    ],
    source=FileSource(
        name="rows_0",
        path="{path}",
        timestamp_field="event_time",
        created_timestamp_column="created_time",
    ),
)
"""
_STORE = """\
project: bench_{name}
provider: local
registry: {{path: data/registry.db}}
offline_store: {{type: {offline}}}
online_store: {{type: {online}, connection_string: "127.0.0.1:{port}"}}
entity_key_serialization_version: 3
"""
_STORES: Final = {
    "tallystick": (
        "tallystick.offline_store.DuckDBOfflineStore",
        "tallystick.online_store.RedisOnlineStore",
    ),
    "feast": ("file", "redis"),
}


def measure_materialize(folder: Path, engines: Mapping[str, int]) -> dict[str, Any]:
    """Rows a second of each, by its own command, start of the process included.

    Args:
        folder: Where everything lies.
        engines: Engine → how many entities it brings online.
    """
    os.environ.update(QUIET)
    found: dict[str, Any] = {}
    for name, entities in engines.items():
        rows = folder / f"materialize_{name}.parquet"
        write_history(rows, view=0, rows=2 * entities, keys=entities)
        with ExitStack() as stack:
            port = start_redis(stack, f"redis-{name}", folder, core=max(os.sched_getaffinity(0)))
            seconds, written = _run(name, _repo(folder, name, rows, port), port)
        found[name] = round(written / seconds)
        print(f"materialize {name}: {written} entities in {seconds:.1f} s", flush=True)
    found["ratio_vs_feast"] = round(found["tallystick"] / found["feast"], 1)
    return found


def _repo(folder: Path, name: str, rows: Path, port: int) -> Path:
    repo = folder / f"repo_{name}"
    (repo / "data").mkdir(parents=True)
    offline, online = _STORES[name]
    (repo / "feature_store.yaml").write_text(
        _STORE.format(name=name, offline=offline, online=online, port=port)
    )
    (repo / "declared.py").write_text(
        _DECLARED.format(key=KEY, names=json.dumps(feature_names(0)), path=rows)
    )
    return repo


def _run(name: str, repo: Path, port: int) -> tuple[float, int]:
    from redis import Redis

    feast = [sys.executable, "-m", "feast.cli.cli", "-c", str(repo)]
    tally = [sys.executable, "-m", "tallystick", "--repo", str(repo)]
    _call([*(feast if name == "feast" else tally), "apply"])
    now = datetime.now(UTC).replace(microsecond=0).isoformat()
    started = time.perf_counter()
    if name == "feast":
        _call([*feast, "materialize", "2020-01-01T00:00:00", now])
    else:
        _call([*tally, "materialize"])
    seconds = time.perf_counter() - started
    client = Redis(port=port)
    written = int(client.dbsize())
    client.close()
    return seconds, written


def _call(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
