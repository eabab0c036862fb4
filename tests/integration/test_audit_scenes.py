"""Small scenes in which audits in steps, causes or sums could go wrong."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sklearn.dummy import DummyClassifier

from audits import anew, assert_same, in_steps
from served_log import HOUR_US, Faults, HistoryRow, read_requests, serve
from tallystick.clock import to_us
from tallystick.definitions.contract import FeatureSpec, ModelContract, ViewUse
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_view import Column
from tallystick.model_bundle.bundle import Bundle, write_bundle
from tallystick.point_in_time.on_demand import Transforms
from tallystick.prediction_log.compactor import compact, forget_file
from tallystick_monitoring.audit import audit_run
from tallystick_monitoring.audit.audit_run import Audited, audit
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
DAY = timedelta(days=1)
END = BEGIN + 4 * DAY


@pytest.fixture
def contract(champion_repo: Repo) -> ModelContract:
    return champion_contract(champion_repo, MODEL)


def of(view: str, change):
    return lambda name, row: change(row) if name == view else row


def never(key: str):
    """A shop whose own rows never come online."""
    return lambda view, row: None if view == "shop_stats" and row.key == (key,) else row


def write_history(repo: Repo, view: str, change) -> None:
    path = repo.path / "data" / f"{view}.parquet"
    pq.write_table(change(pq.read_table(path)), path)


def other_contract(repo: Repo, contract: ModelContract, use: ViewUse) -> ModelContract:
    """One of a later training, with the features of one view."""
    other = contract.model_copy(
        update={
            "views": (use,),
            "features": tuple(
                FeatureSpec(
                    name=f"{use.name}__{column.name}",
                    view=use.name,
                    feature=column.name,
                    dtype=column.dtype,
                    kind="view",
                )
                for column in use.spec.columns
                if column.name in use.columns
            ),
            "transforms": (),
            "request_fields": (),
            "entity_keys": tuple(
                key for key in contract.entity_keys if key.name in use.key_map.values()
            ),
        }
    )
    estimator = DummyClassifier().fit([[0.0], [0.0]], [0, 1])
    write_bundle(repo.state_dir, Bundle(other, estimator, Transforms.from_repo(repo, other)))
    return other


def use_of(contract: ModelContract, view: str) -> ViewUse:
    return next(use for use in contract.views if use.spec.name == view)


def log_files(repo: Repo, day: datetime) -> list[str]:
    log = repo.state_dir / "log"
    found = log.rglob(f"date={day:%Y-%m-%d}/*.parquet")
    return sorted(str(path.relative_to(log)) for path in found)


def test_a_key_that_was_dropped_online(champion_repo: Repo, contract: ModelContract) -> None:
    middle = to_us(BEGIN + DAY)
    faults = Faults(
        dropped=lambda view, key, at: view == "shop_stats" and key == ("shop-b",) and at >= middle
    )
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + 2 * DAY, faults=faults)
    report = audit(champion_repo, MODEL, start=BEGIN, end=BEGIN + 2 * DAY).report
    # It was seen online before: nobody can say that it never came.
    assert set(report.causes) == {"materialization_lag"}
    assert report.causes["materialization_lag"] >= 4


def test_definitions_with_other_keys_do_not_speak_for_each_other(
    champion_repo: Repo, contract: ModelContract
) -> None:
    first = use_of(contract, "item_stats")
    spec = first.spec.model_copy(
        update={"join_keys": (Column(name="item", dtype="INT64"),), "ttl_us": None}
    )
    use = ViewUse(spec=spec, name="item_stats", key_map={"item": "item"}, columns=("price",))
    other = other_contract(champion_repo, contract, use)
    assert other.views[0].spec.definition_hash != first.spec.definition_hash
    faults = Faults(row=of("item_stats", lambda row: None if row.key[0] == "shop-b" else row))
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=faults)
    first_only = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert set(first_only.report.causes) == {"entity_missing"}
    serve(champion_repo, other, start=BEGIN + DAY, end=END, faults=Faults())
    found = in_steps(champion_repo, start=BEGIN, end=END)
    # The second contract's rows of an item are of no shop.
    assert found.report.causes == first_only.report.causes
    assert found.findings.schema == first_only.findings.schema


def test_a_change_in_what_only_one_definition_has(
    champion_repo: Repo, contract: ModelContract
) -> None:
    first = use_of(contract, "shop_stats")
    for column in ("load", "orders"):
        few = tuple(each for each in first.spec.columns if each.name == column)
        spec = first.spec.model_copy(update={"columns": few})
        use = first.model_copy(update={"spec": spec, "columns": (column,)})
        other = other_contract(champion_repo, contract, use)
        start = BEGIN if column == "load" else BEGIN + DAY
        serve(champion_repo, other, start=start, end=start + DAY, faults=Faults())
    assert audit(champion_repo, MODEL, start=BEGIN, end=END).report.causes == {}
    for column in ("load", "orders"):

        def more(table, column=column):
            changed = pa.array(table[column].to_numpy() + 1)
            return table.set_column(table.schema.get_field_index(column), column, changed)

        write_history(champion_repo, "shop_stats", more)
        found = in_steps(champion_repo, start=BEGIN, end=END)
        assert f"shop_stats__{column}" in found.findings["feature"].to_pylist()


def test_late_and_new_requests_at_once(champion_repo: Repo, contract: ModelContract) -> None:
    """A key that was not seen before is seen by both an import and what is new."""
    missing = Faults(row=never("shop-b"))
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=missing)
    serve(champion_repo, contract, start=BEGIN + 2 * DAY, end=BEGIN + 3 * DAY, faults=missing)
    first = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert set(first.report.causes) == {"entity_missing"}
    serve(champion_repo, contract, start=BEGIN + DAY, end=BEGIN + 2 * DAY, faults=Faults())
    serve(champion_repo, contract, start=BEGIN + 3 * DAY, end=END, faults=Faults())
    found = in_steps(champion_repo, start=BEGIN, end=END)
    assert set(found.report.causes) == {"materialization_lag"}


def test_what_was_seen_is_forgotten(champion_repo: Repo, contract: ModelContract) -> None:
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=Faults(row=never("shop-b")))
    serve(champion_repo, contract, start=BEGIN + DAY, end=BEGIN + 2 * DAY, faults=Faults())
    compact(champion_repo.state_dir)
    first = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert set(first.report.causes) == {"materialization_lag"}
    for path in log_files(champion_repo, BEGIN + DAY):
        forget_file(champion_repo.state_dir, path)
    found = in_steps(champion_repo, start=BEGIN, end=END)
    assert set(found.report.causes) == {"entity_missing"}


def test_findings_whose_requests_are_forgotten_and_not_requested(
    champion_repo: Repo, contract: ModelContract
) -> None:
    missing = Faults(row=never("shop-b"))
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=missing)
    compact(champion_repo.state_dir)
    assert audit(champion_repo, MODEL, start=BEGIN, end=END).findings.num_rows > 0
    for path in log_files(champion_repo, BEGIN):
        forget_file(champion_repo.state_dir, path)
    use = use_of(contract, "item_stats")
    other = other_contract(champion_repo, contract, use)
    serve(champion_repo, other, start=END - DAY, end=END, faults=Faults())
    assert in_steps(champion_repo, start=END - DAY, end=END).report.causes == {}
    assert in_steps(champion_repo, start=BEGIN, end=END).report.causes == {}


@pytest.mark.parametrize("beside", ["before", "between"])
def test_evidence_comes_to_be_beside_the_span(
    champion_repo: Repo, contract: ModelContract, beside: str
) -> None:
    """Predictions are imported of days that no audit asks for."""
    if beside == "between":
        serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=Faults())
    last = BEGIN + 3 * DAY
    gone = Faults(dropped=lambda _, key, __: key == ("shop-b",))
    serve(champion_repo, contract, start=last, end=END, faults=gone)
    span = {"start": last, "end": END}
    first = audit(champion_repo, MODEL, **span)
    serve(
        champion_repo, contract, start=BEGIN + DAY, end=BEGIN + 2 * DAY, faults=Faults(value=filled)
    )
    found = in_steps(champion_repo, **span)
    assert found.report.requests == first.report.requests
    assert set(found.report.causes) == {"materialization_lag"}


def filled(name: str, value):
    return 0 if value is None and name.endswith("stock") else value


def test_late_history_leaves_what_was_not_requested(
    champion_repo: Repo, contract: ModelContract
) -> None:
    def less(table):
        return table.filter(pa.array(np.arange(table.num_rows) % 3 > 0))

    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=Faults())
    hours = [BEGIN + timedelta(hours=each) for each in (0, 8, 16, 24)]
    audit(champion_repo, MODEL, start=hours[0], end=hours[1])
    write_history(champion_repo, "shop_stats", less)
    audit(champion_repo, MODEL, start=hours[2], end=hours[3])
    path = champion_repo.state_dir / "audit" / MODEL / "knowledge" / "findings"
    remaining = pq.read_table(path)
    times = remaining["request_time"].cast(pa.int64()).to_numpy()
    requested = (times < to_us(hours[1])) | (times >= to_us(hours[2]))
    assert remaining.num_rows > 5
    assert requested.all()


def test_versions_that_come_later_of_rows_whose_store_tells_no_more(
    champion_repo: Repo, contract: ModelContract
) -> None:
    """The value that was served turns out to be that of a correction, known days later."""

    def other(name: str, value):
        return value + 0.5 if name == "shop_stats__load" and value is not None else value

    end = BEGIN + DAY
    serve(champion_repo, contract, start=BEGIN, end=end, faults=Faults(value=other, stamped=False))
    first = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert set(first.report.causes) == {"unexplained"}

    def corrected(table):
        known = table["created_time"].cast(pa.int64()).to_numpy() + 72 * HOUR_US
        late = table["event_time"].cast(pa.int64()).to_numpy() >= to_us(BEGIN - DAY)
        again = table.set_column(
            table.schema.get_field_index("created_time"),
            "created_time",
            pa.array(known).cast(table.schema.field("created_time").type),
        ).set_column(
            table.schema.get_field_index("load"),
            "load",
            pa.array(table["load"].to_numpy() + 0.5),
        )
        return pa.concat_tables([table, again.filter(pa.array(late))])

    write_history(champion_repo, "shop_stats", corrected)
    found = in_steps(champion_repo, start=BEGIN, end=END)
    assert "early_visibility" in found.report.causes


def test_a_row_from_the_future_comes_to_be_in_history(
    champion_repo: Repo, contract: ModelContract
) -> None:
    path = champion_repo.path / "data" / "shop_stats.parquet"
    whole = pq.read_table(path)

    def ahead(row: HistoryRow) -> HistoryRow:
        return dataclasses.replace(row, write_us=row.event_us - 3 * HOUR_US)

    faults = Faults(row=of("shop_stats", ahead))
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + 2 * DAY, faults=faults)
    known = whole["created_time"].cast(pa.int64()).to_numpy() < to_us(BEGIN + DAY)
    pq.write_table(whole.filter(pa.array(known)), path)
    audit(champion_repo, MODEL, start=BEGIN, end=BEGIN + DAY)
    pq.write_table(whole, path)
    found = in_steps(champion_repo, start=BEGIN, end=END)
    assert set(found.report.causes) == {"early_visibility"}


def damage(repo: Repo, path: str, column: str) -> None:
    """Flip a byte in the middle of one column of a file of the log."""
    location = repo.state_dir / "log" / path
    group = pq.ParquetFile(location).metadata.row_group(0)
    chunks = [group.column(at) for at in range(group.num_columns)]
    (chunk,) = [each for each in chunks if each.path_in_schema == column]
    begin = chunk.dictionary_page_offset or chunk.data_page_offset
    middle = begin + chunk.total_compressed_size
    content = bytearray(location.read_bytes())
    content[middle - 3] ^= 0xFF
    location.write_bytes(content)


def sums(found: Audited) -> None:
    whole = found.report
    lost = whole.causes.get("log_damage", 0)
    assert whole.equal + sum(whole.causes.values()) == whole.values
    assert whole.values - lost == sum(each.values for each in whole.features.values())
    assert whole.values - lost == sum(each.values for each in whole.hours.values())
    wrong = found.findings.num_rows
    assert wrong == sum(each.unequal for each in whole.features.values())
    assert wrong == sum(each.unequal for each in whole.hours.values())
    assert wrong == sum(sum(causes.values()) for causes in whole.views.values())


@pytest.mark.parametrize("when", ["first", "later"])
def test_a_file_of_which_only_some_columns_are_damaged(
    champion_repo: Repo, contract: ModelContract, when: str
) -> None:
    requests = serve(
        champion_repo, contract, start=BEGIN, end=END, faults=Faults(row=never("shop-b"))
    )
    compact(champion_repo.state_dir)
    (path,) = log_files(champion_repo, BEGIN + DAY)
    lost = len(read_requests(champion_repo, BEGIN + DAY, BEGIN + 2 * DAY))
    if when == "later":
        audit(champion_repo, MODEL, start=BEGIN, end=BEGIN + 2 * DAY)
    damage(champion_repo, path, "feature.shop_stats__load")
    whole = audit(champion_repo, MODEL, start=BEGIN, end=END)
    if when == "later":
        # A file that was compared is read again when something is to be compared in its hours.
        write_history(champion_repo, "shop_stats", lambda table: table.slice(0, 500))
        whole = audit(champion_repo, MODEL, start=BEGIN, end=END)
    for found in (whole, in_steps(champion_repo, start=BEGIN, end=END)):
        sums(found)
        assert found.report.requests == requests
        assert found.report.causes["log_damage"] == lost * len(contract.value_columns)
        assert [each.rows for each in found.report.damage] == [lost]
        hours = {hour[:10] for hour in found.report.hours}
        assert f"{BEGIN + DAY:%Y-%m-%d}" not in hours
    # What is damaged beside a span is not of it.
    start = BEGIN + 2 * DAY + timedelta(minutes=90)
    part = audit(champion_repo, MODEL, start=start, end=END)
    sums(part)
    assert "log_damage" not in part.report.causes
    assert part.report.requests == len(read_requests(champion_repo, start, END))


def test_damage_beside_the_span_is_not_counted_for_what_is_in_it(
    champion_repo: Repo, contract: ModelContract
) -> None:
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    compact(champion_repo.state_dir)
    sizes = []
    for day in (BEGIN, BEGIN + 2 * DAY):
        (path,) = log_files(champion_repo, day)
        damage(champion_repo, path, "request_time")
        sizes.append(len(read_requests(champion_repo, day, day + DAY)))
    assert sizes[0] != sizes[1]
    write_history(champion_repo, "shop_stats", lambda table: table.slice(0, 600))
    middle = BEGIN + DAY + timedelta(hours=5)
    for start, end, lost in ((BEGIN, middle, sizes[0]), (middle, END, sizes[1])):
        found = audit(champion_repo, MODEL, start=start, end=end)
        sums(found)
        assert found.report.causes["log_damage"] == lost * len(contract.value_columns)


@pytest.mark.parametrize("store", ["stamped", "unstamped"])
def test_ages_are_those_of_what_was_right(
    champion_repo: Repo, contract: ModelContract, store: str
) -> None:
    """Against every request by itself; a store without stamps cuts times to the second."""

    def cut(row: HistoryRow) -> HistoryRow:
        return dataclasses.replace(row, event_us=row.event_us // 1_000_000 * 1_000_000)

    def moved(table):
        index = table.schema.get_field_index("event_time")
        later = table["event_time"].cast(pa.int64()).to_numpy() + 999_999
        kind = table.schema.field("event_time").type
        return table.set_column(index, "event_time", pa.array(later).cast(kind))

    def wrong(name: str, value):
        off = name == "shop_stats__load" and value is not None and value > 0
        return value + 0.5 if off else value

    stamped = store == "stamped"
    if not stamped:
        write_history(champion_repo, "shop_stats", moved)
    end = BEGIN + 2 * DAY
    faults = Faults(row=Faults().row if stamped else lambda _, row: cut(row), value=wrong)
    serve(
        champion_repo,
        contract,
        start=BEGIN,
        end=end,
        faults=dataclasses.replace(faults, stamped=stamped),
    )
    whole = audit(champion_repo, MODEL, start=BEGIN, end=end)
    bad = {
        each["request_time"] for each in whole.findings.to_pylist() if each["view"] == "shop_stats"
    }
    assert len(bad) > 10
    # The span begins behind a wrong value; ages are counted by whole hours.
    middle = sorted(bad)[4] + timedelta(seconds=1)
    found = audit(champion_repo, MODEL, start=middle, end=end)
    start = middle.replace(minute=0, second=0)
    table = pq.read_table(champion_repo.path / "data" / "shop_stats.parquet").to_pylist()
    ages = []
    for request in read_requests(champion_repo, start, end):
        visible = [
            row["event_time"]
            for row in table
            if row["shop"] == request["shop"]
            and max(row["event_time"], row["created_time"]) <= request["event_time"]
        ]
        if request["event_time"] not in bad:
            ages.append((request["event_time"] - max(visible)).total_seconds())
    freshness = found.report.staleness["shop_stats"]
    assert freshness.values == len(ages)
    assert freshness.age_s_p50 == pytest.approx(np.sort(ages)[-(-len(ages) // 2) - 1], rel=0.03)


def test_ids_that_a_server_gives_more_than_once(
    champion_repo: Repo, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    import served_log

    class Repeated(served_log.PredictionLog):
        def append(self, contract, predictions):
            predictions.prediction_id = [f"p-{predictions.request_us // 1_000_000 % 3}"]
            return super().append(contract, predictions)

    monkeypatch.setattr(served_log, "PredictionLog", Repeated)
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults(row=never("shop-b")))
    first = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert first.report.effect is not None
    assert first.report.effect.requests == len(set(first.findings["request_time"].to_pylist()))

    def changed(table):
        mine = np.array(table["shop"].to_pylist()) == "shop-c"
        late = table["event_time"].cast(pa.int64()).to_numpy() > to_us(BEGIN + 2 * DAY)
        return table.filter(pa.array(~(mine & late)))

    write_history(champion_repo, "shop_stats", changed)
    found = in_steps(champion_repo, start=BEGIN, end=END)
    assert found.findings.num_rows > first.findings.num_rows


def test_the_last_hour_that_a_time_can_have(champion_repo: Repo, contract: ModelContract) -> None:
    faults = Faults(row=never("shop-b"))
    last = datetime.max.replace(tzinfo=UTC)
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=faults)
    audit(champion_repo, MODEL, start=BEGIN, end=last)
    serve(champion_repo, contract, start=BEGIN + DAY, end=BEGIN + 2 * DAY, faults=faults)
    found = in_steps(champion_repo, start=BEGIN, end=last)
    assert set(found.report.causes) == {"entity_missing"}


@pytest.mark.parametrize("values_max", [1, 60])
def test_batches_find_what_one_does(
    champion_repo: Repo,
    contract: ModelContract,
    monkeypatch: pytest.MonkeyPatch,
    values_max: int,
) -> None:
    faults = Faults(row=never("shop-b"), value=filled, ttl_factor=0.2)
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=faults)
    whole = audit(champion_repo, MODEL, start=BEGIN, end=END)
    monkeypatch.setattr(audit_run, "VALUES_MAX", values_max)
    assert_same(whole, anew(champion_repo, start=BEGIN, end=END))


def test_a_new_beginning_that_is_cut_short_leaves_what_was_known(
    champion_repo: Repo, contract: ModelContract, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults(row=never("shop-b")))
    whole = audit(champion_repo, MODEL, start=BEGIN, end=END)

    def killed(*_arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("tallystick_monitoring.audit.audit_state.write_text", killed)
        with pytest.raises(KeyboardInterrupt):
            audit(champion_repo, MODEL, start=BEGIN, end=BEGIN + timedelta(hours=9), again=True)
    found = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert found.report.read == 0
    assert_same(found, whole)
