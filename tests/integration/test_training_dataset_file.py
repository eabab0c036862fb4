"""A training set that is written a batch at a time is the one that is built in memory."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import looks
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.errors import DataError, DefinitionError, InputError
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.records.record_store import AffectedKeys, Incident
from tallystick_training import training_set
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import build_dataset, content_hash, write_dataset
from tiny_repo import END, MODEL, START, copy_tiny_repo, make_tiny_repo

DAY = timedelta(days=1)
SIZES = [1_000, 7, 1]
WHOLE = {"start": START, "end": END, "known_until": END + 30 * DAY}


def check_same(repo, model, out, *, batch_rows, **changes):
    """Write it, and compare it with the one in memory; give that one."""
    selection = RowSelection(**{**WHOLE, **changes})
    built = build_dataset(repo, model, selection)
    reported = []
    written = write_dataset(
        repo,
        model,
        selection,
        out=out,
        batch_rows=batch_rows,
        progress=lambda text, share: reported.append((share, text)),
    )
    table = pq.read_table(out)
    assert table.schema.equals(built.table.schema)
    # By bits, as Arrow's own comparison takes -0.0 for 0.0, and no NaN for another.
    names = table.column_names
    assert [
        name
        for name in names
        if content_hash(table.select([name])) != content_hash(built.table.select([name]))
    ] == []
    assert content_hash(table) == content_hash(built.table)
    assert (written.counts, written.start, written.end) == (built.counts, built.start, built.end)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    shares = [share for share, _ in reported]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0.0, 1.0)
    return built


@pytest.mark.parametrize("batch_rows", [1_000, 97])
@pytest.mark.parametrize("clock", [VisibilityClock.KNOWLEDGE, VisibilityClock.EVENT])
def test_it_is_the_one_built_in_memory(tiny_repo, tmp_path, clock, batch_rows):
    model = tiny_repo.model(MODEL)
    out = tmp_path / "new" / "set.parquet"
    built = check_same(tiny_repo, model, out, batch_rows=batch_rows, clock=clock)
    assert built.counts.unlabelled > 0


def test_row_by_row_it_is_the_same(tiny_repo, tmp_path):
    out = tmp_path / "new" / "set.parquet"
    window = {"start": START + 3 * DAY, "end": START + 6 * DAY}
    built = check_same(tiny_repo, tiny_repo.model(MODEL), out, batch_rows=1, **window)
    assert built.counts.rows > 100


@pytest.mark.parametrize("repair", [False, True])
def test_what_is_left_out_is_the_same(tiny_repo, tmp_path, repair):
    model = tiny_repo.model(MODEL)
    keys = {"names": ("shop", "item"), "first": ("shop-b", 14), "last": ("shop-d", 12)}
    spell = partial(
        Incident,
        incident_id="x",
        model=MODEL,
        view="item_stats",
        found_at=END,
        requests=1,
        values=1,
        evidence="",
    )
    incidents = [
        spell(start=START + DAY, end=START + 2 * DAY, is_open=False, cause="unexplained"),
        spell(start=START + 20 * DAY, end=START + 20 * DAY, is_open=True, cause="expired_or_ttl"),
        spell(start=START, end=END, is_open=False, view="another_view", cause="unexplained"),
        spell(start=START, end=END, is_open=False, cause="transform", keys=AffectedKeys(**keys)),
    ]
    window = {"end": START + 22 * DAY, "known_until": START + 23 * DAY, "incidents": incidents}
    window["repair"] = repair
    out = tmp_path / "new" / "set.parquet"
    built = check_same(tiny_repo, model, out, batch_rows=50, **window)
    counts = built.counts
    assert min(counts.quarantined, counts.immature, counts.unlabelled, counts.rows) > 0
    assert counts.repaired is None if not repair else counts.repaired > 20
    none = {**window, "known_until": START}
    assert check_same(tiny_repo, model, out, batch_rows=50, **none).counts.rows == 0


@pytest.mark.parametrize("batch_rows", [1_000, 60])
def test_a_population_that_is_the_labels_is_the_same(tiny_repo, tmp_path, batch_rows):
    model = tiny_repo.model(MODEL).model_copy(update={"population": None})
    out = tmp_path / "new" / "set.parquet"
    check_same(tiny_repo, model, out, batch_rows=batch_rows)
    check_same(tiny_repo, model, out, batch_rows=batch_rows, known_until=START + 20 * DAY)
    incident = looks.incident(at=START + 30 * DAY, model=MODEL, is_open=True, requests=1)
    few = AffectedKeys(names=("item",), values=((12,), (14,)), first=(12,), last=(14,))
    incident = incident.model_copy(update={"keys": few})
    for repair in (False, True):
        changes = {"incidents": [incident], "repair": repair}
        built = check_same(tiny_repo, model, out, batch_rows=batch_rows, **changes)
        assert max(built.counts.quarantined, built.counts.repaired or 0) > 100


DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Bool, Float32, Float64, Int32, Int64, String, UnixTimestamp
from sklearn.linear_model import LogisticRegression

from tallystick import Label, Model


def source(name):
    return FileSource(
        name=name,
        path=f"data/{name}.parquet",
        timestamp_field="event_time",
        created_timestamp_column="created_time",
    )


key = Entity(name="key", join_keys=["key"], value_type=ValueType.INT64)
stats = FeatureView(
    name="stats",
    entities=[key],
    ttl=timedelta(days=1),
    schema=[
        Field(name="key", dtype=Int64),
        Field(name="number", dtype=Float64),
        Field(name="narrow", dtype=Float32),
        Field(name="large", dtype=Int64),
        Field(name="text", dtype=String),
        Field(name="flag", dtype=Bool),
        Field(name="moment", dtype=UnixTimestamp),
    ],
    source=source("stats"),
)
whole = FeatureView(
    name="whole",
    entities=[],
    schema=[Field(name="level", dtype=Int64)],
    source=source("whole"),
)
basket = RequestSource(
    name="basket",
    schema=[
        Field(name="wide", dtype=Float64),
        Field(name="short", dtype=Float32),
        Field(name="small", dtype=Int32),
        Field(name="word", dtype=String),
        Field(name="since", dtype=UnixTimestamp),
        Field(name="yes", dtype=Bool),
    ],
)


@on_demand_feature_view(
    sources=[stats, basket],
    schema=[Field(name="sum", dtype=Float64), Field(name="again", dtype=String)],
    mode="python",
)
def sums(inputs):
    pairs = zip(inputs["number"], inputs["wide"])
    return {
        "sum": [None if None in pair else pair[0] + pair[1] for pair in pairs],
        "again": inputs["word"],
    }


odd_features = FeatureService(name="odd_features", features=[stats, whole, sums])
odd = Model(
    name="odd",
    features=odd_features,
    label=Label(
        source=source("labels"),
        column="label",
        keys=("key", "wide", "short", "word"),
        matures_after=timedelta(0),
    ),
    population=source("requests"),
    estimator=LogisticRegression(),
    frame=True,
)
"""

