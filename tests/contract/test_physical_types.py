"""Every form in which files carry a Feast type, beside every other form in one folder.

Each cell gives the exact value, or one error that names the file, the column and both types.
"""

from __future__ import annotations

import decimal
import itertools
import uuid
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tallystick.definitions.feature_types import arrow_type
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.errors import DataError
from tallystick.offline_store import ViewRead, point_in_time
from tallystick.point_in_time.rule import VisibilityClock
from visible_rows import visible_rows

NOON = datetime(2024, 1, 1, 12, tzinfo=UTC)
MIDNIGHT = datetime(2024, 1, 1, tzinfo=UTC)
UUIDS = ["01890a5d-ac96-774b-bcce-b302099a8057", "01890a5d-ac96-774b-bcce-b302099a8058"]
INTEGERS = [pa.int8(), pa.int16(), pa.int32(), pa.int64()]
INTEGERS += [pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()]
FLOATS = [pa.float16(), pa.float32(), pa.float64()]
DECIMALS = [pa.decimal128(12, 2), pa.decimal128(38, 0), pa.decimal256(40, 2)]
TEXTS = [pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())]
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), pa.binary(2)]
TIMES = [pa.timestamp(unit) for unit in ("s", "ms", "us", "ns")]
TIMES += [pa.timestamp(unit, tz) for unit in ("us", "ns") for tz in ("UTC", "Europe/Berlin")]
DATES = [pa.date32(), pa.date64()]


def plain(values, kind):
    values = [*map(int, values)]
    if pa.types.is_decimal(kind):
        return pa.array([decimal.Decimal(each) for each in values], kind)
    if pa.types.is_float16(kind):
        return pa.array(values, pa.float32()).cast(kind)
    return pa.array(values, kind)


def timed(values, kind):
    if pa.types.is_date(kind):
        return pa.array([each.date() for each in values], kind)
    return (
        pa.array(values, pa.timestamp("us", tz="UTC")).cast(pa.timestamp(kind.unit, tz=kind.tz))
        if kind.tz
        else pa.array(values, pa.timestamp("us")).cast(kind)
    )


def forms(kinds, values, made=pa.array):
    """Name of a form → the column in it, and what it means."""
    return {str(kind): (made(values, kind), values) for kind in kinds}


LISTS = [pa.list_(kind) for kind in INTEGERS]
LISTS += [pa.large_list(pa.int64()), pa.list_(pa.int64(), 1)]
WHOLE = forms([*INTEGERS, *FLOATS, *DECIMALS, pa.dictionary(pa.int32(), pa.int64())], [7, 8], plain)
FORMS = {
    "INT32": WHOLE,
    "INT64": WHOLE,
    "FLOAT": forms([*INTEGERS, *FLOATS, *DECIMALS], [7.0, 8.0], plain),
    "DOUBLE": forms([*INTEGERS, *FLOATS, *DECIMALS], [7.0, 8.0], plain),
    "BOOL": forms([pa.bool_()], [True, False]),
    "STRING": forms(TEXTS, ["7", "8"]) | forms(INTEGERS, ["7", "8"], plain),
    "BYTES": forms(BYTES, [b"ab", b"\0\xff"]),
    "UNIX_TIMESTAMP": forms([*TIMES, *DATES], [MIDNIGHT, MIDNIGHT + timedelta(days=1)], timed),
    "UUID": forms(TEXTS, UUIDS)
    | {"uuid": (pa.array([uuid.UUID(each).bytes for each in UUIDS], pa.uuid()), UUIDS)},
    "DECIMAL": forms(TEXTS, ["7", "8"]),
    "INT64_LIST": forms(LISTS, [[7], [8]]),
}
"""Feast type → the forms in which a file can carry two values of it."""


def pairs_of(*dtypes):
    return [
        (dtype, *pair) for dtype in dtypes for pair in itertools.product(FORMS[dtype], repeat=2)
    ]


def read_of(folder, *, value="INT64", key="INT64"):
    spec = ViewSpec(
        name="stats",
        join_keys=(Column(name="key", dtype=key),),
        columns=(Column(name="value", dtype=value),),
        ttl_us=None,
        event_column="event",
        created_column="created",
    )
    source = SimpleNamespace(path=str(folder))
    return ViewRead(spec=spec, source=source, name="s", key_map={}, columns=("value",))


def write(folder, *files):
    """A file for each of ``files``, with its columns beside those that it lacks."""
    for number, columns in enumerate(files):
        rows = {"key": [number], "value": [number], "event": [NOON], "created": [NOON], **columns}
        pq.write_table(pa.table(rows), folder / f"{number}.parquet")


def answers(read, keys):
    """The features of some keys at noon, from history and as they are written online."""
    table = pa.table({"key": keys, "at": [NOON] * len(keys)})
    answer = point_in_time(
        entity_rows=table, request_time="at", reads=[read], clock=VisibilityClock.KNOWLEDGE
    )["s__value"]
    written = visible_rows(read, until=NOON, clock=VisibilityClock.KNOWLEDGE)
    online = dict(zip(written["key"].to_pylist(), written["value"].to_pylist(), strict=True))
    return answer, [online.get(key) for key in keys]


def are_refused(one, other):
    """Whether one form has a zone and the other has not: those without may be of any zone."""
    kinds = [form for form in (one, other) if form.startswith("timestamp")]
    return len({"tz=" in form for form in kinds}) > 1


