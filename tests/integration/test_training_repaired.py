"""Training sets of logged predictions that were served wrongly: left out, or repaired."""

from __future__ import annotations

from datetime import timedelta

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from sklearn.dummy import DummyClassifier

import looks
from served_log import Faults, serve
from tallystick.cli.commands import main
from tallystick.definitions.contract import ModelInputs
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import StateError
from tallystick.model_bundle.bundle import (
    Bundle,
    bundle_dir,
    read_champion,
    read_contract,
    write_bundle,
)
from tallystick.point_in_time.on_demand import Transforms
from tallystick.records.causes import Cause
from tallystick.records.record_store import AffectedKeys, save_record
from tallystick_training.log_training_set import write_served_dataset
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import build_dataset
from tiny_repo import END, MODEL, START

DAY = timedelta(days=1)
BEGIN = START + 20 * DAY
WINDOW = {"start": BEGIN, "end": END, "known_until": END + 30 * DAY}
KEYS = AffectedKeys(
    names=("shop", "item"),
    values=(("shop-b", 12), ("shop-b", 13), ("shop-e", 11)),
    first=("shop-b", 12),
    last=("shop-e", 11),
)
PRICE, STOCK, TOTAL = "item_stats__price", "item_stats__stock", "order_value__total"
ITEM = (PRICE, STOCK, TOTAL)


@pytest.fixture
def contract(champion_repo):
    champion = read_champion(champion_repo.state_dir, MODEL)
    folder = bundle_dir(champion_repo.state_dir, MODEL, champion.contract_hash)
    return read_contract(folder / "contract.json")


def incident(**changes):
    found = looks.incident(at=END, model=MODEL, requests=9, is_open=False)
    spell = {"start": BEGIN + 5 * DAY, "end": BEGIN + 25 * DAY, "keys": KEYS}
    if "cause" in changes:
        changes["cause"] = Cause(changes["cause"])
    return found.model_copy(update={**spell, **changes})


def is_touched(row, found):
    keys = found.keys is None or (row["shop"], row["item"]) in found.keys.values
    return keys and found.start <= row["request_time"] <= found.end


def written(repo, out, *incidents, repair=False, inputs=None):
    """Counts and rows of the set, by request time; no two are alike."""
    found = write_served_dataset(
        repo,
        repo.model(MODEL),
        RowSelection(incidents=incidents, repair=repair, **WINDOW),
        out=out / "set.parquet",
        inputs=inputs,
    )
    rows = pq.read_table(found.path).to_pylist()
    assert len(rows) == found.counts.rows
    return found.counts, {row["request_time"]: row for row in rows}


def history(repo):
    return build_dataset(repo, repo.model(MODEL), RowSelection(**WINDOW))


def by_time(table):
    return {row["request_time"]: row for row in table.to_pylist()}


def mixed(served, expected, found, names):
    """The rows as served, but for some values of those that an incident touched."""
    return {
        time: {**row, **{name: expected[time][name] for name in names}}
        if is_touched(row, found)
        else row
        for time, row in served.items()
    }


WRONG = Faults(
    value=lambda name, value: -1.0 if name in (PRICE, "shop_stats__load") else value,
    output=lambda total: total and total + 1,
)


def test_only_the_keys_of_an_incident_are_left_out(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=WRONG)
    _, served = written(champion_repo, tmp_path)
    counts, rows = written(champion_repo, tmp_path, incident())
    assert rows == {time: row for time, row in served.items() if not is_touched(row, incident())}
    assert counts.quarantined >= len(served) - len(rows) > 20
    assert counts.repaired is None


