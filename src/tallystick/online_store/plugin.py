"""Feast's view of the online store; importing this imports Feast."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast
from weakref import WeakKeyDictionary

from feast import Entity, FeatureView, RepoConfig, utils
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.infra.online_stores.online_store import OnlineStore
from feast.infra.supported_async_methods import SupportedAsyncMethods
from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from feast.repo_config import FeastConfigBaseModel
from google.protobuf.timestamp_pb2 import Timestamp
from pydantic import Field

from tallystick.clock import from_us, process_clock, to_us
from tallystick.errors import DataError, InputError, Problem
from tallystick.online_store.connection import (
    CONNECT_TIMEOUT_S,
    EMBEDDED,
    READ_TIMEOUT_S,
    AsyncClient,
    SyncClient,
    connect,
    redis_errors,
)
from tallystick.online_store.decoder import Status, ViewDecoder, ViewRows
from tallystick.online_store.keys import definitions_key, proto_key, view_prefix
from tallystick.online_store.packed import RowCodec
from tallystick.online_store.writer import (
    WriteCounts,
    delete_project,
    delete_view,
    write_rows,
    write_rows_async,
)
from tallystick.view import Column, ViewSpec

logger = logging.getLogger(__name__)

Row: TypeAlias = tuple[EntityKey, dict[str, Value], datetime, datetime | None]
Answer: TypeAlias = tuple[datetime | None, dict[str, Value] | None]


class RedisOnlineStoreConfig(FeastConfigBaseModel):  # type: ignore[misc]
    """The ``online_store`` part of ``feature_store.yaml``."""

    type: Literal["tallystick.online_store.RedisOnlineStore"] = (
        "tallystick.online_store.RedisOnlineStore"
    )
    connection_string: str = Field(
        default=EMBEDDED,
        description="host:port[,username=…][,password=…][,ssl=true][,db=0], unix:///path, or "
        "embedded for a private server in the repo's state folder.",
    )
    connect_timeout_s: float = Field(default=CONNECT_TIMEOUT_S, gt=0)
    read_timeout_s: float = Field(default=READ_TIMEOUT_S, gt=0)


@dataclass(slots=True)
class _ViewRead:
    """One view of one read: Redis keys of its unique entities, and where their rows go."""

    table: Any
    columns: Sequence[str]
    decoder: ViewDecoder
    keys: list[bytes]
    places: list[int | None]
    """For each row of the answer its place in ``keys``, None where a key value is null."""


class RedisOnlineStore(OnlineStore):  # type: ignore[misc]
    """Packed rows in Redis, folded as they are written; the ttl holds when they are read.

    Attributes:
        counts: What became of all rows that this object wrote.
    """

    def __init__(self) -> None:
        self.counts = WriteCounts()
        self._client: SyncClient | None = None
        self._async_clients: WeakKeyDictionary[asyncio.AbstractEventLoop, AsyncClient] = (
            WeakKeyDictionary()
        )

    @property
    def async_supported(self) -> SupportedAsyncMethods:
        """Reads and writes both have an asynchronous form."""
        return SupportedAsyncMethods(read=True, write=True)

    async def initialize(self, config: RepoConfig) -> None:
        """Make the asynchronous client of the running loop."""
        self._asynchronous(config)

    async def close(self) -> None:
        """Close the connections of the running loop."""
        client = self._async_clients.pop(asyncio.get_running_loop(), None)
        if client is not None:
            await client.aclose()

    def online_write_batch(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Fold rows into Redis.

        Raises:
            DataError: A value does not fit its column; nothing of the batch is written.
            UnavailableError: Redis did not answer; the same batch may be written again.
        """
        spec, rows = _packed(config, table, data)
        counts = write_rows(self._synchronous(config), config.project, spec, rows)
        self._written(spec, counts, progress)

    async def online_write_batch_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        data: list[Row],
        progress: Callable[[int], Any] | None,
    ) -> None:
        """Fold rows into Redis, as :meth:`online_write_batch`."""
        spec, rows = _packed(config, table, data)
        counts = await write_rows_async(self._asynchronous(config), config.project, spec, rows)
        self._written(spec, counts, progress)

    def online_read(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Answer]:
        """Rows of one view; a row past its ttl is as absent as one that never was.

        Raises:
            DamagedError: Something that is no row lies in Redis.
            UnavailableError: Redis did not answer.
        """
        read = _read_of(config, table, entity_keys, requested_features)
        return _answers(read, self._fetch(config, [read])[0])

    async def online_read_async(
        self,
        config: RepoConfig,
        table: FeatureView,
        entity_keys: list[EntityKey],
        requested_features: list[str] | None = None,
    ) -> list[Answer]:
        """Rows of one view, as :meth:`online_read`."""
        read = _read_of(config, table, entity_keys, requested_features)
        return _answers(read, (await self._fetch_async(config, [read]))[0])

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
        del tables_to_keep, entities_to_delete, entities_to_keep, partial
        for table in tables_to_delete:
            deleted = delete_view(
                self._synchronous(config), config.project, _stored_name(config, table)
            )
            logger.info("removed %d online rows of view %s", deleted, table.name)

    def teardown(
        self, config: RepoConfig, tables: Sequence[FeatureView], entities: Sequence[Entity]
    ) -> None:
        """Remove everything of this project, and nothing of another."""
        del tables, entities
        deleted = delete_project(self._synchronous(config), config.project)
        logger.info("removed %d keys of project %s", deleted, config.project)

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
        reads = _reads_of(config, grouped_refs, join_key_values, entity_name_to_join_key_map)
        for read, rows in zip(reads, self._fetch(config, reads), strict=True):
            _fill(online_features_response, read, rows, full_names=full_feature_names)
            if include_feature_view_version_metadata:
                _add_version(online_features_response, read.table)

    async def _read_features_per_fv_async(  # noqa: PLR0917 - Feast's signature
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
        reads = _reads_of(config, grouped_refs, join_key_values, entity_name_to_join_key_map)
        for read, rows in zip(reads, await self._fetch_async(config, reads), strict=True):
            _fill(online_features_response, read, rows, full_names=full_feature_names)
            if include_feature_view_version_metadata:
                _add_version(online_features_response, read.table)

    def _fetch(self, config: RepoConfig, reads: Sequence[_ViewRead]) -> list[ViewRows]:
        client = self._synchronous(config)
        keys = [key for read in reads for key in read.keys]
        with redis_errors(client):
            found = client.mget(keys) if keys else []
            for read, rows in _split(reads, found):
                if unknown := sorted(read.decoder.unknown(rows)):
                    texts = client.hmget(definitions_key(config.project), unknown)
                    read.decoder.learn(dict(zip(unknown, texts, strict=True)))
        return _decoded(reads, found)

    async def _fetch_async(self, config: RepoConfig, reads: Sequence[_ViewRead]) -> list[ViewRows]:
        client = self._asynchronous(config)
        keys = [key for read in reads for key in read.keys]
        with redis_errors(client):
            found = await client.mget(keys) if keys else []
            for read, rows in _split(reads, found):
                if unknown := sorted(read.decoder.unknown(rows)):
                    texts = await client.hmget(definitions_key(config.project), unknown)
                    read.decoder.learn(dict(zip(unknown, texts, strict=True)))
        return _decoded(reads, found)

    def _synchronous(self, config: RepoConfig) -> SyncClient:
        if self._client is None:
            self._client = connect(
                config.online_store.connection_string,
                _repo_path(config),
                connect_timeout_s=config.online_store.connect_timeout_s,
                read_timeout_s=config.online_store.read_timeout_s,
            )
        return self._client

    def _asynchronous(self, config: RepoConfig) -> AsyncClient:
        """The client of the running loop: connections cannot be shared between loops."""
        loop = asyncio.get_running_loop()
        if loop not in self._async_clients:
            self._async_clients[loop] = connect(
                config.online_store.connection_string,
                _repo_path(config),
                asynchronous=True,
                connect_timeout_s=config.online_store.connect_timeout_s,
                read_timeout_s=config.online_store.read_timeout_s,
            )
        return self._async_clients[loop]

    def _written(
        self, spec: ViewSpec, counts: WriteCounts, progress: Callable[[int], Any] | None
    ) -> None:
        self.counts += counts
        logger.info(
            "view %s: %d rows won, %d lost, %d repeated, %d without key",
            spec.name,
            counts.won,
            counts.lost,
            counts.repeated,
            counts.unkeyed,
        )
        if progress is not None:
            progress(counts.won + counts.lost + counts.repeated + counts.unkeyed)


def _repo_path(config: RepoConfig) -> Path | None:
    return None if config.repo_path is None else Path(config.repo_path)


def _stored_name(config: RepoConfig, table: Any) -> str:
    """The view's name in Redis, which has its version if the repo keeps versions apart."""
    versioned = bool(getattr(config.registry, "enable_online_feature_view_versioning", False))
    return str(compute_versioned_name(table, versioned))


def _spec_of(table: Any) -> ViewSpec:
    """The definition of anything that Feast writes online, also of what has no history."""
    if getattr(table, "batch_source", None) is not None:
        return ViewSpec.from_feast(table)
    return ViewSpec(
        name=table.name,
        join_keys=tuple(
            Column(name=field.name, dtype=field.dtype.to_value_type().name)
            for field in getattr(table, "entity_columns", ())
        ),
        columns=tuple(
            Column(name=field.name, dtype=field.dtype.to_value_type().name)
            for field in table.features
        ),
        ttl_us=None,
        event_column="",
        created_column=None,
    )


def _is_missing(moment: Any) -> bool:
    """Whether there is no time: None, or the NaT that pandas has in its place."""
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
) -> tuple[ViewSpec, list[tuple[bytes | None, bytes]]]:
    spec = _spec_of(table)
    codec = RowCodec(spec)
    prefix = view_prefix(config.project, _stored_name(config, table))
    write_us = process_clock().now_us()
    rows = [
        (
            proto_key(prefix, entity_key),
            codec.encode_protos(
                values,
                event_us=_event_us(spec, event),
                created_us=None if _is_missing(created) else to_us(cast("datetime", created)),
                write_us=write_us,
            ),
        )
        for entity_key, values, event, created in data
    ]
    return spec, rows


