"""The copy of the log for Feast's tools, and that they find it."""

from __future__ import annotations

import sys
from datetime import timedelta

from click.testing import CliRunner
from feast.feature_logging import FeatureServiceLoggingSource

from served_log import Faults, serve
from tallystick.cli.commands import main
from tallystick.definitions.feature_repo import apply, open_repo
from tallystick.model_bundle.bundle import bundle_dir, read_champion, read_contract
from tallystick.prediction_log.compactor import MERGED_FILES, compact
from tallystick.prediction_log.feast_export import export_log
from tallystick.prediction_log.log_reader import read_log
from tiny_repo import END, MODEL, START

DAY = timedelta(days=1)
BEGIN = START + 20 * DAY
PLAIN = 'FeatureService(name="demo_features", '
LOGGED = """FeatureService(
    logging_config=LoggingConfig(
        destination=FileLoggingDestination(path="data/logged"), sample_rate=%s
    ),
    name="demo_features",
    """
IMPORTS = """from feast.feature_logging import LoggingConfig
from feast.infra.offline_stores.file_source import FileLoggingDestination
"""


def with_logging(repo, share):
    """The repo, whose feature service has a logging config."""
    path = repo.path / "tiny_definitions.py"
    text = path.read_text().replace(PLAIN, LOGGED % share)
    path.write_text(text.replace("from feast import", f"{IMPORTS}from feast import", 1))
    (repo.path / "data" / "logged").mkdir()
    del sys.modules["tiny_definitions"]  # as in a new process
    changed = open_repo(repo.path)
    apply(changed)
    return changed


def contract_of(repo):
    champion = read_champion(repo.state_dir, MODEL)
    return read_contract(
        bundle_dir(repo.state_dir, MODEL, champion.contract_hash) / "contract.json"
    )


def logs_of(repo):
    """What Feast's own reading of the logs gives."""
    service = repo.store.get_feature_service("demo_features")
    service.logging_config = repo.model(MODEL).features.logging_config
    job = repo.store._get_provider().retrieve_feature_service_logs(
        feature_service=service,
        start_date=BEGIN,
        end_date=END,
        config=repo.store.config,
        registry=repo.store.registry,
    )
    return job.to_arrow()


def test_what_was_served_is_where_feast_looks_for_it_once(champion_repo):
    repo = with_logging(champion_repo, 1.0)
    rows = 0
    for day in range(MERGED_FILES):
        begin = BEGIN + day * DAY
        rows += serve(repo, contract_of(repo), start=begin, end=begin + DAY, faults=Faults())
        compact(repo.state_dir)
        assert export_log(repo)[MODEL] > 0
        assert export_log(repo) == {MODEL: 0}
    logs = logs_of(repo)
    assert logs.num_rows == rows
    source = FeatureServiceLoggingSource(
        repo.store.get_feature_service("demo_features"), repo.project
    )
    for field in source.get_schema(repo.store.registry):
        assert field.name in logs.column_names
    (part,) = read_log(repo.state_dir, MODEL, start=BEGIN, end=END)
    expected = {row["prediction_id"]: row for row in part.table.to_pylist()}
    for row in logs.to_pylist():
        logged = expected.pop(row["__request_id"])
        assert row["__log_timestamp"] == logged["request_time"]
        for name in contract_of(repo).value_columns:
            assert row[name] == logged[f"feature.{name}"]
            if row[name] is None:
                assert row[f"{name}__status"] in {2, 3, 4}
            else:
                assert row[f"{name}__status"] == 1
    assert not expected
    compact(repo.state_dir)
    assert export_log(repo) == {MODEL: 0}


def test_a_share_of_the_entities_is_copied(champion_repo):
    repo = with_logging(champion_repo, 0.5)
    rows = serve(repo, contract_of(repo), start=BEGIN, end=END, faults=Faults())
    compact(repo.state_dir)
    done = CliRunner().invoke(main, ["--repo", str(repo.path), "log", "export"])
    assert "predictions copied" in done.output
    logs = logs_of(repo).to_pylist()
    assert 0 < len(logs) < rows
    (part,) = read_log(repo.state_dir, MODEL, start=BEGIN, end=END)
    keys = [key.name for key in contract_of(repo).entity_keys]
    copied = {tuple(row[key] for key in keys) for row in logs}
    chosen = [
        row
        for row in part.table.to_pylist()
        if tuple(row[f"entity.{key}"] for key in keys) in copied
    ]
    assert len(chosen) == len(logs)


def test_without_a_config_it_says_so(champion_repo):
    done = CliRunner().invoke(main, ["--repo", str(champion_repo.path), "log", "export"])
    assert "nothing was copied" in done.output
