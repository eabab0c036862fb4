"""The layout of a log record: one row per prediction, one typed column per value.

Columns: ``prediction_id``, ``request_time``, ``model_version``, ``prediction``, ``latency_us``,
then ``entity.<key>``, ``request.<field>``, for each view ``view.<name>.status``, ``.event_time``,
``.created_time``, ``.write_time``, ``.definition``, and ``feature.<view>__<feature>`` for every
value, stored or computed. A file holds records of one contract, whose hash is part of its path; so
types are exact, and an old record stays readable by the contract that lies beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, Final, Protocol

from tallystick.columns import joined, plain
from tallystick.contract import ModelInputs
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text
from tallystick.errors import DamagedError

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_VERSION = 1
"""Version of this layout; in every file's schema metadata."""

ROWS_MANY: Final = 16
"""Rows of a request from which they wait as columns."""
_NUMBERS: Final = 1
_STEP: Final = 500
_STEP_LARGE: Final = 4_000
_OF_REQUEST: Final = ("request_time", "model_version", "latency_us")
_OF_ROW: Final = ("prediction_id", "prediction")

VIEW_FIELDS = ("status", "event_time", "created_time", "write_time", "definition")


class ViewColumns(Protocol):
    """What was read of one view for the rows of a request; None where nothing was.

    Times are lists, or of many rows arrays of int64 in which none is missing.

    Attributes:
        status: ``PRESENT``, ``NOT_FOUND`` or ``OUTSIDE_MAX_AGE``.
        event_us: Event time.
        created_us: Created time.
        write_us: When the row was written online.
        definition: Hash of the definition under which the row was written.
    """

    @property
    def status(self) -> Sequence[str]: ...  # noqa: D102 - above, as the others
    @property
    def event_us(self) -> Any: ...  # noqa: D102
    @property
    def created_us(self) -> Any: ...  # noqa: D102
    @property
    def write_us(self) -> Any: ...  # noqa: D102
    @property
    def definition(self) -> Sequence[str | None]: ...  # noqa: D102


@dataclass(slots=True)  # not frozen: that triples the time to make one
class Predictions:
    """The predictions of one request, column by column; every column has one value per row.

    Attributes:
        prediction_id: UUIDv7.
        request_us: Request time, for all rows.
        model_version: Version in the model registry.
        keys: Entity keys and request fields, by name.
        views: Name of the view → what was read.
        values: ``view__feature`` → value as the model saw it: a list, or of many rows an array
            without null.
        prediction: Probability of the positive class.
        latency_us: Time from the request's arrival to its answer, for all rows.
    """

    prediction_id: Sequence[str]
    request_us: int
    model_version: str
    keys: Mapping[str, Sequence[Any]]
    views: Mapping[str, ViewColumns]
    values: Mapping[str, Any]
    prediction: Sequence[float]
    latency_us: int


def log_schema(inputs: ModelInputs) -> pa.Schema:
    """The Arrow schema of a log file of these inputs."""
    import pyarrow as pa

    moment = pa.timestamp("us", tz="UTC")
    kinds = {"status": pa.string(), "definition": pa.string()}
    fields = [
        pa.field("prediction_id", pa.string(), nullable=False),
        pa.field("request_time", moment, nullable=False),
        pa.field("model_version", pa.string(), nullable=False),
        pa.field("prediction", pa.float64(), nullable=False),
        pa.field("latency_us", pa.int64(), nullable=False),
    ]
    fields += [pa.field(f"entity.{key.name}", arrow_type(key.dtype)) for key in inputs.entity_keys]
    fields += [
        pa.field(f"request.{field.name}", arrow_type(field.dtype))
        for field in inputs.request_fields
    ]
    fields += [
        pa.field(f"view.{use.name}.{field}", kinds.get(field, moment))
        for use in inputs.views
        for field in VIEW_FIELDS
    ]
    fields += [
        pa.field(f"feature.{name}", arrow_type(dtype))
        for name, dtype in inputs.value_columns.items()
    ]
    return pa.schema(fields, metadata={"tallystick.record_version": str(RECORD_VERSION)})


@dataclass(slots=True)
class Laid:
    """The predictions of one request as they wait to be written: few as rows, many as columns.

    A row of plain values is one object, and soon none of the garbage collector's; as columns it
    would be as many lists as it has values.

    Attributes:
        count: Number of predictions.
        rows: Their values, one tuple each.
        columns: Or their columns.
    """

    count: int
    rows: Sequence[tuple[Any, ...]]
    columns: Sequence[Any]