def test_a_view_is_repaired_with_what_is_computed_from_it(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=WRONG)
    _, served = written(champion_repo, tmp_path)
    expected = by_time(history(champion_repo).table)
    found = incident(view="item_stats", cause="type_or_precision")
    counts, rows = written(champion_repo, tmp_path, found, repair=True)
    assert rows == mixed(served, expected, found, ITEM)
    touched = [row for row in served.values() if is_touched(row, found)]
    assert (counts.quarantined, counts.repaired) == (0, len(touched))
    assert len(touched) > 20
    assert any(row[TOTAL] is None for row in expected.values())
    # Another view's values stay as they were served, until an incident touches them too.
    assert {row["shop_stats__load"] for row in rows.values()} == {-1.0}
    load = incident(view="shop_stats", start=found.start + 10 * DAY, end=END, keys=None)
    counts, both = written(champion_repo, tmp_path, found, load, repair=True)
    assert both == mixed(rows, expected, load, ["shop_stats__load", "shop_stats__orders"])
    either = [row for row in served.values() if is_touched(row, found) or is_touched(row, load)]
    assert counts.repaired == len(either)


def test_what_was_computed_wrongly_is_left_out_or_computed_again(champion_repo, contract, tmp_path):
    faults = Faults(output=lambda total: total and total + 1)
    serve(champion_repo, contract, start=BEGIN, end=END, faults=faults)
    _, served = written(champion_repo, tmp_path)
    expected = by_time(history(champion_repo).table)
    found = incident(view="order_value", cause="transform")
    counts, rows = written(champion_repo, tmp_path, found)
    assert rows == {time: row for time, row in served.items() if not is_touched(row, found)}
    assert counts.quarantined > 20
    counts, rows = written(champion_repo, tmp_path, found, repair=True)
    assert rows == mixed(served, expected, found, [TOTAL])
    assert rows != served
    assert counts.repaired == sum(is_touched(row, found) for row in served.values())


def test_where_history_is_in_doubt_rows_stay_out(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=WRONG)
    expected = by_time(history(champion_repo).table)
    _, served = written(champion_repo, tmp_path)
    doubt = incident(view="shop_stats", cause="source_rewritten", end=BEGIN + 15 * DAY)
    wrong = incident(view="item_stats", cause="out_of_order_write", start=BEGIN + 10 * DAY)
    counts, rows = written(champion_repo, tmp_path, doubt, wrong, repair=True)
    remaining = {time: row for time, row in served.items() if not is_touched(row, doubt)}
    assert rows == mixed(remaining, expected, wrong, ITEM)
    assert counts.quarantined >= len(served) - len(remaining) > 0
    assert counts.repaired == sum(is_touched(row, wrong) for row in remaining.values()) > 0


def test_incidents_of_what_the_model_takes_no_more_do_not_count(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=WRONG)
    remaining = [use for use in contract.views if use.name == "shop_stats"]
    now = {
        "views": remaining,
        "transforms": (),
        "features": [each for each in contract.features if each.view == "shop_stats"],
    }
    inputs = ModelInputs(
        **{name: getattr(contract, name) for name in ModelInputs.model_fields.keys() - now}, **now
    )
    found = [incident(view="item_stats"), incident(view="order_value", cause="transform")]
    _, served = written(champion_repo, tmp_path, inputs=inputs)
    counts, rows = written(champion_repo, tmp_path, *found, inputs=inputs)
    assert rows == served
    assert counts.quarantined == 0
    counts, _ = written(champion_repo, tmp_path, *found, incident(view="shop_stats"), inputs=inputs)
    assert counts.quarantined > 20


def double(inputs):
    return {
        "total": [
            None if price is None or quantity is None else 2 * price * quantity
            for price, quantity in zip(inputs["price"], inputs["quantity"], strict=True)
        ]
    }


