"""What serving needs of a repo's ``feature_store.yaml``, read without Feast.

Importing Feast takes seconds, and predictions need neither it nor its registry.
"""

from __future__ import annotations

import os.path
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml  # type: ignore[import-untyped]

from tallystick.definitions.feature_repo import state_dir
from tallystick.errors import DefinitionError, InputError, Problem
from tallystick.online_store.redis_address import JOURNAL_WITHOUT_TTL, SENTINEL_MASTER
from tallystick.online_store.redis_connection import CONNECT_TIMEOUT_S, EMBEDDED, READ_TIMEOUT_S

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
        connection_string: Address of its Redis; empty for another online store.
        state_dir: Folder of models and logs.
        online_store: Type of its online store, by its name in Feast.
        redis_type: ``redis``, ``redis_cluster`` or ``redis_sentinel``.
        sentinel_master: Name by which Sentinels know its Redis.
        connect_timeout_s: Seconds to connect to its Redis.
        read_timeout_s: Seconds to wait for an answer of its Redis.
        key_ttl_s: Seconds after an entity's last write at which Redis removes its value.
        is_versioned: Whether Feast stores each version of a view online.
        journal: Whether every write to its online store is journaled.
    """

    path: Path
    name: str
    connection_string: str
    state_dir: Path
    online_store: str = ONLINE_STORE
    redis_type: str = "redis"
    sentinel_master: str = SENTINEL_MASTER
    connect_timeout_s: float = CONNECT_TIMEOUT_S
    read_timeout_s: float = READ_TIMEOUT_S
    key_ttl_s: int | None = None
    is_versioned: bool = False
    journal: bool = False

    @property
    def is_packed(self) -> bool:
        """Whether its online store is Tallystick's own."""
        return self.online_store == ONLINE_STORE


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
    redis = _read_redis(online, problems) if kind == ONLINE_STORE else {"connection_string": ""}
    if problems:
        raise DefinitionError(f"{file} cannot be served.", problems)
    return StoreConfig(
        path=path,
        name=root["project"],
        state_dir=state_dir(path),
        online_store=kind,
        is_versioned=_is_versioned(root.get("registry")),
        **redis,
    )


def _is_versioned(registry: Any) -> bool:
    option = "enable_online_feature_view_versioning"
    return isinstance(registry, dict) and bool(registry.get(option, False))


def _read_redis(online: dict[str, Any], problems: list[Problem]) -> dict[str, Any]:
    """How Tallystick's own store reaches its Redis; mismatches are added to ``problems``."""
    read = {
        "connection_string": online.get("connection_string", EMBEDDED),
        "redis_type": online.get("redis_type", "redis"),
        "sentinel_master": online.get("sentinel_master", SENTINEL_MASTER),
    }
    problems += [
        Problem(f"online_store.{name}", "a text", "something else")
        for name, value in read.items()
        if not isinstance(value, str)
    ]
    for name, default in (
        ("connect_timeout_s", CONNECT_TIMEOUT_S),
        ("read_timeout_s", READ_TIMEOUT_S),
    ):
        value = online.get(name, default)
        read[name] = value
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            problems.append(Problem(f"online_store.{name}", "seconds above 0", repr(value)))
    read["key_ttl_s"] = ttl_s = online.get("key_ttl_seconds")
    if ttl_s is not None and (type(ttl_s) is not int or ttl_s < 1):
        problems.append(
            Problem("online_store.key_ttl_seconds", "whole seconds, 1 or more", repr(ttl_s))
        )
    read["journal"] = journal = online.get("journal", False)
    if type(journal) is not bool:
        problems.append(Problem("online_store.journal", "true or false", repr(journal)))
    elif journal and ttl_s is not None:
        problems.append(Problem("online_store", JOURNAL_WITHOUT_TTL, "both"))
    return read
