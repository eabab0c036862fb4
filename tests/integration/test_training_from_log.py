"""Training sets of logged predictions: the features as served, with the labels known by then."""

from __future__ import annotations

from datetime import timedelta

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

import looks
from served_log import Faults, read_requests, serve
from tallystick.cli.commands import main
from tallystick.clock import to_us
from tallystick.definitions.contract import ModelInputs
from tallystick.errors import InputError, StateError
from tallystick.model_bundle.bundle import bundle_dir, read_champion, read_contract
from tallystick.prediction_log.compactor import compact
from tallystick.prediction_log.log_writer import LabelLog
from tallystick.prediction_log.sent_labels import LabelRow
from tallystick.records.record_store import save_record
from tallystick_training.log_training_set import write_served_dataset
from tallystick_training.row_selection import RowSelection
from tallystick_training.training_set import write_dataset
from tiny_repo import END, MODEL, START

DAY = timedelta(days=1)
BEGIN = START + 20 * DAY
WINDOW = {"start": BEGIN, "end": END, "known_until": END + 30 * DAY}


@pytest.fixture
def contract(champion_repo):
    champion = read_champion(champion_repo.state_dir, MODEL)
    folder = bundle_dir(champion_repo.state_dir, MODEL, champion.contract_hash)
    return read_contract(folder / "contract.json")


def written(repo, out, write=write_served_dataset, **changes):
    more = {"inputs": changes.pop("inputs")} if "inputs" in changes else {}
    selection = RowSelection(**{**WINDOW, **changes})
    found = write(repo, repo.model(MODEL), selection, out=out / "set.parquet", **more)
    return found, pq.read_table(found.path)


def rows_of(table):
    return sorted(map(repr, table.to_pylist()))


def test_what_was_served_rightly_is_what_history_gives(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    compact(champion_repo.state_dir)
    found, table = written(champion_repo, tmp_path)
    expected, history = written(champion_repo, tmp_path, write_dataset)
    assert found.counts == expected.counts
    assert found.counts.rows > 200
    assert found.counts.unlabelled
    assert table.schema.equals(history.schema)
    assert rows_of(table) == rows_of(history)
    times = table["request_time"].to_pylist()
    assert times == sorted(times)


def test_values_are_those_that_the_model_saw(champion_repo, contract, tmp_path):
    name = next(name for name, dtype in contract.stored_columns.items() if dtype == "DOUBLE")
    faults = Faults(value=lambda each, value: -1.0 if each == name else value)
    serve(champion_repo, contract, start=BEGIN, end=END, faults=faults)
    _, table = written(champion_repo, tmp_path)
    assert set(table[name].to_pylist()) == {-1.0}


def test_no_label_is_used_that_was_not_known_by_the_cutoff(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    cutoff = BEGIN + 10 * DAY
    found, table = written(champion_repo, tmp_path, known_until=cutoff)
    expected, history = written(champion_repo, tmp_path, write_dataset, known_until=cutoff)
    assert found.counts == expected.counts
    assert found.counts.immature
    assert rows_of(table) == rows_of(history)
    log = LabelLog(champion_repo.state_dir)
    first = read_requests(champion_repo, BEGIN, END)[0]
    for value, known in ((1, cutoff), (0, cutoff + DAY)):
        row = LabelRow(value, to_us(known), prediction_id=f"p-{first['request_us']}")
        assert log.append(contract, [row])
    log.close()
    for known_until, label in ((cutoff, 1), (cutoff + DAY, 0)):
        _, table = written(champion_repo, tmp_path, known_until=known_until)
        assert table["label"][0].as_py() == label


def test_quarantined_rows_stay_out_and_are_counted(champion_repo, contract, tmp_path):
    serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    view = contract.views[0].name
    incident = looks.incident(at=END, model=MODEL, requests=9, is_open=False).model_copy(
        update={"view": view, "start": BEGIN + 2 * DAY, "end": BEGIN + 4 * DAY}
    )
    found, table = written(champion_repo, tmp_path, incidents=[incident])
    expected, history = written(champion_repo, tmp_path, write_dataset, incidents=[incident])
    assert found.counts == expected.counts
    assert found.counts.quarantined > 20
    assert rows_of(table) == rows_of(history)
    save_record(champion_repo.state_dir, incident, model=MODEL, name="one")
    done = CliRunner().invoke(
        main,
        [
            *("--repo", str(champion_repo.path), "dataset", MODEL, "--from", "log"),
            *("--out", str(tmp_path / "c.parquet"), "--end", END.strftime("%Y-%m-%d")),
            *("--known-until", (END + 30 * DAY).strftime("%Y-%m-%d")),
        ],
    )
    assert done.exit_code == 0, done.output
    assert f"{found.counts.quarantined:,} quarantined" in done.output
    assert rows_of(pq.read_table(tmp_path / "c.parquet")) == rows_of(table)


def test_rows_of_a_contract_with_other_inputs_are_counted(champion_repo, contract, tmp_path):
    rows = serve(champion_repo, contract, start=BEGIN, end=END, faults=Faults())
    fields = [{"name": field.name, "dtype": "STRING"} for field in contract.request_fields]
    other = ModelInputs(
        **{name: getattr(contract, name) for name in ModelInputs.model_fields}
        | {"request_fields": fields}
    )
    found, table = written(champion_repo, tmp_path, inputs=other)
    assert (found.counts.unlike, found.counts.rows, table.num_rows) == (rows, 0, 0)
    assert f"{rows:,} of a contract with other inputs" in str(found)


def test_without_a_log_or_without_time_it_says_so(champion_repo, contract, tmp_path):
    with pytest.raises(StateError, match="no logged predictions"):
        written(champion_repo, tmp_path)
    serve(champion_repo, contract, start=BEGIN, end=BEGIN + DAY, faults=Faults())
    with pytest.raises(InputError, match="would be empty"):
        written(champion_repo, tmp_path, end=BEGIN)
    assert list(tmp_path.glob("*.parquet")) == []
