"""A feed that pushes a view's rows when they become known."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING, Any

from tallystick.clock import to_us
from tallystick.definitions.feature_view import ViewSpec
from tallystick.retrieval.source_rows import read_source
from tallystick_simulation.replay_history import microseconds
from tallystick_simulation.scenario import Push

if TYPE_CHECKING:
    from tallystick.definitions.feature_repo import Repo

BATCH_ROWS = 500
Columns = dict[str, list[Any]]


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
        self._known_us = microseconds(self._table[known])

    def between(self, after: datetime, until: datetime) -> Iterator[Columns]:
        """Rows that became known in (after, until], as batches of JSON columns."""
        bounds = [to_us(after), to_us(until)]
        first, last = self._known_us.searchsorted(bounds, side="right").tolist()
        for start in range(first, last, BATCH_ROWS):
            rows = self._table.slice(start, min(BATCH_ROWS, last - start))
            yield {
                name: [
                    value.isoformat() if isinstance(value, datetime) else value
                    for value in rows[name].to_pylist()
                ]
                for name in rows.column_names
            }
