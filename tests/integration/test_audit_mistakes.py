"""What people get wrong around an audit: one message, exit 1; or an audit that goes on."""

from __future__ import annotations

import shutil
import subprocess
import sys
from datetime import timedelta

import numpy as np
import pytest
from click.testing import CliRunner
from sklearn.linear_model import LogisticRegression

from served_log import Faults, serve
from tallystick.cli.commands import main
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_repo import Repo, open_repo
from tallystick.model_bundle.bundle import Bundle, bundle_dir, load_bundle, write_bundle
from tallystick_monitoring.audit.audit_run import audit
from tallystick_monitoring.incidents import champion_contract
from tiny_repo import MODEL, START

BEGIN = START + timedelta(days=20)
END = BEGIN + timedelta(days=2)


def filled(_: str, value):
    """What is missing was served as 0."""
    return 0 if value is None else value


def apply_anew(repo: Repo) -> None:
    """Apply definitions that have changed; this process has read them already."""
    feast = [sys.executable, "-m", "feast.cli.cli", "apply"]
    done = subprocess.run(feast, cwd=repo.path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "No changes to registry" not in done.stdout


@pytest.fixture
def contract(champion_repo: Repo) -> ModelContract:
    contract = champion_contract(champion_repo, MODEL)
    faults = Faults(
        row=lambda view, row: None if view == "shop_stats" and row.key == ("shop-b",) else row,
        value=filled,
    )
    serve(champion_repo, contract, start=BEGIN, end=END, faults=faults)
    return contract


def refused(repo: Repo, *arguments: str) -> str:
    """What the command says as it refuses."""
    done = CliRunner().invoke(main, ["--repo", str(repo.path), *arguments])
    assert isinstance(done.exception, SystemExit), repr(done.exception)
    assert done.exit_code == 1
    return done.output


@pytest.mark.usefixtures("contract")
@pytest.mark.parametrize("command", ["audit", "monitor"])
def test_a_span_that_ends_before_it_begins(champion_repo: Repo, command: str) -> None:
    said = refused(champion_repo, command, MODEL, "--since", "2024-02-01", "--until", "2024-01-01")
    assert "--since must be before --until" in said
    assert not (champion_repo.state_dir / "audit").exists()


@pytest.mark.usefixtures("contract")
def test_a_view_that_is_not_applied_any_more(champion_repo: Repo) -> None:
    path = champion_repo.path / "tiny_definitions.py"
    text = path.read_text().replace("features=[shop_stats, item_stats,", "features=[item_stats,")
    begin, end = text.index("shop_stats = FeatureView("), text.index("item_stats = FeatureView(")
    path.write_text(text[:begin] + text[end:])
    apply_anew(champion_repo)
    said = refused(champion_repo, "audit", MODEL)
    assert "Feature view 'shop_stats' is not among those applied" in said
    assert "tally apply" in said


def test_a_bundle_that_is_gone(champion_repo: Repo, contract: ModelContract) -> None:
    shutil.rmtree(bundle_dir(champion_repo.state_dir, MODEL, contract.contract_hash))
    assert "There is no model bundle" in refused(champion_repo, "audit", MODEL)
    folder = champion_repo.state_dir / "audit" / MODEL / "knowledge"
    assert [path.name for path in folder.iterdir()] == ["lock"]


def test_an_estimator_that_takes_no_null(champion_repo: Repo, contract: ModelContract) -> None:
    """The effect is known where it answers, and is the one that it gives row by row."""
    rng = np.random.default_rng(0)
    wide = len(contract.features)
    estimator = LogisticRegression().fit(rng.normal(size=(40, wide)), np.arange(40) % 2)
    transforms = load_bundle(champion_repo.state_dir, MODEL, contract.contract_hash).transforms
    shutil.rmtree(bundle_dir(champion_repo.state_dir, MODEL, contract.contract_hash))
    write_bundle(champion_repo.state_dir, Bundle(contract, estimator, transforms))
    found = audit(champion_repo, MODEL, start=BEGIN, end=END)
    effect = found.report.effect
    assert effect is not None
    assert 0 < effect.scored < effect.requests
    assert effect.max_change > 0
    requested = {
        row["prediction_id"]: row["score_served"] is not None and row["score_expected"] is not None
        for row in found.findings.to_pylist()
    }
    assert sum(requested.values()) == effect.scored
    nulls = {row["prediction_id"] for row in found.findings.to_pylist() if row["expected"] is None}
    assert nulls
    assert not any(requested[each] for each in nulls)


@pytest.mark.usefixtures("contract")
def test_definitions_that_are_applied_again_are_the_same(champion_repo: Repo) -> None:
    first = audit(champion_repo, MODEL, start=BEGIN, end=END)
    assert first.report.read == first.report.requests > 0
    path = champion_repo.path / "tiny_definitions.py"
    path.write_text(path.read_text().replace("ttl=timedelta(days=2)", "ttl=timedelta(days=3)"))
    apply_anew(champion_repo)
    again = audit(open_repo(champion_repo.path), MODEL, start=BEGIN, end=END)
    assert again.report.read == 0
    assert again.findings.equals(first.findings)
