"""A log of another server, audited against a Feast repo that knows nothing of Tallystick."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from tallystick.cli.commands import main

START_US = int(datetime(2024, 3, 1, tzinfo=UTC).timestamp()) * 1_000_000
HOUR_US = 3_600_000_000
DAYS = 8
DEPOTS = ("north", "south", "east", "west")
STORE = """\
project: plain
provider: local
registry: data/registry.db
online_store: {type: sqlite, path: data/online.db}
entity_key_serialization_version: 3
"""
DEFINITIONS = """\
from datetime import timedelta

from feast import Entity, FeatureService, FeatureView, Field, FileSource, RequestSource, ValueType
from feast.on_demand_feature_view import on_demand_feature_view
from feast.types import Float64, Int64, String

depot = Entity(name="depot", join_keys=["depot"], value_type=ValueType.STRING)
loads = FeatureView(
    name="loads",
    entities=[depot],
    ttl=timedelta(hours=30),
    schema=[Field(name="weight", dtype=Float64), Field(name="label", dtype=String)],
    source=FileSource(
        path="data/loads.parquet", timestamp_field="event", created_timestamp_column="known"
    ),
)
counts = FeatureView(
    name="counts",
    entities=[depot],
    ttl=timedelta(0),
    schema=[Field(name="crates", dtype=Int64), Field(name="share", dtype=Float64)],
    source=FileSource(path="data/counts.parquet", timestamp_field="event"),
)
order = RequestSource(name="order", schema=[Field(name="crates", dtype=Int64)])


@on_demand_feature_view(
    sources=[order], schema=[Field(name="more", dtype=Int64)], mode="python"
)
def beside(inputs):
    return {"more": [None if one is None else one + 1 for one in inputs["crates"]]}


