"""Predictions whose every value follows from their id, so that any reader can tell a wrong one."""

from __future__ import annotations

import zlib
from datetime import UTC, datetime, timedelta

from contracts import small_contract
from tallystick.clock import to_us
from tallystick.online_store.view_decoder import ViewRows
from tallystick.prediction_log.log_reader import read_log
from tallystick.prediction_log.record import Predictions

START = datetime(2013, 7, 1, tzinfo=UTC)
END = START + timedelta(days=3)
CONTRACTS = (small_contract(), small_contract(threshold=0.25))
MODEL = CONTRACTS[0].model
MANY = 20


def rows_of(number):
    """How many rows a request has; each seventh lies in the log as columns."""
    return MANY if number % 7 == 6 else 1 + number % 3


def first_of(number):
    """The number of a request's first row among the rows of its worker."""
    return sum(map(rows_of, range(number)))


def request_us(worker, number):
    """Requests alternate between two days."""
    return to_us(START + timedelta(days=number % 2)) + worker * 1_000_000 + number


def value_of(row_id):
    """What a row's values follow from."""
    return zlib.crc32(row_id.encode())


def request(worker, number):
    """The predictions of one request of one worker."""
    first = first_of(number)
    ids = [f"{worker}/{number}/{row}" for row in range(first, first + rows_of(number))]
    values = [value_of(row_id) for row_id in ids]
    return Predictions(
        prediction_id=ids,
        request_us=request_us(worker, number),
        model_version=str(worker),
        keys={"driver": values, "amount": [value / 7 for value in values]},
        views={
            "stats": ViewRows(
                status=["PRESENT" if value % 2 else "NOT_FOUND" for value in values],
                event_us=[value if value % 2 else None for value in values],
                created_us=[None] * len(ids),
                write_us=[value + 1 for value in values],
                definition=[f"{value:x}" for value in values],
                values={},
            )
        },
        values={
            "stats__trips": [2**60 + value for value in values],
            "stats__rate": [value % 1000 / 8 if value % 5 else None for value in values],
        },
        prediction=[value / 2**32 for value in values],
        latency_us=number,
    )


def wrong_in(row):
    """The names of a row's values that do not follow from its id."""
    worker, number, _ = map(int, row["prediction_id"].split("/"))
    value = value_of(row["prediction_id"])
    moment = datetime(1970, 1, 1, tzinfo=UTC)
    expected = {
        "prediction_id": row["prediction_id"],
        "request_time": moment + timedelta(microseconds=request_us(worker, number)),
        "model_version": str(worker),
        "prediction": value / 2**32,
        "latency_us": number,
        "entity.driver": value,
        "request.amount": value / 7,
        "view.stats.status": "PRESENT" if value % 2 else "NOT_FOUND",
        "view.stats.event_time": moment + timedelta(microseconds=value) if value % 2 else None,
        "view.stats.created_time": None,
        "view.stats.write_time": moment + timedelta(microseconds=value + 1),
        "view.stats.definition": f"{value:x}",
        "feature.stats__trips": 2**60 + value,
        "feature.stats__rate": value % 1000 / 8 if value % 5 else None,
    }
    assert row.keys() == expected.keys()
    return [name for name in expected if row[name] != expected[name]]


def read_ids(state_dir, **more):
    """The ids of all rows of the log, after comparing every value; fails on one that is twice."""
    parts = read_log(state_dir, MODEL, start=START, end=END, **more)
    rows = [row for part in parts for row in part.table.to_pylist()]
    assert [(row["prediction_id"], wrong) for row in rows if (wrong := wrong_in(row))] == []
    ids = [row["prediction_id"] for row in rows]
    assert len(ids) == len(set(ids))
    return set(ids)


def ids_of(worker, requests):
    """The ids of the first requests of a worker."""
    return {
        row_id for number in range(requests) for row_id in request(worker, number).prediction_id
    }
