"""The online store: packed rows in Redis, replaced only by newer ones.

Feast finds its plugin here by the name ``tallystick.online_store.RedisOnlineStore``. Both classes
are resolved at their first use, because importing Feast takes seconds and serving does not
need it: ``tallystick.online_store.online_reader`` and ``tallystick.online_store.row_codec`` import
neither Feast nor pandas.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tallystick.online_store.redis_store import RedisOnlineStore, RedisOnlineStoreConfig

__all__ = ["RedisOnlineStore", "RedisOnlineStoreConfig"]


def __getattr__(name: str) -> Any:
    """Import the plugin's classes when they are first used."""
    if name in __all__:
        from tallystick.online_store import redis_store

        return getattr(redis_store, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
