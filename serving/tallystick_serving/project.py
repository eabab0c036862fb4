"""What serving has to know of a Feast repo, read from its ``feature_store.yaml`` without Feast.

Importing Feast takes seconds, and predictions need neither it nor its registry.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tallystick.errors import DefinitionError, InputError, Problem
from tallystick.online_store.connection import EMBEDDED
from tallystick.repo import state_dir

ONLINE_STORE = "tallystick.online_store.RedisOnlineStore"


@dataclass(frozen=True, slots=True)
class Project:
    """A Feast repo as serving sees it.

    Attributes:
        path: Folder of ``feature_store.yaml``.
        name: Feast project.
        connection_string: Where its Redis is.
        state_dir: Folder of models and logs.
    """

    path: Path
    name: str
    connection_string: str
    state_dir: Path


def read_project(path: Path) -> Project:
    """Read the project of the repo at ``path``; ``${NAME}`` in the file is expanded as Feast does.

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
    store = root.get("online_store")
    online = store if isinstance(store, dict) else {"type": store}
    problems = []
    if not isinstance(root.get("project"), str):
        problems.append(Problem("project", "a name", repr(root.get("project"))))
    if online.get("type") != ONLINE_STORE:
        problems.append(Problem("online_store.type", ONLINE_STORE, repr(online.get("type"))))
    connection_string: Any = online.get("connection_string", EMBEDDED)
    if not isinstance(connection_string, str):
        problems.append(Problem("online_store.connection_string", "a text", "something else"))
    if problems:
        raise DefinitionError(f"{file} cannot be served.", problems)
    return Project(
        path=path,
        name=root["project"],
        connection_string=connection_string,
        state_dir=state_dir(path),
    )