dispatch = FeatureService(name="dispatch", features=[loads, counts, beside])
"""
MOMENT = pa.timestamp("us", tz="UTC")


def moments(times):
    return pa.array(np.asarray(times, dtype=np.int64)).cast(MOMENT)


def history(rng, *, every_h):
    """Depot, event and created time of rows, by depot."""
    times = START_US + np.arange(-48, DAYS * 24, every_h) * HOUR_US
    event = np.tile(times, len(DEPOTS)) + rng.integers(0, HOUR_US, len(DEPOTS) * len(times))
    known = event + rng.integers(1, HOUR_US, len(event))
    return np.repeat(DEPOTS, len(times)), event, known


@pytest.fixture(scope="module")
def repo(tmp_path_factory):
    path = tmp_path_factory.mktemp("plain")
    (path / "data").mkdir()
    (path / "feature_store.yaml").write_text(STORE)
    (path / "plain_definitions.py").write_text(DEFINITIONS)
    rng = np.random.default_rng(3)
    depot, event, known = history(rng, every_h=6)
    pq.write_table(
        pa.table(
            {
                "depot": depot,
                "weight": rng.normal(size=len(depot)),
                "label": rng.choice(["a", "b"], len(depot)),
                "event": moments(event),
                "known": moments(known),
            }
        ),
        path / "data" / "loads.parquet",
    )
    depot, event, _ = history(rng, every_h=4)
    pq.write_table(
        pa.table(
            {
                "depot": depot,
                "crates": rng.integers(0, 1_000, len(depot)),
                "share": rng.random(len(depot)),
                "event": moments(event),
            }
        ),
        path / "data" / "counts.parquet",
    )
    feast = [sys.executable, "-m", "feast.cli.cli", "apply"]
    done = subprocess.run(feast, cwd=path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return path


def tally(repo, *arguments, code=0):
    done = CliRunner().invoke(main, ["--repo", str(repo), *arguments])
    assert done.exit_code == code, done.output
    return done.output


def newest(rows, moment_us, *, known="known"):
    visible = [row for row in rows if max(row["event"], row[known]) <= moment_us]
    return max(visible, key=lambda row: (row["event"], row[known]), default=None)


def rows_of(repo, name, depot):
    table = pq.read_table(repo / "data" / f"{name}.parquet")
    for column in ("event", "known"):
        if column in table.column_names:
            index = table.schema.get_field_index(column)
            table = table.set_column(index, column, table[column].cast(pa.int64()))
    return [row for row in table.to_pylist() if row["depot"] == depot]


def test_an_hourly_job_that_stopped_and_a_column_that_was_cut(repo, tmp_path):
    """The other server reads what a job wrote each hour; it stopped for two days."""
    rng = np.random.default_rng(4)
    requested = np.sort(START_US + rng.choice(DAYS * 24 * 3_600, 600, replace=False) * 1_000_000)
    depots = rng.choice(DEPOTS, len(requested))
    stop, resume = START_US + 3 * 24 * HOUR_US, START_US + 5 * 24 * HOUR_US
    history = {name: {d: rows_of(repo, name, d) for d in DEPOTS} for name in ("loads", "counts")}
    logged, wrong = [], {}
    for request_us, depot in zip(requested.tolist(), depots.tolist(), strict=True):
        run = request_us - request_us % HOUR_US
        run = stop if stop <= run < resume else run
        online = newest(history["loads"][depot], run)
        truth = newest(history["loads"][depot], request_us)
        oldest = request_us - 30 * HOUR_US
        online = None if online is None or online["event"] < oldest else online
        truth = None if truth is None or truth["event"] < oldest else truth
        count = newest(history["counts"][depot], request_us, known="event")
        share = float(np.float32(count["share"]))
        # A client counts for itself, and now and then otherwise than history.
        sent = count["crates"] + (request_us // 1_000_000 % 7 == 0)
        logged.append(
            {
                "request_time": request_us,
                "entity.depot": depot,
                "request.crates": sent,
                "feature.beside__more": sent + 1,
                "feature.loads__weight": online and online["weight"],
                "feature.loads__label": online and online["label"],
                "feature.counts__crates": count["crates"],
                "feature.counts__share": share,
            }
        )
        for name in ("weight", "label"):
            if (online and online[name]) != (truth and truth[name]):
                wrong[request_us, f"loads__{name}"] = "materialization_lag"
        if share != count["share"]:
            wrong[request_us, "counts__share"] = "type_or_precision"
    table = pa.Table.from_pylist(logged)
    index = table.schema.get_field_index("request_time")
    table = table.set_column(index, "request_time", table["request_time"].cast(MOMENT))
    pq.write_table(table, tmp_path / "theirs.parquet")

    assert "neither a model nor" in tally(
        repo, "log", "import", "dispath", str(tmp_path / "theirs.parquet"), code=1
    )
    said = tally(repo, "log", "import", "dispatch", str(tmp_path / "theirs.parquet"))
    assert "600 predictions imported" in said
    out, findings = tmp_path / "report.json", tmp_path / "findings.parquet"
    options = ("--until", "2024-04-01", "--json", str(out), "--findings", str(findings))
    said = tally(repo, "audit", "dispatch", *options, "--fail-over", "0.01", code=1)
    assert "predictions without a model" in said
    assert "unstamped   counts, loads" in said
    table = pq.read_table(findings)
    found = dict(
        zip(
            zip(
                table["request_time"].cast(pa.int64()).to_pylist(),
                table["feature"].to_pylist(),
                strict=True,
            ),
            table["cause"].to_pylist(),
            strict=True,
        )
    )
    assert found == wrong
    assert min(list(wrong.values()).count(cause) for cause in set(wrong.values())) > 100
    report = json.loads(out.read_text())
    assert report["requests"] == 600
    assert report["effect"]["scored"] == 0
    (field,) = report["request_fields"]
    assert (field["field"], field["feature"], field["values"]) == ("crates", "counts__crates", 600)
    assert field["unequal"] == sum(time // 1_000_000 % 7 == 0 for time in requested.tolist()) > 50
    # A second file is only added; a second audit compares no more than that.
    assert "imported before" in tally(
        repo, "log", "import", "dispatch", str(tmp_path / "theirs.parquet")
    )
    tally(repo, "audit", "dispatch", *options[:4])
    assert json.loads(out.read_text())["read"] == 0
