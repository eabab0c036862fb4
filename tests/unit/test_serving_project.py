"""What serving reads of feature_store.yaml."""

from __future__ import annotations

import pytest

from tallystick.errors import DefinitionError, InputError
from tallystick_serving.project import read_project

GOOD = """\
project: shop
online_store:
  type: tallystick.online_store.RedisOnlineStore
  connection_string: ${SHOP_REDIS},db=1
"""


def test_it_reads_the_project_and_expands_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_REDIS", "redis:6379")
    (tmp_path / "feature_store.yaml").write_text(GOOD)
    project = read_project(tmp_path)
    assert (project.name, project.connection_string) == ("shop", "redis:6379,db=1")
    assert project.state_dir == tmp_path / ".tallystick"


def test_a_folder_without_the_file_is_no_repo(tmp_path):
    with pytest.raises(InputError, match="is not a Feast repo"):
        read_project(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "online_store: sqlite", "a: {b", "project: [1]"])
def test_a_file_that_cannot_be_served_says_why(tmp_path, text):
    (tmp_path / "feature_store.yaml").write_text(text)
    with pytest.raises(DefinitionError, match=r"feature_store\.yaml"):
        read_project(tmp_path)


def test_every_reason_is_given_at_once(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("online_store: {type: redis}")
    with pytest.raises(DefinitionError) as refused:
        read_project(tmp_path)
    assert [problem.where for problem in refused.value.problems] == ["project", "online_store.type"]
