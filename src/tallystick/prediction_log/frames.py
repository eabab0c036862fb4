"""Frames: what a segment of the write-ahead log consists of, each with its own checksums.

A frame is what one commit wrote under one contract: a header of fixed width, then a payload in
MessagePack, an array with one element per request. The header has the number of rows, and the
number of the first one among all rows of the worker. So a frame that was written twice counts once,
and the rows of a damaged frame are counted as lost. It also has the first and the last time of the
rows, so that a reader decodes only the frames of its span. The header has a checksum of its own.
Behind a damaged payload the next frame begins where the header says; behind a damaged header it is
searched for.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from typing import Final

FRAME_VERSION: Final = 2
"""Version of this layout; in every header."""

_MAGIC: Final = b"\xf5TLy"  # MessagePack has no text that begins so
_HEADER: Final = struct.Struct("<4sBBxxIIQ16sQQQQqqI")
_CHECKSUM: Final = struct.Struct("<I")
HEADER_BYTES: Final = _HEADER.size + _CHECKSUM.size
_LAST: Final = 1
_ENDED: Final = 2
_FOREIGN: Final = "its version is"
_ARRAY: Final = struct.Struct(">BI")
_ARRAY_OF_32_BITS: Final = 0xDD


@dataclass(frozen=True, slots=True)
class Totals:
    """What a worker had accepted and dropped of one stream when it wrote a frame.

    Attributes:
        accepted: Rows that it was given.
        full: Rows dropped because the buffer was full.
        budget: Rows dropped because the disk budget was used up.
        refused: Rows dropped because the worker was ending.
    """

    accepted: int = 0
    full: int = 0
    budget: int = 0
    refused: int = 0

    @property
    def dropped(self) -> int:
        """Rows dropped for any reason."""
        return self.full + self.budget + self.refused

    def plus(self, other: Totals) -> Totals:
        """The sum of two workers."""
        return Totals(*map(sum, zip(astuple(self), astuple(other), strict=True)))


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame.

    Attributes:
        contract: Hash of the contract of its rows, in hexadecimal; empty where it has none.
        first: Number of its first row among the rows of its worker, from 0.
        rows: How many rows it has.
        totals: The worker's, when it wrote the frame.
        first_us: The first of the rows' times, in microseconds.
        last_us: The last.
        is_last: Whether it is the last frame of its segment.
        is_ended: Whether its worker stopped after it.
        payload: The requests in MessagePack.
    """

    contract: str
    first: int
    rows: int
    totals: Totals
    first_us: int = 0
    last_us: int = 0
    is_last: bool = False
    is_ended: bool = False
    payload: memoryview | bytes = b""


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes of a segment that are not a whole frame.

    Attributes:
        start: First byte.
        end: Byte after the last.
        why: What is wrong with them.
        is_end: Whether no frame follows: they may be what a killed worker had begun to write.
    """

    start: int
    end: int
    why: str
    is_end: bool


def packed_frame(frame: Frame, requests: Sequence[bytes]) -> list[bytes]:
    """A frame as pieces to be written one after the other.

    Args:
        frame: What its header says.
        requests: Its payload, each request in MessagePack.
    """
    start = _ARRAY.pack(_ARRAY_OF_32_BITS, len(requests))
    checksum = zlib.crc32(start)
    size = len(start)
    for payload in requests:
        checksum = zlib.crc32(payload, checksum)
        size += len(payload)
    flags = (_LAST if frame.is_last else 0) | (_ENDED if frame.is_ended else 0)
    contract = bytes.fromhex(frame.contract)
    header = _HEADER.pack(
        _MAGIC,
        FRAME_VERSION,
        flags,
        size,
        frame.rows,
        frame.first,
        contract,
        *astuple(frame.totals),
        frame.first_us,
        frame.last_us,
        checksum,
    )
    return [header, _CHECKSUM.pack(zlib.crc32(header)), start, *requests]


def read_frames(content: bytes) -> Iterator[Frame | Damage]:
    """The frames of a segment, and the damages between them, in order."""
    view = memoryview(content)
    at, bad, why, is_foreign = 0, -1, "", False
    while 0 <= at < len(content):
        found = _frame_at(view, at)
        if isinstance(found, str):
            is_foreign = is_foreign or found.startswith(_FOREIGN)
            if bad < 0:
                bad, why = at, found
            at = content.find(_MAGIC, at + 1)
            continue
        frame, end = found
        if frame is None:
            if bad < 0:
                bad, why = at, "its payload fails its checksum"
        else:
            if bad >= 0:
                yield Damage(bad, at, why, is_end=False)
                bad = -1
            yield frame
        at = end
    if bad >= 0:
        yield Damage(bad, len(content), why, is_end=not is_foreign)


def _frame_at(view: memoryview, at: int) -> tuple[Frame | None, int] | str:
    """The frame that begins at a byte and where it ends; None for it if its payload is damaged.

    Returns:
        Instead, what is wrong with its header or its length.
    """
    start = at + HEADER_BYTES
    header = bytes(view[at : at + _HEADER.size])
    if why := _wrong_header(view, at, header):
        return why
    _, version, flags, size, rows, first, contract, *numbers, checksum = _HEADER.unpack(header)
    if version != FRAME_VERSION:
        return f"{_FOREIGN} {version}, and this one reads {FRAME_VERSION}"
    if start + size > len(view):
        return "it ends within a payload"
    payload = view[start : start + size]
    if zlib.crc32(payload) != checksum:
        return None, start + size
    named = contract.hex() if any(contract) else ""
    *counts, first_us, last_us = numbers
    frame = Frame(
        contract=named,
        first=first,
        rows=rows,
        totals=Totals(*counts),
        first_us=first_us,
        last_us=last_us,
        is_last=bool(flags & _LAST),
        is_ended=bool(flags & _ENDED),
        payload=payload,
    )
    return frame, start + size


def _wrong_header(view: memoryview, at: int, header: bytes) -> str:
    """What is wrong with a header; nothing if it is empty."""
    if at + HEADER_BYTES > len(view):
        return "it ends within a header"
    if header[:4] != _MAGIC:
        return "no frame begins here"
    if _CHECKSUM.unpack_from(view, at + _HEADER.size)[0] != zlib.crc32(header):
        return "its header fails its checksum"
    return ""