def test_definitions_and_functions_are_those_of_the_contract(champion_repo, contract, tmp_path):
    """The repo has gone on: another ttl, another function; what was served was neither."""
    ttl = timedelta(hours=5)
    uses = {use.name: use for use in contract.views}
    spec = ViewSpec(
        **{**uses["item_stats"].spec.model_dump(), "ttl_us": ttl // timedelta(microseconds=1)}
    )
    uses["item_stats"] = uses["item_stats"].model_copy(update={"spec": spec})
    (transform,) = contract.transforms
    content = contract.model_dump() | {
        "views": [use.model_dump() for use in uses.values()],
        "transforms": [transform.model_copy(update={"code_hash": "double"}).model_dump()],
    }
    old = type(contract).model_validate(content)
    faults = Faults(ttl_factor=None, value=WRONG.value)
    serve(champion_repo, old, start=BEGIN, end=END, faults=faults)
    _, served = written(champion_repo, tmp_path)
    found = incident(view="item_stats", cause="definition_changed")
    with pytest.raises(StateError, match="bundle"):
        written(champion_repo, tmp_path, found, repair=True)
    estimator = DummyClassifier().fit([[0.0], [0.0]], [0, 1])
    write_bundle(
        champion_repo.state_dir, Bundle(old, estimator, Transforms({"order_value": double}))
    )
    now = history(champion_repo)
    expected = by_time(now.table)
    event_times = now.times["item_stats__event_time"].to_pylist()
    fresh = 0
    for time, event_time in zip(expected, event_times, strict=True):
        row = expected[time]
        if event_time is None or time - event_time > ttl:
            row |= dict.fromkeys(ITEM)
        else:
            row[TOTAL] = row[PRICE] * row["quantity"] * 2
            fresh += is_touched(row, found)
    _, rows = written(champion_repo, tmp_path, found, repair=True)
    assert rows == mixed(served, expected, found, ITEM)
    touched = [row for row in rows.values() if is_touched(row, found)]
    assert sum(row[PRICE] is not None for row in touched) == fresh > 5
    assert len(touched) > fresh + 5


def run(repo, *arguments):
    done = CliRunner().invoke(main, ["--repo", str(repo.path), *arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.output, done.exit_code


def test_the_command_says_what_was_left_out_and_what_was_repaired(
    champion_repo, contract, tmp_path
):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=WRONG)
    first = incident(view="item_stats", cause="materialization_lag")
    second = incident(view="item_stats", cause="unexplained", start=BEGIN + 20 * DAY)
    for name, each in (("one", first), ("two", second)):
        save_record(champion_repo.state_dir, each, model=MODEL, name=name)
    counts, rows = written(champion_repo, tmp_path, first, second, repair=True)
    out = tmp_path / "c.parquet"
    day = "%Y-%m-%d"
    window = ("--end", END.strftime(day), "--known-until", WINDOW["known_until"].strftime(day))
    requested = ("dataset", MODEL, "--out", str(out), *window, "--repair")
    said, status = run(champion_repo, *requested, "--from", "log")
    assert status == 0, said
    assert f"left out: {counts.quarantined:,} quarantined" in said
    assert f"; repaired: {counts.repaired:,}\n" in said
    assert counts.quarantined
    assert counts.repaired
    assert by_time(pq.read_table(out)) == rows
    begin = ("--start", BEGIN.strftime(day))
    said, status = run(champion_repo, *requested, *begin)
    assert status == 0, said
    assert f"; repaired: {counts.repaired:,}\n" in said
    assert pq.read_table(out).num_rows == counts.rows


SET = ("dataset", MODEL, "--out", "set.parquet", "--repair")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ((*SET, "--clock", "served"), "Rows cannot be repaired under the served clock"),
        ((*SET, "--from", "log", "--clock", "served"), "leave --clock out, or --repair"),
        ((*SET, "--from", "log", "--clock", "event"), "leave --clock out, or --repair"),
        (
            ("train", MODEL, "--repair", "--clock", "served"),
            "Rows cannot be repaired under the served clock",
        ),
        # Not refused: there is no look to decide by.
        (("retrain", MODEL, "--repair"), "Nobody has looked at model"),
    ],
)
def test_clocks_under_which_nothing_is_repaired_are_refused(
    champion_repo, tmp_path, monkeypatch, arguments, says
):
    monkeypatch.chdir(tmp_path)
    said, status = run(champion_repo, *arguments)
    assert status == 1
    assert says in said
    assert list(tmp_path.glob("*.parquet")) == []
