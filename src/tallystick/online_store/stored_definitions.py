"""The definitions of a project's rows, in Redis beside the rows.

A hash for each project, ``ts3:PROJECT::definitions``, has for each tag of rows the definition under
which they were written and the view's name online. It is there before the first such row. Another
hash, ``ts3:PROJECT::ttls``, has the ttl of each definition for the script that writes rows.
"""

from __future__ import annotations

import struct
from typing import Final

from tallystick.definitions.feature_view import ViewSpec
from tallystick.online_store.entity_keys import definitions_key, ttls_key
from tallystick.online_store.redis_connection import SyncClient, redis_errors
from tallystick.online_store.row_codec import RowCodec

_TTL: Final = struct.Struct("<d")


def parse_definition(text: bytes) -> tuple[ViewSpec, str]:
    """A definition and the view's name online, which follows the JSON, from a value of the hash."""
    definition, _, name = text.decode().partition("\n")
    return ViewSpec.model_validate_json(definition), name


def register(client: SyncClient, project: str, codec: RowCodec) -> bytes:
    """Register a definition before its rows are written.

    Returns:
        For each definition with a ttl its tag and the ttl in microseconds as a double, joined:
        an argument of :data:`tallystick.online_store.lua_scripts.WRITE_ROWS`.

    Raises:
        UnavailableError: Redis did not answer.
    """
    ttls = ttls_key(project)
    with redis_errors(client):
        pipeline = client.pipeline(transaction=False)
        definition = f"{codec.spec.canonical_json()}\n{codec.name}"
        pipeline.hset(definitions_key(project), codec.tag, definition)
        if codec.spec.ttl_us is not None:
            pipeline.hset(ttls, codec.tag, _TTL.pack(codec.spec.ttl_us))
        pipeline.hgetall(ttls)
        found: dict[bytes, bytes] = pipeline.execute()[-1]
    return b"".join(tag + ttl for tag, ttl in found.items())


def names_and_keys(client: SyncClient, project: str, view: str) -> set[tuple[str, tuple[str, ...]]]:
    """The names online and the join keys under which a view was ever written, all its versions.

    Raises:
        RedisError: Redis did not answer.
    """
    stored = map(parse_definition, client.hvals(definitions_key(project)))
    return {(name, spec.key_names) for spec, name in stored if spec.name == view}
