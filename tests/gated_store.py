"""A Feast online store that fails on request; otherwise Feast's SQLite store."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import ClassVar, Literal

from feast.infra.online_stores.sqlite import SqliteOnlineStore, SqliteOnlineStoreConfig

TYPE = "gated_store.GatedSqliteOnlineStore"
SECRET = "password=hunter2"


class GatedSqliteOnlineStoreConfig(SqliteOnlineStoreConfig):
    type: Literal["gated_store.GatedSqliteOnlineStore"] = TYPE


class GatedSqliteOnlineStore(SqliteOnlineStore):
    gate: ClassVar[threading.Event] = threading.Event()
    failing: ClassVar[bool] = False
    timeless: ClassVar[bool] = False
    running: ClassVar[int] = 0
    lock: ClassVar[threading.Lock] = threading.Lock()

    def online_read(self, config, table, entity_keys, requested_features=None):
        kind = type(self)
        with kind.lock:
            kind.running += 1
        try:
            kind.gate.wait()
            if kind.failing:
                raise RuntimeError(f"no connection with {SECRET}")
            rows = super().online_read(config, table, entity_keys, requested_features)
            return [(None, row) for _, row in rows] if kind.timeless else rows
        finally:
            with kind.lock:
                kind.running -= 1


GatedSqliteOnlineStore.gate.set()


@contextmanager
def hanging():
    """Within it no read comes back; those that hang go on when it ends."""
    GatedSqliteOnlineStore.gate.clear()
    try:
        yield GatedSqliteOnlineStore
    finally:
        GatedSqliteOnlineStore.gate.set()


@contextmanager
def failing():
    """Within it every read fails."""
    GatedSqliteOnlineStore.failing = True
    try:
        yield
    finally:
        GatedSqliteOnlineStore.failing = False


@contextmanager
def timeless():
    """Within it no row has an event time."""
    GatedSqliteOnlineStore.timeless = True
    try:
        yield
    finally:
        GatedSqliteOnlineStore.timeless = False
