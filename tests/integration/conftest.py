"""A repo with a champion. Each test gets a copy."""

from __future__ import annotations

from pathlib import Path

import pytest

from served_log import make_champion
from tallystick.definitions.feature_repo import Repo, apply, open_repo
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
