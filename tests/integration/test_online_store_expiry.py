"""Redis forgets rows by its own clock, one ttl after they ran out, and never one that counts."""

from __future__ import annotations

import time

import pytest

from packed_rows import packed_row
from tallystick.definitions.feature_view import Column, ViewSpec
from tallystick.online_store.entity_keys import EntityKeys
from tallystick.online_store.entity_value import SectionReader
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import view_tag
from tallystick.online_store.row_writer import write_rows

SECOND_US = 1_000_000
HOUR_US = 3_600 * SECOND_US
KEYS = (Column(name="id", dtype="INT64"),)


def spec_of(name, ttl_us):
    return ViewSpec(
        name=name,
        join_keys=KEYS,
        columns=(Column(name="x", dtype="INT64"),),
        ttl_us=ttl_us,
        event_column="event",
        created_column="created",
    )


def now_us():
    return time.time_ns() // 1000


def write(client, spec, *, event_us, write_us=None):
    codec = RowCodec(spec)
    (key,) = EntityKeys("p", KEYS).of([[1]])
    written = now_us() if write_us is None else write_us
    row = packed_row(codec, {"x": 1}, event_us=event_us, created_us=None, write_us=written)
    assert write_rows(client, "p", codec, [(key, row)]).won == 1
    return key


def rest_s(client, key):
    return client.pttl(key) / 1000


def views(client, key, *names):
    tags = {name: view_tag(name, ["id"]) for name in names}
    found = SectionReader(tags.values()).rows([client.get(key)])
    return {name for name, tag in tags.items() if found[tag] != [None]}


@pytest.mark.parametrize(
    ("age_us", "rest_hours"),
    [(0, 2), (HOUR_US // 2, 1.5), (HOUR_US, 1), (1_000 * HOUR_US, 1), (-HOUR_US, 3)],
)
def test_a_row_stays_for_one_ttl_after_it_ran_out_or_was_written(redis_server, age_us, rest_hours):
    key = write(redis_server.client, spec_of("a", HOUR_US), event_us=now_us() - age_us)
    assert rest_s(redis_server.client, key) == pytest.approx(rest_hours * 3600, abs=60)


def test_the_writers_clock_does_not_shorten_a_rows_stay(redis_server):
    behind = now_us() - 1_000 * HOUR_US
    key = write(redis_server.client, spec_of("a", HOUR_US), event_us=behind, write_us=behind)
    assert rest_s(redis_server.client, key) == pytest.approx(3600, abs=60)


def test_it_is_gone_then(redis_server):
    client = redis_server.client
    key = write(client, spec_of("a", SECOND_US // 5), event_us=now_us())
    assert client.exists(key)
    deadline = time.monotonic() + 20
    while client.exists(key) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not client.exists(key)


def test_a_value_stays_as_long_as_its_longest_row(redis_server):
    client = redis_server.client
    key = write(client, spec_of("long", 10 * HOUR_US), event_us=now_us())
    write(client, spec_of("short", HOUR_US), event_us=now_us())
    assert rest_s(client, key) == pytest.approx(20 * 3600, abs=60)
    write(client, spec_of("ever", None), event_us=now_us())
    assert client.pttl(key) == -1
    write(client, spec_of("short", HOUR_US), event_us=now_us())
    assert client.pttl(key) == -1
    assert views(client, key, "long", "short", "ever") == {"long", "short", "ever"}


def test_a_write_takes_out_what_ran_out_in_other_views(redis_server):
    client = redis_server.client
    key = write(client, spec_of("ever", None), event_us=0)
    write(client, spec_of("short", SECOND_US // 10), event_us=now_us())
    write(client, spec_of("long", HOUR_US), event_us=now_us())
    assert views(client, key, "ever", "short", "long") == {"ever", "short", "long"}
    time.sleep(0.3)
    write(client, spec_of("last", None), event_us=0)
    assert views(client, key, "ever", "short", "long", "last") == {"ever", "long", "last"}


def test_an_absurdly_long_ttl_is_for_ever(redis_server):
    key = write(redis_server.client, spec_of("a", 2**62), event_us=now_us())
    assert redis_server.client.pttl(key) == -1


@pytest.mark.usefixtures("simulated_clock")
def test_a_value_goes_with_the_keys_ttl_in_any_case(redis_server):
    client, codec = redis_server.client, RowCodec(spec_of("a", None))
    (key,) = EntityKeys("p", KEYS).of([[1]])
    for event_us, rest in ((1, 60), (2, 7)):
        row = packed_row(codec, {"x": 1}, event_us=event_us, created_us=None, write_us=3)
        write_rows(client, "p", codec, [(key, row)], key_ttl_s=rest)
        assert rest_s(client, key) == pytest.approx(rest, abs=2)


def test_the_shorter_of_both_ttls_holds(redis_server):
    client, codec = redis_server.client, RowCodec(spec_of("a", HOUR_US))
    (key,) = EntityKeys("p", KEYS).of([[1]])
    for rest_hours, key_ttl_s, event_us in ((2, 90_000, now_us()), (1, 3_600, now_us() + 1)):
        row = packed_row(codec, {"x": 1}, event_us=event_us, created_us=None, write_us=event_us)
        write_rows(client, "p", codec, [(key, row)], key_ttl_s=key_ttl_s)
        assert rest_s(client, key) == pytest.approx(rest_hours * 3600, abs=60)


@pytest.mark.usefixtures("simulated_clock")
def test_nothing_is_forgotten_by_a_simulated_clock(redis_server):
    key = write(redis_server.client, spec_of("a", HOUR_US), event_us=0, write_us=0)
    write(redis_server.client, spec_of("b", HOUR_US), event_us=0, write_us=0)
    assert redis_server.client.pttl(key) == -1
    assert views(redis_server.client, key, "a", "b") == {"a", "b"}
