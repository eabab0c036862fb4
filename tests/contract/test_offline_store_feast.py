"""The offline store behind Feast's own FeatureStore, on a small repo of real files."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import pandas as pd
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
from feast.data_source import RequestSource
from feast.dqm.errors import ValidationFailed
from feast.dqm.profilers.profiler import Profile, Profiler, ValidationError, ValidationReport
from feast.errors import SavedDatasetLocationAlreadyExists
from feast.infra.offline_stores.file_source import SavedDatasetFileStorage
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float32, Int64, Map, Struct

from feast_stores import feast_store
from tallystick.errors import DataError, InputError
from tallystick.offline_store.sources.parquet_writer import append

NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)
BIG = 2**53 + 1
HOUR = timedelta(hours=1)

# Feast's own code, which these tests run, warns about its future.
pytestmark = [
    pytest.mark.filterwarnings("ignore::DeprecationWarning:feast"),
    pytest.mark.filterwarnings("ignore:On demand feature view is an experimental"),
]


def driver_rows():
    """Naive and aware times in nanoseconds, a late row, a correction, nulls and nested values."""
    return pd.DataFrame(
        {
            "driver": pd.array([1, 1, 1, 2], dtype="Int64"),
            "happened": pd.to_datetime([NOON, NOON + HOUR, NOON, NOON], utc=True).astype(
                "datetime64[ns, UTC]"
            ),
            "known": pd.to_datetime(
                ["2020-01-01 12:00", "2020-01-01 20:00"] + 2 * ["2020-01-01 13:00"]
            ),
            "n_trips": pd.array([1, 2, BIG, None], dtype="Int64"),
            "rate": pd.array([0.1, 0.2, 0.3, None], dtype="Float32"),
            "tags": [{"a": "x"}, {"a": "y"}, {"a": "z"}, None],
        }
    )


@pytest.fixture
def store(tmp_path, offline_store):
    (tmp_path / "data").mkdir()
    table = pa.Table.from_pandas(driver_rows(), preserve_index=False)
    spot = pa.array([{"x": 1}, {"x": 2}, {"x": 3}, None], pa.struct([("x", pa.int64())]))
    pq.write_table(table.append_column("spot", spot), tmp_path / "data" / "drivers.parquet")
    store = feast_store(tmp_path, offline=offline_store)
    driver = Entity(name="driver", join_keys=["driver_id"], value_type=ValueType.INT64)
    source = FileSource(
        path="data/drivers.parquet",
        timestamp_field="happened",
        created_timestamp_column="known",
        field_mapping={"driver": "driver_id", "n_trips": "trips"},
    )
    schema = [
        Field(name="driver_id", dtype=Int64),
        Field(name="trips", dtype=Int64),
        Field(name="rate", dtype=Float32),
        Field(name="tags", dtype=Map),
        Field(name="spot", dtype=Struct({"x": Int64})),
    ]
    stats = FeatureView(
        name="stats", entities=[driver], ttl=timedelta(hours=2), schema=schema, source=source
    )

    extra = Field(name="extra", dtype=Int64)

    @on_demand_feature_view(
        sources=[stats[["trips"]], RequestSource(name="requested", schema=[extra])],
        schema=[Field(name="sum", dtype=Int64)],
        mode="python",
    )
    def plus(inputs):
        pairs = zip(inputs["trips"], inputs["extra"], strict=True)
        return {"sum": [None if trips is None else trips + extra for trips, extra in pairs]}

    service = FeatureService(name="both", features=[stats[["trips", "rate"]], plus])
    store.apply([driver, stats, plus, service])
    return store


def entity_frame(*hours, driver=1):
    return pd.DataFrame(
        {
            "driver_id": [driver] * len(hours),
            "event_timestamp": [NOON + hour * HOUR for hour in hours],
            "extra": range(len(hours)),
        }
    )


def test_the_config_names_the_class(store, offline_store):
    name = offline_store["type"].rpartition(".")[2]
    assert type(store.config.offline_store).__name__ == f"{name}Config"
    assert type(store.config.offline_store)().clock == "event"
    assert type(offline(store)).__name__ == name
    assert offline(store).supports_filter_by_created_timestamp


def offline(store):
    return store._get_provider().offline_store


def test_rows_come_back_in_order_with_what_was_known(store):
    entity_rows = entity_frame(2, 0, -1, 2, 3, 9)
    job = store.get_historical_features(
        entity_rows, ["stats:trips", "stats:rate"], full_feature_names=True
    )
    got = job.to_df()
    assert got["event_timestamp"].tolist() == entity_rows["event_timestamp"].tolist()
    # At 2 the correction of noon is known; at 9 the row of one o'clock has been, but is too old.
    assert got["stats__trips"].tolist() == [BIG, 1, pd.NA, BIG, pd.NA, pd.NA]
    assert str(got["stats__trips"].dtype) == "Int64"
    table = job.to_arrow()
    assert table.schema.field("stats__trips").type == pa.int64()
    assert table.schema.field("stats__rate").type == pa.float32()


def test_the_event_clock_sees_late_rows_and_says_so_unless_the_created_time_is_requested(
    store, caplog
):
    store.config.offline_store.clock = "event"
    entity_rows = entity_frame(0, 1, 9)
    trips = ["stats:trips"]
    answer = store.get_historical_features(entity_rows, trips).to_df()["trips"]
    assert answer.tolist() == [BIG, 2, pd.NA]
    # The third is too old, and so no value.
    (warning,) = [each.getMessage() for each in caplog.records if "known" in each.getMessage()]
    assert warning == (
        "2 of 3 values come from rows that became known after the request (view stats, 1:00:00 in "
        "the median). offline_store.clock: knowledge leaves them out."
    )
    caplog.clear()
    known = store.get_historical_features(entity_rows, trips, filter_by_created_timestamp=True)
    assert known.to_df()["trips"].tolist() == [1, BIG, pd.NA]
    assert "known" not in caplog.text


def test_sql_and_arrow_entity_rows_answer_as_a_frame_does(store):
    entity_rows = entity_frame(0, 1, 2)
    expected = (
        store.get_historical_features(entity_rows, ["stats:trips"]).to_arrow()["trips"].to_pylist()
    )
    sql = (
        "SELECT 1 AS driver_id, TIMESTAMP '2020-01-01 12:00:00' + h * INTERVAL '1' HOUR "
        "AS event_timestamp FROM (VALUES (0), (1), (2)) AS hours(h)"
    )
    got = store.get_historical_features(sql, ["stats:trips"]).to_arrow()
    assert got["trips"].to_pylist() == expected == [1, BIG, BIG]
    table = pa.Table.from_pandas(entity_rows, preserve_index=False)
    got = store.get_historical_features(table, ["stats:trips"]).to_arrow()
    assert got["trips"].to_pylist() == expected


@pytest.mark.parametrize("full", [True, False])
def test_on_demand_views_are_computed_from_the_rows(store, full):
    service = store.get_feature_service("both")
    got = store.get_historical_features(entity_frame(0, 1, -1), service, full_feature_names=full)
    name = "plus__sum" if full else "sum"
    assert got.to_arrow()[name].to_pylist() == [1, BIG + 1, None]


def test_nested_values_keep_the_type_of_their_source(store):
    got = store.get_historical_features(entity_frame(0), ["stats:tags", "stats:spot"]).to_arrow()
    assert got["tags"].to_pylist() == [{"a": "x"}]
    assert got.schema.field("tags").type == pa.struct([("a", pa.string())])
    assert got["spot"].to_pylist() == [{"x": 1}]


def test_materialize_writes_the_latest_correction(store):
    store.materialize(NOON - HOUR, NOON)
    names = ["stats:rate", "stats:tags", "stats:spot"]
    got = store.get_online_features(names, [{"driver_id": 1}]).to_dict()
    assert got["rate"] == [pytest.approx(0.3)]
    assert got["tags"] == [{"a": "z"}]
    assert got["spot"] == [{"x": 3}]


def test_pulled_rows_keep_their_integers(store):
    source = store.get_feature_view("stats").batch_source
    columns = (["driver"], ["n_trips"], "happened", "known")
    window = (NOON - HOUR, NOON)
    latest = offline(store).pull_latest_from_table_or_query(store.config, source, *columns, *window)
    assert latest.to_arrow().select(["driver", "n_trips"]).to_pydict() == {
        "driver": [1, 2],
        "n_trips": [BIG, None],
    }
    rows = offline(store).pull_all_from_table_or_query(store.config, source, *columns, *window)
    assert rows.to_arrow()["n_trips"].to_pylist() == [1, BIG, None]


def test_written_rows_are_read_again(store, tmp_path):
    view = store.get_feature_view("stats")
    row = pq.read_table(tmp_path / "data" / "drivers.parquet").slice(0, 1)
    later = pa.array([NOON + 2 * HOUR], pa.timestamp("us", tz="UTC"))
    row = row.set_column(row.column_names.index("happened"), "happened", later)
    offline(store).offline_write_batch(store.config, view, row, None)
    got = store.get_historical_features(entity_frame(2), ["stats:trips"]).to_df()
    assert got["trips"].tolist() == [1]
    with pytest.raises(DataError, match="n_trips: expected a column, got no such column"):
        offline(store).offline_write_batch(store.config, view, row.drop_columns(["n_trips"]), None)


@pytest.mark.parametrize("path", ["one.parquet", "folder"])
def test_writers_at_the_same_time_lose_nothing(tmp_path, path):
    source = FileSource(path=path, timestamp_field="happened")
    if path == "folder":
        (tmp_path / path).mkdir()
    tables = [pa.table({"n": [n], "happened": [NOON]}) for n in range(8)]
    threads = [
        threading.Thread(target=append, args=(source, table), kwargs={"repo_path": tmp_path})
        for table in tables
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(pq.read_table(tmp_path / path)["n"].to_pylist()) == list(range(8))


def test_a_saved_dataset_is_written_once(store, tmp_path):
    job = store.get_historical_features(
        entity_frame(0, 1), ["stats:trips"], full_feature_names=True
    )
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    job.persist(storage)
    assert pq.read_table(tmp_path / "saved.parquet")["stats__trips"].to_pylist() == [1, BIG]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    job.persist(storage, allow_overwrite=True)


@pytest.mark.filterwarnings("ignore:Saving dataset is an experimental", "ignore:Retrieving dataset")
def test_a_saved_dataset_may_be_a_folder_of_its_own(store, tmp_path):
    folder = tmp_path / "saved"
    storage = SavedDatasetFileStorage(path=str(folder))
    for hours, trips in (((0, 1), [1, BIG]), ((1,), [BIG])):
        job = store.get_historical_features(entity_frame(*hours), ["stats:trips"])
        store.create_saved_dataset(job, "saved", storage, allow_overwrite=True)
        assert store.get_saved_dataset("saved").to_arrow()["trips"].to_pylist() == trips
        assert [file.name for file in folder.iterdir()] == ["dataset.parquet"]
    with pytest.raises(SavedDatasetLocationAlreadyExists):
        job.persist(storage)
    pq.write_table(pa.table({"n": [1]}), folder / "other.parquet")
    with pytest.raises(DataError, match=r"the folder has other Parquet files"):
        job.persist(storage, allow_overwrite=True)
    assert pq.read_table(folder / "other.parquet")["n"].to_pylist() == [1]


@pytest.mark.parametrize("name", ["saved", "saved.parquet"])
def test_a_saved_dataset_goes_where_a_file_or_folder_is(store, tmp_path, name):
    location = tmp_path / name
    if location.suffix:
        location.mkdir()
    else:
        pq.write_table(pa.table({"n": [1]}), location)
    job = store.get_historical_features(entity_frame(0), ["stats:trips"])
    job.persist(SavedDatasetFileStorage(path=str(location)), allow_overwrite=True)
    assert pq.read_table(location)["trips"].to_pylist() == [1]
    assert location.is_dir() == bool(location.suffix)


class IntegersReport(ValidationReport):
    """Which columns are of integers in one frame only."""

    def __init__(self, required, found):
        self._errors = [ValidationError("is integer", name) for name in sorted(required ^ found)]

    @property
    def is_success(self):
        return not self._errors

    @property
    def errors(self):
        return self._errors


class IntegersProfile(Profile):
    """Expects integers in the columns of the frame that it was taken of."""

    def __init__(self, dataset):
        self.columns = set(dataset.select_dtypes("integer").columns)

    def validate(self, dataset):
        return IntegersReport(self.columns, IntegersProfile(dataset).columns)


class IntegersProfiler(Profiler):
    """Tells integers from all else."""

    def analyze_dataset(self, dataset):
        return IntegersProfile(dataset)


@pytest.mark.filterwarnings("ignore:Saving dataset is an experimental")
def test_a_result_fits_a_reference_of_the_same_kind_and_no_other(store, tmp_path):
    entity_rows = entity_frame(-1, 0, 1).drop(columns="extra")
    job = store.get_historical_features(entity_rows, ["stats:trips", "stats:rate"])
    storage = SavedDatasetFileStorage(path=str(tmp_path / "saved.parquet"))
    saved = store.create_saved_dataset(job, "saved", storage)
    reference = saved.as_reference("same", IntegersProfiler())
    assert reference.profile.columns == {"driver_id", "trips"}
    frame = job.to_df(validation_reference=reference)
    assert frame["trips"].tolist() == [pd.NA, 1, BIG]
    assert job.to_arrow(validation_reference=reference)["trips"].to_pylist() == [None, 1, BIG]
    other = store.get_historical_features(entity_rows, ["stats:rate"])
    with pytest.raises(ValidationFailed) as caught:
        other.to_df(validation_reference=reference)
    assert [error.column_name for error in caught.value.report.errors] == ["trips"]


def test_entity_rows_that_cannot_be_used_say_all_that_is_wrong(store):
    entity_rows = entity_frame(0).rename(columns={"driver_id": "drivre_id"})
    with pytest.raises(InputError, match="key driver_id of view stats: expected INT64"):
        store.get_historical_features(entity_rows, ["stats:trips"]).to_df()
    text = entity_frame(0).assign(driver_id="1")
    with pytest.raises(InputError, match=r"expected INT64, got (large_)?string"):
        store.get_historical_features(text, ["stats:trips"]).to_df()
    empty = entity_frame(0).assign(event_timestamp=pd.NaT)
    with pytest.raises(InputError, match="expected a time in every row, got 1 nulls"):
        store.get_historical_features(empty, ["stats:trips"]).to_df()
