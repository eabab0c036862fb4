"""Gathers what log and history say about mismatches, for :mod:`tallystick_monitoring.causes`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from tallystick.contract import ViewUse
from tallystick.dtypes import JSON_TEXT, arrow_type, json_text
from tallystick.fold import VisibilityClock
from tallystick_monitoring.causes import NO_TIME, Evidence, Int64s, same_row
from tallystick_monitoring.comparison import Bools, equal_after_cast
from tallystick_monitoring.provenance import NOWHERE, SECOND_US, Wanted, identified

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.prediction_log.reader import LogPart
    from tallystick.repo import Repo


def fold_clock(use: ViewUse) -> VisibilityClock:
    """The clock of a view's expected values: event where nothing says what was known when."""
    return VisibilityClock.KNOWLEDGE if use.spec.created_column else VisibilityClock.EVENT


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Rows of one view, by key and times; every column has the same length.

    Attributes:
        keys: The view's key columns, in its order.
        event_us: Event time.
        created_us: Created time.
        values: Feature → its values in the log's types; of the features that were asked for.
    """

    keys: tuple[pa.Array, ...]
    event_us: Int64s
    created_us: Int64s
    values: Mapping[str, pa.Array] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Sightings(Rows):
    """What the log saw of a view online: one row per request.

    Attributes:
        request_us: Request time.
        write_us: When the row was written online.
    """

    request_us: Int64s
    write_us: Int64s

    @property
    def unstamped(self) -> Bools:
        """Whether a row was found in an online store that does not say when it was written.

        Such a store says nothing of created time and definition either.
        """
        return np.asarray((self.event_us != NO_TIME) & (self.write_us == NO_TIME), dtype=np.bool_)


@dataclass(frozen=True)
class Mismatches:
    """Mismatching values of one view in one part of the log; every column has shape (mismatches,).

    Attributes:
        use: The view as the contract uses it.
        rows: Row of the part.
        feature: Position of the feature in ``use.columns``.
    """

    use: ViewUse
    rows: Int64s
    feature: Int64s


def microseconds(column: Any) -> Int64s:
    """An Arrow column of times as integers, :data:`NO_TIME` for null."""
    import pyarrow as pa

    moments = column.cast(pa.timestamp("us", tz="UTC"), safe=False).cast(pa.int64())
    numbers = moments.fill_null(NO_TIME).to_numpy(zero_copy_only=False)
    return np.asarray(numbers, dtype=np.int64)


def sightings(parts: Sequence[LogPart], view: str) -> Sightings:
    """What the log saw online of a view (by its own name), under every contract and alias."""
    import pyarrow as pa

    found = [
        _sightings(part.table, use)
        for part in parts
        for use in part.contract.views
        if use.spec.name == view
    ]
    return Sightings(
        keys=tuple(
            pa.concat_arrays(list(columns))
            for columns in zip(*(one.keys for one in found), strict=True)
        ),
        event_us=np.concatenate([one.event_us for one in found]),
        created_us=np.concatenate([one.created_us for one in found]),
        request_us=np.concatenate([one.request_us for one in found]),
        write_us=np.concatenate([one.write_us for one in found]),
    )


def _sightings(table: pa.Table, use: ViewUse) -> Sightings:
    event_us = microseconds(table[f"view.{use.name}.event_time"])
    created_us = microseconds(table[f"view.{use.name}.created_time"])
    return Sightings(
        keys=key_columns(table, use, prefix="entity."),
        event_us=event_us,
        created_us=np.where(created_us == NO_TIME, event_us, created_us),
        request_us=microseconds(table["request_time"]),
        write_us=microseconds(table[f"view.{use.name}.write_time"]),
    )


def key_columns(table: pa.Table, use: ViewUse, *, prefix: str) -> tuple[pa.Array, ...]:
    """A view's key columns from a table that has them under the request's names."""
    return tuple(
        flat(table[prefix + use.key_map[key.name]]).cast(arrow_type(key.dtype))
        for key in use.spec.join_keys
        if key.name in use.key_map
    )


def flat(column: Any) -> pa.Array:
    """One array of a column that may come in chunks."""
    import pyarrow as pa

    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
        if isinstance(column, pa.ChunkedArray):
            column = pa.concat_arrays(column.chunks) if column.chunks else pa.array([], column.type)
    return column


def written_us(table: pa.Table, view: str) -> Int64s:
    """When the rows of a view in the log had been written online at the earliest.

    Where the online store does not say, that is the row's event time.
    """
    write_us = microseconds(table[f"view.{view}.write_time"])
    return np.where(write_us == NO_TIME, microseconds(table[f"view.{view}.event_time"]), write_us)


def as_logged(column: pa.ChunkedArray, dtype: str | None) -> pa.ChunkedArray:
    """A column of history in the form in which the log holds its type."""
    import pyarrow as pa

    if dtype not in JSON_TEXT:
        return column
    texts = [json_text(value) for value in column.to_pylist()]
    return pa.chunked_array([pa.array(texts, type=pa.string())])


def history(repo: Repo, use: ViewUse, *, columns: Sequence[str] = ()) -> Rows:
    """All rows of a view's history.

    Args:
        repo: An applied repo.
        use: The view.
        columns: Features whose values are wanted too.

    Raises:
        DataError: The source is not as declared.
    """
    from tallystick.offline_store.connection import connect, read_table
    from tallystick.offline_store.history import ViewRead, open_history
    from tallystick.offline_store.visible import named
    from tallystick.retrieval import offline_config

    read = ViewRead(
        spec=use.spec,
        source=repo.view_source(use.spec.name),
        name=use.spec.name,
        key_map={},
        # A feature of such a name stands in the way of the row's own time.
        columns=tuple(name for name in columns if name not in {"event_time", "created_time"}),
    )
    found = open_history(read, clock=fold_clock(use), repo_path=repo.path)
    wanted = ", ".join((*found.keys, *found.values, "event_us", "created_us"))
    connection = connect(offline_config(repo))
    try:
        sql = f"SELECT {wanted} FROM {found.sql} AS history"
        table = named(read_table(connection, sql, what=found.what), found, read)
    finally:
        connection.close()
    event_us, created_us = microseconds(table["event_time"]), microseconds(table["created_time"])
    return Rows(
        keys=tuple(
            flat(table[key.name]).cast(arrow_type(key.dtype))
            for key in use.spec.join_keys
            if key.name in use.key_map
        ),
        event_us=event_us,
        created_us=np.where(created_us == NO_TIME, event_us, created_us),
        values={
            column.name: flat(as_logged(table[column.name], column.dtype)).cast(
                arrow_type(column.dtype)
            )
            for column in read.features
        },
    )


def gather(
    part: LogPart,
    expected: pa.Table,
    mismatches: Mismatches,
    *,
    equal: Mapping[str, Bools],
    seen: Sightings,
    known: Rows,
) -> Evidence:
    """Put the evidence of mismatches together.

    Args:
        part: The part of the log that they are in.
        expected: Its expected values, with times, row by row.
        mismatches: Which values differ.
        equal: ``view__feature`` → whether served and expected are equal, for every row.
        seen: What the log saw of the view online.
        known: The view's history.
    """
    use, rows = mismatches.use, mismatches.rows
    table = part.table
    served = _sightings(table, use)
    expected_event, expected_created = expected_times(expected, use)
    definition = table[f"view.{use.name}.definition"]
    differs = np.array(
        [
            hash_ is not None and hash_ != use.spec.definition_hash
            for hash_ in definition.to_pylist()
        ],
        dtype=np.bool_,
    )
    log_keys, history_keys, own_keys = _codes(
        (seen.keys, len(seen.event_us)),
        (known.keys, len(known.event_us)),
        (served.keys, table.num_rows),
    )
    own = own_keys[rows]
    request_us = served.request_us[rows]
    row_facts = (served.event_us[rows], served.created_us[rows])
    first_visible = _first_visible(history_keys, known, own)
    watermark = _watermark(seen, request_us)
    evidence = Evidence(
        request_us=request_us,
        served_present=_present(table[f"view.{use.name}.status"])[rows],
        served_event_us=row_facts[0],
        served_created_us=row_facts[1],
        definition_differs=differs[rows],
        expected_present=_present(expected[f"{use.name}__status"])[rows],
        expected_event_us=expected_event[rows],
        expected_created_us=expected_created[rows],
        in_history=_contains((history_keys, known.event_us, known.created_us), (own, *row_facts)),
        cast_equal=np.zeros(len(rows), dtype=np.bool_),
        served_rightly=_served_rightly(
            _ranks(own_keys, served.event_us, served.created_us),
            (served.event_us == expected_event) & (served.created_us == expected_created),
            mismatches,
            equal,
        ),
        newer_served_before=_newer_before(log_keys, seen, own, request_us, row_facts),
        seen_online=np.isin(own, log_keys[seen.event_us != NO_TIME]),
        first_visible_us=first_visible,
        passed_over=(watermark == NO_TIME) | (watermark > first_visible),
        unstamped=served.unstamped[rows],
    )
    if evidence.unstamped.any():
        evidence = _identified(
            evidence, part, mismatches, known, seen, keys=(log_keys, history_keys, own)
        )
    # Values of different rows may be equal after a cast by chance: they are not asked.
    cast_equal = _cast_equal(table, expected, mismatches, among=same_row(evidence))
    return replace(evidence, cast_equal=cast_equal)


def _identified(
    evidence: Evidence,
    part: LogPart,
    mismatches: Mismatches,
    known: Rows,
    seen: Sightings,
    *,
    keys: tuple[Int64s, Int64s, Int64s],
) -> Evidence:
    """Put in the rows of history for values whose online store does not say which row it was.

    Args:
        evidence: What the log alone says.
        part: The part of the log that they are in.
        mismatches: Which values differ.
        known: The view's history, with values.
        seen: What the log saw of the view online.
        keys: Numbers of the keys of ``seen``, of ``known`` and of the mismatches.
    """
    log_keys, history_keys, own = keys
    unstamped = evidence.unstamped
    origin = np.full(len(own), NOWHERE, dtype=np.int64)
    for position, column in enumerate(mismatches.use.columns):
        places = np.flatnonzero(unstamped & (mismatches.feature == position))
        values = part.table[f"feature.{mismatches.use.name}__{column}"]
        wanted = Wanted(
            keys=own[places],
            event_us=evidence.served_event_us[places],
            request_us=evidence.request_us[places],
            expected_event_us=evidence.expected_event_us[places],
            expected_created_us=evidence.expected_created_us[places],
            present=evidence.served_present[places],
            values=values.take(mismatches.rows[places]).to_pylist(),
        )
        origin[places] = identified(wanted, known, history_keys, known.values.get(column))
    found = origin != NOWHERE
    served_event, served_created = (
        evidence.served_event_us.copy(),
        evidence.served_created_us.copy(),
    )
    served_event[found] = known.event_us[origin[found]]
    served_created[found] = known.created_us[origin[found]]
    # Order among what was served: by the second, and not by versions, which nobody told apart.
    seconds = _to_the_second(seen.event_us)
    given = _to_the_second(evidence.served_event_us)
    coarse = replace(seen, event_us=seconds, created_us=seconds)
    newer = _newer_before(log_keys, coarse, own, evidence.request_us, (given, given))
    return replace(
        evidence,
        served_event_us=served_event,
        served_created_us=served_created,
        in_history=np.where(unstamped, found, evidence.in_history),
        newer_served_before=np.where(unstamped, newer, evidence.newer_served_before),
    )


def _to_the_second(moments_us: Int64s) -> Int64s:
    return np.where(moments_us == NO_TIME, NO_TIME, moments_us - moments_us % SECOND_US)


def expected_times(expected: pa.Table, use: ViewUse) -> tuple[Int64s, Int64s]:
    """Event and created time of the expected rows of a view; created is never absent with event."""
    event_us = microseconds(expected[f"{use.name}__event_time"])
    created_us = microseconds(expected[f"{use.name}__created_time"])
    return event_us, np.where(created_us == NO_TIME, event_us, created_us)


def _present(status: Any) -> Bools:
    import pyarrow.compute as pc

    present = pc.fill_null(pc.equal(status, "PRESENT"), False)
    return np.asarray(present.to_numpy(zero_copy_only=False), dtype=np.bool_)


def _codes(*tables: tuple[tuple[pa.Array, ...], int]) -> list[Int64s]:
    """Number the keys of several tables alike: equal keys, and only they, get equal numbers.

    Args:
        *tables: Key columns and row count of each table; the tables have the same key columns.
    """
    import pyarrow as pa

    counts = [count for _, count in tables]
    codes = np.zeros(sum(counts), dtype=np.int64)
    for columns in zip(*(keys for keys, _ in tables), strict=True):
        dictionary = pa.concat_arrays(list(columns)).dictionary_encode(null_encoding="encode")
        places = dictionary.indices.to_numpy(zero_copy_only=False).astype(np.int64)
        codes = np.unique(codes * (len(dictionary.dictionary) + 1) + places, return_inverse=True)[1]
    return np.split(codes, np.cumsum(counts)[:-1])


def _contains(rows: tuple[Int64s, Int64s, Int64s], wanted: tuple[Int64s, Int64s, Int64s]) -> Bools:
    """Whether each wanted (key, event, created) is among the rows."""
    near = np.isin(rows[0], wanted[0])
    ranks = _ranks(
        *(np.concatenate([one[near], two]) for one, two in zip(rows, wanted, strict=True))
    )
    split = int(near.sum())
    return np.isin(ranks[split:], ranks[:split])


def _ranks(*columns: Int64s) -> Int64s:
    """Dense ranks of rows in lexicographic order."""
    ranks = np.zeros(len(columns[0]), dtype=np.int64)
    for column in columns:
        values, places = np.unique(column, return_inverse=True)
        ranks = np.unique(ranks * len(values) + places, return_inverse=True)[1]
    return ranks


def _first_visible(history_keys: Int64s, known: Rows, own: Int64s) -> Int64s:
    """When history's first row of each key became visible, NO_TIME without any."""
    latest = np.iinfo(np.int64).max
    first = np.full(max(history_keys.max(initial=0), own.max(initial=0)) + 1, latest)
    np.minimum.at(first, history_keys, np.maximum(known.event_us, known.created_us))
    return np.where(first[own] == latest, NO_TIME, first[own])


