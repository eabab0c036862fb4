"""Packed rows as tests need them: one at a time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tallystick.online_store.row_codec import RowCodec


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
