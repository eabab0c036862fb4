"""Packed rows as tests need them: one at a time, and together as an entity's value."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from tallystick.online_store.row_codec import RowCodec
from tallystick.online_store.row_layout import VERSION


def packed_row(
    codec: RowCodec,
    values: Mapping[str, Any],
    *,
    event_us: int,
    created_us: int | None,
    write_us: int,
    protos: bool = False,
) -> bytes:
    """One row of Python values, or of Feast's."""
    (row,) = codec.encode([values], [(event_us, created_us, write_us)], protos=protos)
    return row


def joined(rows: Sequence[bytes]) -> bytes:
    """The value of an entity that has these rows, one of each view."""
    return bytes((VERSION,)) + b"".join(sorted(rows))
