"""The history of a view as it was served: the journal of its online writes.

An online store knows two things that the point-in-time rule does not. They become columns that the
rule compares:

- Of full ties a row of another definition replaces the row that is there. So where the journal has
  rows of several definitions, ``created_us`` is not a time, but a number that rises in the order in
  which rows replace each other, and ``known_us`` is the created time.
- All rows of a view may be removed at once. The number of removals before a row, or before a
  request, is one more key.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tallystick.clock import arrow_from_us, arrow_to_us
from tallystick.definitions.feature_repo import state_dir
from tallystick.definitions.feature_view import ViewSpec
from tallystick.errors import StateError
from tallystick.offline_store.sources.file_source import common_schema
from tallystick.offline_store.sources.source_files import FILE_INDEX_SQL, FileGroup, SourceFiles
from tallystick.offline_store.sql_dialect import DUCKDB
from tallystick.offline_store.view_read import History, ViewRead
from tallystick.online_store.journal.journal_entry import (
    CREATED,
    EVENT,
    WRITTEN,
    feature_column,
    key_column,
    keys_of,
)
from tallystick.online_store.journal.write_journal import (
    definitions_in,
    pending_in,
    removals_in,
    view_folder,
)
from tallystick.point_in_time.rule import CREATED_SQL, POSITION
from tallystick.storage.locations import LOCAL

if TYPE_CHECKING:
    import pyarrow as pa

_TIMES: Final = {"event_us": EVENT, "known_us": CREATED, "visible_us": WRITTEN}
_REMOVALS: Final = "key_removals"


@dataclass(frozen=True)
class ServedHistory(History):
    """A history from a journal.

    Attributes:
        removed_us: When all rows of the view were removed, ascending.
        time_keys: Keys that are times, which are compared by whole seconds online.
        known_sql: Position and ``known_us`` of all rows, in parentheses. Empty where
            ``created_us`` is the created time.
    """

    removed_us: tuple[int, ...] = ()
    time_keys: tuple[str, ...] = ()
    known_sql: str = ""

    def joined_by(self, entity_keys: pa.Table) -> pa.Table:
        """With the number of removals before each request."""
        import numpy as np
        import pyarrow as pa
        import pyarrow.compute as pc

        for name in self.time_keys:
            seconds = pc.floor_temporal(arrow_from_us(entity_keys[name]), unit="second")
            index = entity_keys.column_names.index(name)
            entity_keys = entity_keys.set_column(index, name, arrow_to_us(seconds))
        before = np.searchsorted(
            np.array(self.removed_us, np.int64), entity_keys["request_us"].to_numpy(), side="right"
        )
        return entity_keys.append_column(_REMOVALS, pa.array(before, pa.int64()))

    def with_created_time(self, matched: str) -> str:
        """See :meth:`History.with_created_time`."""
        if not self.known_sql:
            return matched
        return (
            f"SELECT matched.* REPLACE (known.known_us AS created_us) FROM ({matched}) AS matched "
            f"LEFT JOIN {self.known_sql} AS known ON known.{POSITION} = matched.{POSITION}"
        )


def open_journal(read: ViewRead, repo_path: Path | str | None) -> ServedHistory:
    """The journal of a view's online writes, as a history.

    Rows of other definitions of the view count, and have the features that are the same by name and
    type, as when they are read online.

    Raises:
        StateError: There is no journal, or it has a write that was cut off.
        DamagedError: The journal cannot be read.
    """
    spec, features = read.spec, read.features
    folder = view_folder(state_dir(Path(repo_path or ".")), spec.name)
    written = [
        (hash_, other) for hash_, other in definitions_in(folder).items() if _same_keys(spec, other)
    ]
    found = sorted(
        (file.name, file, number)
        for number, (hash_, _) in enumerate(written)
        for file in (folder / hash_).glob("[!.]*.parquet")
    )
    if not found:
        raise StateError(
            f"View {spec.name} has no journal of online writes in {folder}, so the served values "
            "are not known.",
            hint="Set  journal: true  in the online_store of feature_store.yaml, and write all "
            "that is online once more:  tally materialize --again",
        )
    if pending_in(folder):
        raise StateError(
            f"A write of view {spec.name} was cut off, and it is not known how far it came.",
            hint="Write the view once more, which settles it:  tally materialize",
        )
    signature = tuple(
        (file.as_posix(), stat.st_mtime_ns, stat.st_size)
        for _, file, _ in found
        for stat in (file.stat(),)
    )
    files = SourceFiles(f"the journal {folder}", signature, common_schema(LOCAL, signature))
    keys = [f"key_{at}" for at in range(len(keys_of(spec)))] or ["key_0"]
    values = [f"value_{at}" for at in range(len(features))]
    stored = [feature_column(column) for column in features]
    removed = removals_in(folder)

    def selected(group: FileGroup) -> str:
        columns = {"key_0": "0"}
        for name, key in zip(keys, keys_of(spec), strict=False):
            columns[name] = DUCKDB.key_sql(*group.column(key_column(key.name)), key)
        for name, column in zip(values, stored, strict=True):
            columns[name] = group.expressions.get(column, "NULL")
        for name, column in _TIMES.items():
            columns[name] = f"epoch_us({group.expressions[column]})"
        return group.select(columns)

    before = " + ".join(f"(visible_us >= {moment})::BIGINT" for moment in removed) or "0"
    numbers = ", ".join(str(number) for _, _, number in found)
    entries = " UNION ALL ".join(map(selected, files.groups))
    rows = (
        f"(SELECT *, ({before})::BIGINT AS {_REMOVALS}, "
        f"[{numbers}][{FILE_INDEX_SQL} + 1] AS definition FROM ({entries}) AS entry "
        f"WHERE {' AND '.join(f'{key} IS NOT NULL' for key in keys)})"
    )
    names = (*keys, _REMOVALS)
    plain = f"(SELECT *, known_us AS created_us FROM {rows} AS written)"
    known = f"(SELECT known_us, {POSITION} FROM {rows} AS written)"
    sql = _ordered_sql(rows, names) if len(written) > 1 else plain
    return ServedHistory(
        sql=sql,
        whole=files,
        whole_sql=lambda: sql,
        keys=names,
        values=tuple(values),
        columns=tuple(stored),
        files=files,
        what=f"view {spec.name} from its journal {folder}",
        removed_us=tuple(removed),
        time_keys=tuple(
            f"key_{at}" for at, key in enumerate(keys_of(spec)) if key.dtype == "UNIX_TIMESTAMP"
        ),
        known_sql=known if len(written) > 1 else "",
    )


def _same_keys(one: ViewSpec, other: ViewSpec) -> bool:
    """Whether two definitions of a view find each other's rows online."""

    def keys(spec: ViewSpec) -> list[tuple[str, str]]:
        # Integers of both widths are one key online.
        return sorted((key.name, key.dtype.replace("INT32", "INT64")) for key in keys_of(spec))

    return keys(one) == keys(other)


def _ordered_sql(rows: str, keys: Sequence[str]) -> str:
    """Rows of several definitions: full ties of another definition replace the last."""
    same = ", ".join((*keys, "event_us"))
    tied = f"PARTITION BY {same}, order_us ORDER BY visible_us, {POSITION}"
    return f"""(
    SELECT * EXCLUDE created_us,
      dense_rank() OVER (PARTITION BY {same} ORDER BY order_us, changes) AS created_us
    FROM (
      SELECT *, sum(is_other) OVER ({tied} ROWS UNBOUNDED PRECEDING) AS changes
      FROM (
        SELECT *, (definition IS DISTINCT FROM lag(definition) OVER ({tied}))::BIGINT AS is_other
        FROM (
          SELECT *, {CREATED_SQL} AS order_us
          FROM (SELECT *, known_us AS created_us FROM {rows} AS written) AS read
        ) AS ordered
      ) AS compared
    ) AS counted)"""
