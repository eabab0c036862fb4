"""The layout of a log record: one row per prediction, one typed column per value.

Columns: ``prediction_id``, ``request_time``, ``model_version``, ``prediction``, ``latency_us``,
then ``entity.<key>``, ``request.<field>``, for each view ``view.<name>.status``, ``.event_time``,
``.created_time``, ``.write_time``, ``.definition``, and ``feature.<view>__<feature>`` for every
value, stored or computed. A file holds records of one contract, whose hash is part of its path; so
types are exact, and an old record stays readable by the contract in the same folder.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import compress
from typing import TYPE_CHECKING, Any

from tallystick.definitions.columns import plain
from tallystick.definitions.contract import VIEW_FIELDS, ModelInputs
from tallystick.definitions.feature_types import arrow_type

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.online_store.view_decoder import ViewRows

RECORD_VERSION = 1
"""Version of this layout; in every file's schema metadata."""


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
    views: Mapping[str, ViewRows]
    values: Mapping[str, Any]
    prediction: Sequence[float]
    latency_us: int

    def only(self, selected: Sequence[bool]) -> Predictions:
        """The selected predictions, in their order."""

        def select(columns: Mapping[str, Any]) -> dict[str, list[Any]]:
            return {name: list(compress(plain(each), selected)) for name, each in columns.items()}

        return Predictions(
            prediction_id=list(compress(self.prediction_id, selected)),
            request_us=self.request_us,
            model_version=self.model_version,
            keys=select(self.keys),
            views={name: _selected(read, selected) for name, read in self.views.items()},
            values=select(self.values),
            prediction=list(compress(self.prediction, selected)),
            latency_us=self.latency_us,
        )


def _selected(read: ViewRows, selected: Sequence[bool]) -> ViewRows:
    """What was read of one view for the selected rows of a request, without the values."""
    event_us, created_us, write_us = (
        list(compress(plain(times), selected))
        for times in (read.event_us, read.created_us, read.write_us)
    )
    status = list(compress(read.status, selected))
    definition = list(compress(read.definition, selected))
    return type(read)(status, event_us, created_us, write_us, definition, {})


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
