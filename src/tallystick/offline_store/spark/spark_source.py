"""A source as a Spark relation with the columns, and the order of rows, that DuckDB would see."""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, reduce
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import unquote

from tallystick.errors import DefinitionError
from tallystick.offline_store.sources.file_source import (
    common_schema,
    is_delta,
    open_source,
    source_location,
)
from tallystick.offline_store.sources.source_files import FileGroup, SourceFiles, position_sql
from tallystick.offline_store.spark.spark_session import in_spark
from tallystick.offline_store.sql_dialect import Dialect
from tallystick.storage.locations import LOCAL

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class SparkRows(SourceFiles):
    """A source in Spark.

    Attributes:
        view: The temporary view with the source's columns as ``c0…``, and ``file_index`` and
            ``file_row_number``. Times in nanoseconds, which Spark does not have, are integers in
            it.
    """

    view: str = ""

    @cached_property
    def groups(self) -> list[FileGroup]:
        """The view, which has the columns of all files in the types of the schema."""
        return [
            FileGroup(
                sql=self.view,
                expressions={name: f"c{at}" for at, name in enumerate(self.schema.names)},
                types={column.name: column.type for column in self.schema},
                position=position_sql("CAST(file_index AS BIGINT)"),
                example=self.label,
            )
        ]


def ticked(name: str) -> str:
    """``name`` as an identifier of Spark's SQL.

    >>> ticked("a`b")
    '`a``b`'
    """
    return "`" + name.replace("`", "``") + "`"


def _time_us_sql(column: str, kind: pa.DataType) -> str:
    import pyarrow.types as pt

    if pt.is_timestamp(kind) and kind.unit == "ns":
        return f"{column} div 1000"
    return f"unix_micros(CAST({column} AS TIMESTAMP))"


SPARK: Final = Dialect(ticked, _time_us_sql, attrgetter("spark"), "timestamp_micros", "raise_error")


def open_rows(session: Any, source: Any, repo_path: Path | str | None) -> SparkRows:
    """Make a source a temporary view of a session.

    A ``FileSource`` is read as on DuckDB, in the order of its files' paths and of the rows within
    them. So is a ``SparkSource`` whose rows know their file. Another one, a query for example, has
    no order that could be relied on: among rows that tie in everything, any may win.

    Raises:
        DataError: A file cannot be read, or two differ in a column's type.
        DefinitionError: The source is of a kind that is not read here.
    """
    if type(source).__name__ == "SparkSource":
        return _spark_rows(session, source)
    if is_delta(source, source_location(source, repo_path)):
        raise DefinitionError(
            f"Spark does not read the FileSource {source.path}: it is a Delta table.",
            hint="Declare it as a SparkSource with its path and file_format='delta'.",
        )
    files = open_source(source, repo_path)
    if files.store != LOCAL or files.partitions:
        raise DefinitionError(
            f"Spark does not read the FileSource {files.label}: it is in an object store, or its "
            "folders give columns.",
            hint="Declare it as a SparkSource with its path.",
        )
    groups: dict[Any, list[str]] = {}
    for entry in files.signature:
        groups.setdefault(common_schema(files.store, (entry,)), []).append(entry[0])
    order = {path: at for at, (path, _, _) in enumerate(files.signature)}
    parts = []
    for schema, paths in groups.items():
        frame = _reader(session, paths)
        columns = _columns(files.schema, schema, dict(frame.dtypes))
        parts.append(_with_row_index(session, frame, order, columns, files.label))
    frame = reduce(lambda one, other: one.unionByName(other), parts)
    return SparkRows(files.label, files.signature, files.schema, view=_view(frame))


def _view(frame: Any) -> str:
    name = f"tallystick_{uuid.uuid4().hex}"
    frame.createOrReplaceTempView(name)
    return name


def _reader(session: Any, paths: Sequence[str]) -> Any:
    """Files as a frame. Characters of a glob in their names have no meaning."""
    plain = [re.sub(r"([\[\]{}*?\\])", r"\\\1", path) for path in paths]
    return in_spark(lambda: session.read.parquet(*plain), what=f"{paths[0]} and those like it")


