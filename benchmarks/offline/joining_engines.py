"""One retrieval by one engine, in a process of its own; prints its seconds and its peak memory.

    python -m benchmarks.offline.joining_engines ENGINE --views V.parquet... --entity-rows R.parquet

What is timed begins with everything imported and declared and ends with the whole answer in memory
as Arrow, or on disk where ``--out`` is given.
"""

from __future__ import annotations

import argparse
import atexit
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq
from benchmarks.harness import peak_mb
from benchmarks.wide_views import KEY, feature_names, open_store, wide_view
from feast import FeatureStore

TTL: Final = timedelta(days=30)


def feast_engine(
    offline: dict[str, Any], declared: Callable[[Any], None] = lambda _: None
) -> Callable[[Sequence[Path], Path], Callable[[], int]]:
    """Feast's ``get_historical_features`` with an offline store.

    Args:
        offline: Its settings.
        declared: What else is done once the views are declared.
    """

    def prepare(views: Sequence[Path], entity_rows: Path) -> Callable[[], int]:
        store = feast_store(offline, views)
        declared(store)
        entities = pq.read_table(entity_rows).to_pandas()
        names = [
            f"view_{number}:{name}"
            for number in range(len(views))
            for name in feature_names(number)
        ]

        def run() -> int:
            answer = store.get_historical_features(entities, names).to_arrow()
            return int(answer.num_rows)

        return run

    return prepare


