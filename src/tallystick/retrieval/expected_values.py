"""The expected values of logged requests: what should have been served, in the types of the log.

Stored features follow the point-in-time rule, by the contract's definitions. On-demand features
are computed from the inputs that the log has, by the contract's frozen functions. The audit
compares with these values, and training repairs by them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from tallystick.definitions.contract import REQUEST_TIME, ModelContract, ViewUse
from tallystick.definitions.exact_cast import log_column
from tallystick.definitions.feature_types import feature_type
from tallystick.point_in_time.on_demand import Transforms
from tallystick.point_in_time.rule import VisibilityClock
from tallystick.retrieval.model_features import computed_values, stored_values
from tallystick.retrieval.prediction_labels import logged_as

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo


def view_clock(use: ViewUse, clock: VisibilityClock = VisibilityClock.KNOWLEDGE) -> VisibilityClock:
    """The clock of a view's expected values: event where the source does not have created times."""
    if clock is VisibilityClock.KNOWLEDGE and not use.spec.created_column:
        return VisibilityClock.EVENT
    return clock


def expected_values(
    repo: Repo,
    contract: ModelContract,
    log: pa.Table,
    *,
    uses: Sequence[ViewUse] | None = None,
    clock: VisibilityClock = VisibilityClock.KNOWLEDGE,
    with_times: bool = False,
) -> pa.Table:
    """The stored features of logged requests as history has them, row by row.

    Args:
        repo: Where the views' sources are.
        contract: Under which the requests were logged.
        log: Logged requests, with their entity keys and times.
        uses: Views of the contract. All by default.
        clock: When a row of history counts as visible.
        with_times: Whether to add ``view__event_time``, ``view__created_time``, ``view__status``.

    Returns:
        ``view__feature`` in the types of the log, among other columns.

    Raises:
        DataError: A source is not as declared, or lacks the time that the clock needs.
    """
    import pyarrow as pa

    entity_rows = pa.table(
        {
            REQUEST_TIME: log[REQUEST_TIME],
            **{key.name: log[f"entity.{key.name}"] for key in contract.entity_keys},
        }
    )
    requested = contract.views if uses is None else uses
    expected = entity_rows
    for each in sorted({view_clock(use, clock) for use in requested}):
        alike = [use for use in requested if view_clock(use, clock) is each]
        found = stored_values(repo, alike, entity_rows, clock=each, with_times=with_times)
        for name in found.column_names:
            if name in contract.stored_columns:
                column = log_column(found[name], contract.stored_columns[name])
                expected = expected.append_column(name, column)
            elif name not in entity_rows.column_names:
                expected = expected.append_column(name, found[name])
    return expected


def recomputed(
    contract: ModelContract,
    transforms: Transforms,
    log: pa.Table,
    *,
    stored: pa.Table | None = None,
) -> pa.Table:
    """The on-demand features of logged requests, ``view__feature``, among other columns.

    Args:
        contract: Under which they were logged.
        transforms: Its frozen functions.
        log: The requests.
        stored: Stored features to compute from, ``view__feature``, or None for those in the log.

    Raises:
        DefinitionError: A function fails.
    """
    import pyarrow as pa

    sources = sorted({source for spec in contract.transforms for source in spec.inputs.values()})
    given = {}
    for source in sources:
        is_stored = stored is not None and source in contract.stored_columns
        column = stored[source] if is_stored else log[logged_as(contract, source)]  # type: ignore[index]
        given[source] = _as_given(column, contract.stored_columns.get(source))
    return computed_values(contract, transforms, pa.table(given))


def _as_given(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of the log in the form in which on-demand functions take its type."""
    import orjson
    import pyarrow as pa

    if dtype is None or dtype == "JSON" or not feature_type(dtype).is_document:
        return column
    values = [None if text is None else orjson.loads(text) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values)])
