"""From file to file: what is left where there is no room, and where the work is done."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import InputError
from tallystick.offline_store import ViewRead
from tallystick.offline_store.duckdb_connection import DefaultLimits
from tallystick.offline_store.point_in_time_join import stream_point_in_time, workspace
from tallystick.point_in_time.rule import VisibilityClock

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
ROWS = 5_000

# What the engine writes is larger than what is allowed; all else is smaller.
LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_offline_store_streaming import answer
folder = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))
try:
    answer(folder)
except OSError as error:
    sys.exit(f"{error.errno} {error.filename}")
"""


def answer(folder, *, config=None, **changes):
    """Ask for the long texts of as many keys as there are."""
    spec = ViewSpec(
        name="texts",
        join_keys=(Column(name="key", dtype="INT64"),),
        columns=(Column(name="text", dtype="STRING"),),
        ttl_us=None,
        event_column="event",
        created_column=None,
    )
    read = ViewRead(
        spec=spec,
        source=SimpleNamespace(path=str(folder / "history.parquet")),
        name="texts",
        key_map={},
        columns=("text",),
    )
    with (
        workspace(folder / "out" / "set.parquet", config) as space,
        stream_point_in_time(
            entity_rows=folder / "entity_rows.parquet",
            request_time="at",
            reads=[read],
            clock=VisibilityClock.EVENT,
            workspace=space,
            **changes,
        ) as batches,
    ):
        return pa.concat_tables(batches)


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    texts = [rng.bytes(200).hex() for _ in range(ROWS)]
    keys = pa.array(np.arange(ROWS))
    history = {"key": keys, "text": texts, "event": [NOON] * ROWS}
    pq.write_table(pa.table(history), tmp_path / "history.parquet")
    times = [NOON + timedelta(hours=1)] * ROWS
    pq.write_table(pa.table({"key": keys, "at": times}), tmp_path / "entity_rows.parquet")
    (tmp_path / "out").mkdir()
    return tmp_path


def test_an_engine_without_room_says_that_the_disk_is_full(folder):
    done = subprocess.run(
        [sys.executable, "-c", LIMITED, str(folder), str(__file__).rsplit("/", 1)[0]],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    number, location = done.stderr.split()
    assert int(number) == 28  # ENOSPC, whatever the engine said
    assert location.startswith(str(folder / "out" / ".set.parquet."))
    assert list((folder / "out").iterdir()) == []


def test_work_is_done_where_the_limits_say(folder):
    aside = folder / "aside"
    seen = []

    def note(text, done):
        seen.append((text, done, len(list(aside.iterdir()))))

    whole = answer(folder, config=DefaultLimits(spill_dir=str(aside)), progress=note)
    assert whole.num_rows == ROWS
    assert seen == [("view texts", 0, 2)]
    assert list(aside.iterdir()) == list((folder / "out").iterdir()) == []
    assert answer(folder, batch_rows=999).equals(whole)


def test_a_request_without_time_is_refused_wherever_it_is(folder):
    entity_rows = pq.read_table(folder / "entity_rows.parquet")
    times = entity_rows["at"].to_pylist()
    times[-1] = times[7] = None
    times = pa.array(times, pa.timestamp("us", tz="UTC"))
    pq.write_table(entity_rows.set_column(1, "at", times), folder / "entity_rows.parquet")
    with pytest.raises(InputError, match="expected a time in every row, got 2 nulls"):
        answer(folder)
    assert list((folder / "out").iterdir()) == []
