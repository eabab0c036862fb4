"""Reads of the online store as serving makes them, each with a client of its own."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from tallystick.definitions.contract import ViewUse
from tallystick.definitions.feature_view import NO_ENTITY_KEY, ViewSpec
from tallystick.online_store.online_reader import OnlineReader, ViewRows
from tallystick.online_store.redis_connection import connect_for_reads
from tallystick.online_store.redis_options import RedisOptions


def use_of(
    spec: ViewSpec,
    key_map: Mapping[str, str] | None = None,
    columns: Sequence[str] = (),
    name: str = "",
) -> ViewUse:
    """A view as a contract has it; by default its own keys and name, and all its columns."""
    own = {key: key for key in spec.key_names if key != NO_ENTITY_KEY}
    return ViewUse(
        spec=spec,
        name=name or spec.name,
        key_map=own if key_map is None else dict(key_map),
        columns=tuple(columns or spec.column_names),
    )


def read_online(
    project: str,
    uses: Sequence[ViewUse],
    keys: Mapping[str, Sequence[Any]],
    *,
    at_us: int = 0,
    **options: Any,
) -> dict[str, ViewRows]:
    """What a reader gives for one request; the options are those of the store."""

    async def read() -> dict[str, ViewRows]:
        client = connect_for_reads(RedisOptions(**options))
        try:
            return await OnlineReader(client, project, uses).read(keys, request_time_us=at_us)
        finally:
            await client.aclose()

    return asyncio.run(read())
