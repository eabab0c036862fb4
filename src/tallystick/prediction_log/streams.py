"""The two streams of the log, predictions and sent labels, and where their files are."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from pydantic import ValidationError

from tallystick.definitions.contract import ModelContract
from tallystick.errors import DamagedError
from tallystick.prediction_log.frames import Frame
from tallystick.prediction_log.record import log_schema
from tallystick.prediction_log.record_codec import RecordLayout
from tallystick.prediction_log.sent_labels import label_schema, label_table
from tallystick.prediction_log.write_ahead_log import CONTRACTS
from tallystick.settings import settings
from tallystick.storage.atomic_files import write_text
from tallystick.storage.locations import LOCAL, Location, location_of

if TYPE_CHECKING:
    import pyarrow as pa

_SITE_LETTERS: Final = 12


@dataclass(frozen=True)
class Stream:
    """What one kind of rows needs.

    Attributes:
        name: Its folder, in the write-ahead log and in the log.
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


def log_location(state_dir: Path) -> Location:
    """Folder of the log's Parquet files and manifests, by default ``log`` in the state folder."""
    given = settings()
    uri = given.log_location or str(state_dir / "log")
    return location_of(uri, Path.cwd(), endpoint=given.log_endpoint)


def contract_folder(stream: Stream, model: str, contract_hash: str) -> str:
    """Folder of a contract's files within the log."""
    return f"{stream.name}/model={model}/contract={contract_hash}"


def site_of(state_dir: Path, *, create: bool = False) -> str:
    """The name under which a state folder commits to its log; empty if it never has.

    Args:
        state_dir: The repo's state folder.
        create: Give it a name if it has none; only the one compactor may do so.

    Raises:
        DamagedError: The file with the name was changed.
    """
    path = wal_dir(state_dir) / "site"
    if create and not path.exists():
        write_text(path, uuid.uuid4().hex[:_SITE_LETTERS])
    try:
        name = path.read_text("utf-8", errors="replace")
    except FileNotFoundError:
        return ""
    if len(name) != _SITE_LETTERS or not set(name) <= set("0123456789abcdef"):
        raise DamagedError(
            f"{path} does not contain the name of a site.",
            hint="Write into it the name of the folder below LOG/predictions/manifest to which "
            "this state folder has committed.",
        )
    return name


def local_contract(state_dir: Path, stream: Stream, contract_hash: str) -> ModelContract:
    """A contract under which segments were written.

    Raises:
        DamagedError: It cannot be read.
    """
    folder = Location(LOCAL, str(stream_dir(state_dir, stream) / CONTRACTS))
    return _read_contract(folder / f"{contract_hash}.json", contract_hash)


def tables_of(
    state_dir: Path, stream: Stream, frames: Iterable[Frame]
) -> list[tuple[ModelContract, pa.Table]]:
    """The rows of frames, by contract.

    Raises:
        DamagedError: A contract cannot be read, or values of a frame do not fit their column.
    """
    payloads: dict[str, list[Any]] = {}
    for frame in frames:
        payloads.setdefault(frame.contract, []).append(frame.payload)
    contracts = {name: local_contract(state_dir, stream, name) for name in payloads}
    return [(each, stream.table(each, payloads[name])) for name, each in contracts.items()]


def compacted_contract(
    location: Location, stream: Stream, model: str, contract_hash: str
) -> ModelContract:
    """A contract under which Parquet files were written.

    Raises:
        DamagedError: It cannot be read.
        UnavailableError: The log's store did not answer.
    """
    folder = location / contract_folder(stream, model, contract_hash)
    return _read_contract(folder / "contract.json", contract_hash)


@lru_cache(maxsize=64)
def _read_contract(file: Location, contract_hash: str) -> ModelContract:
    try:
        contract = ModelContract.model_validate_json(file.read_bytes())
    except (FileNotFoundError, ValidationError) as error:
        raise DamagedError(f"{file} is not a contract that this version can read.") from error
    if contract.contract_hash != contract_hash:
        raise DamagedError(
            f"{file} is not the contract {contract_hash}: its content has the hash "
            f"{contract.contract_hash}.",
            hint="Restore it from a backup, or from the model's bundle.",
        )
    return contract
