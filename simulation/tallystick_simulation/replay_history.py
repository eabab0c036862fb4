"""A repo's history by time: requests, rows to push, and labels."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from datetime import date, datetime
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.clock import DAY_US, EPOCH, arrow_to_us, from_us, to_us
from tallystick.definitions.contract import ModelInputs
from tallystick.definitions.feature_view import ViewSpec
from tallystick.retrieval.source_rows import read_source
from tallystick_simulation.scenario import Push

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo
    from tallystick.definitions.model import Model

BATCH_ROWS = 500
Columns = dict[str, list[Any]]
Instance = dict[str, Any]
LabelKey = tuple[Any, ...]


@dataclass(frozen=True)
class KnownLabel:
    """A label: its value, and when it became known."""

    value: int
    known_time: datetime


class ReplayRequests:
    """The requests of a model's population, by time.

    Args:
        repo: The repo.
        model: The model.
        inputs: The keys and fields of a request.
    """

    def __init__(self, repo: Repo, model: Model, inputs: ModelInputs) -> None:
        columns = [column.name for column in inputs.request_columns]
        table = read_source(
            repo,
            model.requests,
            what=f"The population of model {model.name!r}",
            columns={
                **{name: name for name in columns},
                "__request_time": model.requests.timestamp_field,
            },
        ).sort_by("__request_time")
        self._times_us = arrow_to_us(table["__request_time"]).to_numpy()
        self._table = table.select(columns)

    def has_between(self, start: datetime, end: datetime) -> bool:
        """Whether there are requests of [start, end)."""
        first, last = self._rows(start, end)
        return first < last

    def between(self, start: datetime, end: datetime) -> list[tuple[datetime, Instance]]:
        """Requests of [start, end) in order: request time and instance, its values as in JSON."""
        first, last = self._rows(start, end)
        instances = self._table.slice(first, last - first).to_pylist()
        times = map(from_us, self._times_us[first:last].tolist())
        return [
            (time, {name: _as_json(value) for name, value in instance.items()})
            for time, instance in zip(times, instances, strict=True)
        ]

    def _rows(self, start: datetime, end: datetime) -> tuple[int, int]:
        first, last = self._times_us.searchsorted([to_us(start), to_us(end)], side="left").tolist()
        return first, last


class PushFeed:
    """The rows of a view, in the order in which they became known.

    Args:
        repo: The repo that has the view's history.
        view: The view.
        push: How its rows are pushed.

    Attributes:
        source: Name of the push source.
        every: The interval between two pushes.
    """

    def __init__(self, repo: Repo, view: str, push: Push) -> None:
        self.source = push.source
        self.every = push.every
        spec = ViewSpec.from_feast(repo.store.get_feature_view(view))
        known = spec.created_column or spec.event_column
        names = [*spec.key_names, *spec.column_names, spec.event_column]
        if spec.created_column:
            names.append(spec.created_column)
        stored = {name: source for source, name in spec.field_mapping.items()}
        self._table = read_source(
            repo,
            repo.view_source(view),
            what=f"The source of view {view!r}",
            columns={name: stored.get(name, name) for name in names},
        ).sort_by(known)
        self._known_us = arrow_to_us(self._table[known]).to_numpy()

    def between(self, after: datetime, until: datetime) -> Iterator[Columns]:
        """Rows that became known in (after, until], as batches of JSON columns."""
        bounds = [to_us(after), to_us(until)]
        first, last = self._known_us.searchsorted(bounds, side="right").tolist()
        for start in range(first, last, BATCH_ROWS):
            rows = self._table.slice(start, min(BATCH_ROWS, last - start))
            yield {
                name: [_as_json(value) for value in rows[name].to_pylist()]
                for name in rows.column_names
            }


def labels_of(repo: Repo, model: Model, days: Collection[date]) -> dict[LabelKey, KnownLabel]:
    """All labels: (keys…, request time) → the first value that became known.

    Key values are as in JSON, as in the instances of :class:`ReplayRequests`.

    Args:
        repo: The repo.
        model: The model.
        days: Days (in UTC) of the requests.
    """
    import pyarrow as pa

    label = model.label
    table = read_source(
        repo,
        label.source,
        what=f"The label source of model {model.name!r}",
        columns={
            **{name: name for name in label.keys},
            "__request_time": label.source.timestamp_field,
            "__label": label.column,
            "__known_time": label.source.created_timestamp_column,
        },
    ).sort_by("__known_time")
    request_days = arrow_to_us(table["__request_time"]).to_numpy() // DAY_US
    table = table.filter(
        pa.array(np.isin(request_days, [(day - EPOCH.date()).days for day in days]))
    )
    keys = zip(*(map(_as_json, table[name].to_pylist()) for name in label.keys), strict=True)
    result: dict[LabelKey, KnownLabel] = {}
    for key, time, value, known in zip(
        keys,
        table["__request_time"].to_pylist(),
        table["__label"].to_pylist(),
        table["__known_time"].to_pylist(),
        strict=True,
    ):
        if value is not None:
            result.setdefault((*key, time), KnownLabel(int(value), known))
    return result


def by_minute(
    requests: Sequence[tuple[datetime, Instance]], batch_by: str | None
) -> Iterator[tuple[datetime, list[list[Instance]]]]:
    """Group requests by request time, and within one time by what is sent in one HTTP request."""
    moments: dict[datetime, dict[Any, list[Instance]]] = {}
    for position, (time, instance) in enumerate(requests):
        batch = instance[batch_by] if batch_by else position
        moments.setdefault(time, {}).setdefault(batch, []).append(instance)
    for time, batches in moments.items():
        yield time, list(batches.values())


def _as_json(value: Any) -> Any:
    return value.isoformat() if isinstance(value, datetime) else value
