"""The codec of records: predictions to bytes within the request, and frames of them to columns."""

from __future__ import annotations

import gc
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from tallystick.definitions.columns import joined, plain
from tallystick.definitions.contract import ModelInputs
from tallystick.definitions.exact_cast import log_values
from tallystick.definitions.feature_types import feature_type
from tallystick.errors import DamagedError
from tallystick.prediction_log.record import (
    RECORD_VERSION,
    Predictions,
    log_schema,
)

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MANY: Final = 16
"""Rows of a request from which they are packed as columns."""
_NUMBERS: Final = 1
_STEP_LARGE: Final = 4_000


class RecordLayout:
    """Packs the predictions of one contract, and unpacks them to columns.

    A request with few rows is an array of three in MessagePack: the values of fixed width of all
    rows, one after the other as C has them; a bit for each value that is null, or nothing if none
    is; and a list of the other values. A request with many rows is the number of rows and a list of
    columns, where a column without nulls is an array.

    Args:
        inputs: What the model takes.

    Attributes:
        schema: The Arrow schema of a log file.
    """

    def __init__(self, inputs: ModelInputs) -> None:
        self.schema = log_schema(inputs)
        self._keys = [column.name for column in inputs.request_columns]
        self._views = [use.name for use in inputs.views]
        self._values_of = _getter(list(inputs.value_columns))
        dtypes = {f"entity.{each.name}": each.dtype for each in inputs.entity_keys}
        dtypes |= {f"request.{each.name}": each.dtype for each in inputs.request_fields}
        dtypes |= {f"feature.{name}": dtype for name, dtype in inputs.value_columns.items()}
        converts = {name: _converter(dtype) for name, dtype in dtypes.items()}
        self._converts = {name: each for name, each in converts.items() if each is not None}
        # Times of features and of requests are objects, times of the record itself are numbers.
        codes = [
            _code(field.type) or ("q" if field.name not in dtypes and _is_time(field.type) else "")
            for field in self.schema
        ]
        self._fixed = [index for index, code in enumerate(codes) if code]
        self._others = [index for index, code in enumerate(codes) if not code]
        self._fixed_of, self._others_of = itemgetter(*self._fixed), itemgetter(*self._others)
        self._packer = struct.Struct("<" + "".join(codes))
        self._row_type = [(str(index), f"<{codes[index]}") for index in self._fixed]
        self._null_bytes = (len(self._fixed) + 7) // 8

    def packed(self, part: Predictions) -> bytes:
        """The predictions of one request; called within the request, so it has to be fast."""
        whole: tuple[Any, ...] = ()
        if len(part.prediction_id) < ROWS_MANY:
            # C raises where Arrow would convert: 7.0 as an integer, or beyond a float's range.
            with suppress(OverflowError, struct.error):
                whole = self._few(part)
        packed: bytes = _encoder().encode(whole or self._many(part))
        return packed

    def _few(self, part: Predictions) -> tuple[Any, ...]:
        columns = self._columns(part)
        fixed: list[tuple[Any, ...]] = []
        others: list[Any] = []
        for at in range(len(part.prediction_id)):
            row = [column[at] for column in columns]
            fixed.append(self._fixed_of(row))
            others += self._others_of(row)
        try:
            return b"".join([self._packer.pack(*values) for values in fixed]), b"", others
        except struct.error:
            return (*self._with_nulls(fixed), others)

    def _many(self, part: Predictions) -> tuple[Any, ...]:
        return len(part.prediction_id), self._columns(part)

    def _columns(self, part: Predictions) -> list[Sequence[Any]]:
        """The columns of :attr:`schema`."""
        count = len(part.prediction_id)
        columns: list[Sequence[Any]] = [
            part.prediction_id,
            [part.request_us] * count,
            [part.model_version] * count,
            part.prediction,
            [part.latency_us] * count,
        ]
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
        columns += self._values_of(part.values)
        return columns

    def _with_nulls(self, rows: Sequence[Sequence[Any]]) -> tuple[bytes, bytes]:
        fixed, nulls = [], []
        for values in rows:
            bits = sum(1 << bit for bit, value in enumerate(values) if value is None)
            filled = [0 if value is None else value for value in values]
            fixed.append(self._packer.pack(*filled))
            nulls.append(bits.to_bytes(self._null_bytes, "little"))
        return b"".join(fixed), b"".join(nulls)

    def table(self, payloads: Sequence[bytes | memoryview]) -> pa.Table:
        """The predictions of several frames as one table, in any order.

        Args:
            payloads: The payload of each frame: an array of what :meth:`packed` made.

        Raises:
            DamagedError: They are not in this layout, though their checksum is right.
        """
        import msgspec
        import pyarrow as pa

        try:
            with _without_collector():
                few, many = _by_size(payloads)
                parts = [self._of_few(few)] if few else []
                parts += [
                    self._batch([joined(column) for column in zip(*several, strict=True)])
                    for several in _together(many)
                ]
                del few, many
                return pa.Table.from_batches(parts, schema=self.schema)
        except (msgspec.DecodeError, ValueError, TypeError, IndexError, pa.ArrowException) as error:
            raise DamagedError(
                f"A frame of the log is not in layout {RECORD_VERSION}: {error}",
                hint="Read it with the version of Tallystick that wrote it.",
            ) from error

    def _of_few(self, parts: Sequence[tuple[bytes, bytes, list[Any]]]) -> pa.RecordBatch:
        import numpy as np
        import pyarrow as pa

        fixed = np.frombuffer(b"".join(part[0] for part in parts), np.dtype(self._row_type))
        masks = self._masks(parts, len(fixed))
        columns: list[Any] = [None] * len(self.schema)
        for index, column in enumerate(self._fixed):
            values = np.ascontiguousarray(fixed[str(column)])
            if pa.types.is_boolean(self.schema.field(column).type):
                values = values.astype(bool)
            mask = None if masks is None else np.ascontiguousarray(masks[:, index])
            columns[column] = pa.array(values, mask=mask)
        others = [value for part in parts for value in part[2]]
        for index, column in enumerate(self._others):
            columns[column] = others[index :: len(self._others)]
        return self._batch(columns)

    def _masks(self, parts: Sequence[tuple[bytes, bytes, list[Any]]], rows: int) -> Any:
        """Which values are null, of shape (rows, columns); None if there are no nulls."""
        import numpy as np

        if not any(part[1] for part in parts):
            return None
        size = self._packer.size
        none = bytes(self._null_bytes)
        bits = b"".join(part[1] or none * (len(part[0]) // size) for part in parts)
        each = np.frombuffer(bits, np.uint8).reshape(rows, self._null_bytes)
        return np.unpackbits(each, axis=1, bitorder="little").astype(bool)

    def _batch(self, columns: Sequence[Any]) -> pa.RecordBatch:
        """Columns of :attr:`schema` as Arrow has them."""
        import pyarrow as pa

        arrays = []
        for field, column in zip(self.schema, columns, strict=True):
            if isinstance(column, pa.Array):
                arrays.append(column.cast(field.type))
                continue
            convert = self._converts.get(field.name)
            values = column if convert is None else convert(column)
            arrays.append(pa.array(values, type=field.type))
        return pa.record_batch(arrays, schema=self.schema)


def _getter(names: Sequence[str]) -> Callable[[Mapping[str, Any]], Sequence[Any]]:
    """A function that gives a mapping's values by name, faster than one by one."""
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: [values[name] for name in names]


def _is_time(kind: pa.DataType) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_timestamp(kind))


def _code(kind: pa.DataType) -> str:
    """The letter of :mod:`struct` for a type of fixed width; empty for others."""
    import pyarrow as pa

    return {
        pa.int32(): "i",
        pa.int64(): "q",
        pa.float32(): "f",
        pa.float64(): "d",
        pa.bool_(): "b",
    }.get(kind, "")


@contextmanager
def _without_collector() -> Iterator[None]:
    """Switch the garbage collector off: it is slow among many new objects without cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _by_size(
    payloads: Sequence[bytes | memoryview],
) -> tuple[list[tuple[bytes, bytes, list[Any]]], list[list[Any]]]:
    """The requests with few rows, and the columns of those with many."""
    few, many = [], []
    for payload in payloads:
        for request in _decoder().decode(payload):
            if isinstance(request[0], bytes):
                few += [request] if request[0] else []
            else:
                many.append(request[1])
    return few, many


def _packable(value: Any) -> Any:
    """A value outside MessagePack as one inside it; an array of numbers as its bytes."""
    import msgspec
    import numpy as np

    if isinstance(value, np.ndarray):
        if value.dtype.kind not in "biuf":
            return value.tolist()
        return msgspec.msgpack.Ext(_NUMBERS, value.dtype.str.encode() + b" " + value.tobytes())
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"{type(value).__name__} is not among the types of a record")


def _unpackable(code: int, content: memoryview) -> Any:
    """The array that :func:`_packable` converted."""
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

    return msgspec.msgpack.Decoder(ext_hook=_unpackable)


def _converter(dtype: str) -> Callable[[Any], Any] | None:
    """A function that makes a column of a type ready for Arrow; None if Arrow takes it as it is."""
    own = feature_type(dtype)
    if own.is_document:
        return lambda column: log_values(plain(column), dtype)
    return _moments if (own.member or own).is_time else None


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
