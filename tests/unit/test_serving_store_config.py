"""What serving reads of feature_store.yaml."""

from __future__ import annotations

import pytest

from tallystick.errors import DefinitionError, InputError
from tallystick.online_store.redis_options import RedisOptions
from tallystick_serving.store_config import ONLINE_STORE, read_store_config

GOOD = """\
project: shop
online_store:
  type: tallystick.online_store.RedisOnlineStore
  connection_string: ${SHOP_REDIS},db=1
"""


def test_it_reads_the_project_and_expands_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("SHOP_REDIS", "redis:6379")
    (tmp_path / "feature_store.yaml").write_text(GOOD)
    project = read_store_config(tmp_path)
    assert (project.name, project.redis.connection_string) == ("shop", "redis:6379,db=1")
    assert project.state_dir == tmp_path / ".tallystick"


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("online_store: redis", "redis"),
        ("online_store: {type: redis, connection_string: [1, 2]}", "redis"),
        ("online_store: {path: data/online.db}", "sqlite"),
        ("provider: local", "sqlite"),
        ("online_store: my.own.OnlineStore", "my.own.OnlineStore"),
        (f"online_store: {ONLINE_STORE}", ONLINE_STORE),
    ],
)
def test_any_online_store_can_be_served(tmp_path, text, kind):
    (tmp_path / "feature_store.yaml").write_text(f"project: shop\n{text}\n")
    project = read_store_config(tmp_path)
    assert project.online_store == kind
    assert project.redis == (RedisOptions() if kind == ONLINE_STORE else None)


@pytest.mark.parametrize("text", ["null", "none", "{type: null}", "[sqlite]"])
def test_without_an_online_store_nothing_is_served(tmp_path, text):
    (tmp_path / "feature_store.yaml").write_text(f"project: shop\nonline_store: {text}\n")
    with pytest.raises(DefinitionError, match="online_store"):
        read_store_config(tmp_path)


def test_a_folder_without_the_file_is_not_a_repo(tmp_path):
    with pytest.raises(InputError, match="is not a Feast repo"):
        read_store_config(tmp_path)


@pytest.mark.parametrize("text", ["", "[]", "online_store: sqlite", "a: {b", "project: [1]"])
def test_a_file_that_cannot_be_served_says_why(tmp_path, text):
    (tmp_path / "feature_store.yaml").write_text(text)
    with pytest.raises(DefinitionError, match=r"feature_store\.yaml"):
        read_store_config(tmp_path)


def test_every_reason_is_given_at_once(tmp_path):
    (tmp_path / "feature_store.yaml").write_text("online_store: {type: [redis]}")
    with pytest.raises(DefinitionError) as refused:
        read_store_config(tmp_path)
    assert [problem.where for problem in refused.value.problems] == ["project", "online_store.type"]
