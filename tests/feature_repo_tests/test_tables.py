"""What every table promises, and the traps that its making has to avoid."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

DOCS = Path(__file__).parents[2] / "docs"
ROWS = {
    "requests": 336_776,
    "arrivals": 327_346,
    "outcomes": 336_776,
    "weather": 26_115,
    "tail_last_flight": 327_345,
    "plane": 3_322,
}
KEYS = {
    "requests": ("carrier", "flight", "origin"),
    "arrivals": ("carrier", "flight", "origin"),
    "outcomes": ("carrier", "flight", "origin"),
    "weather": ("origin",),
    "origin_hour": ("origin",),
    "carrier_day": ("carrier",),
    "tail_last_flight": ("tailnum",),
    "route_week": ("origin", "dest"),
    "plane": ("tailnum",),
}
HISTORY = ("origin_hour", "carrier_day", "tail_last_flight", "route_week")
HOUR = timedelta(hours=1)


def scalar(tables, query, parameters=()):
    return tables.execute(query, list(parameters)).fetchone()[0]


def utc(*parts):
    return datetime(*parts, tzinfo=UTC)


@pytest.mark.parametrize("table", KEYS)
def test_no_row_is_known_before_it_happened(tables, table):
    in_order = "count(*) FILTER (created_time >= event_time)"
    assert scalar(tables, f"SELECT count(*) - {in_order} FROM {table}") == 0


@pytest.mark.parametrize("table", KEYS)
def test_a_key_has_one_row_per_event_time(tables, table):
    keys = ", ".join(KEYS[table])
    distinct = f"count(DISTINCT (event_time, {keys}))"
    assert scalar(tables, f"SELECT count(*) - {distinct} FROM {table}") == 0


@pytest.mark.parametrize("table", KEYS)
def test_rows_lie_in_the_order_in_which_they_became_known(repo_copy, table):
    (known,) = pq.read_table(repo_copy / "data" / f"{table}.parquet", columns=["created_time"])
    assert known.type == pa.timestamp("us", tz="UTC")
    assert (np.diff(known.cast(pa.int64()).to_numpy()) >= 0).all()


@pytest.mark.parametrize(("table", "rows"), ROWS.items())
def test_no_row_is_lost(tables, table, rows):
    assert scalar(tables, f"SELECT count(*) FROM {table}") == rows


@pytest.mark.parametrize(
    ("flight", "times"),
    [
        # 05:15 in New York (UTC-5), due 08:19 in Houston (UTC-6), 11 minutes late.
        (
            ("UA", 1545, "EWR"),
            (
                utc(2013, 1, 1, 8, 15),
                utc(2013, 1, 1, 10, 17),
                utc(2013, 1, 1, 14, 30),
                utc(2013, 1, 1, 14, 30),
            ),
        ),
        # 22:45 on 9 March, due 23:56 in Burlington, 22 minutes late: lands after midnight.
        (
            ("B6", 128, "JFK"),
            (
                utc(2013, 3, 10, 1, 45),
                utc(2013, 3, 10, 4, 4),
                utc(2013, 3, 10, 5, 18),
                utc(2013, 3, 10, 5, 30),
            ),
        ),
        # 21:45 on the night that loses an hour, due 00:34 in Florida, 89 minutes late: the record's
        # clock says 02:03, which that night did not have.
        (
            ("B6", 35, "JFK"),
            (
                utc(2013, 3, 10, 0, 45),
                utc(2013, 3, 10, 4, 6),
                utc(2013, 3, 10, 7, 3),
                utc(2013, 3, 10, 7, 15),
            ),
        ),
        # 06:10 on the morning after (UTC-4), due 09:36 in San Francisco (UTC-7), 12 early.
        (
            ("UA", 600, "JFK"),
            (
                utc(2013, 3, 10, 8, 10),
                utc(2013, 3, 10, 10, 8),
                utc(2013, 3, 10, 16, 24),
                utc(2013, 3, 10, 16, 30),
            ),
        ),
        # Phoenix has no summer time: due 09:06 (UTC-7), 46 early.
        (
            ("US", 88, "EWR"),
            (
                utc(2013, 7, 4, 8, 55),
                utc(2013, 7, 4, 10, 47),
                utc(2013, 7, 4, 15, 20),
                utc(2013, 7, 4, 15, 30),
            ),
        ),
        # Due 14:30 in Honolulu (UTC-10), the next day in UTC.
        (
            ("HA", 51, "JFK"),
            (
                utc(2013, 7, 4, 12, 0),
                utc(2013, 7, 4, 13, 50),
                utc(2013, 7, 4, 23, 59),
                utc(2013, 7, 5, 0, 0),
            ),
        ),
        # Leaves at 24:00 by the record; Puerto Rico (UTC-4) is not among the package's airports.
        (
            ("B6", 727, "JFK"),
            (
                utc(2013, 3, 16, 1, 59),
                utc(2013, 3, 16, 4, 0),
                utc(2013, 3, 16, 7, 24),
                utc(2013, 3, 16, 7, 30),
            ),
        ),
    ],
)
def test_clocks_become_utc(tables, flight, times):
    """Times of request, departure, arrival, and the report of the landing."""
    found = tables.execute(
        "SELECT request_time, departure, arrival, landing_known_at FROM flights "
        "WHERE (carrier, flight, origin) = (?, ?, ?) AND request_time = ?",
        [*flight, times[0]],
    ).fetchall()
    assert found == [times]


def test_clocks_agree_with_pythons_time_zones(tables):
    rows = tables.execute(
        "SELECT month, day, sched_dep_time, sched_arr_time, tzone, f.scheduled_departure, "
        "f.scheduled_arrival FROM raw_flights AS r "
        "JOIN raw_airports AS a ON a.faa = r.dest JOIN flights AS f "
        "ON f.carrier = r.carrier AND f.flight = r.flight AND f.origin = r.origin "
        "AND f.scheduled_departure = r.time_hour + to_minutes(r.minute) "
        "WHERE hash(r.carrier, r.flight, r.time_hour) % 100 = 0"
    ).fetchall()
    assert len(rows) > 2_000
    for month, day, leaves, lands, zone, departure, arrival in rows:
        clock = datetime(
            2013, month, day, leaves // 100, leaves % 100, tzinfo=ZoneInfo("America/New_York")
        )
        assert departure == clock
        there = arrival.astimezone(ZoneInfo(zone))
        assert (there.hour % 24, there.minute) == (lands // 100 % 24, lands % 100)
        assert timedelta(minutes=30) < arrival - departure < timedelta(hours=13)


def test_the_time_on_the_ground_is_plausible_for_every_flight(tables):
    # Were a time zone, a midnight or a DST change wrong, taxiing would take hours more or less.
    low, high = tables.execute(
        "SELECT min(ground), max(ground) FROM (SELECT date_diff('minute', f.departure, f.arrival) "
        "- r.air_time AS ground FROM raw_flights AS r JOIN flights AS f ON f.carrier = r.carrier "
        "AND f.flight = r.flight AND f.origin = r.origin "
        "AND f.scheduled_departure = r.time_hour + to_minutes(r.minute))"
    ).fetchone()
    assert low >= 5
    assert high <= 240


def test_feeds_report_at_the_next_quarter_hour(tables):
    late = "created_time - event_time"
    assert scalar(tables, f"SELECT max({late}) FROM tail_last_flight") < timedelta(minutes=15)
    assert (
        scalar(tables, "SELECT count(*) FROM tail_last_flight WHERE epoch(created_time) % 900 <> 0")
        == 0
    )


def test_weather_is_known_when_its_hour_is_over(tables):
    assert tables.execute(
        "SELECT min(created_time - event_time), max(created_time - event_time) FROM weather"
    ).fetchone() == (HOUR, HOUR)


@pytest.mark.parametrize("today", [utc(2013, 3, 12, 14, 20), utc(2013, 7, 10, 21, 0)])
def test_no_row_depends_on_what_was_not_known_yet(sources, tables, today):
    """Blank out all that was unknown at a moment; whatever was known by then must stay the same."""
    unknown = {
        "arrival = NULL, arrival_delay_min = NULL, landing_known_at = NULL": "landing_known_at",
        "departure = NULL, departure_delay_min = NULL, departure_known_at = NULL": (
            "departure_known_at"
        ),
        "cancelled = NOT cancelled": "outcome_known_at",
    }
    known = "SELECT * FROM ({}) WHERE created_time <= ? ORDER BY ALL"
    tables.begin()
    try:
        for change, known_at in unknown.items():
            tables.execute(f"UPDATE flights SET {change} WHERE {known_at} > ?", [today])
        for table in HISTORY:
            expected = tables.execute(known.format(f"FROM {table}"), [today]).fetchall()
            got = tables.execute(known.format(sources.query(table)), [today]).fetchall()
            assert len(expected) > 1_000
            assert got == expected, table
    finally:
        tables.rollback()


def flights_before(tables, end, length, **keys):
    """Flights of the keys that may count at ``end``: no flight took two days."""
    names = [
        "scheduled_departure",
        "departure",
        "departure_known_at",
        "departure_delay_min",
        "arrival",
        "landing_known_at",
        "arrival_delay_min",
        "outcome_known_at",
        "cancelled",
    ]
    condition = " AND ".join(f"{key} = ?" for key in keys)
    rows = tables.execute(
        f"SELECT {', '.join(names)} FROM flights WHERE {condition} "
        "AND scheduled_departure BETWEEN ? AND ?",
        [*keys.values(), end - length - timedelta(days=2), end + timedelta(days=1)],
    ).fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def mean(values):
    values = list(values)
    return sum(values) / len(values) if values else None


def within(moment, end, length):
    return moment is not None and end - length < moment <= end


def sample(tables, table, number):
    names = [row[0] for row in tables.execute(f"DESCRIBE {table}").fetchall()]
    rows = tables.execute(f"FROM {table} ORDER BY hash({table}) LIMIT {number}").fetchall()
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_origin_hours_agree_with_counting_by_hand(tables):
    for row in sample(tables, "origin_hour", 20):
        hour = row["event_time"]
        flown = flights_before(tables, hour, 3 * HOUR, origin=row["origin"])
        left = [f for f in flown if within(f["departure_known_at"], hour, 3 * HOUR)]
        landed = [f for f in flown if within(f["landing_known_at"], hour, 3 * HOUR)]
        overdue = [
            f
            for f in flown
            if within(f["scheduled_departure"], hour, 3 * HOUR)
            and (f["departure"] is None or f["departure_known_at"] > hour)
        ]
        assert row["departures_3h"] == len(left)
        assert row["departure_delay_3h_min"] == mean(f["departure_delay_min"] for f in left)
        assert row["late_departures_3h_share"] == mean(f["departure_delay_min"] >= 15 for f in left)
        assert row["arrival_delay_3h_min"] == mean(f["arrival_delay_min"] for f in landed)
        assert row["overdue_3h"] == len(overdue)


def test_carrier_days_agree_with_counting_by_hand(tables):
    day, week = timedelta(days=1), timedelta(days=7)
    for row in sample(tables, "carrier_day", 20):
        end = row["event_time"]
        assert (end.hour, end.minute) == (6, 0)
        flown = flights_before(tables, end, week, carrier=row["carrier"])
        landed = {
            length: [f for f in flown if within(f["landing_known_at"], end, length)]
            for length in (day, week)
        }
        assert row["landed_1d"] == len(landed[day])
        assert row["arrival_delay_1d_min"] == mean(f["arrival_delay_min"] for f in landed[day])
        assert row["late_1d_share"] == mean(f["arrival_delay_min"] >= 15 for f in landed[day])
        assert row["arrival_delay_7d_min"] == mean(f["arrival_delay_min"] for f in landed[week])
        assert row["late_7d_share"] == mean(f["arrival_delay_min"] >= 15 for f in landed[week])
        for length, name in ((day, "cancelled_1d_share"), (week, "cancelled_7d_share")):
            settled = [f for f in flown if within(f["outcome_known_at"], end, length)]
            assert row[name] == mean(f["cancelled"] for f in settled)


def test_route_weeks_agree_with_counting_by_hand(tables):
    week, month = timedelta(days=7), timedelta(days=28)
    for row in sample(tables, "route_week", 30):
        end = row["event_time"]
        flown = flights_before(tables, end, month, origin=row["origin"], dest=row["dest"])
        recent = [f for f in flown if within(f["landing_known_at"], end, week)]
        longer = [f for f in flown if within(f["landing_known_at"], end, month)]
        assert row["route_landed_7d"] == len(recent)
        assert row["route_arrival_delay_7d_min"] == mean(f["arrival_delay_min"] for f in recent)
        assert row["route_late_7d_share"] == mean(f["arrival_delay_min"] >= 15 for f in recent)
        assert row["route_arrival_delay_28d_min"] == mean(f["arrival_delay_min"] for f in longer)
        assert row["route_late_28d_share"] == mean(f["arrival_delay_min"] >= 15 for f in longer)


def test_the_build_is_the_same_every_time(sources, repo_copy, tmp_path):
    sources.build(tmp_path)
    for table in sources.TABLES:
        again, first = (folder / f"{table}.parquet" for folder in (tmp_path, repo_copy / "data"))
        assert again.read_bytes() == first.read_bytes(), table
    assert {path.suffix for path in tmp_path.iterdir()} == {".parquet"}


def test_the_document_tells_how_many_rows_there_are(tables):
    document = (DOCS / "reference-scenario.md").read_text()
    documented = re.findall(r"^\| `(\w+)`[^|]*\| ([\d,]+) \|", document, flags=re.MULTILINE)
    counted = [
        (table, f"{scalar(tables, f'SELECT count(*) FROM {table}'):,}") for table, _ in documented
    ]
    assert documented == counted
    assert {table for table, _ in documented} == KEYS.keys()