def _with_row_index(
    session: Any, frame: Any, order: dict[str, int] | None, columns: Sequence[str], label: str
) -> Any:
    """Columns of a frame, the index of each row's file in ``order``, and the row's index."""
    # Spark escapes paths, and does not agree with itself on the number of slashes before them.
    names = {re.sub("^file:/+", "/", uri): uri for uri in frame.inputFiles()}
    if order is None:
        ordered = sorted(names, key=lambda name: Path(unquote(name)))
        order = {unquote(name): at for at, name in enumerate(ordered)}
    path = "regexp_replace(_metadata.file_path, '^file:/+', '/') AS tallystick_file"
    rows = frame.selectExpr(*columns, path, "_metadata.row_index AS file_row_number")
    files = session.createDataFrame(
        [(name, order[unquote(name)]) for name in names],
        "tallystick_file string, file_index bigint",
    )
    return in_spark(
        lambda: rows.join(files.hint("broadcast"), "tallystick_file").drop("tallystick_file"),
        what=label,
    )


def _columns(common: pa.Schema, own: pa.Schema, read_as: Mapping[str, str]) -> list[str]:
    """The expressions for all files' columns from those of some files, by the types Spark reads."""
    import pyarrow.types as pt

    columns = []
    for at, field in enumerate(common):
        name, kind = ticked(field.name), field.type
        have = own.field(field.name).type if field.name in own.names else None
        if pt.is_null(kind):
            value = "NULL"
        elif have is None or pt.is_null(have):
            value = f"CAST(NULL AS {spark_type(kind)})"
        elif pt.is_timestamp(kind) and kind.unit == "ns" and read_as[field.name] != "bigint":
            value = f"unix_micros(CAST({name} AS TIMESTAMP)) * 1000"
        elif have != kind:
            value = f"CAST({SPARK.widened_sql(name, have, kind)} AS {spark_type(kind)})"
        else:
            value = name
        columns.append(f"{value} AS c{at}")
    return columns


def spark_type(kind: pa.DataType) -> str:
    """The type in which Spark reads an Arrow type from Parquet."""
    import pyarrow as pa
    import pyarrow.types as pt
    from pyspark.sql.pandas.types import from_arrow_type

    if pt.is_dictionary(kind):
        return spark_type(kind.value_type)
    if pt.is_timestamp(kind) and kind.unit == "ns":
        return "bigint"
    unsigned = {
        pa.uint8(): "smallint",
        pa.uint16(): "int",
        pa.uint32(): "bigint",
        pa.uint64(): "decimal(20,0)",
    }
    if kind in unsigned:
        return unsigned[kind]
    if pt.is_list(kind):
        return f"array<{spark_type(kind.value_type)}>"
    return str(from_arrow_type(kind, prefer_timestamp_ntz=True).simpleString())


def restored(column: Any, kind: pa.DataType) -> Any:
    """What Spark returned of a source's column, in the source's own type."""
    import pyarrow as pa
    import pyarrow.types as pt

    if pt.is_dictionary(kind):
        return restored(column, kind.value_type)
    if column.type == kind or pt.is_null(kind) or pt.is_null(column.type):
        return column
    try:
        return column.cast(kind)
    except pa.ArrowNotImplementedError:
        return column


def _spark_rows(session: Any, source: Any) -> SparkRows:
    """A ``SparkSource``: a table, a query or a path, as Spark reads it."""
    from pyspark.errors import AnalysisException

    label = source.table or source.query or source.path
    if not label:
        raise DefinitionError(f"The source {source.name} has no table, query or path; give it one.")

    def frame_of() -> Any:
        if source.table:
            return session.table(source.table)
        if source.query:
            return session.sql(source.query)
        if source.table_format is None:
            return session.read.format(source.file_format).load(source.path)
        reader = session.read.format(source.table_format.format_type.value)
        return reader.options(**source.table_format.properties).load(source.path)

    frame = in_spark(frame_of, what=f"the source {label}")
    columns = [f"{ticked(name)} AS c{at}" for at, name in enumerate(frame.columns)]
    try:
        positioned = _with_row_index(session, frame, None, columns, label)
    except AnalysisException:
        positioned = frame.selectExpr(
            *columns, "0L AS file_index", "monotonically_increasing_id() AS file_row_number"
        )
    schema = in_spark(lambda: frame.limit(0).toArrow().schema, what=f"the source {label}")
    return SparkRows(label, (), schema, view=_view(positioned))
