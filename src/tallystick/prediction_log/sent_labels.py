"""The labels that clients send to the API: late, out of order, and corrected."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tallystick.definitions.columns import joined
from tallystick.definitions.contract import ModelContract
from tallystick.definitions.feature_types import arrow_type
from tallystick.errors import DamagedError

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
    return pa.schema(
        [
            pa.field("value", pa.int8(), nullable=False),
            pa.field("known_time", moment, nullable=False),
            pa.field("prediction_id", pa.string()),
            pa.field("request_time", moment),
            *(
                pa.field(f"key.{column.name}", arrow_type(column.dtype))
                for column in contract.label_key_columns(contract.label.keys)
            ),
        ]
    )


def packed_labels(contract: ModelContract, rows: Sequence[LabelRow]) -> bytes:
    """Labels in MessagePack: a list of values for each column of :func:`label_schema`."""
    import msgspec

    columns: list[list[Any]] = [
        [row.value for row in rows],
        [row.known_us for row in rows],
        [row.prediction_id for row in rows],
        [row.request_us for row in rows],
    ]
    columns += [[(row.keys or {}).get(name) for row in rows] for name in contract.label.keys]
    return msgspec.msgpack.encode(columns)


def label_table(contract: ModelContract, payloads: Sequence[bytes | memoryview]) -> pa.Table:
    """The labels of frames as a table.

    Args:
        contract: The contract under which they were sent.
        payloads: The payload of each frame, at least one: an array of what
            :func:`packed_labels` made.

    Raises:
        DamagedError: They are not in this layout, though their checksum is right.
    """
    import msgspec
    import pyarrow as pa

    schema = label_schema(contract)
    try:
        parts = [part for each in payloads for part in msgspec.msgpack.decode(each)]
        columns = [joined(several) for several in zip(*parts, strict=True)]
        arrays = [
            pa.array(column, type=field.type) for field, column in zip(schema, columns, strict=True)
        ]
        return pa.table(arrays, schema=schema)
    except (msgspec.DecodeError, ValueError, TypeError, pa.ArrowException) as error:
        raise DamagedError(f"A frame of labels is not in this version's layout: {error}") from error
