"""A scratch copy of everything that serving a repo writes: registry, online store, state folder.

Definitions and history are the repo's own, and are only read. What is applied, brought online and
served lies in a folder of its own, which is gone after the check.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from dataclasses import dataclass, replace
from io import StringIO
from pathlib import Path
from typing import Any, Final

import yaml  # type: ignore[import-untyped]
from feast.infra.online_stores.sqlite import SqliteOnlineStoreConfig

from tallystick.clock import EPOCH, SimulatedClock, process_clock
from tallystick.definitions.feature_repo import Repo
from tallystick.errors import DataError, DefinitionError, TallystickError
from tallystick.model_bundle.bundle import champions, models_dir, read_champion
from tallystick.online_store import RedisOnlineStoreConfig, embedded_redis
from tallystick.settings import overridden
from tallystick_monitoring.parity_check.scratch_cleaner import STATE, make_folder, remove_abandoned

logger = logging.getLogger(__name__)

OURS: Final = "tallystick.online_store.RedisOnlineStore"
_COPIED: Final = ("project", "offline_store", "entity_key_serialization_version", "flags")
"""Parts of feature_store.yaml that are copied. Others would reach out of the scratch folder."""
_SERVER_TIMEOUT_S: Final = 30
_CLEANER_S: Final = 90.0


@dataclass(frozen=True)
class ScratchRepo:
    """A repo whose registry, online store and state are scratch.

    Attributes:
        folder: Where these are.
        lock: Descriptor of the folder's lock, which every process that uses the folder inherits.
        repo: The repo's definitions and history, with these stores.
        served: Folder of the ``feature_store.yaml`` that a server starts on.
        store: Type of the online store.
        configured: Type of the repo's own online store.
        clock: The time of everything that reads this store.
    """

    folder: Path
    lock: int
    repo: Repo
    served: Path
    store: str
    configured: str
    clock: SimulatedClock

    @property
    def is_packed(self) -> bool:
        """Whether the online store is Tallystick's own."""
        return self.store == OURS


@contextmanager
def scratch_repo(repo: Repo) -> Iterator[ScratchRepo]:
    """Give a repo a scratch registry, online store and state for the time of the block.

    Raises:
        DefinitionError: ``feature_store.yaml`` cannot be used.
    """
    configured = str(getattr(_online_config(repo), "type", "none"))
    state = repo.state_dir
    remove_abandoned()
    folder, lock = make_folder()
    cleaner = subprocess.Popen(  # noqa: S603 our own module
        [
            sys.executable,
            "-B",
            "-P",
            "-m",
            "tallystick_monitoring.parity_check.scratch_cleaner",
            folder,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        with _own_settings(folder):
            _copy_champions(state, folder / STATE)
            online = _scratch_online(repo, folder)
            served = _write_settings(repo, folder, online)
            yield ScratchRepo(
                folder=folder,
                lock=lock,
                repo=replace(repo, settings_file=served / "feature_store.yaml"),
                served=served,
                store=str(online["type"]),
                configured=configured,
                clock=SimulatedClock(folder / "clock"),
            )
    finally:
        os.close(lock)
        _end(cleaner, folder)


@contextmanager
def foreign_code(what: str, error: type[TallystickError] = DataError) -> Iterator[None]:
    """Run code that may be anybody's, a store or a function, and discard what it prints.

    Raises:
        TallystickError: It fails. The type is ``error`` unless it is one already.
    """
    silent = StringIO()
    with redirect_stdout(silent), redirect_stderr(silent), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except TallystickError:
            raise
        except Exception as found:
            raise error(f"{what}: {type(found).__name__}: {found}") from found


@contextmanager
def _own_settings(folder: Path) -> Iterator[None]:
    """Point this process, and those that it starts, to the folder for everything they write."""
    clock = folder / "clock"
    SimulatedClock(clock, start=EPOCH)
    with overridden(
        state_dir=folder / STATE,
        clock_file=clock,
        log_location=None,
        log_endpoint=None,
        log_compact_s="0",
        log_keep_days=None,
        log_keep_bytes=None,
        log_durable=None,
        request_timeout_s=str(_SERVER_TIMEOUT_S),
    ):
        process_clock.cache_clear()
        try:
            yield
        finally:
            process_clock.cache_clear()


def _online_config(repo: Repo) -> Any:
    try:
        return repo.config.online_store
    except Exception as error:
        # Any exception: a store may be anybody's code, and lack what it imports.
        raise DefinitionError(
            f"{repo.path / 'feature_store.yaml'} names an online store that cannot be made: {error}"
        ) from error


def _scratch_online(repo: Repo, folder: Path) -> dict[str, Any]:
    """The ``online_store`` of the scratch repo: of the repo's own type where that can be local."""
    config = _online_config(repo)
    if isinstance(config, SqliteOnlineStoreConfig):
        options = config.model_dump(mode="json", exclude_unset=True)
        return {**options, "type": str(config.type), "path": str(folder / "online.db")}
    if isinstance(config, RedisOnlineStoreConfig):
        return {"type": str(config.type), "connection_string": "embedded"}
    if str(getattr(config, "type", None)) == "redis":
        socket = embedded_redis.start(folder / STATE)
        # Feast takes no connection string without an address.
        return {"type": "redis", "connection_string": f"localhost:1,unix_socket_path={socket}"}
    return {"type": OURS, "connection_string": "embedded"}


def _write_settings(repo: Repo, folder: Path, online: dict[str, Any]) -> Path:
    # Not expanded: what stands for a ${NAME} may be secret.
    content = yaml.safe_load((repo.path / "feature_store.yaml").read_text(encoding="utf-8"))
    settings = {
        **{name: content[name] for name in _COPIED if name in content},
        "provider": "local",
        "registry": str(folder / "registry.db"),
        "online_store": online,
    }
    served = folder / "repo"
    served.mkdir()
    (served / "feature_store.yaml").write_text(yaml.safe_dump(settings), encoding="utf-8")
    return served


def _copy_champions(state: Path, scratch_state: Path) -> None:
    """Copy all champions. The server finds out whether they can be loaded."""
    for model in champions(state):
        source, target = models_dir(state) / model, models_dir(scratch_state) / model
        target.mkdir(parents=True)
        shutil.copy(source / "champion.json", target)
        with suppress(TallystickError):
            bundle = read_champion(state, model).contract_hash
            if (source / bundle).is_dir():
                shutil.copytree(source / bundle, target / bundle)


def _end(cleaner: subprocess.Popen[bytes], folder: Path) -> None:
    """Have the folder removed, and wait until it is."""
    assert cleaner.stdin is not None
    cleaner.stdin.close()
    try:
        removed = cleaner.wait(_CLEANER_S) == 0
    except subprocess.TimeoutExpired:
        removed = False
    if not removed:
        logger.warning("%s could not be removed; the next parity check tries again.", folder)
