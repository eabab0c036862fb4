"""The layout of a log record: one row per prediction, one typed column per value.

Columns: the fields of :data:`COMMON`, then ``entity.<key>``, ``request.<field>``, for each view
``view.<name>.status``, ``.event_time``, ``.created_time``, ``.write_time``, ``.definition``, and
``feature.<view>__<feature>`` for every value, stored or computed. A file holds records of one
contract, whose hash is part of its path; so types are exact, and an old record stays readable by
the contract that lies beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tallystick.columns import joined, plain
from tallystick.contract import ModelInputs
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_VERSION = 1
"""Version of this layout; in every file's schema metadata."""

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


def to_arrow(inputs: ModelInputs, schema: pa.Schema, batch: Sequence[Predictions]) -> pa.Table:
    """Lay out the predictions of several requests as one table.

    Raises:
        pyarrow.ArrowException: A value does not fit its declared type, which serving has checked.
    """
    import pyarrow as pa

    # Arrays are taken whole; the rows of small requests, which are lists, do not come between them.
    parts: dict[bool, list[Predictions]] = {}
    for part in batch:
        is_tabular = any(not isinstance(read.event_us, list) for read in part.views.values())
        parts.setdefault(is_tabular, []).append(part)
    return pa.concat_tables([_table(inputs, schema, alike) for alike in parts.values()])


def _table(inputs: ModelInputs, schema: pa.Schema, batch: Sequence[Predictions]) -> pa.Table:
    import pyarrow as pa

    def each(value: Callable[[Predictions], Any]) -> list[Any]:
        """The same value for all rows of a request."""
        return [value(part) for part in batch for _ in part.prediction_id]

    columns: dict[str, Any] = {
        "prediction_id": joined([part.prediction_id for part in batch]),
        "request_time": each(lambda part: part.request_us),
        "model_version": each(lambda part: part.model_version),
        "prediction": joined([part.prediction for part in batch]),
        "latency_us": each(lambda part: part.latency_us),
    }
    for key in inputs.entity_keys:
        columns[f"entity.{key.name}"] = joined([part.keys[key.name] for part in batch])
    for field in inputs.request_fields:
        columns[f"request.{field.name}"] = joined([part.keys[field.name] for part in batch])
    for use in inputs.views:
        reads = [part.views[use.name] for part in batch]
        columns[f"view.{use.name}.status"] = joined([read.status for read in reads])
        columns[f"view.{use.name}.event_time"] = joined([read.event_us for read in reads])
        columns[f"view.{use.name}.created_time"] = joined([read.created_us for read in reads])
        columns[f"view.{use.name}.write_time"] = joined([read.write_us for read in reads])
        columns[f"view.{use.name}.definition"] = joined([read.definition for read in reads])
    for name, dtype in inputs.value_columns.items():
        values = joined([part.values[name] for part in batch])
        if dtype in JSON_TEXT:
            values = list(map(json_text, plain(values)))
        columns[f"feature.{name}"] = values
    return pa.table(
        [pa.array(columns[field.name], type=field.type) for field in schema], schema=schema
    )
