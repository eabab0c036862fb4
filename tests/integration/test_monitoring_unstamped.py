"""The audit of a log from an online store that says no more of a row than its event time."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from served_log import HOUR_US, Faults, HistoryRow, read_requests, serve
from tallystick.clock import to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.records.record_store import Incident, ParityReport, load_records
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.incidents import champion_contract
from tallystick_monitoring.monitor_report import monitor, parity_summary
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
END = BEGIN + timedelta(days=10)
STOP_US = to_us(BEGIN + timedelta(days=4))
RESUME_US = to_us(BEGIN + timedelta(days=6))
VIEWS = ["item_stats", "shop_stats"]


@pytest.fixture
def contract(champion_repo: Repo) -> ModelContract:
    return champion_contract(champion_repo, MODEL)


def audited(repo: Repo, contract: ModelContract, **faults: Any) -> ParityReport:
    serve(repo, contract, start=BEGIN, end=END, faults=Faults(stamped=False, **faults))
    return audit(repo, MODEL, start=BEGIN, end=END).report


def of(view: str, change: Any) -> Any:
    """A fault of one view's rows."""
    return lambda name, row: change(row) if name == view else row


def cut(_: str, row: HistoryRow) -> HistoryRow:
    """The store keeps times to the second, and the writer's were a little later."""
    return dataclasses.replace(row, event_us=row.event_us + 900_000)


def late(row: HistoryRow) -> HistoryRow:
    stopped = STOP_US <= row.write_us < RESUME_US
    return dataclasses.replace(row, write_us=RESUME_US) if stopped else row


def uncorrected(row: HistoryRow) -> HistoryRow | None:
    return None if row.created_us - row.event_us > HOUR_US else row


def turned(row: HistoryRow) -> HistoryRow:
    """What became known in a spell is written at its end, but in an order of its own."""
    stopped = STOP_US <= row.write_us < RESUME_US
    return dataclasses.replace(row, write_us=row.write_us + 30 * HOUR_US) if stopped else row


def early(row: HistoryRow) -> HistoryRow:
    return dataclasses.replace(row, write_us=row.event_us)


def redefined(row: HistoryRow) -> HistoryRow:
    altered = {name: value + 0.5 for name, value in row.values.items()}
    return row if row.write_us < STOP_US else dataclasses.replace(row, values=altered)


def unknown(row: HistoryRow) -> HistoryRow | None:
    return None if row.key[0] == "shop-b" else row


def whole(feature: str, value: Any) -> Any:
    return float(int(value)) if feature == "item_stats__price" and value is not None else value


@pytest.mark.parametrize("row", [Faults().row, cut], ids=["exact", "cut"])
def test_a_clean_log_has_no_mismatch(
    champion_repo: Repo, contract: ModelContract, row: Any
) -> None:
    report = audited(champion_repo, contract, row=row)
    assert report.causes == {}
    assert report.equal == report.values > 1_000
    assert report.unstamped == VIEWS
    assert "unstamped   item_stats, shop_stats: the online store" in parity_summary(report)


def test_our_own_store_gets_no_warning(champion_repo: Repo, contract: ModelContract) -> None:
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    report = audit(champion_repo, MODEL, start=BEGIN, end=END).report
    assert report.unstamped == []
    assert "unstamped" not in parity_summary(report)