FLOATS = [0.0, -0.0, 1.5, -1.5, float("nan"), float("inf"), float("-inf"), None]
MOMENT = pa.timestamp("us", tz="UTC")
START_US = int(START.timestamp()) * 1_000_000
HOUR_US = 3_600_000_000


@dataclass(frozen=True)
class Odd:
    """A repo of values that are easily changed on the way, by a seed."""

    seed: int

    def write(self, path):
        rng = np.random.default_rng(self.seed)

        def some(values, count, kind):
            return pa.array([values[at] for at in rng.integers(len(values), size=count)], kind)

        def times(count, step, steps=48):
            at = START_US + step * rng.integers(0, steps, size=count)
            return pa.array(at, pa.int64()).cast(MOMENT)

        def later(moments):
            lag = HOUR_US * rng.integers(0, 3, size=len(moments))
            return pa.array(np.asarray(moments.cast(pa.int64())) + lag).cast(MOMENT)

        data = path / "data"
        event = times(60, HOUR_US)
        stats = {
            "key": some([1, 2, 3, 2**53 + 1], 60, pa.int64()),
            "number": some(FLOATS, 60, pa.float64()),
            "narrow": some(FLOATS, 60, pa.float32()),
            "large": some([2**53 + 1, -(2**63), None], 60, pa.int64()),
            "text": some(["", "a'\"b", "ü", None], 60, pa.string()),
            "flag": some([True, False, None], 60, pa.bool_()),
            "moment": some([START, None], 60, MOMENT),
        }
        pq.write_table(
            pa.table({**stats, "event_time": event, "created_time": later(event)}),
            data / "stats.parquet",
        )
        event = times(10, HOUR_US)
        level = some([5, None], 10, pa.int64())
        pq.write_table(
            pa.table({"level": level, "event_time": event, "created_time": later(event)}),
            data / "whole.parquet",
        )
        # Many of one time, which differ in a zero's sign only: other columns give the order.
        event = times(300, 6 * HOUR_US, 8)
        requests = {
            "key": some([1, 2**53 + 1, None], 300, pa.int64()),
            "wide": some(FLOATS, 300, pa.float64()),
            "short": some([0.0, -0.0], 300, pa.float32()),
            "small": some([1, -1, None], 300, pa.int32()),
            "word": some(["Z", "a\u0301\x00", "\u00e1", None], 300, pa.string()),
            "since": some([START, datetime(1, 1, 2, tzinfo=UTC), None], 300, MOMENT),
            "yes": some([True, False, None], 300, pa.bool_()),
            "event_time": event,
        }
        table = pa.table({**requests, "created_time": event})
        pq.write_table(table, data / "requests.parquet", row_group_size=64)
        again = pa.concat_tables([table, table.slice(50, 60)])
        labels = {name: again[name] for name in ("small", "since", "yes", *requests)} | {
            "label": some([0, 1, None], again.num_rows, pa.int8()),
            "created_time": later(again["event_time"].combine_chunks()),
        }
        pq.write_table(pa.table(labels), data / "labels.parquet", row_group_size=100)


