"""Each cause is produced on the way online, or in the history, and found again by the audit."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from served_log import HOUR_US, Faults, HistoryRow, serve
from tallystick.clock import to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import InputError, StateError
from tallystick.model_bundle.bundle import Bundle, load_bundle, write_bundle
from tallystick.records.record_store import ParityReport
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
END = BEGIN + timedelta(days=10)
STOP_US = to_us(BEGIN + timedelta(days=4))
RESUME_US = to_us(BEGIN + timedelta(days=6))
VALUES_PER_REQUEST = 5


@pytest.fixture
def contract(champion_repo: Repo) -> ModelContract:
    return champion_contract(champion_repo, MODEL)


def audited(repo: Repo, contract: ModelContract, faults: Faults) -> ParityReport:
    requests = serve(repo, contract, start=BEGIN, end=END, faults=faults)
    report = audit(repo, MODEL, start=BEGIN, end=END).report
    assert report.requests == requests
    assert report.values == requests * VALUES_PER_REQUEST
    assert report.equal + sum(report.causes.values()) == report.values
    return report


def changing(view: str, change: Any) -> Any:
    """A fault of one view's rows."""
    return lambda name, row: change(row) if name == view else row


def test_a_clean_log_has_no_mismatch(champion_repo: Repo, contract: ModelContract) -> None:
    report = audited(champion_repo, contract, Faults())
    assert report.causes == {}
    assert report.equal == report.values > 1_000


def late(row: HistoryRow) -> HistoryRow:
    stopped = STOP_US <= row.write_us < RESUME_US
    return dataclasses.replace(row, write_us=RESUME_US) if stopped else row


def uncorrected(row: HistoryRow) -> HistoryRow | None:
    """Corrections are known three hours later and more, first versions after half an hour."""
    return None if row.created_us - row.event_us > HOUR_US else row


def late_and_wrong_way_round(row: HistoryRow) -> HistoryRow:
    """What became known in a spell is written at its end, but in an order of its own."""
    stopped = STOP_US <= row.write_us < RESUME_US
    return dataclasses.replace(row, write_us=row.write_us + 30 * HOUR_US) if stopped else row


def early(row: HistoryRow) -> HistoryRow:
    return dataclasses.replace(row, write_us=row.event_us - HOUR_US)


def redefined(row: HistoryRow) -> HistoryRow:
    altered = dict.fromkeys(row.values)
    if row.write_us < STOP_US:
        return row
    return dataclasses.replace(row, definition="0" * 16, values=altered)


def unknown(row: HistoryRow) -> HistoryRow | None:
    return None if row.key[0] == "shop-b" else row


def cut(feature: str, value: Any) -> Any:
    return float(int(value)) if feature == "item_stats__price" and value is not None else value


def filled(feature: str, value: Any) -> Any:
    return 0 if feature == "item_stats__stock" and value is None else value


