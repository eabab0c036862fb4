"""Feast stores of this process, with a registry in a folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

DUCKDB: Final = {"type": "tallystick.offline_store.DuckDBOfflineStore", "threads": 1}


def store_config(
    folder: Path,
    *,
    project: str = "small",
    offline: dict[str, Any] | None = None,
    online: dict[str, Any] | None = None,
) -> Any:
    """The configuration of a store.

    Args:
        folder: Holds the registry; relative paths of sources start there.
        project: Name of the project.
        offline: The offline store; Feast's own by default.
        online: The online store; SQLite in the folder by default.
    """
    from feast import RepoConfig

    return RepoConfig(
        project=project,
        provider="local",
        registry=str(folder / "registry.db"),
        offline_store={"type": "file"} if offline is None else offline,
        online_store=online or {"type": "sqlite", "path": str(folder / "online.db")},
        entity_key_serialization_version=3,
        repo_path=folder,
    )


def feast_store(folder: Path, **options: Any) -> Any:
    """A store with the configuration of :func:`store_config`."""
    from feast import FeatureStore

    return FeatureStore(config=store_config(folder, **options))
