"""Looks at a served repo: incidents, freshness, drift, performance, and the commands."""

from __future__ import annotations

import dataclasses
import json
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import looks
from served_log import HOUR_US, Faults, HistoryRow, read_requests, serve
from tallystick.clock import to_us
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import InputError, StateError
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.log_reader import read_log
from tallystick.prediction_log.log_writer import LabelLog
from tallystick.prediction_log.sent_labels import LabelRow
from tallystick.records.record_store import (
    AffectedKeys,
    Incident,
    MonitorReport,
    ParityReport,
    load_records,
    save_record,
)
from tallystick.retrieval.prediction_labels import labels_of
from tallystick_monitoring import monitor_command
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.freshness import freshness
from tallystick_monitoring.incidents import champion_contract, watch
from tallystick_monitoring.monitor_report import monitor, summary
from tallystick_monitoring.performance import performance, recalibration_gain
from tiny_repo import MATURES_AFTER, MODEL, START

DAY = timedelta(days=1)
BEGIN = START + 10 * DAY
STOP = BEGIN + 4 * DAY
RESUME = STOP + 3 * DAY
END = BEGIN + 14 * DAY


@pytest.fixture
def contract(champion_repo: Repo) -> ModelContract:
    return champion_contract(champion_repo, MODEL)


def stopped(view: str, row: HistoryRow) -> HistoryRow:
    """The shops' feed stops, and resumes with all that was missed."""
    missed = view == "shop_stats" and to_us(STOP) <= row.write_us < to_us(RESUME)
    return dataclasses.replace(row, write_us=to_us(RESUME)) if missed else row


def slow(view: str, row: HistoryRow) -> HistoryRow:
    """The shops' rows go online three hours late, always, where half a day is their usual age."""
    late_us = 3 * HOUR_US if view == "shop_stats" else 0
    return dataclasses.replace(row, write_us=row.write_us + late_us)


def incidents(repo: Repo) -> list[Incident]:
    return load_records(repo.state_dir, Incident, model=MODEL)


def served(repo: Repo, contract: ModelContract, faults: Faults) -> None:
    serve(repo, contract, start=BEGIN, end=END, faults=faults)


def test_a_feed_that_stops_is_one_incident(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults(row=stopped))
    monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    (found,) = incidents(champion_repo)
    assert (found.view, found.cause, found.is_open) == ("shop_stats", "materialization_lag", False)
    assert found.found_at == END
    # All that the stopped feed did wrong is in it, also before the view was stale.
    wrong = audit(champion_repo, MODEL, start=BEGIN, end=END).findings
    times = set(wrong["request_time"].to_pylist())
    assert (found.start, found.end) == (min(times), max(times))
    assert (found.requests, found.values) == (len(times), wrong.num_rows)
    assert found.keys is not None
    assert found.keys.names == ("shop",)
    assert set(found.keys.values) == {(shop,) for shop in wrong["entity.shop"].to_pylist()}
    assert found.start < STOP + 0.1 * DAY
    assert found.end > RESUME - 0.1 * DAY


def test_the_watch_opens_extends_and_closes(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults(row=stopped))
    window = 1.5 * DAY
    history = []
    for day in range(1, 15):
        changed = watch(champion_repo, MODEL, at=BEGIN + day * DAY, window=window)
        history.append([one.is_open for one in changed])
    opened = history.index([True])
    assert STOP < BEGIN + (opened + 1) * DAY <= RESUME
    assert [one for one in history if one] == [[True]] * (len([o for o in history if o]) - 1) + [
        [False]
    ]
    assert history[-3:] == [[], [], []]
    (by_watch,) = incidents(champion_repo)
    # The whole look sees the same spell: it opens no second incident, and counts nothing twice.
    monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    (by_look,) = incidents(champion_repo)
    assert by_look.incident_id == by_watch.incident_id
    assert not by_look.is_open
    assert by_look.found_at == by_watch.found_at < RESUME
    wrong = audit(champion_repo, MODEL, start=BEGIN, end=END).findings
    assert by_look.requests == len(set(wrong["prediction_id"].to_pylist()))
    assert by_look.values == wrong.num_rows
    assert 0.6 * by_look.requests < by_watch.requests <= by_look.requests
    assert 0.6 * by_look.values < by_watch.values <= by_look.values


def test_usual_delay_is_lag_but_no_incident(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults(row=slow))
    report = monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    assert report.parity.causes.keys() == {"materialization_lag"}
    assert report.parity.causes["materialization_lag"] > report.parity.requests / 8
    assert report.incidents == []
    assert not any(view.stale for view in report.freshness.values())
    assert watch(champion_repo, MODEL, at=END, window=DAY) == []


