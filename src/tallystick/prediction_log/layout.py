"""How predictions are packed within the request, and how frames of them become columns."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from functools import cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, Final

from tallystick.columns import joined, plain
from tallystick.contract import ModelInputs
from tallystick.dtypes import JSON_TEXT, json_text
from tallystick.errors import DamagedError
from tallystick.prediction_log.record import RECORD_VERSION, VIEW_TIMES, Predictions, log_schema

if TYPE_CHECKING:
    import pyarrow as pa

ROWS_MANY: Final = 16
"""Rows of a request from which they are packed as columns."""
_NUMBERS: Final = 1
_STEP_LARGE: Final = 4_000
_OF_REQUEST: Final = ("request_time", "model_version", "latency_us")
_OF_ROW: Final = ("prediction_id", "prediction")


class RecordLayout:
    """How predictions by one contract are packed, and made columns again.

    A request with few rows is one array in MessagePack: the values of fixed width of all rows, one
    after the other as C has them; a bit for each that is null, or nothing if none is; and the other
    values in a list. One with many rows is a number of rows and a list of columns, of which those
    without null are arrays.

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
        self._names = [*_OF_REQUEST, *_OF_ROW]
        self._names += [name for name in self.schema.names if name not in self._names]
        texts = {
            f"feature.{name}" for name, dtype in inputs.value_columns.items() if dtype in JSON_TEXT
        }
        self._converts = dict.fromkeys(texts, json_text)
        # Times of features and of requests are objects, those of the record itself are numbers.
        own = {
            "request_time",
            *(f"view.{view}.{time}" for view in self._views for time in VIEW_TIMES),
        }
        codes = {name: _code(self.schema.field(name).type, own=name in own) for name in self._names}
        self._fixed = [name for name in self._names if codes[name]]
        self._others = [name for name in self._names if not codes[name]]
        formats = [codes[name] for name in self._fixed]
        self._packer = struct.Struct("<" + "".join(formats))
        self._kinds = _kinds_of(self._fixed, formats)
        self._null_bytes = (len(formats) + 7) // 8
        places = {name: place for place, name in enumerate(self._names)}
        self._fixed_of = itemgetter(*(places[name] for name in self._fixed))
        self._others_at = [places[name] for name in self._others]

    def packed(self, part: Predictions) -> bytes:
        """The predictions of one request; within the request, and so quick.

        Raises:
            TypeError: A value does not fit its declared type.
        """
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
        whole: tuple[Any, ...] = ()
        if count < ROWS_MANY:
            rows = [
                (*of_request, *row)
                for row in (
                    [[column[0] for column in columns]]
                    if count == 1
                    else zip(*map(plain, columns), strict=True)
                )
            ]
            # A double beyond a float's range becomes infinite, which Arrow does and C does not.
            with suppress(OverflowError):
                whole = self._few(rows)
        if not whole:
            whole = (count, [*([value] * count for value in of_request), *columns])
        packed: bytes = _encoder().encode(whole)
        return packed

    def _few(self, rows: Sequence[tuple[Any, ...]]) -> tuple[Any, ...]:
        others = [row[place] for row in rows for place in self._others_at]
        try:
            fixed = [self._packer.pack(*self._fixed_of(row)) for row in rows]
        except struct.error:
            return (*self._with_nulls(rows), others)
        return b"".join(fixed), b"", others

    def _with_nulls(self, rows: Sequence[tuple[Any, ...]]) -> tuple[bytes, bytes]:
        fixed, nulls = [], []
        for row in rows:
            values = self._fixed_of(row)
            bits = sum(1 << place for place, value in enumerate(values) if value is None)
            filled = [0 if value is None else value for value in values]
            try:
                fixed.append(self._packer.pack(*filled))
            except struct.error as error:
                raise TypeError(f"A value of a prediction is not of its type: {error}") from error
            nulls.append(bits.to_bytes(self._null_bytes, "little"))
        return b"".join(fixed), b"".join(nulls)

    def table(self, payloads: Sequence[bytes | memoryview]) -> pa.Table:
        """The predictions of several frames as one table, in no order.

        Args:
            payloads: Of each frame; an array of what :meth:`packed` made.

        Raises:
            DamagedError: They are not in this layout, though their checksum is right.
        """
        import msgspec
        import pyarrow as pa

        try:
            few, many = _sorted_out(payloads)
            parts = [self._of_few(few)] if few else []
            parts += [
                self._batch(
                    dict(zip(self._names, map(joined, zip(*several, strict=True)), strict=True))
                )
                for several in _together(many)
            ]
            return pa.Table.from_batches(parts, schema=self.schema)
        except (msgspec.DecodeError, ValueError, TypeError, IndexError, pa.ArrowException) as error:
            raise DamagedError(
                f"A frame of the log is not in layout {RECORD_VERSION}: {error}",
                hint="Read it with the version of Tallystick that wrote it.",
            ) from error

    def _named(self, columns: Sequence[Any]) -> dict[str, Any]:
        return dict(zip(self._names, columns, strict=True))

    def _of_few(self, parts: Sequence[tuple[bytes, bytes, list[Any]]]) -> pa.RecordBatch:
        import numpy as np
        import pyarrow as pa

        fixed = np.frombuffer(b"".join(part[0] for part in parts), self._kinds)
        masks = self._masks(parts, len(fixed))
        columns: dict[str, Any] = {}
        for place, name in enumerate(self._fixed):
            values = np.ascontiguousarray(fixed[name])
            if pa.types.is_boolean(self.schema.field(name).type):
                values = values.astype(bool)
            mask = None if masks is None else np.ascontiguousarray(masks[:, place])
            columns[name] = pa.array(values, mask=mask)
        others = [value for part in parts for value in part[2]]
        for place, name in enumerate(self._others):
            columns[name] = others[place :: len(self._others)]
        return self._batch(columns)

    def _masks(self, parts: Sequence[tuple[bytes, bytes, list[Any]]], rows: int) -> Any:
        """Which values are null, of shape (rows, columns); None if none is."""
        import numpy as np

        if not any(part[1] for part in parts):
            return None
        size = self._packer.size
        none = bytes(self._null_bytes)
        bits = b"".join(part[1] or none * (len(part[0]) // size) for part in parts)
        each = np.frombuffer(bits, np.uint8).reshape(rows, self._null_bytes)
        return np.unpackbits(each, axis=1, bitorder="little").astype(bool)

    def _batch(self, columns: Mapping[str, Any]) -> pa.RecordBatch:
        import pyarrow as pa

        arrays = []
        for field in self.schema:
            column = columns[field.name]
            if isinstance(column, pa.Array):
                arrays.append(column.cast(field.type))
                continue
            if convert := self._converts.get(field.name):
                column = list(map(convert, plain(column)))
            arrays.append(pa.array(column, type=field.type))
        return pa.record_batch(arrays, schema=self.schema)


def _code(kind: pa.DataType, *, own: bool) -> str:
    """How :mod:`struct` calls a type of fixed width; empty for others. None fits none of them."""
    import pyarrow as pa

    if own:
        return "q"
    return {
        pa.int32(): "i",
        pa.int64(): "q",
        pa.float32(): "f",
        pa.float64(): "d",
        pa.bool_(): "b",
    }.get(kind, "")


def _kinds_of(names: Sequence[str], formats: Sequence[str]) -> Any:
    """A row of values as :mod:`struct` packs them, as a NumPy type."""
    import numpy as np

    return np.dtype([(name, f"<{each}") for name, each in zip(names, formats, strict=True)])


def _sorted_out(
    payloads: Sequence[bytes | memoryview],
) -> tuple[list[tuple[bytes, bytes, list[Any]]], list[list[Any]]]:
    """The requests with few rows, and the columns of those with many."""
    few, many = [], []
    for payload in payloads:
        for request in _decoder().decode(payload):
            if isinstance(request[0], bytes):
                few.append(request)
            else:
                many.append(request[1])
    return few, many


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


def _unpackable(code: int, content: memoryview) -> Any:
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

    return msgspec.msgpack.Decoder(ext_hook=_unpackable)


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
