from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from tallystick.errors import DataError
from tallystick.retrieval.source_rows import source_rows

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HALF = timedelta(milliseconds=500)
NAMES = {"number": "n", "time": "event"}


def opened(folder, table, columns=None):
    pq.write_table(table, folder / "rows.parquet", row_group_size=3)
    source = SimpleNamespace(path="rows.parquet")
    return source_rows(repo_in(folder), source, what="The rows", columns=columns or NAMES)


def repo_in(folder):
    """A repo that leaves the offline store's settings as they are by default."""
    store = SimpleNamespace(config=SimpleNamespace(offline_store=None))
    return SimpleNamespace(path=Path(folder), store=store)


def seconds(kind):
    """One row per second from noon."""
    times = pa.array([NOON + timedelta(seconds=at) for at in range(10)])
    if kind.tz is None:
        times = pc.local_timestamp(times)
    return pa.table({"n": pa.array(range(10)), "event": times.cast(kind, safe=False)})


@pytest.mark.parametrize("zone", ["UTC", "Asia/Tokyo", None])
@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
def test_a_range_of_times_is_cut_exactly_in_every_unit(tmp_path, unit, zone):
    rows = opened(tmp_path, seconds(pa.timestamp(unit, tz=zone)))
    for start, end, expected in (
        (NOON + HALF, NOON + 3 * HALF, [1]),
        (NOON + 2 * HALF, NOON + 4 * HALF, [1]),
        (NOON + 2 * HALF, NOON + 5 * HALF, [1, 2]),
        (datetime.min.replace(tzinfo=UTC), datetime.max.replace(tzinfo=UTC), list(range(10))),
        (NOON - HALF, NOON, []),
    ):
        between = ("time", start, end)
        assert rows.table(between=between)["number"].to_pylist() == expected
        batches = list(rows.batches(rows_max=2, between=between))
        assert max((batch.num_rows for batch in batches), default=0) <= 2
        assert [at for batch in batches for at in batch["number"].to_pylist()] == expected


def test_times_come_in_utc_and_nulls_are_counted(tmp_path):
    table = pa.table({"n": [1, None, 3], "event": pa.array([NOON, None, None])})
    rows = opened(tmp_path, table)
    assert (rows.nulls("number"), rows.nulls("time")) == (1, 2)
    assert rows.table().schema.field("time").type == pa.timestamp("us", tz="UTC")
    assert rows.empty().schema == rows.table().schema


def test_all_columns_that_are_missing_are_named(tmp_path):
    with pytest.raises(DataError) as raised:
        opened(tmp_path, pa.table({"a": [1]}))
    assert [problem.where for problem in raised.value.problems] == ["column n", "column event"]


def test_a_source_that_is_no_parquet_is_refused(tmp_path):
    (tmp_path / "rows.parquet").write_text("no")
    with pytest.raises(DataError, match=r"The rows \(.*rows.parquet\) cannot be read"):
        source_rows(
            repo_in(tmp_path),
            SimpleNamespace(path="rows.parquet"),
            what="The rows",
            columns=NAMES,
        )
