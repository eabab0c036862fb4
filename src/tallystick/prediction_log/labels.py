"""Labels that were sent to the API: late, out of order, corrected or never."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tallystick.contract import ModelContract
from tallystick.dtypes import arrow_type
from tallystick.prediction_log.writer import BufferedWriter, write_table

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class LabelRow:
    """One label.

    Attributes:
        value: 0 or 1.
        known_us: When it became known.
        prediction_id: The prediction it belongs to; or else keys and request time.
        keys: Label key → value; empty with a prediction id.
        request_us: Request time; None with a prediction id.
    """

    value: int
    known_us: int
    prediction_id: str | None = None
    keys: Mapping[str, Any] | None = None
    request_us: int | None = None


def label_schema(contract: ModelContract) -> pa.Schema:
    """The Arrow schema of a label file: value, times, prediction id, and ``key.<name>`` columns."""
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    types = {
        column.name: column.dtype for column in (*contract.entity_keys, *contract.request_fields)
    }
    return pa.schema(
        [
            pa.field("value", pa.int8(), nullable=False),
            pa.field("known_time", moment, nullable=False),
            pa.field("prediction_id", pa.string()),
            pa.field("request_time", moment),
            *(pa.field(f"key.{name}", arrow_type(types[name])) for name in contract.label.keys),
        ]
    )


def labels_dir(state_dir: Path, model: str) -> Path:
    """Folder of the labels that were sent for a model."""
    return state_dir / "labels" / model


class LabelLog:
    """Writes labels to ``labels/<model>/``, through the same buffered writer as predictions.

    Args:
        state_dir: The repo's state folder.
        rows_max: Labels held in memory; beyond it the API refuses more.
        flush_rows: Labels that start a write at once.
        flush_s: Seconds between writes otherwise.
    """

    def __init__(self, state_dir: Path, *, rows_max: int, flush_rows: int, flush_s: float) -> None:
        self._state_dir = state_dir
        self.buffer: BufferedWriter[tuple[ModelContract, Sequence[LabelRow]]] = BufferedWriter(
            write=self._write_items,
            group_of=lambda item: item[0].contract_hash,
            rows_of=lambda item: len(item[1]),
            rows_max=rows_max,
            flush_rows=flush_rows,
            flush_s=flush_s,
        )

    def append(self, contract: ModelContract, rows: Sequence[LabelRow]) -> bool:
        """Take labels for writing; False if the buffer is full and none was taken."""
        return self.buffer.append((contract, rows))

    def _write_items(self, items: Sequence[tuple[ModelContract, Sequence[LabelRow]]]) -> None:
        """Write the labels of one contract's model."""
        contract = items[0][0]
        rows = [row for _, some in items for row in some]
        write_table(
            _to_arrow(contract, rows), labels_dir(self._state_dir, contract.model), "known_time"
        )


def _to_arrow(contract: ModelContract, rows: Sequence[LabelRow]) -> pa.Table:
    import pyarrow as pa

    schema = label_schema(contract)
    columns: dict[str, list[Any]] = {
        "value": [row.value for row in rows],
        "known_time": [row.known_us for row in rows],
        "prediction_id": [row.prediction_id for row in rows],
        "request_time": [row.request_us for row in rows],
    }
    for name in contract.label.keys:
        columns[f"key.{name}"] = [(row.keys or {}).get(name) for row in rows]
    return pa.table(
        [pa.array(columns[field.name], type=field.type) for field in schema], schema=schema
    )
