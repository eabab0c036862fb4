"""The loop on the repo that ``feast init`` makes: its stores swapped, one model added."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from click.testing import CliRunner

from tallystick.cli.commands import main
from tallystick.online_store import embedded_redis
from tallystick.server_process import ServerProcess, free_port, http_answers, tally_command

MODEL = """
from datetime import timedelta

from feature_definitions import driver_activity_v1
from feast import FileSource
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from tallystick import Label, Model, Retraining

driver_ok = Model(
    name="driver_ok",
    features=driver_activity_v1,
    label=Label(
        source=FileSource(
            name="ratings",
            path="data/ratings.parquet",
            timestamp_field="asked",
            created_timestamp_column="rated",
        ),
        column="ok",
        keys=("driver_id", "val_to_add"),
        matures_after=timedelta(days=1),
    ),
    estimator=make_pipeline(SimpleImputer(keep_empty_features=True), LogisticRegression()),
    slices=("driver_id",),
    retraining=Retraining(holdout=timedelta(days=3)),
)
"""
STORES = {
    "offline_store": {"type": "tallystick.offline_store.DuckDBOfflineStore"},
    "online_store": {
        "type": "tallystick.online_store.RedisOnlineStore",
        "connection_string": "embedded",
    },
}
# The template of Feast 0.67 uses what Feast itself warns of.
pytestmark = pytest.mark.filterwarnings("ignore:Entity value_type:DeprecationWarning")

DRIVERS = (1001, 1002, 1003, 1004, 1005)


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    folder = tmp_path_factory.mktemp("init")
    done = subprocess.run(
        [sys.executable, "-m", "feast.cli.cli", "init", "demo", "-t", "local"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    path = folder / "demo" / "feature_repo"
    settings = path / "feature_store.yaml"
    settings.write_text(yaml.safe_dump(yaml.safe_load(settings.read_text()) | STORES))
    (path / "model.py").write_text(MODEL)
    write_ratings(path / "data" / "ratings.parquet")
    yield path
    embedded_redis.stop(path / ".tallystick")


def write_ratings(path):
    rng = np.random.default_rng(0)
    requested = sorted(
        datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=int(minutes))
        for minutes in rng.integers(26 * 60, 14 * 24 * 60, 2000)
    )
    table = pa.table(
        {
            "driver_id": rng.choice(DRIVERS, len(requested)),
            "val_to_add": rng.integers(0, 100, len(requested)),
            "val_to_add_2": rng.integers(0, 100, len(requested)),
            "asked": pa.array(requested, pa.timestamp("us", tz="UTC")),
            "rated": pa.array([time + timedelta(minutes=30) for time in requested]),
            "ok": rng.integers(0, 2, len(requested)),
        }
    )
    pq.write_table(table, path)


def tally(repo: Path, *arguments: str, code: int = 0) -> str:
    """Run a command in this process, which has imported what takes longest; give its output."""
    done = CliRunner().invoke(main, ["--repo", str(repo), *arguments])
    assert done.exit_code == code, (done.output, done.exception)
    assert done.exception is None or isinstance(done.exception, SystemExit)
    return done.output


def serve(repo: Path, requests: list[dict]) -> list[dict]:
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    server = ServerProcess(
        "The server",
        tally_command(repo, "serve", "--port", str(port)),
        log=repo.parent / "server.log",
        environment={**os.environ, "TALLYSTICK_LOG_WINDOW_S": "60"},
    )
    server.wait_until(lambda: http_answers(f"{url}/ready"))
    try:
        answers = [
            httpx.post(f"{url}/v1/models/driver_ok:predict", json={"instances": [instance]})
            for instance in requests
        ]
    finally:
        assert server.stop() == 0
    assert [answer.status_code for answer in answers] == [200] * len(requests)
    return [answer.json()["predictions"][0] for answer in answers]


def test_the_repo_of_feast_init_runs_through_the_whole_loop(repo, tmp_path):
    assert "feature service 'driver_activity_v1' is not in the registry" in tally(
        repo, "check", code=1
    ).replace("Feature", "feature")
    tally(repo, "apply")
    assert "model driver_ok: 3 features" in tally(repo, "check")
    assert "driver_hourly_stats: 5 rows written" in tally(repo, "materialize")
    # Every row of this repo was created when the repo was made, so the past is only to be had under
    # the event clock.
    refused = tally(repo, "train", "driver_ok", code=1)
    assert "view driver_hourly_stats: expected values at request time" in refused
    assert "--clock event" in refused
    out = tmp_path / "set.parquet"
    tally(repo, "dataset", "driver_ok", "--out", str(out), "--clock", "event")
    table = pq.read_table(out)
    assert table.num_rows == 2000
    assert table["driver_hourly_stats__conv_rate"].type == pa.float32()
    assert table["transformed_conv_rate__conv_rate_plus_val1"].null_count < 2000
    tally(repo, "train", "driver_ok", "--clock", "event", "--promote")
    instance = {"driver_id": 1001, "val_to_add": 1, "val_to_add_2": 2}
    predictions = serve(
        repo, [instance, {**instance, "driver_id": 1002}, {**instance, "driver_id": 7}]
    )
    assert all(0 <= prediction["probability"] <= 1 for prediction in predictions)
    report = tmp_path / "audit.json"
    tally(repo, "audit", "driver_ok", "--json", str(report), "--fail-over", "0")
    parity = json.loads(report.read_text())
    assert parity["requests"] == 3
    assert parity["values"] == parity["equal"] == 3 * (6 + 2)  # stored and computed
    assert "champion: version 1" in tally(repo, "status")
    assert "Stopped" in tally(repo, "stop")
    assert "No embedded Redis is running" in tally(repo, "stop")


def test_mistakes_get_one_clear_message(repo, tmp_path):
    assert "is not a Feast repo" in tally(tmp_path, "check", code=1)
    assert "did you mean driver_ok?" in tally(repo, "train", "driver_okay", code=1)
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "feature_store.yaml").write_text("project: x\nregistry: r.db\nprovider: local\n")
    (broken / "views.py").write_text("import nowhere_to_be_found\n")
    assert "views.py cannot be imported: ModuleNotFoundError" in tally(broken, "check", code=1)
