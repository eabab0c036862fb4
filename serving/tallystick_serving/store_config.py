"""What serving needs of a repo's ``feature_store.yaml``, read without Feast.

Importing Feast takes seconds, and predictions need neither it nor its registry.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]
from pydantic import ValidationError

from tallystick.definitions.feature_repo import state_dir
from tallystick.errors import DefinitionError, InputError, Problem
from tallystick.online_store.redis_options import RedisOptions

ONLINE_STORE = "tallystick.online_store.RedisOnlineStore"
"""Tallystick's own online store; any other is read through Feast's SDK."""
FEASTS_DEFAULT = "sqlite"
"""The online store of a file that names none."""


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """A Feast repo, as serving needs it.

    Attributes:
        path: Folder of ``feature_store.yaml``.
        name: Feast project.
        state_dir: Folder of models and logs.
        online_store: Type of its online store, by its name in Feast.
        redis: Options of Tallystick's own online store; None for another one.
        is_versioned: Whether Feast stores each version of a view online.
    """

    path: Path
    name: str
    state_dir: Path
    online_store: str = ONLINE_STORE
    redis: RedisOptions | None = None
    is_versioned: bool = False


def read_store_config(path: Path) -> StoreConfig:
    """Read the configuration of the repo at ``path``; ``${NAME}`` is expanded as Feast does.

    Raises:
        InputError: There is no Feast repo at ``path``.
        DefinitionError: The file cannot be used for serving; every reason is listed.
    """
    path = path.resolve()
    file = path / "feature_store.yaml"
    try:
        content: Any = yaml.safe_load(os.path.expandvars(file.read_text(encoding="utf-8")))
    except FileNotFoundError as error:
        raise InputError(
            f"{path} is not a Feast repo: it has no feature_store.yaml.",
            hint="Name the folder that has one:  tally --repo DIR …",
        ) from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DefinitionError(f"{file} cannot be read: {error}") from error
    root = content if isinstance(content, dict) else {}
    store = root.get("online_store", {})
    online = {"type": FEASTS_DEFAULT, **store} if isinstance(store, dict) else {"type": store}
    kind = online["type"]
    problems = []
    if not isinstance(root.get("project"), str):
        problems.append(Problem("project", "a name", repr(root.get("project"))))
    if not isinstance(kind, str) or kind.lower() in {"none", "null"}:
        problems.append(Problem("online_store.type", f"a type, like {ONLINE_STORE}", repr(kind)))
    redis = None
    if kind == ONLINE_STORE:
        try:
            redis = RedisOptions.model_validate(online)
        except ValidationError as error:
            problems += [
                Problem(
                    ".".join(["online_store", *map(str, item["loc"])]),
                    item["msg"],
                    repr(item["input"]),
                )
                for item in error.errors()
            ]
    if problems:
        raise DefinitionError(f"{file} cannot be served.", problems)
    registry = root.get("registry")
    versioning = "enable_online_feature_view_versioning"
    return StoreConfig(
        path=path,
        name=root["project"],
        state_dir=state_dir(path),
        online_store=kind,
        redis=redis,
        is_versioned=isinstance(registry, dict) and bool(registry.get(versioning)),
    )
