"""The requests of a parity check: keys and request fields for everything that is compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from tallystick.clock import SECOND_US, from_us, to_us
from tallystick.definitions.contract import REQUEST_TIME, ModelInputs
from tallystick.definitions.feature_repo import Repo
from tallystick.definitions.feature_types import Kind, arrow_type, feature_type
from tallystick.errors import DataError
from tallystick.retrieval.source_rows import source_rows
from tallystick_monitoring.parity_check.key_sampling import Rng, SampledKeys, made_up

_RECENT: Final = timedelta(days=30)
_READ_MAX: Final = 100_000
"""Requests of a population among which some are drawn, if none is recent."""
_POPULATION_SHARE: Final = 2
"""One request in so many is one of a model's population, if there is one."""


@dataclass(frozen=True)
class Requests:
    """Draws requests at one moment.

    Attributes:
        repo: The repo, whose models' populations show what requests look like.
        keys: View → the keys that were drawn of it, in the order of its key columns.
        at: Time of all requests.
        count: Requests to draw at most.
        seed: Of what is drawn.
    """

    repo: Repo
    keys: Mapping[str, SampledKeys]
    at: datetime
    count: int
    seed: int

    def entity_rows(self, inputs: ModelInputs, name: str, *, populated: bool) -> pa.Table:
        """Requests for some inputs.

        Returns:
            Entity keys, request fields and ``request_time``, one row per request.
        """
        rng = np.random.default_rng([self.seed, *name.encode()])
        drawn = self._populated(inputs, rng) if populated else []
        rows = [*drawn, *self._combined(inputs, drawn, rng)][: self.count]
        arrays = {
            column.name: pa.array([row[column.name] for row in rows], arrow_type(column.dtype))
            for column in inputs.request_columns
        }
        times = pa.array([self.at] * len(rows), pa.timestamp("us", tz="UTC"))
        return pa.table({**arrays, REQUEST_TIME: times})

    def _combined(
        self, inputs: ModelInputs, populated: Sequence[Mapping[str, Any]], rng: Rng
    ) -> list[dict[str, Any]]:
        """Requests of drawn keys. The keys of a view stay together where no other view has them."""
        uses = sorted(inputs.views, key=lambda use: len(use.request_keys), reverse=True)
        drawn = [(use, self.keys[use.spec.name].rows) for use in uses if use.request_keys]
        lengths = [len(rows) for _, rows in drawn]
        count = max(lengths, default=self.count if inputs.request_fields else 1)
        requests = []
        for index in range(count):
            request: dict[str, Any] = {}
            for use, rows in drawn:
                key = rows[index % len(rows)]
                request = {**dict(zip(use.request_keys, key, strict=True)), **request}
            like = populated[int(rng.integers(len(populated)))] if populated else {}
            for field in inputs.request_fields:
                request[field.name] = (
                    like[field.name] if like else field_value(field.dtype, rng, self.at)
                )
            requests.append(request)
        return requests

    def _populated(self, inputs: ModelInputs, rng: Rng) -> list[dict[str, Any]]:
        """Requests of the first model whose population has all required columns."""
        columns = inputs.request_columns
        count = max(1, self.count // _POPULATION_SHARE)
        for _, model in sorted(self.repo.models.items()) if columns else ():
            try:
                rows = self._population_rows(model, [column.name for column in columns])
            except DataError:
                continue  # another one may have what this one lacks
            rows = _typed(rows, {column.name: column.dtype for column in columns})
            if rows.num_rows:
                rows_drawn = rng.choice(
                    rows.num_rows, size=min(count, rows.num_rows), replace=False
                )
                taken = rows.take(rows_drawn).to_pylist()
                return list({repr(row): row for row in taken}.values())
        return []

    def _population_rows(self, model: Any, names: Sequence[str]) -> pa.Table:
        source = source_rows(
            self.repo,
            model.requests,
            what=f"The population of model {model.name!r}",
            columns={
                **{name: name for name in names},
                REQUEST_TIME: model.requests.timestamp_field,
            },
        )
        recent = source.table(between=(REQUEST_TIME, self.at - _RECENT, self.at))
        if recent.num_rows:
            return recent
        return next(iter(source.batches(rows_max=_READ_MAX)), source.empty())


def field_value(dtype: str, rng: Rng, at: datetime) -> Any:
    """A value that a request field of a type may have. A float is exact in float32.

    Args:
        dtype: Feast value type.
        rng: What is drawn from.
        at: Time of the request. Times are within a day of it, to the second.
    """
    own = feature_type(dtype)
    if own.member is not None:
        return [field_value(own.member.name, rng, at)]
    make = _FIELD_VALUES.get(own.kind)
    return made_up(dtype, rng) if make is None else make(rng, at)


_FIELD_VALUES: Final[Mapping[Kind, Callable[[Rng, datetime], Any]]] = {
    Kind.FLOAT: lambda rng, _: int(rng.integers(0, 400)) / 4,
    Kind.DECIMAL: lambda rng, _: f"{int(rng.integers(0, 400)) / 4}",
    Kind.INTEGER: lambda rng, _: int(rng.integers(0, 100)),
    Kind.BOOL: lambda rng, _: bool(rng.integers(2)),
    Kind.TEXT: lambda rng, _: str(rng.choice(["a", "b", "c"])),
    Kind.TIME: lambda rng, at: from_us(
        (to_us(at) // SECOND_US + int(rng.integers(0, 86_400))) * SECOND_US
    ),
}
"""Kind → a value of it. UUIDs and bytes are as for keys."""


def _typed(rows: pa.Table, dtypes: Mapping[str, str]) -> pa.Table:
    """The columns in these types, without rows that lack one. No rows if they have other types.

    Numbers that are not finite are left out as well: JSON has none.
    """
    try:
        typed = pa.table(
            {name: rows[name].cast(arrow_type(dtype)) for name, dtype in dtypes.items()}
        ).drop_null()
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
        return pa.table({})
    for name in typed.column_names:
        if pa.types.is_floating(typed.schema.field(name).type):
            typed = typed.filter(pc.is_finite(typed[name]))
    return typed
