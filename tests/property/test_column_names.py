"""Whatever a column of a source is called, its own values are answered, or its name is refused."""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.offline_store import ViewRead, point_in_time
from tallystick.point_in_time.rule import VisibilityClock
from visible_rows import visible_rows

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
HOSTILE = [
    "file_row_number",
    "File_Row_Number",
    "file_index",
    "filename",
    "rowid",
    "row_position",
    "file_position",
    "key_0",
    "value_0",
    "event_us",
    "created_us",
    "visible_us",
    "request_us",
    "entity_row",
    "source",
    "files",
    "history",
    "Event",
    "KEY",
    "select",
    "a b",
    "a.b",
    'a"b',
    "a'b",
    "a`b",
    "[0]",
    "é",
    "e\u0301",
    "İ",
    "ß",
    "%",
    "a\nb",
    "",
    " ",
]
names = st.sampled_from(HOSTILE) | st.text(
    st.characters(blacklist_categories=("Cs",)), max_size=8
).filter(lambda name: "\0" not in name)


def view_of(folder, key, features, event, created):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name=key, dtype="INT64"),),
        columns=tuple(Column(name=name, dtype="INT64") for name in features),
        ttl_us=None,
        event_column=event,
        created_column=created,
    )
    source = SimpleNamespace(path=str(folder))
    return ViewRead(
        spec=spec, source=source, name="s", key_map={key: "id"}, columns=tuple(features)
    )


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@example(["k", "e", "c", "file_row_number", "file_index"], 2)
@example(["k", "e", "c", "Price", "price"], 1)
@example(["file_row_number", "file_index", "created_us", "Event_us", "event_us"], 2)
@given(st.lists(names, min_size=5, max_size=8, unique=True), st.integers(1, 2))
def test_each_column_has_its_own_values(columns, files):
    key, event, created, *features = columns
    rows = [
        {key: number, event: NOON, created: NOON}
        | {name: 10 * number + at for at, name in enumerate(features)}
        for number in (1, 2, 3)
    ]
    with tempfile.TemporaryDirectory() as folder:
        for file in range(files):
            pq.write_table(
                pa.Table.from_pylist(rows[file::files]), Path(folder) / f"{file}.parquet"
            )
        read = view_of(folder, key, features, event, created)
        expected = {name: [20 + at, 10 + at] for at, name in enumerate(features)}
        for entity_rows in ([2, 1], [2, 1] * 2_000):
            table = pa.table({"id": entity_rows, "at": [NOON] * len(entity_rows)})
            answer = point_in_time(
                entity_rows=table, request_time="at", reads=[read], clock=VisibilityClock.KNOWLEDGE
            )
            for name in features:
                assert answer[f"s__{name}"].to_pylist()[:2] == expected[name], name
        written = visible_rows(read, until=NOON, clock=VisibilityClock.KNOWLEDGE).to_pylist()
    assert {row[key]: [row[name] for name in features] for row in written} == {
        number: [10 * number + at for at in range(len(features))] for number in (1, 2, 3)
    }