def _packable(value: Any) -> Any:
    """What is no plain value as one that MessagePack has; an array of numbers as its bytes."""
    import msgspec
    import numpy as np

    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            return value.tolist()
        return msgspec.msgpack.Ext(_NUMBERS, value.dtype.str.encode() + b" " + value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not among the types of a record")


def _unpacked(code: int, content: memoryview) -> Any:
    """What :func:`_packable` made of an array."""
    import numpy as np

    if code != _NUMBERS:
        raise ValueError(f"a record has no extension {code}")
    kind, numbers = bytes(content).split(b" ", 1)
    return np.frombuffer(numbers, dtype=kind.decode())


@cache
def _encoder() -> Any:
    import msgspec

    return msgspec.msgpack.Encoder(enc_hook=_packable)


@cache
def _decoder() -> Any:
    import msgspec

    return msgspec.msgpack.Decoder(ext_hook=_unpacked)


def packed(laid: Laid) -> bytes:
    """The predictions of one request in MessagePack: the rows, or the columns, and which."""
    packed: bytes = _encoder().encode((laid.rows, laid.columns))
    return packed


def unpacked(payload: bytes | memoryview) -> list[Laid]:
    """What :func:`packed` made of the requests of one frame.

    Raises:
        DamagedError: They are not in this layout, though their checksum is right.
    """
    import msgspec

    try:
        return [
            Laid(len(rows) or (len(columns[0]) if columns else 0), rows, columns)
            for rows, columns in _decoder().decode(payload)
        ]
    except (msgspec.DecodeError, ValueError, TypeError, IndexError) as error:
        raise DamagedError(
            f"A frame of the log is not in layout {RECORD_VERSION}: {error}",
            hint="Read it with the version of Tallystick that wrote it.",
        ) from error


class RecordLayout:
    """How predictions by one contract are laid out.

    Args:
        inputs: What the model takes.

    Attributes:
        schema: The Arrow schema of a log file.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        self.schema = log_schema(inputs)
        self._keys = [key.name for key in inputs.entity_keys]
        self._keys += [field.name for field in inputs.request_fields]
        self._views = [use.name for use in inputs.views]
        self._values = list(inputs.value_columns)
        # Here, what is the same for all rows of a request comes first.
        names = [*_OF_REQUEST, *_OF_ROW]
        names += [name for name in self.schema.names if name not in names]
        self._places = [names.index(name) for name in self.schema.names]
        converts = {
            f"feature.{name}": _converter(dtype) for name, dtype in inputs.value_columns.items()
        }
        for prefix, columns in (("entity", inputs.entity_keys), ("request", inputs.request_fields)):
            converts |= {f"{prefix}.{each.name}": _converter(each.dtype) for each in columns}
        self._converts = [converts.get(name) for name in self.schema.names]

    def lay(self, part: Predictions) -> Laid:
        """Lay out the predictions of one request; within the request, and so quick."""
        columns: list[Any] = [part.prediction_id, part.prediction]
        columns += [part.keys[name] for name in self._keys]
        for view in self._views:
            read = part.views[view]
            columns += (
                read.status,
                read.event_us,
                read.created_us,
                read.write_us,
                read.definition,
            )
        columns += [part.values[name] for name in self._values]
        of_request = (part.request_us, part.model_version, part.latency_us)
        count = len(part.prediction_id)
        if count == 1:
            return Laid(1, [(*of_request, *[column[0] for column in columns])], ())
        if count < ROWS_MANY:
            return Laid(
                count, [(*of_request, *row) for row in zip(*map(plain, columns), strict=True)], ()
            )
        return Laid(count, (), [*([value] * count for value in of_request), *columns])

    def table(self, batch: Sequence[Laid]) -> pa.Table:
        """The predictions of several requests as one table.

        It is made in steps: each holds the interpreter, and requests wait meanwhile.

        Raises:
            pyarrow.ArrowException: A value does not fit its declared type, which serving has
                checked.
        """
        import pyarrow as pa

        rows = [row for part in batch for row in part.rows]
        parts = [
            self._batch(list(zip(*rows[start : start + _STEP], strict=True)))
            for start in range(0, len(rows), _STEP)
        ]
        large = [part.columns for part in batch if part.columns]
        parts += [
            self._batch([joined(column) for column in zip(*several, strict=True)])
            for several in _together(large)
        ]
        return pa.Table.from_batches(parts, schema=self.schema)

    def _batch(self, columns: Sequence[Any]) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = []
        for field, place, convert in zip(self.schema, self._places, self._converts, strict=True):
            column = columns[place]
            if convert is not None:
                column = convert(column)
            arrays.append(pa.array(column, type=field.type))
        return pa.record_batch(arrays, schema=self.schema)


def _converter(dtype: str) -> Callable[[Any], Any] | None:
    """What makes of a column of a type what Arrow takes; None if Arrow takes it as it is."""
    if dtype in JSON_TEXT:
        return _texts
    return _moments if dtype.startswith("UNIX_TIMESTAMP") else None


def _texts(column: Any) -> list[str | None]:
    return list(map(json_text, plain(column)))


def _moments(column: Any) -> Any:
    """Times; MessagePack has those without a zone as text."""
    return list(map(_moment, column)) if isinstance(column, list | tuple) else column


def _moment(value: Any) -> Any:
    if isinstance(value, str):
        return datetime.fromisoformat(value)
    return list(map(_moment, value)) if isinstance(value, list) else value


def _together(parts: Sequence[Sequence[Any]]) -> Iterator[list[Sequence[Any]]]:
    """Columns of several requests, about :data:`_STEP_LARGE` rows at a time."""
    several: list[Sequence[Any]] = []
    rows = 0
    for columns in parts:
        several.append(columns)
        rows += len(columns[0])
        if rows >= _STEP_LARGE:
            yield several
            several, rows = [], 0
    if several:
        yield several