@pytest.mark.parametrize(("dtype", "one", "other"), pairs_of(*FORMS))
def test_a_feature_has_its_value_whatever_its_form(tmp_path, dtype, one, other):
    forms = FORMS[dtype]
    columns = [forms[one][0].slice(0, 1), forms[other][0].slice(1, 1)]
    write(tmp_path, *({"value": column} for column in columns))
    read = read_of(tmp_path, value=dtype)
    if are_refused(one, other):
        with pytest.raises(DataError) as caught:
            answers(read, [0, 1])
        kinds = [pq.read_schema(tmp_path / f"{number}.parquet").field("value") for number in (0, 1)]
        found = [f"{kinds[number].type} in {tmp_path}/{number}.parquet" for number in (0, 1)]
        expected = f"value: expected times with a zone, or all without, got {', '.join(found)}"
        assert expected in str(caught.value)
        return
    answer, online = answers(read, [0, 1])
    assert answer.type == arrow_type(dtype)
    assert answer.to_pylist() == online == [forms[one][1][0], forms[other][1][1]]


KEYS = [
    pair
    for pair in pairs_of("INT32", "INT64", "STRING", "UNIX_TIMESTAMP", "BYTES")
    if not are_refused(*pair[1:])
]


@pytest.mark.parametrize(("dtype", "one", "other"), KEYS)
def test_a_key_is_found_whatever_its_form(tmp_path, dtype, one, other):
    forms = FORMS[dtype]
    columns = [forms[one][0].slice(0, 1), forms[other][0].slice(1, 1)]
    write(tmp_path, *({"key": column} for column in columns))
    read = read_of(tmp_path, key=dtype)
    for form in (one, other):
        table = pa.table({"key": forms[form][0], "at": [NOON, NOON]})
        answer = point_in_time(
            entity_rows=table, request_time="at", reads=[read], clock=VisibilityClock.KNOWLEDGE
        )
        assert answer["s__value"].to_pylist() == [0, 1]
    written = visible_rows(read, until=NOON, clock=VisibilityClock.KNOWLEDGE)
    assert written["key"].to_pylist() == forms[one][1]


@pytest.mark.parametrize("time", ["event", "created"])
@pytest.mark.parametrize(
    ("one", "other"),
    [pair for _, *pair in pairs_of("UNIX_TIMESTAMP") if not are_refused(*pair)],
)
def test_a_row_has_its_time_whatever_its_form(tmp_path, time, one, other):
    forms = FORMS["UNIX_TIMESTAMP"]
    early = pa.array([MIDNIGHT], pa.timestamp("us", tz="UTC"))
    columns = [forms[one][0].slice(0, 1), forms[other][0].slice(1, 1)]
    write(tmp_path, *({"event": early, "created": early, time: column} for column in columns))
    table = pa.table({"key": [0, 1], "at": [NOON, NOON]})
    answer = point_in_time(
        entity_rows=table,
        request_time="at",
        reads=[read_of(tmp_path)],
        clock=VisibilityClock.KNOWLEDGE,
        with_times=True,
    )
    # The second file's row is of tomorrow.
    assert answer["s__value"].to_pylist() == [0, None]
    assert answer[f"s__{time}_time"].to_pylist() == [MIDNIGHT, None]


def test_whole_numbers_beside_floats_keep_every_digit(tmp_path):
    big = 2**53
    ids = pa.array([big, big + 1], pa.int64())
    floats = pa.array([float(big + 2), 3.0])
    write(
        tmp_path,
        {"key": ids, "value": ids, "event": [NOON] * 2, "created": [NOON] * 2},
        {"key": floats, "value": floats, "event": [NOON] * 2, "created": [NOON] * 2},
    )
    answer, online = answers(read_of(tmp_path), [big, big + 1, big + 2, 3])
    assert answer.to_pylist() == online == [big, big + 1, big + 2, 3]


def test_a_decimal_becomes_the_nearest_float(tmp_path):
    money = [f"{cents / 100:.2f}" for cents in range(3000, 4000)]
    column = pa.array(map(decimal.Decimal, money), pa.decimal128(12, 2))
    keys = [*range(len(money))]
    times = [NOON] * len(money)
    write(tmp_path, {"key": keys, "value": column, "event": times, "created": times})
    answer, online = answers(read_of(tmp_path, value="DOUBLE"), keys)
    assert answer.to_pylist() == online == [*map(float, money)]


@pytest.mark.parametrize(
    ("dtype", "column", "found"),
    [
        ("INT64", pa.array(["7"]), "string"),
        ("INT64", pa.array([7.5]), "7.5"),
        ("INT32", pa.array([2**31]), "2147483648"),
        ("DOUBLE", pa.array(["7"]), "string"),
        ("BOOL", pa.array([1]), "int64"),
        ("STRING", pa.array([b"7"]), "binary"),
        ("UNIX_TIMESTAMP", pa.array([7]), "int64"),
        ("UNIX_TIMESTAMP", pa.array([1], pa.time64("us")), "time64[us]"),
        ("BYTES", pa.array(["7"]), "string"),
        ("UUID", pa.array(["7"]), "7"),
        ("INT64_LIST", pa.array([7]), "int64"),
    ],
    ids=str,
)
@pytest.mark.parametrize("beside", [True, False])
def test_another_form_is_one_error(tmp_path, dtype, column, found, beside):
    good = next(iter(FORMS[dtype].values()))[0].slice(0, 1)
    write(tmp_path, *([{"value": good}] if beside else []), {"value": column})
    with pytest.raises(DataError) as caught:
        answers(read_of(tmp_path, value=dtype), [0])
    text = str(caught.value)
    assert all(each in text for each in ("stats", "value", str(tmp_path), found)), text
