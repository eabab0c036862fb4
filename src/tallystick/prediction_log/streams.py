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

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DamagedError
from tallystick.model_bundle.bundle import read_contract
from tallystick.prediction_log.log_location import Sink
from tallystick.prediction_log.record import log_schema
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.sent_labels import label_schema, label_table
from tallystick.prediction_log.write_ahead_log import CONTRACTS
from tallystick.storage.atomic_files import replacing

if TYPE_CHECKING:
    import pyarrow as pa

_SITE: Final = "site"
_SITE_LETTERS: Final = 12


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
    """The name under which a state folder commits to its sink; empty if it never has.

    Raises:
        DamagedError: What was made then is not there any more.
    """
    with suppress(FileNotFoundError):
        return _named_in(wal_dir(state_dir) / _SITE)
    return ""


def site_of(state_dir: Path) -> str:
    """The name under which a state folder commits to its sink; made when first asked for.

    Raises:
        DamagedError: What was made then is not there any more.
    """
    if site := known_site(state_dir):
        return site
    path = wal_dir(state_dir) / _SITE
    path.parent.mkdir(parents=True, exist_ok=True)
    # Two may come at once: the name of the first stays.
    with replacing(path.with_name(f"{_SITE}.{os.getpid()}")) as draft:
        draft.write_text(uuid.uuid4().hex[:_SITE_LETTERS], "utf-8")
        with suppress(FileExistsError):
            path.hardlink_to(draft)
    path.with_name(f"{_SITE}.{os.getpid()}").unlink()
    return _named_in(path)


def _named_in(path: Path) -> str:
    name = path.read_text("utf-8", errors="replace")
    if len(name) != _SITE_LETTERS or not set(name) <= set("0123456789abcdef"):
        raise DamagedError(
            f"{path} names no site.",
            hint="Write into it the name of the folder below <sink>/predictions/manifest that this "
            "state folder has committed to.",
        )
    return name


def folder_of(stream: Stream, model: str, contract_hash: str) -> str:
    """Where a sink has a contract's files."""
    return f"{stream.name}/model={model}/contract={contract_hash}"


def local_contract(state_dir: Path, stream: Stream, contract_hash: str) -> ModelContract:
    """A contract under which segments were written.

    Raises:
        DamagedError: It cannot be read.
    """
    path = stream_dir(state_dir, stream) / CONTRACTS / f"{contract_hash}.json"
    return _checked(read_contract(path), contract_hash, str(path))


def sink_contract(sink: Sink, stream: Stream, model: str, contract_hash: str) -> ModelContract:
    """A contract under which files of a sink were written.

    Raises:
        DamagedError: It cannot be read.
        UnavailableError: The sink did not answer.
    """
    name = f"{folder_of(stream, model, contract_hash)}/contract.json"
    return _sink_contract(sink, name, contract_hash)


def _checked(contract: ModelContract, contract_hash: str, where: str) -> ModelContract:
    """A contract, if it is the one that its place says."""
    if contract.contract_hash != contract_hash:
        raise DamagedError(
            f"{where} is not the contract {contract_hash}: its content has the hash "
            f"{contract.contract_hash}.",
            hint="Restore it from a backup, or from the model's bundle.",
        )
    return contract


@lru_cache(maxsize=64)
def _sink_contract(sink: Sink, name: str, contract_hash: str) -> ModelContract:
    from pydantic import ValidationError

    try:
        contract = ModelContract.model_validate_json(sink.read_bytes(name))
    except (FileNotFoundError, ValidationError) as error:
        raise DamagedError(
            f"{sink.text(name)} is not a contract that this version can read."
        ) from error
    return _checked(contract, contract_hash, sink.text(name))
