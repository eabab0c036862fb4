"""Feast's retrieval by a range of time, and what its monitoring asks of the store."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import Entity, FeatureView, Field, FileSource, ValueType
from feast.types import Float64, Int64, String

from feast_stores import feast_store

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
MOMENT = pa.timestamp("us", tz="UTC")


def source(path, name, columns):
    pq.write_table(pa.table(columns), path / f"{name}.parquet")
    return FileSource(
        name=name,
        path=str(path / f"{name}.parquet"),
        timestamp_field="event",
        created_timestamp_column="created",
    )


def moments(*hours):
    return pa.array([NOON + hour * HOUR for hour in hours], MOMENT)


@pytest.fixture
def store(tmp_path, offline_store):
    store = feast_store(tmp_path, offline=offline_store)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    trips = source(
        tmp_path,
        "trips",
        {
            "driver_id": pa.array([1, 1, 2, 1, None, 3], pa.int64()),
            "count": pa.array([10, 11, 20, 12, 9, 30], pa.int64()),
            "kind": ["a", "b", "a", None, "c", "a"],
            "event": moments(0, 1, 1, 0, 0, 50),
            # The fourth row corrects the first, and is known three hours later.
            "created": moments(0, 1, 2, 3, 0, 50),
        },
    )
    rates = source(
        tmp_path,
        "rates",
        {
            "driver_id": pa.array([1, 2], pa.int64()),
            "rate": [0.5, float("nan")],
            "event": moments(1, 4),
            "created": moments(1, 4),
        },
    )
    key = Field(name="driver_id", dtype=Int64)
    store.apply(
        [
            driver,
            FeatureView(
                name="trips",
                entities=[driver],
                ttl=timedelta(hours=48),
                schema=[
                    key,
                    Field(name="count", dtype=Int64),
                    Field(name="kind", dtype=String),
                ],
                source=trips,
            ),
            FeatureView(
                name="rates",
                entities=[driver],
                ttl=timedelta(hours=2),
                schema=[key, Field(name="rate", dtype=Float64)],
                source=rates,
            ),
        ]
    )
    return store


def between(store, first, last, features, **more):
    answer = store.get_historical_features(
        None, features, start_date=NOON + first * HOUR, end_date=NOON + last * HOUR, **more
    ).to_arrow()
    return [
        (row["driver_id"], (row["event_timestamp"] - NOON) / HOUR, *[row[name] for name in row][2:])
        for row in answer.to_pylist()
    ]


def test_every_change_in_the_range_is_a_row(store):
    assert between(store, 0, 3, ["trips:count"]) == [
        (1, 0.0, 10),
        (1, 1.0, 11),
        (2, 2.0, 20),  # known an hour after it happened
        (1, 3.0, 11),  # a correction of what was no longer the latest
    ]


def test_under_the_event_clock_rows_count_from_their_event_on(store):
    store.config.offline_store.clock = "event"
    assert between(store, 0, 3, ["trips:count"]) == [(1, 0.0, 12), (1, 1.0, 11), (2, 1.0, 20)]


def test_several_views_change_a_key_together(store):
    assert between(store, 1, 4, ["trips:count", "rates:rate"], full_feature_names=True)[:3] == [
        (1, 1.0, 11, 0.5),
        (2, 2.0, 20, None),
        (1, 3.0, 11, 0.5),
    ]


def test_the_range_begins_a_ttl_before_its_end_by_default(store):
    answer = store.get_historical_features(None, ["trips:count"], end_date=NOON + 49 * HOUR)
    assert answer.to_arrow()["count"].to_pylist() == [11, 20, 11]


def test_an_empty_range_gives_no_rows_with_all_columns(store):
    answer = store.get_historical_features(
        None, ["trips:count"], start_date=NOON - HOUR, end_date=NOON - HOUR
    ).to_arrow()
    assert answer.column_names == ["driver_id", "event_timestamp", "count"]
    assert answer.num_rows == 0


def test_a_range_that_is_empty_only_by_the_clock_is_logged(store, caplog):
    features = ["rates:rate"]
    path = store.get_feature_view("rates").batch_source.path
    late = pq.read_table(path)
    late = late.set_column(late.column_names.index("created"), "created", moments(90, 90))
    pq.write_table(late, path)
    assert between(store, 0, 4, features) == []
    assert "No row became visible from 2020-01-01T12:00:00+00:00" in caplog.text
    assert "under the knowledge clock, but 2 events fall into this range" in caplog.text
    caplog.clear()
    assert between(store, 5, 6, features) == []
    assert len(between(store, 0, 90, features)) == 2
    store.config.offline_store.clock = "event"
    assert [row[:2] for row in between(store, 0, 4, features)] == [(1, 1.0), (2, 4.0)]
    assert "No row" not in caplog.text


def test_metrics_of_features_are_those_of_their_rows(store):
    offline = store._get_provider().offline_store
    view = store.get_feature_view("trips")
    count, kind = offline.compute_monitoring_metrics(
        store.config,
        view.batch_source,
        [("count", "numeric"), ("kind", "categorical"), ("gone", "numeric")],
        "event",
        NOON,
        NOON + 2 * HOUR,
        histogram_bins=2,
        top_n=1,
    )
    assert (count["row_count"], count["null_count"], count["mean"]) == (5, 0, 12.4)
    assert (count["min_val"], count["p50"], count["max_val"]) == (9.0, 11.0, 20.0)
    assert count["histogram"] == {"bins": [9.0, 14.5, 20.0], "counts": [4, 1], "bin_width": 5.5}
    assert (kind["row_count"], kind["null_count"], kind["null_rate"]) == (5, 1, 0.2)
    assert kind["histogram"] == {
        "values": [{"value": "a", "count": 2}],
        "other_count": 2,
        "unique_count": 3,
    }
    last = offline.get_monitoring_max_timestamp(store.config, view.batch_source, "event")
    assert last == NOON + 50 * HOUR


def test_numbers_that_are_not_finite_are_rows_and_no_more(store):
    offline = store._get_provider().offline_store
    view = store.get_feature_view("rates")
    (rate,) = offline.compute_monitoring_metrics(
        store.config, view.batch_source, [("rate", "numeric")], "event"
    )
    assert (rate["row_count"], rate["null_count"], rate["max_val"]) == (2, 0, 0.5)
    assert sum(rate["histogram"]["counts"]) == 1


def metric(day, *, mean, baseline=False):
    return {
        "project_id": "small",
        "feature_view_name": "trips",
        "feature_name": "count",
        "metric_date": date(2020, 1, day),
        "granularity": "daily",
        "data_source_type": "batch",
        "computed_at": NOON,
        "is_baseline": baseline,
        "row_count": 3,
        "mean": mean,
        "histogram": {"bins": [0, 1], "counts": [3]},
    }


def test_metrics_are_saved_replaced_and_found(store):
    offline, config = store._get_provider().offline_store, store.config
    offline.ensure_monitoring_tables(config)
    assert offline.query_monitoring_metrics(config, "small", "feature") == []
    offline.save_monitoring_metrics(
        config, "feature", [metric(2, mean=1.0), metric(1, mean=2.0, baseline=True)]
    )
    offline.save_monitoring_metrics(config, "feature", [metric(2, mean=float("nan"))])
    first, second = offline.query_monitoring_metrics(
        config, "small", "feature", {"feature_name": "count", "granularity": None}
    )
    assert (first["metric_date"], first["mean"], first["is_baseline"]) == ("2020-01-01", 2.0, True)
    assert (second["metric_date"], second["mean"]) == ("2020-01-02", None)
    assert second["histogram"] == {"bins": [0, 1], "counts": [3]}
    assert not offline.query_monitoring_metrics(
        config, "small", "feature", start_date=date(2020, 1, 3)
    )
    assert not offline.query_monitoring_metrics(config, "other", "feature")
    offline.clear_monitoring_baseline(config, "small", feature_view_name="trips")
    assert not any(
        row["is_baseline"] for row in offline.query_monitoring_metrics(config, "small", "feature")
    )
