"""Delta tables as other writers leave them, which the package that writes them here does not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

Z85 = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.-:+=^!/*?&<>()[]{}@%$#"


def change_log(folder: Path, change: Callable[[str, dict[str, Any]], None]) -> None:
    """Change the actions of a table's first commit in place: their kind, and what they hold."""
    log = folder / "_delta_log" / f"{0:020d}.json"
    actions = [json.loads(line) for line in log.read_text().splitlines()]
    for action in actions:
        for kind, held in action.items():
            change(kind, held)
    log.write_text("".join(json.dumps(action) + "\n" for action in actions))


def ask_of_readers(folder: Path, *features: str, **configuration: str) -> None:
    """Have a table ask features of its readers and writers; dots of settings are underscores."""

    def change(kind: str, held: dict[str, Any]) -> None:
        if kind == "protocol":
            held |= {"minReaderVersion": 3, "minWriterVersion": 7}
            held |= {"readerFeatures": list(features), "writerFeatures": list(features)}
        if kind == "metaData":
            held["configuration"] = {
                name.replace("_", "."): value for name, value in configuration.items()
            }

    change_log(folder, change)


def delete_rows(folder: Path, rows: Sequence[int]) -> None:
    """Have a deletion vector take rows, by their numbers, from the files of the first commit."""
    ask_of_readers(folder, "deletionVectors")

    def change(kind: str, held: dict[str, Any]) -> None:
        if kind == "add":
            held["deletionVector"] = {
                "storageType": "i",
                "pathOrInlineDv": z85(roaring(rows)),
                "sizeInBytes": len(roaring(rows)),
                "cardinality": len(rows),
            }

    change_log(folder, change)


def roaring(rows: Sequence[int]) -> bytes:
    """Numbers below 2**16 as the bitmap that Delta writes: one array in one bitmap of 32 bits."""
    array = struct.pack(f"<{len(rows)}H", *sorted(rows))
    head = struct.pack("<IIHHI", 12346, 1, 0, len(rows) - 1, 16)
    content = struct.pack("<IQI", 1681511377, 1, 0) + head + array
    return content + bytes(-len(content) % 4)


def z85(content: bytes) -> str:
    """Bytes as text, five signs for four bytes (ZeroMQ's RFC 32)."""
    text = ""
    for (number,) in struct.iter_unpack(">I", content):
        text += "".join(Z85[number // 85**power % 85] for power in (4, 3, 2, 1, 0))
    return text