def _watermark(seen: Sightings, request_us: Int64s) -> Int64s:
    """The newest write of the view that the log had seen by each request, NO_TIME if none."""
    order = np.argsort(seen.request_us, kind="stable")
    # A row was not written before its event: where nothing else is known, that is the earliest.
    write_us = np.where(seen.unstamped, seen.event_us, seen.write_us)
    newest = np.maximum.accumulate(write_us[order])
    places = np.searchsorted(seen.request_us[order], request_us, side="right") - 1
    return newest[places]


def _newer_before(
    log_keys: Int64s, seen: Sightings, own: Int64s, request_us: Int64s, row: tuple[Int64s, Int64s]
) -> Bools:
    """Whether an earlier request for the key was served a newer row."""
    near = np.isin(log_keys, own)
    keys = np.concatenate([log_keys[near], own])
    # One number per (event, created), and one per key above it: then a running maximum in order
    # of key and request time never leaves its key.
    ranks = _ranks(
        np.concatenate([seen.event_us[near], row[0]]),
        np.concatenate([seen.created_us[near], row[1]]),
    )
    moments = np.concatenate([seen.request_us[near], request_us])
    scale = int(ranks.max(initial=0)) + 1
    order = np.lexsort((moments, keys))
    running = np.maximum.accumulate((keys * scale + ranks)[order])
    newest = np.empty_like(running)
    newest[order] = running
    mine = slice(int(near.sum()), None)
    return (newest[mine] % scale) > ranks[mine]


