"""Features that a server logged: written in batches by Feast, and read again by time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from feast import (
    Entity,
    FeatureService,
    FeatureView,
    Field,
    FileSource,
    ValueType,
)
from feast.feature_logging import LoggingConfig, LoggingDestination
from feast.infra.offline_stores.file_source import FileLoggingDestination
from feast.types import Array, Float32, Int64, String

from feast_stores import feast_store
from tallystick.errors import DefinitionError

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
HOUR = timedelta(hours=1)
VALUES = {"trips": [2**53 + 1, None], "name": ["a", None], "rates": [[0.5, 1.5], None]}

# Feast's own code, which these tests run, warns about its future.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:feast")


@pytest.fixture
def store(tmp_path, offline_store):
    store = feast_store(tmp_path, offline=offline_store)
    times = pa.array([NOON], pa.timestamp("us", tz="UTC"))
    rows = {"driver_id": [1], "trips": [1], "name": ["a"], "rates": [[0.5]], "event": times}
    pq.write_table(pa.table(rows), tmp_path / "drivers.parquet")
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    view = FeatureView(
        name="stats",
        entities=[driver],
        schema=[
            Field(name="driver_id", dtype=Int64),
            Field(name="trips", dtype=Int64),
            Field(name="name", dtype=String),
            Field(name="rates", dtype=Array(Float32)),
        ],
        source=FileSource(path="drivers.parquet", timestamp_field="event"),
    )
    service = FeatureService(
        name="served",
        features=[view],
        logging_config=LoggingConfig(destination=FileLoggingDestination(path="logs")),
    )
    store.apply([driver, view, service])
    return store


def logged(store, hour):
    """A batch of two requests, one for a driver that nobody knows, as a server logs it."""
    from feast.feature_logging import FeatureServiceLoggingSource

    service = store.get_feature_service("served")
    schema = FeatureServiceLoggingSource(service, store.project).get_schema(store.registry)
    moments = [NOON + hour * HOUR, NOON + hour * HOUR + timedelta(minutes=1)]
    columns = {
        "driver_id": [1, 2],
        **{f"stats__{name}": values for name, values in VALUES.items()},
        **{f"stats__{name}__timestamp": [NOON, None] for name in VALUES},
        **{f"stats__{name}__status": [1, 2] for name in VALUES},
        "__log_timestamp": moments,
        "__log_date": [moment.date() for moment in moments],
        "__request_id": [f"{hour}-1", f"{hour}-2"],
    }
    return pa.table({field.name: pa.array(columns[field.name], field.type) for field in schema})


def read_again(store, first, last):
    return (
        store._get_provider()
        .retrieve_feature_service_logs(
            feature_service=store.get_feature_service("served"),
            start_date=NOON + first * HOUR,
            end_date=NOON + last * HOUR,
            config=store.config,
            registry=store.registry,
        )
        .to_arrow()
    )


@pytest.mark.parametrize("as_path", [False, True], ids=["table", "path"])
def test_logged_batches_are_read_again_by_their_time(store, tmp_path, as_path):
    service = store.get_feature_service("served")
    for hour in range(3):
        batch = logged(store, hour)
        if as_path:
            folder = tmp_path / f"batch-{hour}"
            folder.mkdir()
            pq.write_table(batch, folder / "0.parquet")
            batch = Path(folder)
        store.write_logged_features(batch, source=service)
    assert len(list((tmp_path / "logs").iterdir())) == 3
    found = read_again(store, 1, 2)
    assert found["__request_id"].to_pylist() == ["1-1", "1-2", "2-1"]
    expected = logged(store, 1)
    # Rows that Feast asks for without keys have its stand-in for one.
    assert set(found.column_names) - {"__dummy_id"} == set(expected.column_names)
    first_two = found.slice(0, 2)
    for name in expected.column_names:
        assert first_two[name].to_pylist() == expected[name].to_pylist(), name


def test_a_destination_that_is_not_a_folder_is_refused(store):
    class Elsewhere(LoggingDestination):
        """A destination of another store."""

        def to_proto(self):
            raise NotImplementedError

        @classmethod
        def from_proto(cls, config_proto):
            raise NotImplementedError

        def to_data_source(self):
            raise NotImplementedError

    offline = store._get_provider().offline_store
    config = LoggingConfig(destination=Elsewhere())
    with pytest.raises(DefinitionError, match="cannot be logged to a Elsewhere"):
        offline.write_logged_features(store.config, logged(store, 0), None, config, store.registry)
