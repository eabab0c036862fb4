"""Feast's view of the online store; importing this imports Feast."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from pathlib import Path
from threading import Lock
from typing import Any, Literal, TypeAlias, cast

from feast import Entity, FeatureView, RepoConfig
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.serving.ServingService_pb2 import (
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel

from tallystick.clock import SECOND_US, process_clock, to_us
from tallystick.definitions.feature_repo import state_dir
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DataError, Problem
from tallystick.online_store.entity_keys import definitions_key, proto_key
from tallystick.online_store.feast_reads import (
    Answer,
    OnlineRead,
    add_version,
    answers_of,
    fill,
    read_of,
    reads_of,
    spec_of,
    stored_name,
)
from tallystick.online_store.journal.journal_entry import entry_of_rows
from tallystick.online_store.journal.write_journal import Journal, journal_of
from tallystick.online_store.redis_commands import mget
from tallystick.online_store.redis_connection import SyncClient, connect, redis_errors
from tallystick.online_store.redis_options import RedisOptions
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_writer import (
    WriteCounts,
    delete_project,
    delete_view,
    write_rows,
)
from tallystick.online_store.view_decoder import UnknownDefinitionError, ViewRows

logger = logging.getLogger(__name__)

Row: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]


class RedisOnlineStoreConfig(RedisOptions, FeastConfigBaseModel):  # type: ignore[misc]
    """The ``online_store`` part of ``feature_store.yaml``."""

    type: Literal["tallystick.online_store.RedisOnlineStore"] = (
        "tallystick.online_store.RedisOnlineStore"
    )


class RedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """Packed rows in Redis: a write keeps the newest row, and a read enforces the ttl.

    The asynchronous methods run their synchronous forms in a thread.

    Attributes:
        counts: Results of all writes of this object.
    """

    def __init__(self) -> None:
        self.counts = WriteCounts()
        self._client: SyncClient | None = None
        self._lock = Lock()

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes both have an asynchronous form."""
        return SupportedAsyncMethods(read=True, write=True)

    async def initialize(self, config: RepoConfig) -> None:
        """Do nothing: the client connects at its first command."""

    async def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            await asyncio.to_thread(client.close)

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Write rows; in Redis the newest row of each entity stays.

        Raises:
            DataError: A value does not fit its column; nothing of the batch is written.
            UnavailableError: Redis did not answer; the same batch may be written again.
        """
        codec, rows = _packed(config, table, data)
        with self._recording(config, codec, data, rows):
            counts = write_rows(
                self._connected(config),
                config.project,
                codec,
                rows,
                key_ttl_s=config.online_store.key_ttl_seconds,
            )
        self._written(codec, counts, progress)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """See :meth:`online_write_batch`."""
        await asyncio.to_thread(self.online_write_batch, config, table, data, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Answer]:
        """Rows of one view; a row past its ttl is as absent as one that never was.

        Raises:
            DamagedError: A value in Redis is not one of ours.
            UnavailableError: Redis did not answer.
        """
        read = read_of(config, table, entity_keys, requested_features)
        return answers_of(read, self._fetch(config, [read])[0])

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Answer]:
        """See :meth:`online_read`."""
        return await asyncio.to_thread(
            self.online_read, config, table, entity_keys, requested_features
        )

    def update(  # noqa: PLR0917 - Feast's signature
        self,
        config: RepoConfig,
        tables_to_delete: Sequence[FeatureView],
        tables_to_keep: Sequence[FeatureView],
        entities_to_delete: Sequence[Entity],
        entities_to_keep: Sequence[Entity],
        partial: bool,  # noqa: FBT001
    ) -> None:
        """Remove the rows of views that are no longer defined."""
        del entities_to_delete, entities_to_keep, partial
        remaining = {table.name for table in tables_to_keep}
        for table in tables_to_delete:
            # One version of a view that stays is removed alone.
            version = stored_name(config, table) if table.name in remaining else None
            deleted = delete_view(
                self._connected(config), config.project, table.name, version=version
            )
            logger.info("removed %d online rows of view %s", deleted, table.name)
            if (journal := _journal(config)) is not None:
                journal.removed(table.name, version=version)

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove everything of this project, and nothing of another."""
        del tables, entities
        deleted = delete_project(self._connected(config), config.project)
        logger.info("removed %d keys of project %s", deleted, config.project)
        if (journal := _journal(config)) is not None:
            journal.removed()

    def _is_versioned_read_supported(self) -> bool:
        return True

    def _read_features_per_fv(  # noqa: PLR0917 - Feast's signature
        self,
        config: RepoConfig,
        grouped_refs: list[tuple[Any, list[str]]],
        join_key_values: Mapping[str, Sequence[Value]],
        entity_name_to_join_key_map: Mapping[str, str],
        online_features_response: GetOnlineFeaturesResponse,
        full_feature_names: bool,  # noqa: FBT001
        include_feature_view_version_metadata: bool,  # noqa: FBT001
    ) -> None:
        """Fill Feast's answer from all views with one round trip."""
        reads = reads_of(config, grouped_refs, join_key_values, entity_name_to_join_key_map)
        for read, rows in zip(reads, self._fetch(config, reads), strict=True):
            fill(online_features_response, read, rows, full_names=full_feature_names)
            if include_feature_view_version_metadata:
                add_version(online_features_response, read.table)

    async def _read_features_per_fv_async(self, *args: Any) -> None:
        """See :meth:`_read_features_per_fv`."""
        await asyncio.to_thread(self._read_features_per_fv, *args)

    def _fetch(self, config: RepoConfig, reads: Sequence[OnlineRead]) -> list[ViewRows]:
        """The rows of each read, as of now, with one round trip for all."""
        client = self._connected(config)
        keys = list(dict.fromkeys(key for read in reads for key in read.keys))
        now_us = process_clock().now_us()
        with redis_errors(client):
            found = dict(zip(keys, mget(client, keys), strict=True))
            while True:
                try:
                    return [
                        read.decoder.decode(read.rows(found), request_time_us=now_us)
                        for read in reads
                    ]
                except UnknownDefinitionError as error:
                    (stored,) = client.hmget(definitions_key(config.project), [error.tag])
                    for read in reads:
                        if error.tag.startswith(read.decoder.view):
                            read.decoder.add_definition(error.tag, stored)

    def _connected(self, config: RepoConfig) -> SyncClient:
        with self._lock:
            if self._client is None:
                self._client = connect(config.online_store, _repo_path(config))
            return self._client

    def _recording(
        self,
        config: RepoConfig,
        codec: RowCodec,
        data: Sequence[Row],
        rows: Sequence[tuple[bytes | None, bytes]],
    ) -> AbstractContextManager[None]:
        """Record the rows in the journal, if there is one, while the block writes them."""
        journal = _journal(config)
        indices = [index for index, (key, _) in enumerate(rows) if key is not None]
        if journal is None or not indices:
            return nullcontext()
        keys: dict[str, list[Any]] = {}
        for index in indices:
            entity_key = data[index][0]
            for name, value in zip(entity_key.join_keys, entity_key.entity_values, strict=True):
                field = value.WhichOneof("val")
                content = getattr(value, field)
                is_time = field == "unix_timestamp_val"  # in whole seconds
                keys.setdefault(name, []).append(content * SECOND_US if is_time else content)
        entry = entry_of_rows(codec, keys, [rows[index][1] for index in indices])
        return journal.recording(self._connected(config), config.project, codec, entry)

    def _written(
        self, codec: RowCodec, counts: WriteCounts, progress: Callable[[int], Any] | None
    ) -> None:
        with self._lock:
            self.counts += counts
        logger.info(
            "view %s: %d rows won, %d lost, %d repeated, %d without key",
            codec.name,
            counts.won,
            counts.lost,
            counts.repeated,
            counts.unkeyed,
        )
        if progress is not None:
            progress(counts.won + counts.lost + counts.repeated + counts.unkeyed)


