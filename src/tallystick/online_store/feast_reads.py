"""Online reads as Feast requests and answers them; importing this imports Feast."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeAlias

from feast import RepoConfig, utils
from feast.infra.online_stores.helpers import compute_versioned_name
from feast.protos.feast.serving.ServingService_pb2 import (
    FieldStatus,
    GetOnlineFeaturesResponse,
)
from feast.protos.feast.types.EntityKey_pb2 import EntityKey
from feast.protos.feast.types.Value_pb2 import Value
from google.protobuf.timestamp_pb2 import Timestamp

from tallystick.clock import from_us
from tallystick.definitions.feature_view import Column, ViewSpec, columns_of
from tallystick.errors import InputError, Problem
from tallystick.online_store.entity_keys import proto_key
from tallystick.online_store.entity_value import SectionReader
from tallystick.online_store.view_decoder import ViewDecoder, ViewRows
from tallystick.point_in_time.feature_status import Status

Answer: TypeAlias = tuple[datetime | None, dict[str, Value] | None]


class MissingKeyError(InputError, KeyError):
    """A request lacks a join key; Feast's contract has a KeyError for it."""

    def __str__(self) -> str:
        return Exception.__str__(self)


@dataclass(frozen=True, slots=True)
class OnlineRead:
    """One view of one read.

    Attributes:
        table: Feast's view.
        columns: Requested features.
        decoder: How its rows are decoded.
        keys: Redis keys of its entities, each once.
        indices: For each row of the answer its index in ``keys``, None where a key value is null.
    """

    table: Any
    columns: Sequence[str]
    decoder: ViewDecoder
    keys: list[bytes]
    indices: list[int | None]

    def rows(self, found: Mapping[bytes, bytes | None]) -> list[bytes | None]:
        """The packed row of each key, from what Redis has of all entities."""
        view = self.decoder.view
        return SectionReader([view]).rows([found[key] for key in self.keys])[view]


def stored_name(config: RepoConfig, table: Any) -> str:
    """The view's name online: with its version, if the repo keeps versions apart.

    The version comes behind a character that no name has: a view may be named like another's.
    """
    versioned = bool(getattr(config.registry, "enable_online_feature_view_versioning", False))
    version = str(compute_versioned_name(table, versioned)).removeprefix(table.name)
    return f"{table.name}\0{version}" if version else str(table.name)


def spec_of(table: Any, entity_keys: Sequence[EntityKey] = ()) -> ViewSpec:
    """The definition of anything that Feast writes online, also of what has no history.

    Args:
        table: Feast's view, which may not be registered and then does not know its join keys.
        entity_keys: Keys of rows of the view, which do.
    """
    if getattr(table, "batch_source", None) is not None:
        spec = ViewSpec.from_feast(table)
    else:
        spec = ViewSpec(
            name=table.name,
            join_keys=columns_of(getattr(table, "entity_columns", ())),
            columns=columns_of(table.features),
            ttl_us=None,
            event_column="",
            created_column=None,
        )
    if spec.join_keys or not entity_keys:
        return spec
    pairs = zip(entity_keys[0].join_keys, entity_keys[0].entity_values, strict=True)
    named = tuple(
        Column(name=name, dtype=(value.WhichOneof("val") or "").removesuffix("_val").upper())
        for name, value in pairs
    )
    return spec.model_copy(update={"join_keys": named})


def read_of(
    config: RepoConfig,
    table: Any,
    entity_keys: Sequence[EntityKey],
    requested: Sequence[str] | None,
) -> OnlineRead:
    """The read of one view; each entity is read once."""
    spec = spec_of(table, entity_keys)
    # Feast's own stores take no names for all of them, and answer with nulls for unknown ones.
    columns = list(requested or spec.column_names)
    known = [name for name in columns if name in spec.column_names]
    keys = [proto_key(config.project, entity_key) for entity_key in entity_keys]
    unique = {key: index for index, key in enumerate(dict.fromkeys(key for key in keys if key))}
    return OnlineRead(
        table=table,
        columns=columns,
        decoder=ViewDecoder(spec, known, protos=True, name=stored_name(config, table)),
        keys=list(unique),
        indices=[None if key is None else unique[key] for key in keys],
    )


def reads_of(
    config: RepoConfig,
    grouped_refs: Sequence[tuple[Any, Sequence[str]]],
    join_key_values: Mapping[str, Sequence[Value]],
    join_keys_of_entities: Mapping[str, str],
) -> list[OnlineRead]:
    """The reads of several views, as Feast groups the requested features.

    Raises:
        InputError: A key is missing, or a feature is not one of its view's.
    """
    reads = []
    for table, requested in grouped_refs:
        columns = utils._get_table_entity_values(  # noqa: SLF001 - Feast has no public form of it
            table, join_keys_of_entities, join_key_values
        )
        needed = [join_keys_of_entities[entity] for entity in table.entities]
        if missing := [name for name in needed if name not in columns]:
            raise MissingKeyError(
                f"Missing join key values for keys: {missing}. View {table.name} needs them.",
                [Problem(name, "a value in each row", "none") for name in missing],
            )
        entity_keys = [
            EntityKey(join_keys=list(columns), entity_values=values)
            for values in zip(*columns.values(), strict=True)
        ]
        reads.append(read_of(config, table, entity_keys, requested))
    return reads


def answers_of(read: OnlineRead, rows: ViewRows) -> list[Answer]:
    """What ``online_read`` answers: event time and values of each row, or two times None."""
    answers: list[Answer] = []
    for index in read.indices:
        event_us = None if index is None else rows.event_us[index]
        if index is None or event_us is None or rows.status[index] is not Status.PRESENT:
            answers.append((None, None))
            continue
        values = {
            name: rows.values[name][index] or Value() if name in rows.values else Value()
            for name in read.columns
        }
        answers.append((from_us(event_us), values))
    return answers


_FIELD_STATUS = {status: FieldStatus.Value(status) for status in Status}


def fill(
    response: GetOnlineFeaturesResponse, read: OnlineRead, rows: ViewRows, *, full_names: bool
) -> None:
    """Append one view's columns to Feast's answer."""
    view = read.table.projection.name_to_use()
    times = []
    for index in read.indices:
        time = Timestamp()
        event_us = None if index is None else rows.event_us[index]
        if event_us is not None:
            time.FromMicroseconds(event_us)
        times.append(time)
    null = Value()
    for name in read.columns:
        response.metadata.feature_names.val.append(f"{view}__{name}" if full_names else name)
        own = rows.values.get(name)
        values, statuses = [], []
        for index in read.indices:
            status = Status.NOT_FOUND if index is None else rows.status[index]
            value = null if index is None or own is None else own[index] or null
            values.append(value)
            if status is Status.PRESENT and value.WhichOneof("val") is None:
                status = Status.NULL_VALUE
            statuses.append(_FIELD_STATUS[status])
        response.results.append(
            GetOnlineFeaturesResponse.FeatureVector(
                values=values, statuses=statuses, event_timestamps=times
            )
        )


def add_version(response: GetOnlineFeaturesResponse, table: Any) -> None:
    """Say in Feast's answer which version of a view it has."""
    name = table.projection.name_alias or table.projection.name
    if all(view.name != name for view in response.metadata.feature_view_metadata):
        response.metadata.feature_view_metadata.add(
            name=name, version=getattr(table, "current_version_number", 0) or 0
        )
