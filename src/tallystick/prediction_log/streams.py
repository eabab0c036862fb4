"""The two streams of the log: predictions, and the labels that are sent for them."""

from __future__ import annotations

import os
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.bundle import read_contract
from tallystick.contract import ModelContract
from tallystick.files import replacing
from tallystick.prediction_log.labels import label_schema, label_table
from tallystick.prediction_log.layout import RecordLayout
from tallystick.prediction_log.record import log_schema
from tallystick.prediction_log.sink import Sink
from tallystick.prediction_log.wal import CONTRACTS

if TYPE_CHECKING:
    import pyarrow as pa

_SITE: Final = "site"


@dataclass(frozen=True)
class Stream:
    """What one kind of rows needs.

    Attributes:
        name: Its folder, in the write-ahead log and in the sink.
        time: The column by whose days its files are parted.
        schema: Contract → schema of its files.
        table: Contract and the payloads of frames → their rows.
    """

    name: str
    time: str
    schema: Callable[[ModelContract], pa.Schema]
    table: Callable[[ModelContract, list[Any]], pa.Table]


def _predictions(contract: ModelContract, payloads: list[Any]) -> pa.Table:
    return RecordLayout(contract).table(payloads)


PREDICTIONS: Final = Stream("predictions", "request_time", log_schema, _predictions)
LABELS: Final = Stream("labels", "known_time", label_schema, label_table)
STREAMS: Final = (PREDICTIONS, LABELS)


def wal_dir(state_dir: Path) -> Path:
    """Folder of the write-ahead log."""
    return state_dir / "wal"


def stream_dir(state_dir: Path, stream: Stream) -> Path:
    """Folder of one stream's segments."""
    return wal_dir(state_dir) / stream.name


def known_site(state_dir: Path) -> str:
    """The name under which a state folder commits to its sink; empty if it never has."""
    with suppress(OSError):
        return (wal_dir(state_dir) / _SITE).read_text("utf-8")
    return ""


def site_of(state_dir: Path) -> str:
    """The name under which a state folder commits to its sink; made when first asked for."""
    if site := known_site(state_dir):
        return site
    path = wal_dir(state_dir) / _SITE
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two may come at once: the name of the first stays.
    with replacing(path.with_name(f"{_SITE}.{os.getpid()}")) as draft:
        draft.write_text(uuid.uuid4().hex[:12], "utf-8")
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    path.with_name(f"{_SITE}.{os.getpid()}").unlink()
    return path.read_text("utf-8")


def folder_of(stream: Stream, model: str, contract_hash: str) -> str:
    """Where a sink has a contract's files."""
    return f"{stream.name}/model={model}/contract={contract_hash}"


def local_contract(state_dir: Path, stream: Stream, contract_hash: str) -> ModelContract:
    """A contract under which segments were written.

    Raises:
        DamagedError: It cannot be read.
    """
    return read_contract(stream_dir(state_dir, stream) / CONTRACTS / f"{contract_hash}.json")


def sink_contract(sink: Sink, stream: Stream, model: str, contract_hash: str) -> ModelContract:
    """A contract under which files of a sink were written.

    Raises:
        DamagedError: It cannot be read.
        UnavailableError: The sink did not answer.
    """
    return _sink_contract(sink, f"{folder_of(stream, model, contract_hash)}/contract.json")


@lru_cache(maxsize=64)
def _sink_contract(sink: Sink, name: str) -> ModelContract:
    from pydantic import ValidationError

    from tallystick.errors import DamagedError

    try:
        return ModelContract.model_validate_json(sink.read_bytes(name))
    except (FileNotFoundError, ValidationError) as error:
        raise DamagedError(
            f"{sink.text(name)} is not a contract that this version can read."
        ) from error