def _repo_path(config: RepoConfig) -> Path | None:
    return None if config.repo_path is None else Path(config.repo_path)


def _journal(config: RepoConfig) -> Journal | None:
    """Where writes are recorded; None where they are not."""
    if not config.online_store.journal:
        return None
    return journal_of(state_dir(_repo_path(config) or Path()))


def _is_missing(moment: Any) -> bool:
    """Whether there is no time: None, or the NaT of pandas."""
    return moment is None or bool(moment != moment)  # noqa: PLR0124 - only NaT differs from itself


def _event_us(spec: ViewSpec, event: Any) -> int:
    if _is_missing(event):
        raise DataError(
            f"A row of view {spec.name} cannot be stored.",
            [Problem(f"column {spec.event_column}", "a time", repr(event))],
        )
    return to_us(event)


def _packed(
    config: RepoConfig, table: Any, data: Sequence[Row]
) -> tuple[RowCodec, list[tuple[bytes | None, bytes]]]:
    spec = spec_of(table, [entity_key for entity_key, *_ in data[:1]])
    codec = RowCodec(spec, stored_name(config, table))
    write_us = process_clock().now_us()
    times = [
        (
            _event_us(spec, event),
            None if _is_missing(created) else to_us(cast("datetime", created)),
            write_us,
        )
        for _, _, event, created in data
    ]
    packed = codec.encode([values for _, values, _, _ in data], times, protos=True) if data else []
    keys = [proto_key(config.project, entity_key) for entity_key, *_ in data]
    rows = list(zip(keys, packed, strict=True))
    return codec, rows
