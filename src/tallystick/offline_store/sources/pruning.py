"""Pruning: which files and row groups cannot matter to any request, so that they are not read.

A row that becomes visible after the last request answers none. Nor does one whose event is older
than the first request less the ttl: if such a row wins, its answer is null, as it is without any
row. Only the winner's times and status differ between the two, so old rows are read where these are
requested.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from tallystick.clock import DAY_US, UNIT_US
from tallystick.offline_store.sources.source_files import FileGroup, SourceFiles
from tallystick.point_in_time.rule import TTL_US_MAX, VisibilityClock, requires_created

NS_SAFE_US: Final = 9_000_000_000_000_000
"""Times before 1684 and after 2255 are no bounds: in nanoseconds they might overflow."""


@dataclass(frozen=True)
class Span:
    """The time span of some requests, and whether times are returned.

    Attributes:
        first_us: The first request time, in microseconds since 1970 in UTC.
        last_us: The last one.
        with_times: Whether the winning row's times and status are returned.
    """

    first_us: int
    last_us: int
    with_times: bool


@dataclass(frozen=True)
class Bounds:
    """The times of a column that can matter, both included. None stands for no bound."""

    first_us: int | None = None
    last_us: int | None = None


def span_of(request_us: Any, *, with_times: bool) -> Span | None:
    """The span of some request times, or None if there are none.

    Args:
        request_us: Arrow column of integers.
        with_times: Whether the winning row's times and status are returned.
    """
    import pyarrow.compute as pc

    ends = pc.min_max(request_us).as_py()
    if ends["min"] is None:
        return None
    return Span(ends["min"], ends["max"], with_times)


def bounds_of(
    span: Span,
    *,
    clock: VisibilityClock,
    ttl_us: int | None,
    event: str,
    created: str | None,
) -> dict[str, Bounds]:
    """Time column of a source → its times that can matter.

    Args:
        span: The requests.
        clock: When a row counts as visible.
        ttl_us: Microseconds after which a row is too old; None or 0 for never.
        event: Column of the event time.
        created: Column of the created time.
    """
    first = None
    if ttl_us and ttl_us < TTL_US_MAX and not span.with_times:
        first = span.first_us - ttl_us
    found = {event: Bounds(first, span.last_us)}
    if requires_created(clock) and created and created != event:
        found[created] = Bounds(None, span.last_us)
    return found


def bounds_sql(bounds: Mapping[str, Bounds], files: FileGroup) -> str:
    """The condition on columns of some files, in a form that DuckDB compares with statistics."""
    conditions = []
    for name, each in bounds.items():
        column = files.expressions[name]
        if each.first_us is not None and abs(each.first_us) < NS_SAFE_US:
            conditions.append(f"{column} >= make_timestamp({each.first_us})")
        if each.last_us is not None and abs(each.last_us) < NS_SAFE_US:
            # Finer times are cut, so the whole microsecond counts.
            conditions.append(f"{column} < make_timestamp({each.last_us + 1})")
    return " AND ".join(conditions) or "true"


def pruned(
    files: SourceFiles, bounds: Mapping[str, Bounds], *, may_be_empty: bool = False
) -> SourceFiles:
    """The files that may have rows within all bounds.

    Args:
        files: The files of a source.
        bounds: Column of the source → its bounds.
        may_be_empty: Whether the answer may have no file. Otherwise it has at least one.
    """
    # What is known without opening files comes first, so that fewer have to be opened.
    chosen = [True] * len(files.signature)
    for column, each in bounds.items():
        for at, times in enumerate(_folder_times(files, column) or files.known_times(column)):
            chosen[at] &= times is None or _meets(times, each)
    files = _only(files, chosen, may_be_empty=may_be_empty)
    in_files = {name: each for name, each in bounds.items() if name not in files.partitions}
    chosen = [_has_group_within(footer, in_files) for footer in files.footers]
    return _only(files, chosen, may_be_empty=may_be_empty)


def _only(files: SourceFiles, chosen: list[bool], *, may_be_empty: bool) -> SourceFiles:
    if chosen and not any(chosen) and not may_be_empty:
        chosen[0] = True
    return files if all(chosen) else files.only(chosen)


def _has_group_within(footer: Any, bounds: Mapping[str, Bounds]) -> bool:
    """Whether a row group may have rows within all bounds."""
    found = [(_times_of_groups(footer, column), each) for column, each in bounds.items()]
    return any(
        all(times[group] is None or _meets(times[group], each) for times, each in found)
        for group in range(footer.num_row_groups)
    )


def have_no_nulls(files: SourceFiles, columns: Sequence[str]) -> bool:
    """Whether statistics show that some columns have no null; False where there are none."""
    if not files.signature:  # rows that are not in files
        return False
    for column in columns:
        if column in files.partitions:
            if files.partitions[column].null_count:
                return False
            continue
        known = files.known_nulls(column)
        if any(known):
            return False
        unknown = files.only([nulls is None for nulls in known]) if 0 in known else files
        if not all(_has_no_null(footer, column) for footer in unknown.footers):
            return False
    return True


def _has_no_null(footer: Any, column: str) -> bool:
    at = _column_index(footer, column)
    for group in range(footer.num_row_groups):
        statistics = None if at is None else footer.row_group(group).column(at).statistics
        if statistics is None or not statistics.has_null_count or statistics.null_count:
            return False
    return True


def _meets(times: tuple[int, int], bounds: Bounds) -> bool:
    first, last = times
    return (bounds.first_us is None or last >= bounds.first_us) and (
        bounds.last_us is None or first <= bounds.last_us
    )


def _folder_times(files: SourceFiles, column: str) -> list[tuple[int, int] | None] | None:
    """Time of each file in a column that folders' names give, or None for another column."""
    if column not in files.partitions:
        return None
    values = files.partitions[column].cast("int64").to_pylist()
    return [None if value is None else (value, value) for value in values]


def _times_of_groups(footer: Any, column: str) -> list[Any]:
    """First and last time in each row group, in microseconds since 1970, or None if unknown."""
    at = _column_index(footer, column)
    if at is None:
        return [None] * footer.num_row_groups
    kind = footer.schema.to_arrow_schema().field(column).type
    found = []
    for group in range(footer.num_row_groups):
        chunk = footer.row_group(group).column(at)
        statistics = chunk.statistics if chunk.physical_type in {"INT32", "INT64"} else None
        ends = (
            (_us(statistics.min_raw, kind), _us(statistics.max_raw, kind))
            if statistics is not None and statistics.has_min_max
            else (None, None)
        )
        found.append(None if None in ends else ends)
    return found


def _us(raw: int, kind: Any) -> int | None:
    """A Parquet file's own number for a time, in microseconds since 1970."""
    import pyarrow as pa

    if pa.types.is_date32(kind):
        return raw * DAY_US
    if not pa.types.is_timestamp(kind):
        return None
    return raw // 1000 if kind.unit == "ns" else raw * UNIT_US[kind.unit]


def _column_index(footer: Any, column: str) -> int | None:
    """The index of a column that is neither a list nor a struct."""
    schema = footer.schema
    return next((at for at in range(len(schema)) if schema.column(at).path == column), None)