@pytest.mark.parametrize(
    ("faults", "view", "cause"),
    [
        (Faults(row=changing("shop_stats", late)), "shop_stats", "materialization_lag"),
        (
            Faults(row=changing("item_stats", uncorrected)),
            "item_stats",
            "correction_not_propagated",
        ),
        (Faults(row=changing("shop_stats", early)), "shop_stats", "early_visibility"),
        (Faults(row=changing("shop_stats", redefined)), "shop_stats", "definition_changed"),
        (Faults(row=changing("shop_stats", unknown)), "shop_stats", "entity_missing"),
        (Faults(ttl_factor=None), "item_stats", "expired_or_ttl"),
        (Faults(ttl_factor=0.1), "item_stats", "expired_or_ttl"),
        (Faults(value=cut), "item_stats", "type_or_precision"),
        (Faults(value=filled), "item_stats", "type_or_precision"),
        (
            Faults(output=lambda value: None if value is None else value + 1),
            "order_value",
            "transform",
        ),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_one_fault_is_one_cause(
    champion_repo: Repo, contract: ModelContract, faults: Faults, view: str, cause: str
) -> None:
    report = audited(champion_repo, contract, faults)
    assert set(report.views) == {view}
    assert set(report.causes) == {cause}
    assert report.causes[cause] >= 5
    shown = report.exemplars[cause]
    assert 1 <= len(shown) <= 3
    assert all(one.served != one.expected for one in shown)


def test_an_older_row_that_came_last(champion_repo: Repo, contract: ModelContract) -> None:
    faults = Faults(row=changing("shop_stats", late_and_wrong_way_round), order=True)
    report = audited(champion_repo, contract, faults)
    # Until the delayed rows come, the store lags; then they replace newer ones.
    assert set(report.causes) == {"materialization_lag", "out_of_order_write"}
    assert min(report.causes.values()) > 20


@pytest.mark.parametrize("what", ["time", "value"])
def test_a_rewritten_history(champion_repo: Repo, contract: ModelContract, what: str) -> None:
    requests = serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    path = champion_repo.path / "data" / "shop_stats.parquet"
    table = pq.read_table(path)
    chosen = np.array(table["shop"].to_pylist()) == "shop-c"
    if what == "time":
        moved = table["event_time"].cast(pa.int64()).to_numpy() - np.where(chosen, 60_000_000, 0)
        table = table.set_column(
            table.schema.get_field_index("event_time"),
            "event_time",
            pa.array(moved).cast(pa.timestamp("us", tz="UTC")),
        )
    load = table["load"].to_numpy() + np.where(chosen, 7.5, 0.0)
    table = table.set_column(table.schema.get_field_index("load"), "load", pa.array(load))
    pq.write_table(table, path)
    report = audit(champion_repo, MODEL, start=BEGIN, end=END).report
    assert set(report.causes) == {"source_rewritten"}
    assert set(report.views) == {"shop_stats"}
    assert requests / 12 < report.causes["source_rewritten"] < requests / 3


def test_a_wrong_input_is_not_counted_again_in_what_is_computed_from_it(
    champion_repo: Repo, contract: ModelContract
) -> None:
    report = audited(champion_repo, contract, Faults(value=cut))
    assert "order_value" not in report.views


def test_a_key_that_comes_late_lags_and_is_not_missing(
    champion_repo: Repo, contract: ModelContract
) -> None:
    def comes_late(name: str, row: HistoryRow) -> HistoryRow:
        late_one = name == "shop_stats" and row.key == ("shop-b",) and row.write_us < STOP_US
        return dataclasses.replace(row, write_us=STOP_US) if late_one else row

    report = audited(champion_repo, contract, Faults(row=comes_late))
    assert set(report.causes) == {"materialization_lag"}


def test_several_faults_at_once(champion_repo: Repo, contract: ModelContract) -> None:
    def both(name: str, row: HistoryRow) -> HistoryRow | None:
        return late(row) if name == "shop_stats" else uncorrected(row)

    report = audited(champion_repo, contract, Faults(row=both, value=filled))
    assert report.views["shop_stats"].keys() == {"materialization_lag"}
    assert report.views["item_stats"].keys() == {"correction_not_propagated", "type_or_precision"}


def test_what_nothing_explains(champion_repo: Repo, contract: ModelContract) -> None:
    calls = iter(range(10_000_000))

    def now_and_then(feature: str, value: Any) -> Any:
        damaged = feature == "shop_stats__load" and value is not None and next(calls) % 40 == 39
        return value + 0.5 if damaged else value

    report = audited(champion_repo, contract, Faults(value=now_and_then))
    # A row that was served once, and damaged then, looks like one that history rewrote.
    assert set(report.causes) <= {"unexplained", "source_rewritten"}
    assert report.unexplained >= 1
    assert report.exemplars["unexplained"]


def test_two_contracts_in_one_log(champion_repo: Repo, contract: ModelContract) -> None:
    other = contract.model_copy(update={"threshold": 0.4})
    assert other.contract_hash != contract.contract_hash
    first = load_bundle(champion_repo.state_dir, MODEL, contract.contract_hash)
    write_bundle(champion_repo.state_dir, Bundle(other, first.estimator, first.transforms))
    middle = BEGIN + timedelta(days=5)
    faults = Faults(row=changing("shop_stats", late))
    requests = serve(champion_repo, contract, start=BEGIN, end=middle, faults=faults)
    requests += serve(champion_repo, other, start=middle, end=END, faults=faults)
    report = audit(champion_repo, MODEL, start=BEGIN, end=END).report
    assert report.requests == requests
    assert set(report.causes) == {"materialization_lag"}


def test_no_log_and_no_model(champion_repo: Repo, contract: ModelContract) -> None:
    with pytest.raises(StateError, match="no logged predictions"):
        audit(champion_repo, MODEL, start=BEGIN, end=END)
    with pytest.raises(InputError, match="no model"):
        audit(champion_repo, "other_model", start=BEGIN, end=END)
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    assert audit(champion_repo, MODEL, start=END, end=END + timedelta(days=1)).report.requests == 0
