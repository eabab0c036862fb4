"""What the tags of rows stand for, kept in Redis beside the rows.

A hash for each project, ``ts2:PROJECT::definitions``: tag of a view → its name online, and tag of a
row → the definition under which it was written, as JSON. Both are there before the first row that
needs them, and neither ever changes: a name or definition whose tag means another one is refused.
Another hash, ``ts2:PROJECT::ttls``, has the ttl of each definition for the script that folds rows.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import DefinitionError, Problem
from tallystick.online_store.entity_keys import definitions_key, ttls_key
from tallystick.online_store.redis_connection import SyncClient, redis_errors
from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import TAG, VIEW_TAG

_TTL: Final = struct.Struct("<d")


@dataclass(frozen=True, slots=True)
class Registered:
    """What Redis knows of a project's definitions when rows are about to be written.

    Attributes:
        ttls: For each definition with a ttl its row tag and the ttl in microseconds as a double,
            one after the other: what :data:`tallystick.online_store.lua_scripts.FOLD` takes.
    """

    ttls: bytes


def register(client: SyncClient, project: str, codec: RowCodec) -> Registered:
    """Register a definition before its rows are written.

    Raises:
        DefinitionError: Another name or definition has the same tag.
        UnavailableError: Redis did not answer.
    """
    definitions, ttls = definitions_key(project), ttls_key(project)
    with redis_errors(client):
        pipeline = client.pipeline(transaction=False)
        pipeline.hsetnx(definitions, codec.view, codec.name)
        pipeline.hsetnx(definitions, codec.tag, codec.spec.canonical_json())
        pipeline.hmget(definitions, codec.view, codec.tag)
        if codec.spec.ttl_us is not None:
            pipeline.hset(ttls, codec.tag, _TTL.pack(codec.spec.ttl_us))
        pipeline.hgetall(ttls)
        return _registered(codec, pipeline.execute())


def _registered(codec: RowCodec, answers: Sequence[Any]) -> Registered:
    name, definition = answers[2]
    problems = []
    if name != codec.name.encode():
        problems.append(Problem("name", codec.name, name.decode(errors="replace")))
    if definition != codec.spec.canonical_json().encode():
        problems.append(Problem("definition", codec.spec.definition_hash, "another one"))
    if problems:
        raise DefinitionError(
            f"View {codec.name} has the same tag online as something else that is stored there.",
            problems,
            hint="Rename the view, or one of its features; tags have three bytes.",
        )
    return Registered(ttls=b"".join(tag + ttl for tag, ttl in answers[-1].items()))


def stored_under(definitions: Mapping[bytes, bytes], view: str) -> set[tuple[str, tuple[str, ...]]]:
    """The names online and the join keys by which a view was ever written, in all its versions.

    Args:
        definitions: All that the project's hash of definitions holds.
        view: The view's name.
    """
    found = set()
    for tag, text in definitions.items():
        if len(tag) == TAG and tag[:VIEW_TAG] in definitions:
            written = ViewSpec.model_validate_json(text)
            if written.name == view:
                found.add((definitions[tag[:VIEW_TAG]].decode(), written.key_names))
    return found
