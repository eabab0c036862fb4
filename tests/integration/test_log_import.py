"""Predictions that another server logged, taken into the log by the command."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from contracts import small_contract
from tallystick.cli.commands import main
from tallystick.errors import DataError, InputError
from tallystick.prediction_log.ledger import ledger_of
from tallystick.prediction_log.log_import import import_file
from tallystick.prediction_log.log_reader import read_log
from tallystick.prediction_log.streams import PREDICTIONS
from tallystick.settings import settings

NOON = datetime(2024, 3, 1, 12, tzinfo=UTC)
DAY = timedelta(days=1)
CONTRACT = small_contract()


def record(**changes):
    return {
        "request_time": [NOON, NOON + DAY],
        "prediction": [0.25, 0.5],
        "entity.driver": [2**53 + 1, 7],
        "request.amount": [1.5, None],
        "feature.stats__trips": [5, None],
        "feature.stats__rate": [0.5, None],
    } | changes


@pytest.fixture
def file(tmp_path):
    def write(**changes):
        path = tmp_path / "theirs.parquet"
        columns = {name: each for name, each in record(**changes).items() if each is not None}
        pq.write_table(pa.table(columns), path)
        return path

    return write


def read(state):
    return read_log(state, CONTRACT.model, start=NOON - DAY, end=NOON + 9 * DAY)


def test_what_is_imported_is_in_the_log_once(tmp_path, file):
    state = tmp_path / "state"
    assert import_file(state, CONTRACT, file()) == 2
    assert import_file(state, CONTRACT, file()) == 0
    (part,) = read(state)
    first, second = part.table.to_pylist()
    assert (first["entity.driver"], first["feature.stats__trips"]) == (2**53 + 1, 5)
    assert (first["view.stats.status"], second["view.stats.status"]) == ("PRESENT", "NOT_FOUND")
    assert first["prediction_id"] != second["prediction_id"]
    assert first["model_version"] == "imported"
    ledger = ledger_of(state, PREDICTIONS)
    assert (ledger.imported, ledger.in_parquet, ledger.missing) == (2, 2, 0)


def test_naive_times_are_utc_and_other_columns_stay(tmp_path, file):
    state = tmp_path / "state"
    times = [NOON.replace(tzinfo=None), NOON.replace(tzinfo=None)]
    import_file(
        state,
        CONTRACT,
        file(request_time=times, prediction_id=["a", "b"], **{"view.stats.event_time": times}),
    )
    (part,) = read(state)
    assert part.table["request_time"].to_pylist() == [NOON, NOON]
    assert part.table["view.stats.event_time"].to_pylist() == [NOON, NOON]
    assert part.table["prediction_id"].to_pylist() == ["a", "b"]


def test_everything_that_is_missing_or_wrong_is_named_and_nothing_is_taken(tmp_path, file):
    state = tmp_path / "state"
    with pytest.raises(DataError) as missing:
        import_file(state, CONTRACT, file(prediction=None, **{"entity.driver": None}))
    assert "column prediction: expected double" in str(missing.value)
    assert "column entity.driver: expected int64" in str(missing.value)
    with pytest.raises(InputError, match=r"feature\.stats__rate"):
        import_file(state, CONTRACT, file(**{"feature.stats__rat": [1.0, 2.0]}))
    with pytest.raises(DataError, match="column prediction: expected double, got 1 nulls"):
        import_file(state, CONTRACT, file(prediction=[0.5, None]))
    with pytest.raises(DataError, match=r"column feature\.stats__trips: expected int64"):
        import_file(state, CONTRACT, file(**{"feature.stats__trips": [1.5, 2.0]}))
    assert read(state) == []


def test_the_command_imports_and_forgets(tmp_path, file, monkeypatch, request):
    monkeypatch.setenv("TALLYSTICK_STATE_DIR", str(tmp_path / "state"))
    settings.cache_clear()
    request.addfinalizer(settings.cache_clear)
    (tmp_path / "feature_store.yaml").write_text("project: p\n")
    contract = tmp_path / "contract.json"
    contract.write_text(CONTRACT.canonical_json())
    tally = ["--repo", str(tmp_path), "log"]
    theirs = ["import", CONTRACT.model, str(file()), "--contract", str(contract)]
    done = CliRunner().invoke(main, [*tally, *theirs])
    assert "2 predictions imported" in done.output
    assert "imported before" in CliRunner().invoke(main, [*tally, *theirs]).output
    other = CliRunner().invoke(main, [*tally, "import", "other", *theirs[2:]])
    assert other.exit_code == 1
    assert "not a contract of this model" in other.output
    damaged = next((tmp_path / "state").rglob("date=2024-03-01/*.parquet"))
    damaged.write_bytes(b"")
    done = CliRunner().invoke(main, [*tally, "forget", str(damaged)])
    assert "1 rows dropped" in done.output
    (part,) = read(tmp_path / "state")
    assert part.table["entity.driver"].to_pylist() == [7]
    assert ledger_of(tmp_path / "state", PREDICTIONS).missing == 0
    unknown = CliRunner().invoke(main, [*tally, "forget", "nowhere"])
    assert "The log has no file nowhere" in unknown.output


def test_a_folder_that_is_not_a_repo_is_refused_and_not_made(tmp_path):
    for command in (["compact"], ["forget", "x"]):
        done = CliRunner().invoke(main, ["--repo", str(tmp_path / "none"), "log", *command])
        assert done.exit_code == 1
        assert "is not a Feast repo" in done.output
    assert list(tmp_path.iterdir()) == []