def _read_of(
    config: RepoConfig,
    table: Any,
    entity_keys: Sequence[EntityKey],
    requested: Sequence[str] | None,
) -> _ViewRead:
    """What has to be read of one view; each entity is asked for once."""
    spec = _spec_of(table)
    columns = list(spec.column_names if requested is None else requested)
    unknown = sorted(set(columns) - set(spec.column_names))
    if unknown:
        raise InputError(
            f"View {spec.name} lacks features that were asked for.",
            [Problem(name, f"one of {', '.join(spec.column_names)}", "absent") for name in unknown],
        )
    prefix = view_prefix(config.project, _stored_name(config, table))
    keys = [proto_key(prefix, entity_key) for entity_key in entity_keys]
    unique = {key: place for place, key in enumerate(dict.fromkeys(key for key in keys if key))}
    return _ViewRead(
        table=table,
        columns=columns,
        decoder=ViewDecoder(spec, columns, protos=True),
        keys=list(unique),
        places=[None if key is None else unique[key] for key in keys],
    )


def _reads_of(
    config: RepoConfig,
    grouped_refs: Sequence[tuple[Any, Sequence[str]]],
    join_key_values: Mapping[str, Sequence[Value]],
    join_keys_of_entities: Mapping[str, str],
) -> list[_ViewRead]:
    reads = []
    for table, requested in grouped_refs:
        columns = utils._get_table_entity_values(  # noqa: SLF001 - Feast has no public form of it
            table, join_keys_of_entities, join_key_values
        )
        needed = [join_keys_of_entities[entity] for entity in table.entities]
        if missing := [name for name in needed if name not in columns]:
            raise InputError(
                f"View {table.name} cannot be read.",
                [Problem(name, "a value in each row", "none") for name in missing],
            )
        entity_keys = [
            EntityKey(join_keys=list(columns), entity_values=values)
            for values in zip(*columns.values(), strict=True)
        ]
        reads.append(_read_of(config, table, entity_keys, requested))
    return reads


