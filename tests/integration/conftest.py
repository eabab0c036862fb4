"""A repo with a champion, of which every test gets a copy of its own."""

from __future__ import annotations

from pathlib import Path

import pytest

from served_log import make_champion
from tallystick.definitions.feature_repo import Repo, apply, open_repo
from tiny_repo import copy_tiny_repo, make_tiny_repo


@pytest.fixture(scope="session")
def champion_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny repo, applied and with a champion; nobody may change it."""
    path = make_tiny_repo(tmp_path_factory.mktemp("champion") / "repo")
    repo = open_repo(path)
    apply(repo)
    make_champion(repo)
    return path


@pytest.fixture
def champion_repo(champion_template: Path, tmp_path: Path) -> Repo:
    """A copy of the test's own."""
    return open_repo(copy_tiny_repo(champion_template, tmp_path / "repo"))