@pytest.fixture(scope="module")
def odd_template(tmp_path_factory):
    path = make_tiny_repo(tmp_path_factory.mktemp("odd") / "repo")
    for old in (*path.glob("*.py"), *path.glob("data/*.parquet")):
        old.unlink()
    (path / "odd_definitions.py").write_text(DEFINITIONS)
    Odd(0).write(path)
    apply(open_repo(path))
    return path


def bits(value):
    """A value that differs wherever a bit does, as -0.0 does from 0.0."""
    return struct.pack("<d", value) if isinstance(value, float) else value


def rank(value):
    """By what values of one column are ordered: null last, NaN before it, text by its bytes."""
    if value is None:
        return (2,)
    if isinstance(value, float):
        return (1,) if math.isnan(value) else (0, value)
    return (0, value.encode() if isinstance(value, str) else value)


def number_of_bits(value):
    """The bits of a float as a signed integer: -0.0 before 0.0; 0 for what is not a float."""
    return int.from_bytes(bits(value), "little", signed=True) if isinstance(value, float) else 0


def expected_requests(repo, model, names, *, known_until):
    """Keys, fields, time and label of every row, chosen one by one in plain Python."""
    labels = {}
    rows = pq.read_table(repo.path / "data" / "labels.parquet").to_pylist()
    for row in sorted(rows, key=lambda row: row["created_time"]):
        key = tuple(bits(row[name]) for name in (*model.label.keys, "event_time"))
        if row["created_time"] > known_until or row["label"] is None or None in key:
            continue
        # Of labels that became known at one time the first one counts.
        if key not in labels or labels[key]["created_time"] < row["created_time"]:
            labels[key] = row
    if model.population is not None:
        rows = pq.read_table(repo.path / "data" / "requests.parquet").to_pylist()
    found = {}
    for number, row in enumerate(rows):
        key = tuple(bits(row[name]) for name in (*model.label.keys, "event_time"))
        same = tuple(bits(row[name]) for name in (*names, "event_time"))
        is_chosen = START <= row["event_time"] < min(END, known_until - model.label.matures_after)
        if is_chosen and key in labels:
            unique = same if model.population is None else number
            found.setdefault(unique, row | {"label": labels[key]["label"]})
    ordered = sorted(
        found.values(),
        key=lambda row: (
            rank(row["event_time"]),
            [rank(row[name]) for name in names],
            [number_of_bits(row[name]) for name in names],
        ),
    )
    return [[bits(row[name]) for name in (*names, "event_time", "label")] for row in ordered]


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("batch_rows", SIZES[:2])
@pytest.mark.parametrize("is_own", [True, False])
def test_odd_values_are_the_same_bit_for_bit(odd_template, tmp_path, seed, batch_rows, is_own):
    repo = open_repo(copy_tiny_repo(odd_template, tmp_path / "repo"))
    Odd(seed).write(repo.path)
    model = repo.model("odd")
    if not is_own:
        model = model.model_copy(update={"population": None})
    out = tmp_path / "new" / "set.parquet"
    built = check_same(repo, model, out, batch_rows=batch_rows)
    assert built.counts.rows > 10
    names = built.table.column_names[: built.table.column_names.index("request_time")]
    requests = built.table.select([*names, "request_time", "label"]).to_pylist()
    expected = expected_requests(repo, model, names, known_until=WHOLE["known_until"])
    assert [[bits(value) for value in row.values()] for row in requests] == expected
    incident = looks.incident(
        at=START + 4 * DAY, model="odd", view="stats", is_open=True, requests=1
    )
    for values in (((None,), (2**53 + 1,)), ()):
        keys = AffectedKeys(names=("key",), values=values, first=(2,), last=(2.0**53 + 2,))
        some = incident.model_copy(update={"keys": keys, "start": START})
        left = check_same(repo, model, out, batch_rows=batch_rows, incidents=[some])
        numbers = [2**53 + 1, None] if values else [2**53 + 1]
        remaining = [row for row in built.table.to_pylist() if row["key"] not in numbers]
        assert repr(left.table.to_pylist()) == repr(remaining)