def _split(
    reads: Sequence[_ViewRead], found: Sequence[bytes | None]
) -> list[tuple[_ViewRead, Sequence[bytes | None]]]:
    parts, start = [], 0
    for read in reads:
        parts.append((read, found[start : start + len(read.keys)]))
        start += len(read.keys)
    return parts


def _decoded(reads: Sequence[_ViewRead], found: Sequence[bytes | None]) -> list[ViewRows]:
    now_us = process_clock().now_us()
    return [
        read.decoder.decode(rows, request_time_us=now_us) for read, rows in _split(reads, found)
    ]


def _answers(read: _ViewRead, rows: ViewRows) -> list[Answer]:
    answers: list[Answer] = []
    for place in read.places:
        event_us = None if place is None else rows.event_us[place]
        if place is None or event_us is None or rows.status[place] is not Status.PRESENT:
            answers.append((None, None))
            continue
        values = {name: rows.values[name][place] or Value() for name in read.columns}
        answers.append((from_us(event_us), values))
    return answers


_STATUS = {
    Status.NOT_FOUND: FieldStatus.NOT_FOUND,
    Status.OUTSIDE_MAX_AGE: FieldStatus.OUTSIDE_MAX_AGE,
}


def _fill(
    response: GetOnlineFeaturesResponse, read: _ViewRead, rows: ViewRows, *, full_names: bool
) -> None:
    """Append one view's columns to Feast's answer."""
    view = read.table.projection.name_to_use()
    times = []
    for place in read.places:
        time = Timestamp()
        event_us = None if place is None else rows.event_us[place]
        if event_us is not None:
            time.FromMicroseconds(event_us)
        times.append(time)
    null = Value()
    for name in read.columns:
        response.metadata.feature_names.val.append(f"{view}__{name}" if full_names else name)
        values, statuses = [], []
        for place in read.places:
            status = Status.NOT_FOUND if place is None else rows.status[place]
            value = null if place is None else rows.values[name][place] or null
            values.append(value)
            if status is Status.PRESENT:
                empty = value.WhichOneof("val") is None
                statuses.append(FieldStatus.NULL_VALUE if empty else FieldStatus.PRESENT)
            else:
                statuses.append(_STATUS[status])
        response.results.append(
            GetOnlineFeaturesResponse.FeatureVector(
                values=values, statuses=statuses, event_timestamps=times
            )
        )


def _add_version(response: GetOnlineFeaturesResponse, table: Any) -> None:
    name = table.projection.name_alias or table.projection.name
    if all(view.name != name for view in response.metadata.feature_view_metadata):
        response.metadata.feature_view_metadata.add(
            name=name, version=getattr(table, "current_version_number", 0) or 0
        )
