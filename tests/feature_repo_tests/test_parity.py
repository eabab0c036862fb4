"""The reference scenario's repo, as it is, through the parity check."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from tallystick.cli.commands import main

AS_IT_IS = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture
def repo(repo_copy, tmp_path):
    """The repo with the copy's tables: other tests give the copy other stores, and apply it."""
    folder = tmp_path / "repo"
    shutil.copytree(
        AS_IT_IS, folder, ignore=shutil.ignore_patterns("data", "__pycache__", ".tallystick")
    )
    (folder / "data").mkdir()
    for table in (repo_copy / "data").glob("*.parquet"):
        (folder / "data" / table.name).hardlink_to(table)
    return folder


def test_offline_online_and_api_agree(repo, tmp_path):
    report = tmp_path / "report.json"
    options = ["check", "--parity", "--sample", "40", "--json", str(report)]
    done = CliRunner().invoke(main, ["--repo", str(repo), *options])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(report.read_text())
    assert found["values"] == found["equal"] > 2_000
    assert len(found["compared"]) == 11
    for one in found["compared"]:
        assert one["ways"] == ["offline", "online", "API"]
        assert one["present"] > 0
    assert not (repo / ".tallystick").exists()
    assert not (repo / "data" / "registry.db").exists()
