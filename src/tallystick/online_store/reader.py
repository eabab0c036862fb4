"""What serving asks of the online store: all views of a request at once, without Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tallystick.contract import ViewUse
from tallystick.errors import InputError, Problem
from tallystick.online_store.connection import AsyncClient, redis_errors
from tallystick.online_store.decoder import Status, ViewDecoder, ViewRows
from tallystick.online_store.keys import RowKeys, definitions_key

__all__ = ["OnlineReader", "Status", "ViewRows"]


@dataclass(frozen=True, slots=True)
class _View:
    """A view as it is read: how its keys are made, and how its rows are decoded."""

    name: str
    request_keys: tuple[str | None, ...]
    keys: RowKeys
    decoder: ViewDecoder


class OnlineReader:
    """Reads the views that a model uses.

    Args:
        client: A ``redis.asyncio.Redis`` that answers with bytes; its timeouts hold here
            (:func:`tallystick.online_store.connection.connect`).
        project: Feast project.
        uses: Views, as the contract has them.

    Raises:
        DefinitionError: A view has keys that the online store cannot use.
    """

    def __init__(self, client: AsyncClient, project: str, uses: Sequence[ViewUse]) -> None:
        self._client = client
        self._definitions_key = definitions_key(project)
        self._views = [
            _View(
                name=use.name,
                # A view without entities has one row, under a key that no request names.
                request_keys=tuple(use.key_map.get(key) for key in use.spec.key_names),
                keys=RowKeys(project, use.spec.name, use.spec.join_keys),
                decoder=ViewDecoder(use.spec, use.columns),
            )
            for use in uses
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
            DamagedError: Something that is no row lies in Redis.
            UnavailableError: Redis did not answer in time.
        """
        wanted = self._row_keys(keys)
        asked = [key for row_keys in wanted for key in row_keys if key is not None]
        if asked:
            with redis_errors(self._client):
                found = iter(await self._client.mget(asked))
        else:
            found = iter(())
        answer = {}
        for view, row_keys in zip(self._views, wanted, strict=True):
            rows = [None if key is None else next(found) for key in row_keys]
            unknown = view.decoder.unknown(rows)
            if unknown:
                await self._learn(view.decoder, sorted(unknown))
            answer[view.name] = view.decoder.decode(rows, request_time_us=request_time_us)
        return answer

    def _row_keys(self, keys: Mapping[str, Sequence[Any]]) -> list[list[bytes | None]]:
        needed = {key for view in self._views for key in view.request_keys if key is not None}
        if missing := needed - keys.keys():
            raise InputError(
                "The request lacks entity keys.",
                [Problem(key, "a value in each row", "none") for key in sorted(missing)],
            )
        count = len(next(iter(keys.values()), ()))
        no_key = [""] * count
        return [
            view.keys.of([no_key if key is None else keys[key] for key in view.request_keys])
            for view in self._views
        ]

    async def _learn(self, decoder: ViewDecoder, hashes: Sequence[str]) -> None:
        """Fetch definitions under which older rows were written; rare, and then remembered."""
        with redis_errors(self._client):
            texts = await self._client.hmget(self._definitions_key, hashes)
        decoder.learn(dict(zip(hashes, texts, strict=True)))