def test_an_open_incident_stays_open(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults(ttl_factor=0.1))
    report = monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    (found,) = report.incidents
    assert (found.view, found.cause, found.is_open) == ("item_stats", "expired_or_ttl", True)
    assert report.freshness["item_stats"].stale
    again = monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    assert again.incidents == report.incidents


def test_freshness_is_by_the_reference(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults(row=stopped))

    def at(start: datetime, end: datetime) -> bool:
        parts = read_log(champion_repo.state_dir, MODEL, start=start, end=end)
        return freshness(contract, [part.table for part in parts])["shop_stats"].stale

    assert not at(BEGIN, STOP)
    assert at(RESUME - DAY, RESUME)
    assert not at(RESUME + DAY, END)


def test_drift_of_a_shifted_feature_alone(champion_repo: Repo, contract: ModelContract) -> None:
    served(
        champion_repo,
        contract,
        Faults(value=lambda name, value: value + 3.0 if name == "shop_stats__load" else value),
    )
    report = monitor(champion_repo, MODEL, at=END, start=BEGIN, end=END)
    assert report.drift is not None
    assert report.drift.drifted == ["shop_stats__load"]
    assert not report.drift.prediction.drifted
    assert "shop_stats__load" in summary(report)


def test_labels_count_as_they_were_known(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    at = END
    report = performance(champion_repo, contract, at=at)
    truth = _truth(champion_repo.path, known_until=at)
    requests = read_requests(champion_repo, BEGIN, at - MATURES_AFTER)
    outcomes = [truth.get(row["request_us"]) for row in requests]
    known = [outcome for outcome in outcomes if outcome is not None]
    assert report.end == at - MATURES_AFTER
    assert report.requests == len(requests)
    assert 200 < report.labelled == len(known) < report.requests
    assert report.positive_share == pytest.approx(np.mean(known))
    assert set(report.metrics) == {"log_loss", "brier", "auc", "ece"}
    assert report.gain_per_request is not None


def _truth(path: Path, *, known_until: datetime) -> dict[int, int]:
    """Request time → label, the slow way: no two requests are at one time."""
    rows = pq.read_table(path / "data" / "labels.parquet").to_pylist()
    known = [row for row in rows if row["created_time"] <= known_until]
    known.sort(key=lambda row: row["created_time"])
    return {to_us(row["event_time"]): row["returned"] for row in known}


def test_the_gain_is_estimated_without_incidents(
    champion_repo: Repo, contract: ModelContract
) -> None:
    served(champion_repo, contract, Faults())
    before = performance(champion_repo, contract, at=END)

    def with_incident(
        *,
        start: datetime,
        end: datetime,
        is_open: bool = False,
        keys: AffectedKeys | None = None,
    ) -> float | None:
        incident = looks.incident(at=END, model=MODEL, requests=9, is_open=is_open)
        incident = incident.model_copy(update={"start": start, "end": end, "keys": keys})
        save_record(champion_repo.state_dir, incident, model=MODEL, name="one")
        report = performance(champion_repo, contract, at=END)
        # What was served was served: only the gain leaves it out.
        assert report.metrics == before.metrics
        assert report.labelled == before.labelled
        return report.gain_per_request

    assert with_incident(start=START, end=BEGIN - DAY) == before.gain_per_request
    assert with_incident(start=STOP, end=STOP + DAY / 2) not in {None, before.gain_per_request}
    # The rest is too few requests to say anything.
    assert with_incident(start=BEGIN, end=END) is None
    assert with_incident(start=BEGIN, end=BEGIN, is_open=True) is None
    # Of its time only the requests for the affected keys.
    item = (12,)
    affected = AffectedKeys(names=("item",), values=(item,), first=item, last=item)
    nobody = affected.model_copy(update={"values": ((99,),)})
    assert with_incident(start=BEGIN, end=END, keys=nobody) == before.gain_per_request
    without = with_incident(start=BEGIN, end=END, keys=affected)
    assert without == gain_without_item(champion_repo, *item) != before.gain_per_request


def gain_without_item(repo: Repo, item: int) -> float | None:
    """The gain over requests with a mature label, of other items."""
    (part,) = read_log(repo.state_dir, MODEL, start=BEGIN, end=END - MATURES_AFTER)
    labels = labels_of(repo, part, at=END).values
    chosen = ~np.isnan(labels) & (part.table["entity.item"].to_numpy() != item)
    days = part.table["request_time"].to_numpy().astype("datetime64[D]").astype(np.int64)
    predictions = part.table["prediction"].to_numpy()
    return recalibration_gain(labels[chosen], predictions[chosen], days[chosen])[0]


def test_an_open_incident_is_in_every_look_until_it_is_closed(
    champion_repo: Repo, contract: ModelContract
) -> None:
    served(champion_repo, contract, Faults())
    for is_open in (True, False):
        incident = looks.incident(at=END, model=MODEL, requests=9, is_open=is_open)
        save_record(champion_repo.state_dir, incident, model=MODEL, name="one")
        report = monitor(champion_repo, MODEL, at=END + DAY, start=END, end=END + DAY)
        assert report.incidents == ([incident] if is_open else [])


def test_labels_that_were_sent_count_most(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    before = performance(champion_repo, contract, at=END)
    first, *others = read_requests(champion_repo, BEGIN, END)
    known_us = to_us(END)
    # The last known label counts, one that is known later does not; by an id only one is 1.
    rows = [
        LabelRow(value=value, known_us=known_us + later, prediction_id=f"p-{row['request_us']}")
        for row in others
        for value, later in ((0, 0), (1, -1), (1, 1))
    ]
    rows.append(LabelRow(value=1, known_us=known_us, prediction_id=f"p-{first['request_us']}"))
    rows.append(
        LabelRow(
            value=0,
            known_us=known_us,
            keys={name: first[name] for name in ("shop", "item", "quantity")},
            request_us=first["request_us"],
        )
    )
    log = LabelLog(champion_repo.state_dir)
    assert log.append(contract, rows)
    log.close()
    after = performance(champion_repo, contract, at=END)
    assert 0 < before.labelled < after.labelled == after.requests
    assert after.positive_share == pytest.approx(1 / after.requests)


def test_a_label_that_was_sent_by_keys(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    log = LabelLog(champion_repo.state_dir)
    rows = [
        LabelRow(
            value=1,
            known_us=to_us(END),
            keys={name: row[name] for name in ("shop", "item", "quantity")},
            request_us=row["request_us"],
        )
        for row in read_requests(champion_repo, BEGIN, END)
    ]
    assert log.append(contract, rows)
    log.close()
    assert performance(champion_repo, contract, at=END).positive_share == 1.0


def test_a_young_champion_has_no_performance(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    report = performance(champion_repo, contract, at=BEGIN)
    assert (report.requests, report.labelled, report.gain_per_request) == (0, 0, None)


def test_a_look_without_requests(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    report = monitor(champion_repo, MODEL, at=END + DAY, start=END, end=END + DAY)
    assert report.parity.values == 0
    assert report.drift is None
    assert report.performance.labelled > 0
    assert summary(report)


def test_the_commands(champion_repo: Repo, contract: ModelContract, tmp_path: Path) -> None:
    with pytest.raises(StateError, match="no logged predictions"):
        monitor_command.audit(champion_repo, MODEL)
    with pytest.raises(InputError, match="no model"):
        monitor_command.monitor(champion_repo, "other")
    served(champion_repo, contract, Faults(row=stopped))
    out = tmp_path / "out" / "audit.json"
    text, passed = monitor_command.audit(champion_repo, MODEL, json_path=out, fail_over=0.01)
    assert not passed
    assert "materialization_lag" in text
    assert "shop_stats" in text
    found = ParityReport.model_validate(json.loads(out.read_text()))
    assert 0.01 < (found.values - found.equal) / found.values < 0.3
    assert monitor_command.audit(champion_repo, MODEL, fail_over=0.3)[1]
    assert monitor_command.audit(champion_repo, MODEL, until=STOP, fail_over=0.0)[1]
    assert load_records(champion_repo.state_dir, ParityReport, model=MODEL)
    text = monitor_command.monitor(champion_repo, MODEL, since=BEGIN, until=END)
    assert "incident    shop_stats materialization_lag" in text
    (saved,) = load_records(champion_repo.state_dir, MonitorReport, model=MODEL)
    assert saved.contract_hash == contract.contract_hash


def test_a_damaged_log_is_said(champion_repo: Repo, contract: ModelContract) -> None:
    served(champion_repo, contract, Faults())
    compact(champion_repo.state_dir)
    path = next((champion_repo.state_dir / "log").rglob("*.parquet"))
    path.write_bytes(path.read_bytes()[:-100])
    text, passed = monitor_command.audit(champion_repo, MODEL, fail_over=0.0)
    assert not passed
    assert "log_damage" in text
    assert path.name in text
    (report,) = load_records(champion_repo.state_dir, ParityReport, model=MODEL)
    assert report.causes == {"log_damage": 5 * report.damage[0].rows}
    assert report.values - report.equal == report.causes["log_damage"]
