"""The reference scenario's repo, as it is, through the parity check."""

from __future__ import annotations

import json

from click.testing import CliRunner

from tallystick.cli import main


def test_offline_online_and_api_agree(repo_copy, tmp_path):
    report = tmp_path / "report.json"
    options = ["check", "--parity", "--sample", "40", "--json", str(report)]
    done = CliRunner().invoke(main, ["--repo", str(repo_copy), *options])
    assert done.exit_code == 0, (done.output, done.exception)
    found = json.loads(report.read_text())
    assert found["values"] == found["equal"] > 2_000
    assert len(found["compared"]) == 11
    for one in found["compared"]:
        assert one["ways"] == ["offline", "online", "API"]
        assert one["present"] > 0
    assert not (repo_copy / ".tallystick").exists()
    assert not (repo_copy / "data" / "registry.db").exists()