def feast_store(offline: dict[str, Any], views: Sequence[Path]) -> FeatureStore:
    """A Feast store in which the views are applied; its folder goes with the process."""
    folder = Path(tempfile.mkdtemp(prefix="bench-offline-registry-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    wide = [wide_view(number, path, ttl=TTL) for number, path in enumerate(views)]
    online = {"type": "sqlite", "path": str(folder / "online.db")}
    return open_store(folder, wide, offline=offline, online=online)


def tallystick_engine(clock: str) -> Callable[[Sequence[Path], Path], Callable[[], int]]:
    """Tallystick's store, through Feast's SDK as well."""
    return feast_engine({"type": "tallystick.offline_store.DuckDBOfflineStore", "clock": clock})


def served_engine(views: Sequence[Path], entity_rows: Path) -> Callable[[], int]:
    """The same under the served clock: each row went online a minute after it was known."""

    def declared(store: Any) -> None:
        for number, path in enumerate(views):
            write_journal(store, f"view_{number}", path)

    offline = {"type": "tallystick.offline_store.DuckDBOfflineStore", "clock": "served"}
    return feast_engine(offline, declared)(views, entity_rows)


def write_journal(store: Any, name: str, path: Path) -> None:
    """A journal as a year of materializations leaves it: one entry a day, of what had come then."""
    import pyarrow.compute as pc

    from tallystick.definitions.feature_repo import state_dir
    from tallystick.definitions.feature_view import ViewSpec
    from tallystick.online_store.journal.journal_entry import WRITTEN, entry_of_table
    from tallystick.online_store.journal.write_journal import view_folder
    from tallystick.storage.atomic_files import write_text

    spec = ViewSpec.from_feast(store.get_feature_view(name))
    folder = view_folder(state_dir(Path(store.config.repo_path)), name) / spec.definition_hash
    write_text(folder / "definition.json", spec.canonical_json())
    rows = pq.read_table(path).sort_by("created_time")
    written = pc.add(rows["created_time"], pa.scalar(timedelta(minutes=1)))
    days = pc.floor_temporal(written, unit="day")
    for number, day in enumerate(pc.unique(days).sort().to_pylist()):
        mine = pc.equal(days, pa.scalar(day, days.type))
        entry = entry_of_table(spec, rows.filter(mine), write_us=0)
        index = entry.column_names.index(WRITTEN)
        entry = entry.set_column(index, WRITTEN, written.filter(mine))
        span = pc.min_max(entry[WRITTEN])
        first, last = span["min"].value, span["max"].value
        entry_name = f"{first:018d}_{last:018d}_{last:018d}_{number:012x}.parquet"
        pq.write_table(entry, folder / entry_name, compression="zstd", compression_level=1)


def to_file(
    clock: str, memory_limit: str | None, out: Path
) -> Callable[[Sequence[Path], Path], Callable[[], int]]:
    """Tallystick's store from file to file, for what does not fit into memory."""

    def prepare(views: Sequence[Path], entity_rows: Path) -> Callable[[], int]:
        from tallystick.offline_store import DuckDBOfflineStoreConfig
        from tallystick.offline_store.point_in_time_join import stream_point_in_time, workspace
        from tallystick.offline_store.retrieval_job import view_read
        from tallystick.point_in_time.rule import VisibilityClock

        offline = {"type": "tallystick.offline_store.DuckDBOfflineStore"}
        store = feast_store(offline, views)
        reads = [
            view_read(
                store.get_feature_view(f"view_{number}"),
                [f"view_{number}:{name}" for name in feature_names(number)],
            )
            for number in range(len(views))
        ]

        def run() -> int:
            limits = DuckDBOfflineStoreConfig(
                memory_limit=memory_limit, spill_dir=str(out.parent / "spill")
            )
            with (
                workspace(out, limits) as space,
                stream_point_in_time(
                    entity_rows=entity_rows,
                    request_time="event_timestamp",
                    reads=reads,
                    clock=VisibilityClock(clock),
                    workspace=space,
                ) as batches,
            ):
                first = next(batches)
                with pq.ParquetWriter(out, first.schema) as writer:
                    writer.write_table(first)
                    for batch in batches:
                        writer.write_table(batch)
            return int(pq.read_metadata(out).num_rows)

        return run

    return prepare


def plain_asof(views: Sequence[Path], entity_rows: Path) -> Callable[[], int]:
    """The least that DuckDB has to do: one as-of join per view, ties as they come."""
    import duckdb

    connection = duckdb.connect()
    connection.execute("SET TimeZone = 'UTC'")
    ttl = f"INTERVAL {int(TTL.total_seconds())} SECONDS"
    joins, columns = [], []
    for number, path in enumerate(views):
        joins.append(
            f"ASOF LEFT JOIN read_parquet('{path}') AS v{number} "
            f"ON requests.{KEY} = v{number}.{KEY} "
            f"AND requests.event_timestamp >= v{number}.event_time"
        )
        columns += [
            f"CASE WHEN v{number}.event_time >= requests.event_timestamp - {ttl} "
            f"THEN v{number}.{name} END AS {name}"
            for name in feature_names(number)
        ]
    query = (
        f"SELECT requests.*, {', '.join(columns)} "
        f"FROM read_parquet('{entity_rows}') AS requests {' '.join(joins)}"
    )

    def run() -> int:
        return int(connection.sql(query).to_arrow_table().num_rows)

    return run


def polars_asof(views: Sequence[Path], entity_rows: Path) -> Callable[[], int]:
    """The same by Polars."""
    import polars as pl

    def run() -> int:
        answer = pl.scan_parquet(entity_rows).with_row_index().sort("event_timestamp")
        for number, path in enumerate(views):
            history = pl.scan_parquet(path).drop("created_time").sort("event_time")
            answer = answer.join_asof(
                history,
                left_on="event_timestamp",
                right_on="event_time",
                by=KEY,
                tolerance=TTL,
                suffix=f"_{number}",
            )
        return int(answer.sort("index").collect().to_arrow().num_rows)

    return run


ENGINES: Final[dict[str, Callable[[Sequence[Path], Path], Callable[[], int]]]] = {
    "feast_duckdb": feast_engine({"type": "duckdb"}),
    "feast_default": feast_engine({"type": "file"}),
    "duckdb_asof": plain_asof,
    "polars_asof": polars_asof,
    "tallystick_event": tallystick_engine("event"),
    "tallystick_knowledge": tallystick_engine("knowledge"),
    "tallystick_served": served_engine,
}
"""Name → what prepares a retrieval, which gives the number of rows."""


def main() -> None:
    """Run one retrieval."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine", choices=ENGINES)
    parser.add_argument("--views", type=Path, nargs="+", required=True)
    parser.add_argument("--entity-rows", type=Path, required=True)
    parser.add_argument("--out", type=Path, help="write the answer here; Tallystick only")
    parser.add_argument("--memory-limit", help="of the engine, for example 2GB; with --out")
    options = parser.parse_args()
    if options.out is None:
        run = ENGINES[options.engine](options.views, options.entity_rows)
    else:
        clock = options.engine.removeprefix("tallystick_")
        run = to_file(clock, options.memory_limit, options.out)(options.views, options.entity_rows)
    pa.default_memory_pool().release_unused()
    before_mb = peak_mb()
    started = time.perf_counter()
    rows = run()
    seconds = time.perf_counter() - started
    print(
        json.dumps({"rows": rows, "seconds": seconds, "peak_mb": peak_mb(), "before_mb": before_mb})
    )


if __name__ == "__main__":
    main()
