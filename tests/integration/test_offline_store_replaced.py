"""Sources whose file is replaced while it is being read."""

from __future__ import annotations

from datetime import UTC, datetime
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from point_in_time_stream import streamed
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError
from tallystick.offline_store import (
    ViewRead,
    newly_visible,
    point_in_time,
    point_in_time_join,
)
from tallystick.offline_store.pull import Pull, pull_rows
from tallystick.offline_store.sources.consistent_read import ATTEMPTS
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.storage.atomic_files import replacing
from visible_rows import visible_rows

MOMENT = datetime(2024, 1, 1, tzinfo=UTC)
KEYS = 5
UNREADABLE = r"[Cc]annot (be )?read"
CLOCK = VisibilityClock.KNOWLEDGE


class Source:
    """A file; each version holds its own number in every row, and has its own order."""

    def __init__(self, path):
        self.path, self.version = path, 0
        self.replace()

    def replace(self):
        self.version += 1
        keys = [(key + self.version) % KEYS for key in range(KEYS)]
        table = pa.table(
            {
                "key": pa.array([*([-1] * self.version), *keys]),
                "value": [10 * self.version + key for key in [*([0] * self.version), *keys]],
                "event": [MOMENT] * (KEYS + self.version),
                "created": [MOMENT] * (KEYS + self.version),
            }
        )
        with replacing(self.path) as temporary:
            pq.write_table(table, temporary)

    @property
    def expected(self):
        return [10 * self.version + key for key in range(KEYS)]


@pytest.fixture
def source(tmp_path):
    return Source(tmp_path / "rows.parquet")


def replaced_before(monkeypatch, name, source, *, times):
    """Replace the source before each of the first calls of what the retrieval calls ``name``."""
    module = newly_visible if name == "connect_visible" else point_in_time_join
    name = name.removesuffix("_visible")
    real, left = getattr(module, name), [times]

    def call(*args, **kwargs):
        if left[0]:
            left[0] -= 1
            source.replace()
        return real(*args, **kwargs)

    monkeypatch.setattr(module, name, call)


def read_of(source):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype="INT64"),),
        columns=(Column(name="value", dtype="INT64"),),
        ttl_us=None,
        event_column="event",
        created_column="created",
    )
    feast = SimpleNamespace(path=str(source.path), field_mapping={})
    return ViewRead(spec=spec, source=feast, name="stats", key_map={}, columns=("value",))


def values_of(source):
    entity_rows = pa.table({"key": [*range(KEYS)] * 2, "at": [MOMENT] * KEYS * 2})
    answer = point_in_time(
        entity_rows=entity_rows, request_time="at", reads=[read_of(source)], clock=CLOCK
    )
    return answer["stats__value"].to_pylist()


@pytest.mark.parametrize("before", ["connect", "require_times", "read_table"])
def test_an_answer_is_of_one_version(monkeypatch, source, before):
    replaced_before(monkeypatch, before, source, times=ATTEMPTS - 1)
    assert values_of(source) == source.expected * 2
    assert source.version == ATTEMPTS


def test_a_streamed_answer_is_of_one_version(monkeypatch, source, tmp_path):
    replaced_before(monkeypatch, "as_of_sql", source, times=1)
    entity_rows = pa.table({"key": [*range(KEYS)], "at": [MOMENT] * KEYS})
    options = {"request_time": "at", "reads": [read_of(source)], "clock": CLOCK}
    assert streamed(entity_rows, tmp_path, **options)["stats__value"].to_pylist() == source.expected


def test_a_source_that_changes_all_the_time_is_named(monkeypatch, source):
    replaced_before(monkeypatch, "read_table", source, times=100)
    with pytest.raises(DataError, match=r"rows\.parquet was replaced while it was being read"):
        values_of(source)


def test_what_became_visible_is_of_one_version(monkeypatch, source):
    replaced_before(monkeypatch, "connect_visible", source, times=1)
    found = visible_rows(read_of(source), until=MOMENT, clock=CLOCK)
    values = dict(zip(found["key"].to_pylist(), found["value"].to_pylist(), strict=True))
    assert [values[key] for key in range(KEYS)] == source.expected


def test_a_file_that_is_gone_says_so(monkeypatch, source):
    source.replace = source.path.unlink
    replaced_before(monkeypatch, "read_table", source, times=1)
    with pytest.raises(DataError, match=r"^View stats: .* does not exist"):
        values_of(source)


def test_a_damaged_file_that_stays_as_it_is_says_what_is_wrong(source):
    content = bytearray(source.path.read_bytes())
    content[4:40] = b"\xff" * 36
    source.path.write_bytes(content)
    with pytest.raises(DataError, match=UNREADABLE):
        values_of(source)
    pull = Pull(("key",), ("value",), "event", "created", None, None)
    with pytest.raises(DataError, match=UNREADABLE):
        pull_rows(SimpleNamespace(path=str(source.path)), pull, config=None, repo_path=None)
