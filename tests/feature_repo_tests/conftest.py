"""The reference scenario's repo, built and applied once in a folder of its own."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

FEATURE_REPO = Path(__file__).parents[2] / "feature_repo"


@pytest.fixture(scope="session")
def sources():
    """The module that builds the tables, loaded by its path."""
    spec = importlib.util.spec_from_file_location("reference_sources", FEATURE_REPO / "sources.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def repo_copy(sources, tmp_path_factory):
    """A copy of the repo with freshly built tables."""
    folder = tmp_path_factory.mktemp("reference") / "feature_repo"
    shutil.copytree(
        FEATURE_REPO, folder, ignore=shutil.ignore_patterns("data", "__pycache__", ".tallystick")
    )
    sources.build(folder / "data")
    return folder


@pytest.fixture(scope="session")
def tables(sources, repo_copy):
    """A database with ``flights`` and a view of every built table."""
    with sources.opened() as connection:
        for table in sources.TABLES:
            path = repo_copy / "data" / f"{table}.parquet"
            connection.execute(f"CREATE VIEW {table} AS SELECT * FROM '{path}'")
        yield connection