@pytest.mark.parametrize(
    ("faults", "view", "cause"),
    [
        ({"row": of("shop_stats", late)}, "shop_stats", "materialization_lag"),
        ({"row": lambda _, row: cut(_, late(row))}, None, "materialization_lag"),
        ({"row": of("item_stats", uncorrected)}, "item_stats", "correction_not_propagated"),
        ({"row": of("shop_stats", early)}, "shop_stats", "early_visibility"),
        ({"row": of("shop_stats", unknown)}, "shop_stats", "entity_missing"),
        ({"ttl_factor": None}, "item_stats", "expired_or_ttl"),
        ({"ttl_factor": 0.1}, "item_stats", "expired_or_ttl"),
        ({"value": whole}, "item_stats", "type_or_precision"),
        ({"output": lambda value: value and value + 1}, "order_value", "transform"),
        # What only a stamp could show is not reported.
        ({"row": of("shop_stats", redefined)}, "shop_stats", "unexplained"),
    ],
)
def test_one_fault_is_one_cause(
    champion_repo: Repo,
    contract: ModelContract,
    faults: dict[str, Any],
    view: str | None,
    cause: str,
) -> None:
    report = audited(champion_repo, contract, **faults)
    assert set(report.causes) == {cause}
    assert report.causes[cause] >= 5
    assert set(report.views) == ({view} if view else set(VIEWS))


def test_an_older_row_that_came_last(champion_repo: Repo, contract: ModelContract) -> None:
    report = audited(champion_repo, contract, row=of("shop_stats", turned), order=True)
    assert set(report.causes) == {"materialization_lag", "out_of_order_write"}
    assert min(report.causes.values()) > 20


@pytest.mark.parametrize(
    ("what", "lack"), [("time", "was found"), ("value", "has the value that was served")]
)
def test_a_rewritten_history_is_unexplained(
    champion_repo: Repo, contract: ModelContract, what: str, lack: str
) -> None:
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults(stamped=False))
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
    assert set(report.causes) == {"unexplained"}
    said = report.exemplars["unexplained"][0].evidence
    assert lack in said
    assert "The online store does not say" in said


def test_a_key_that_nobody_is_known_to_have_written_since_lags(
    champion_repo: Repo, contract: ModelContract
) -> None:
    """Only rows of the first moment are online: one that is not may have come a little later."""
    first_us = to_us(START) - 48 * HOUR_US

    def stopped(row: HistoryRow) -> HistoryRow | None:
        return row if row.event_us == first_us and row.key != ("shop-b",) else None

    report = audited(champion_repo, contract, row=of("shop_stats", stopped))
    # As long as no row of the view was seen, nothing of it counts as written.
    shops = [request["shop"] for request in read_requests(champion_repo, BEGIN, END)]
    unseen = next(index for index, shop in enumerate(shops) if shop != "shop-b")
    assert report.causes.pop("entity_missing", 0) == 2 * unseen
    assert set(report.causes) == {"materialization_lag"}


def test_a_store_that_was_changed_for_another(champion_repo: Repo, contract: ModelContract) -> None:
    """A row that was seen with its created time is not newer than itself without."""
    faults = Faults(row=of("shop_stats", late))
    middle = BEGIN + timedelta(days=5)
    serve(champion_repo, contract, start=BEGIN, end=middle, faults=faults)
    unstamped = dataclasses.replace(faults, stamped=False)
    serve(champion_repo, contract, start=middle, end=END, faults=unstamped)
    report = audit(champion_repo, MODEL, start=BEGIN, end=END).report
    assert set(report.causes) == {"materialization_lag"}
    assert report.unstamped == VIEWS


def test_a_feed_that_stops_is_one_incident_of_its_own_time(
    champion_repo: Repo, contract: ModelContract
) -> None:

    def slow(row: HistoryRow) -> HistoryRow:
        # Three hours late always, which is usual, and no part of the incident.
        return late(dataclasses.replace(row, write_us=row.write_us + 3 * HOUR_US))

    faults = Faults(row=of("shop_stats", slow), stamped=False)
    serve(champion_repo, contract, start=BEGIN, end=END, faults=faults)
    monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    (found,) = load_records(champion_repo.state_dir, Incident, model=MODEL)
    assert (found.view, found.cause, found.is_open) == ("shop_stats", "materialization_lag", False)
    assert abs(to_us(found.start) - STOP_US) < 14 * HOUR_US
    assert abs(to_us(found.end) - RESUME_US) < 4 * HOUR_US
