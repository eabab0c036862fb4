"""The keys of entities in Redis.

``ts3:PROJECT:EE:KEY``: the project is percent-encoded, so that no name can end where another goes
on, and a scan for one project matches no other. ``EE`` are two letters of a hash over the names of
the join keys, short because they stand in every key. ``KEY`` is the values of the join keys, in the
order of their names, each with its type and its end: ``i42;`` or ``s3:ATL``. An integer never
equals a string, and no two tuples of values have the same text.

All views with the same join keys share the value under this name. Should the letters of two tuples
of join keys be the same, they share values as well, and nothing is mistaken: a row's tag says of
which view and by which keys it is.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from tallystick.definitions.feature_types import feature_type
from tallystick.definitions.feature_view import Column
from tallystick.definitions.join_keys import key_columns, require_key_types
from tallystick.errors import InputError, Problem

if TYPE_CHECKING:
    from feast.protos.feast.types.EntityKey_pb2 import EntityKey

_LAYOUT: Final = "ts3"
"""Version of this module's layout; two layouts never see each other's rows."""


def project_prefix(project: str) -> bytes:
    """What all keys of a project start with, and no other key does."""
    return f"{_LAYOUT}:{quote(project, safe='')}:".encode()


def entity_prefix(project: str, join_keys: Iterable[str]) -> bytes:
    """What all keys of entities with these join keys start with."""
    return _entity_prefix(project, tuple(sorted(join_keys)))


@lru_cache(maxsize=1024)
def _entity_prefix(project: str, names: tuple[str, ...]) -> bytes:
    letters = base64.urlsafe_b64encode(hashlib.sha256(json.dumps(names).encode()).digest())[:2]
    return project_prefix(project) + letters + b":"


def definitions_key(project: str) -> bytes:
    """Key of the project's definitions; no value has it, since theirs have two letters there."""
    return project_prefix(project) + b":definitions"


def ttls_key(project: str) -> bytes:
    """Key of the ttl of each definition that has one."""
    return project_prefix(project) + b":ttls"


def marks_key(project: str) -> bytes:
    """Key of what materialization has brought online."""
    return project_prefix(project) + b":marks"


def _integers(values: Sequence[int | None]) -> list[bytes | None]:
    return [None if value is None else b"i%d;" % value for value in values]


def _texts(values: Sequence[str | None]) -> list[bytes | None]:
    raws = [None if value is None else value.encode() for value in values]
    return [None if raw is None else b"s%d:%b" % (len(raw), raw) for raw in raws]


def _binaries(values: Sequence[bytes | None]) -> list[bytes | None]:
    return [None if value is None else b"b%d:%b" % (len(value), value) for value in values]


def _seconds(values: Sequence[int | None]) -> list[bytes | None]:
    return [None if value is None else b"t%d;" % value for value in values]


_ENCODINGS: Final[dict[str, Callable[[Any], list[bytes | None]]]] = {
    "INT32": _integers,
    "INT64": _integers,
    "STRING": _texts,
    "BYTES": _binaries,
    "UNIX_TIMESTAMP": _seconds,
}
"""Type of a key → how its values, by :mod:`tallystick.definitions.join_keys`, are written."""
_BY_PROTO_FIELD: Final = {
    feature_type(name).proto_field: encode for name, encode in _ENCODINGS.items()
}


class EntityKeys:
    """Makes Redis keys from columns of key values.

    Args:
        project: Feast project.
        join_keys: The key columns, in the order in which :meth:`of` is given their values.

    Raises:
        DefinitionError: A key has a type that cannot be a key.
    """

    def __init__(self, project: str, join_keys: Sequence[Column]) -> None:
        require_key_types(join_keys)
        self._join_keys = tuple(join_keys)
        self._order = sorted(range(len(join_keys)), key=lambda index: join_keys[index].name)
        self._encodings = [_ENCODINGS[join_keys[index].dtype] for index in self._order]
        self._start = entity_prefix(project, [key.name for key in join_keys])

    def of(self, columns: Sequence[Sequence[Any]]) -> list[bytes | None]:
        """One Redis key per row; None where a key value is None.

        Args:
            columns: Values of each join key, in the order given to the constructor.

        Raises:
            InputError: A value has another type than its key; every such column is listed.
        """
        values = key_columns(self._join_keys, columns)
        encoded = [
            encode(values[index])
            for index, encode in zip(self._order, self._encodings, strict=True)
        ]
        start = self._start
        if len(encoded) == 1:
            return [None if one is None else b"%b%b" % (start, one) for one in encoded[0]]
        return [
            None if None in row else b"%b%b" % (start, b"".join(part for part in row if part))
            for row in zip(*encoded, strict=True)
        ]


def proto_key(project: str, entity_key: EntityKey) -> bytes | None:
    """The Redis key of an entity from Feast's entity key; None where a key value is null.

    Args:
        project: Feast project.
        entity_key: Join keys and values, in any order.

    Raises:
        InputError: A value has a type that cannot be a key.
    """
    parts: list[bytes | None] = []
    for name, value in sorted(
        zip(entity_key.join_keys, entity_key.entity_values, strict=True),
        key=lambda pair: pair[0],
    ):
        field = value.WhichOneof("val")
        if field is None or field == "null_val":
            return None
        encode = _BY_PROTO_FIELD.get(field)
        if encode is None:
            raise InputError(
                "An entity key cannot be used.", [Problem(name, " or ".join(_ENCODINGS), field)]
            )
        parts += encode([getattr(value, field)])
    return b"%b%b" % (entity_prefix(project, entity_key.join_keys), b"".join(filter(None, parts)))