def _cast_equal(
    table: pa.Table, expected: pa.Table, mismatches: Mismatches, *, among: Bools
) -> Bools:
    """Whether served and expected value are equal after a cast, for mismatches in ``among``."""
    use = mismatches.use
    result = np.zeros(len(mismatches.rows), dtype=np.bool_)
    for position, column in enumerate(use.columns):
        places = np.flatnonzero(among & (mismatches.feature == position))
        rows = mismatches.rows[places]
        name = f"{use.name}__{column}"
        pairs = zip(
            table[f"feature.{name}"].take(rows).to_pylist(),
            expected[name].take(rows).to_pylist(),
            strict=True,
        )
        result[places] = [equal_after_cast(one, other) for one, other in pairs]
    return result


def _served_rightly(
    served_row: Int64s, one_row: Bools, mismatches: Mismatches, equal: Mapping[str, Bools]
) -> Bools:
    """Whether the row of each mismatch was served with history's value to another request.

    Args:
        served_row: Number of the row that each request was served.
        one_row: Whether it is the expected one.
        mismatches: Which values differ.
        equal: ``view__feature`` → whether served and expected are equal, for every request.
    """
    result = np.zeros(len(mismatches.rows), dtype=np.bool_)
    for position, column in enumerate(mismatches.use.columns):
        places = mismatches.feature == position
        right = equal[f"{mismatches.use.name}__{column}"] & one_row
        result[places] = np.isin(served_row[mismatches.rows[places]], served_row[right])
    return result
