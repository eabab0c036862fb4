"""The layout of a log record: one row per prediction, one typed column per value.

Columns: the fields of :data:`COMMON`, then ``entity.<key>``, ``request.<field>``, for each view
``view.<name>.status``, ``.event_time``, ``.created_time``, ``.write_time``, ``.definition``, and
``feature.<view>__<feature>`` for every value, stored or computed. A file holds records of one
contract, whose hash is part of its path; so types are exact, and an old record stays readable by
the contract that lies beside it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from tallystick.contract import ModelInputs
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text

if TYPE_CHECKING:
    import pyarrow as pa

RECORD_VERSION = 1
"""Version of this layout; in every file's schema metadata."""

VIEW_FIELDS = ("status", "event_time", "created_time", "write_time", "definition")


class ViewColumns(Protocol):
    """What was read of one view for the rows of a request; None where nothing was.

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
    def event_us(self) -> Sequence[int | None]: ...  # noqa: D102
    @property
    def created_us(self) -> Sequence[int | None]: ...  # noqa: D102
    @property
    def write_us(self) -> Sequence[int | None]: ...  # noqa: D102
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
        values: ``view__feature`` → value as the model saw it.
        prediction: Probability of the positive class.
        latency_us: Time from the request's arrival to its answer, for all rows.
    """

    prediction_id: Sequence[str]
    request_us: int
    model_version: str
    keys: Mapping[str, Sequence[Any]]
    views: Mapping[str, ViewColumns]
    values: Mapping[str, Sequence[Any]]
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

    columns: dict[str, list[Any]] = {name: [] for name in schema.names}
    for part in batch:
        rows = len(part.prediction_id)
        columns["prediction_id"] += part.prediction_id
        columns["request_time"] += [part.request_us] * rows
        columns["model_version"] += [part.model_version] * rows
        columns["prediction"] += part.prediction
        columns["latency_us"] += [part.latency_us] * rows
        for key in inputs.entity_keys:
            columns[f"entity.{key.name}"] += part.keys[key.name]
        for field in inputs.request_fields:
            columns[f"request.{field.name}"] += part.keys[field.name]
        for use in inputs.views:
            read = part.views[use.name]
            columns[f"view.{use.name}.status"] += read.status
            columns[f"view.{use.name}.event_time"] += read.event_us
            columns[f"view.{use.name}.created_time"] += read.created_us
            columns[f"view.{use.name}.write_time"] += read.write_us
            columns[f"view.{use.name}.definition"] += read.definition
        for name, dtype in inputs.value_columns.items():
            values = part.values[name]
            columns[f"feature.{name}"] += map(json_text, values) if dtype in JSON_TEXT else values
    return pa.table(
        [pa.array(columns[field.name], type=field.type) for field in schema], schema=schema
    )
