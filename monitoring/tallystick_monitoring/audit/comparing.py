"""Compares what was served with what should have been, for one part of the log.

Stored features are recomputed by the fold, once for all requests of the part, and compared bit for
bit. On-demand features are recomputed from the *logged* inputs with the contract's frozen
functions, so that a wrong input is counted where it is wrong, and once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.contract import ModelContract, ViewUse
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text
from tallystick.fold import VisibilityClock
from tallystick.retrieval import REQUEST_TIME, computed_values, stored_values
from tallystick_monitoring.audit.causes import NO_TIME, Int64s
from tallystick_monitoring.audit.findings import ENTITY, microseconds
from tallystick_monitoring.comparison import Bools, same_bits

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.prediction_log.reader import LogPart
    from tallystick.repo import Repo
    from tallystick.transform import Transforms


@dataclass(frozen=True)
class Compared:
    """A part of the log, and what should have been served.

    Attributes:
        part: The part.
        expected: The stored features of its requests, with times, row by row.
        equal: ``view__feature`` of stored features → whether served and expected are the same bits,
            of shape (requests,).
        computed: On-demand features from the logged inputs; None where there are none, or where
            their functions cannot be had.
        computed_equal: As ``equal``, of on-demand features.
    """

    part: LogPart
    expected: pa.Table
    equal: Mapping[str, Bools]
    computed: pa.Table | None
    computed_equal: Mapping[str, Bools]

    def all_equal(self) -> Bools:
        """Whether every value of a request is the expected one."""
        whole = np.ones(self.part.table.num_rows, dtype=np.bool_)
        for column in (*self.equal.values(), *self.computed_equal.values()):
            whole &= column
        return whole


def view_clock(use: ViewUse, clock: VisibilityClock) -> VisibilityClock:
    """The clock of a view's expected values: event where nothing says what was known when."""
    if clock is VisibilityClock.KNOWLEDGE and not use.spec.created_column:
        return VisibilityClock.EVENT
    return clock


def compared(
    repo: Repo, part: LogPart, transforms: Transforms | None, *, clock: VisibilityClock
) -> Compared:
    """Compare every value of a part of the log.

    Args:
        repo: An applied repo; its sources are the history.
        part: The part.
        transforms: The contract's frozen functions; without them on-demand features are not
            compared.
        clock: When a row of history counts as visible.

    Raises:
        DataError: A source is not as declared, or the clock asks for a time that it does not have.
        DefinitionError: A frozen function fails.
    """
    contract, log = part.contract, part.table
    expected = expected_values(repo, contract, log, clock=clock)
    types = contract.stored_columns
    equal = {
        name: same_bits(
            flat(log[f"feature.{name}"]), flat(expected[name]).cast(arrow_type(types[name]))
        )
        for name in types
    }
    computed, computed_equal = None, {}
    if transforms is not None and contract.transforms:
        computed = recomputed(contract, transforms, log, stored=None)
        computed_equal = {
            name: same_bits(flat(log[f"feature.{name}"]), flat(computed[name]))
            for name in contract.value_columns
            if name not in types
        }
    return Compared(
        part=part, expected=expected, equal=equal, computed=computed, computed_equal=computed_equal
    )


def expected_values(
    repo: Repo, contract: ModelContract, log: pa.Table, *, clock: VisibilityClock
) -> pa.Table:
    """The stored features of logged requests as history has them, with times, row by row."""
    import pyarrow as pa

    expected = pa.table(
        {
            REQUEST_TIME: log["request_time"],
            **{key.name: log[f"entity.{key.name}"] for key in contract.entity_keys},
        }
    )
    spine = expected
    for each in sorted({view_clock(use, clock) for use in contract.views}):
        uses = [use for use in contract.views if view_clock(use, clock) is each]
        folded = stored_values(repo, uses, spine, clock=each, with_times=True)
        for name in folded.column_names:
            if name not in spine.column_names:
                dtype = contract.stored_columns.get(name)
                expected = expected.append_column(name, as_logged(folded[name], dtype))
    return expected


def recomputed(
    contract: ModelContract, transforms: Transforms, log: pa.Table, *, stored: pa.Table | None
) -> pa.Table:
    """On-demand features of logged requests.

    Args:
        contract: Under which they were made.
        transforms: Its frozen functions.
        log: The requests.
        stored: Stored features to compute from, ``view__feature``; None for those in the log.
    """
    import pyarrow as pa

    fields = {field.name for field in contract.request_fields}
    sources = {source for spec in contract.transforms for source in spec.inputs.values()}
    given = {}
    for source in sorted(sources):
        if source in fields:
            column = log[f"request.{source}"]
        else:
            column = log[f"feature.{source}"] if stored is None else stored[source]
        given[source] = _as_given(column, contract.stored_columns.get(source))
    return computed_values(contract, transforms, pa.table(given))


def wrong_values(use: ViewUse, equal: Mapping[str, Bools]) -> Iterator[tuple[str, Int64s]]:
    """Features of a view (``view__feature``) with the rows in which they differ, if any."""
    for column in use.columns:
        rows = np.flatnonzero(~equal[f"{use.name}__{column}"])
        if len(rows):
            yield f"{use.name}__{column}", rows


def expected_times(expected: pa.Table, use: ViewUse) -> tuple[Int64s, Int64s]:
    """Event and created time of the expected rows of a view; created is never absent with event."""
    event_us = microseconds(expected[f"{use.name}__event_time"])
    created_us = microseconds(expected[f"{use.name}__created_time"])
    return event_us, np.where(created_us == NO_TIME, event_us, created_us)


def is_present(status: Any) -> Bools:
    """Which of a column of statuses are ``PRESENT``."""
    import pyarrow.compute as pc

    present = pc.fill_null(pc.equal(status, "PRESENT"), False)
    return np.asarray(present.to_numpy(zero_copy_only=False), dtype=np.bool_)


def flat(column: Any) -> pa.Array:
    """One array of a column that may come in chunks."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    return column


def as_logged(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of history in the form in which the log holds its type."""
    import pyarrow as pa

    if dtype not in JSON_TEXT:
        return column
    texts = [json_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, type=pa.string())])


def _as_given(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of the log in the form in which on-demand functions take its type."""
    import orjson
    import pyarrow as pa

    if dtype not in JSON_TEXT or dtype == "JSON":
        return column
    values = [None if text is None else orjson.loads(text) for text in column.to_pylist()]
    return pa.chunked_array([pa.array(values)])


def key_columns(table: pa.Table, use: ViewUse) -> dict[str, Any]:
    """A view's keys, as history has them, from a table that has ``entity.<key>``."""
    import pyarrow as pa

    from tallystick.offline_store.columns import key_type

    columns = {}
    wanted = [key for key in use.spec.join_keys if key.name in use.key_map]
    for place, key in enumerate(wanted):
        column = table[ENTITY + use.key_map[key.name]].cast(arrow_type(key.dtype))
        if pa.types.is_timestamp(column.type):
            column = column.cast(pa.int64())
        columns[f"key_{place}"] = column.cast(key_type(key.dtype))
    return columns or {"key_0": pa.array(np.zeros(table.num_rows, dtype=np.int32))}
