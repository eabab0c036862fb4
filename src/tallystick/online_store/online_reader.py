"""The reader of serving: all views of a request in one round trip, without Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick.definitions.contract import ViewUse
from tallystick.errors import InputError, Problem
from tallystick.online_store.entity_keys import EntityKeys, definitions_key
from tallystick.online_store.entity_value import FoundRows, SectionReader
from tallystick.online_store.redis_connection import ReadClient, redis_errors
from tallystick.online_store.view_decoder import (
    UnknownDefinitionError,
    ViewDecoder,
    ViewRows,
)

__all__ = ["OnlineReader", "ViewRows"]


@dataclass(frozen=True, slots=True)
class _Entity:
    """Views that are found under the same keys of a request, and so in the same values of Redis.

    Attributes:
        request_keys: The request's entity key for each join key; None for the key of views
            without entities, which no request names.
        keys: Makes the Redis keys.
        sections: Finds the views' rows in the values.
        decoders: Name of the view's use → how its rows are decoded.
    """

    request_keys: tuple[str | None, ...]
    keys: EntityKeys
    sections: SectionReader
    decoders: dict[str, ViewDecoder]


class OnlineReader:
    """Reads the views that a model uses.

    Args:
        client: Redis or a cluster; its timeouts hold here
            (:func:`tallystick.online_store.redis_connection.connect_for_reads`).
        project: Feast project.
        uses: Views, as the contract has them.

    Raises:
        DefinitionError: A view has keys that the online store cannot use.
    """

    def __init__(self, client: ReadClient, project: str, uses: Sequence[ViewUse]) -> None:
        self._client = client
        self._definitions_key = definitions_key(project)
        self._names = [use.name for use in uses]
        grouped: dict[Any, dict[str, ViewDecoder]] = {}
        for use in uses:
            named = tuple(use.key_map.get(key) for key in use.spec.key_names)
            decoders = grouped.setdefault((named, use.spec.join_keys), {})
            decoders[use.name] = ViewDecoder(use.spec, use.columns)
        self._entities = [
            _Entity(
                request_keys=named,
                keys=EntityKeys(project, join_keys),
                sections=SectionReader(decoder.view for decoder in decoders.values()),
                decoders=decoders,
            )
            for (named, join_keys), decoders in grouped.items()
        ]

    async def read(
        self, keys: Mapping[str, Sequence[Any]], *, request_time_us: int
    ) -> dict[str, ViewRows]:
        """Read all views for all rows of a request.

        Args:
            keys: Entity key of the request → its value in each row; None where there is none. All
                have the same length.
            request_time_us: Time of the request, against which the ttl holds.

        Returns:
            Name of the view's use → its rows, in the order of the request's.

        Raises:
            InputError: A key is missing, or of another type than the view's.
            DamagedError: A value in Redis is not one of ours.
            UnavailableError: Redis did not answer in time.
        """
        redis_keys = self._redis_keys(keys)
        present = [key for column in redis_keys for key in column if key is not None]
        with redis_errors(self._client):
            found = iter(await self._client.mget(present))
        decoded: dict[str, ViewRows] = {}
        for entity, column in zip(self._entities, redis_keys, strict=True):
            values = [None if key is None else next(found) for key in column]
            rows = entity.sections.find(values)
            for name, decoder in entity.decoders.items():
                decoded[name] = await self._decoded(decoder, rows, request_time_us)
        return {name: decoded[name] for name in self._names}

    def _redis_keys(self, keys: Mapping[str, Sequence[Any]]) -> list[list[bytes | None]]:
        needed = {key for entity in self._entities for key in entity.request_keys if key}
        if missing := needed - keys.keys():
            raise InputError(
                "The request lacks entity keys.",
                [Problem(key, "a value in each row", "none") for key in sorted(missing)],
            )
        no_key = [""] * len(next(iter(keys.values()), ()))
        return [
            entity.keys.of([no_key if key is None else keys[key] for key in entity.request_keys])
            for entity in self._entities
        ]

    async def _decoded(
        self, decoder: ViewDecoder, rows: FoundRows, request_time_us: int
    ) -> ViewRows:
        while True:
            try:
                return decoder.decode_found(rows, request_time_us=request_time_us)
            except UnknownDefinitionError as error:
                # Rows of an older definition, or of one that is newer than the model; rare.
                with redis_errors(self._client):
                    (stored,) = await self._client.hmget(self._definitions_key, [error.tag])
                decoder.add_definition(error.tag, stored)
