"""A repo with a champion, of which each test gets a copy; and the repo of the serving scene."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

import serving_scene as scene
from served_log import make_champion
from tallystick.definitions.feature_repo import Repo, apply, open_repo
from tallystick_serving.store_config import StoreConfig
from tiny_repo import copy_tiny_repo, make_tiny_repo


@pytest.fixture(scope="session")
def champion_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny repo, applied and with a champion. Tests copy it and leave it unchanged."""
    path = make_tiny_repo(tmp_path_factory.mktemp("champion") / "repo")
    repo = open_repo(path)
    apply(repo)
    make_champion(repo)
    return path


@pytest.fixture
def champion_repo(champion_template: Path, tmp_path: Path) -> Repo:
    """The test's copy of the repo."""
    return open_repo(copy_tiny_repo(champion_template, tmp_path / "repo"))


@pytest.fixture
def repo(tmp_path: Path, redis_server: Any) -> StoreConfig:
    """The repo of the serving scene, with its rows online and without a champion."""
    scene.fill(redis_server.client)
    return scene.project(tmp_path, redis_server.connection_string)