def test_a_population_of_other_types_is_refused_with_every_mismatch(tiny_repo, tmp_path):
    path = tiny_repo.path / "data" / "requests.parquet"
    table = pq.read_table(path)
    quantity = table["quantity"].cast(pa.float64()).to_pylist()
    quantity[-1] += 0.5
    item = pa.array([str(item) for item in table["item"].to_pylist()])
    table = table.set_column(table.schema.get_field_index("item"), "item", item)
    at = table.schema.get_field_index("quantity")
    pq.write_table(table.set_column(at, "quantity", pa.array(quantity)), path)
    with pytest.raises(DataError) as raised:
        write_dataset(
            tiny_repo,
            tiny_repo.model(MODEL),
            RowSelection(**WHOLE),
            out=tmp_path / "new" / "set.parquet",
            batch_rows=100,
        )
    assert {problem.where for problem in raised.value.problems} == {
        "column item",
        "column quantity",
    }
    assert list((tmp_path / "new").iterdir()) == []


def test_a_request_without_time_is_refused_wherever_it_is(tiny_repo, tmp_path):
    path = tiny_repo.path / "data" / "requests.parquet"
    table = pq.read_table(path)
    times = table["event_time"].to_pylist()
    times[7] = None
    at = table.schema.get_field_index("event_time")
    pq.write_table(table.set_column(at, "event_time", pa.array(times, MOMENT)), path)
    with pytest.raises(DataError, match="expected a time in every row, got 1 nulls"):
        write_dataset(
            tiny_repo,
            tiny_repo.model(MODEL),
            RowSelection(**WHOLE),
            out=tmp_path / "new" / "set.parquet",
        )


def test_a_window_that_ends_before_it_starts_is_refused(tiny_repo, tmp_path):
    with pytest.raises(InputError, match="would be empty"):
        write_dataset(
            tiny_repo,
            tiny_repo.model(MODEL),
            RowSelection(**{**WHOLE, "end": START}),
            out=tmp_path / "set.parquet",
        )


def test_a_failure_leaves_the_old_file_and_nothing_else(tiny_repo, tmp_path, monkeypatch):
    model = tiny_repo.model(MODEL)
    out = tmp_path / "new" / "set.parquet"
    write_dataset(tiny_repo, model, RowSelection(**WHOLE), out=out)
    before = out.read_bytes()
    computed = training_set.computed_values
    calls = []

    def fail(*arguments):
        calls.append(arguments)
        if len(calls) == 3:
            raise DefinitionError("On-demand view 'x' failed.")
        return computed(*arguments)

    monkeypatch.setattr(training_set, "computed_values", fail)
    with pytest.raises(DefinitionError):
        write_dataset(tiny_repo, model, RowSelection(**WHOLE), out=out, batch_rows=200)
    assert [path.name for path in out.parent.iterdir()] == [out.name]
    assert out.read_bytes() == before
