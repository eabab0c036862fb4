"""Columns that the names of folders give: ``day=2024-01-01/…``, as Hive writes them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final
from urllib.parse import unquote

from tallystick.definitions.exact_cast import family
from tallystick.definitions.feature_types import ENGINE_TYPES, Kind, feature_type
from tallystick.errors import DataError, Problem
from tallystick.point_in_time.rule import text_sql

Partitions = Mapping[str, Any]
"""Column → its value for each file, as an Arrow array."""

NULL_FOLDER: Final = "__HIVE_DEFAULT_PARTITION__"
"""How Hive writes null as a folder's name."""

SQL_TYPES: Final = {
    "integer": "BIGINT",
    "float": "DOUBLE",
    "bool": "BOOLEAN",
    "text": "VARCHAR",
    "time": "TIMESTAMP",
}
"""Family of values → the type in which DuckDB holds them."""


def folder_values(
    root: str, paths: Sequence[str], taken: set[str], declared: Mapping[str, str]
) -> dict[str, Any]:
    """The columns that the folders of files give.

    Args:
        root: The source's path. Folders above it, and above a glob's first sign, give no columns.
        paths: The files.
        taken: Columns of the files, which go before those of folders.
        declared: Column → Feast type. The others are integers, dates or text.

    Raises:
        DataError: A folder's name has no value of the declared type. With all such columns.
    """
    above = root
    for sign in "*?[":
        above = above.split(sign, 1)[0]
    above = above if above == root else above.rpartition("/")[0]
    found = [_pairs(path[len(above) :]) for path in paths]
    names = [name for name in found[0] if name not in taken and all(name in one for one in found)]
    columns = {}
    problems = []
    for name in names:
        texts = [each[name] for each in found]
        dtype = declared.get(name)
        values = _guessed(texts) if dtype is None else _parsed(texts, _kind(dtype))
        if values is None:
            at = next(
                (at for at, text in enumerate(texts) if _parsed([text], _kind(dtype)) is None), 0
            )
            problems.append(
                Problem(f"folder {name}={texts[at]} of {paths[at]}", str(dtype), "text")
            )
        else:
            columns[name] = values
    if problems:
        raise DataError(
            f"Folders of the source {root} do not fit the types that are declared.",
            problems,
            hint="Rename the folders, or correct the view's schema and run apply again.",
        )
    return columns


def list_sql(values: Any) -> str:
    """A column of DuckDB's ``read_parquet`` that has for each file one of ``values``."""
    texts = ["NULL" if one is None else text_sql(str(one)) for one in values.to_pylist()]
    kind = SQL_TYPES[family(values.type)]
    return f"CAST([{', '.join(texts)}] AS {kind}[])[CAST(file_index AS BIGINT) + 1]"


def _pairs(path: str) -> dict[str, str | None]:
    pairs = (part.partition("=") for part in path.split("/")[:-1] if "=" in part[1:])
    return {
        unquote(name): None if value == NULL_FOLDER else unquote(value) for name, _, value in pairs
    }


def _kind(dtype: str | None) -> Any:
    """The Arrow type in which values of a Feast type are held, or None if there is none."""
    import pyarrow as pa

    kind = Kind.DOCUMENT if dtype is None else feature_type(dtype).kind
    types = ENGINE_TYPES[kind]
    if types is None or kind is Kind.BYTES:
        return None
    return pa.timestamp("us") if kind is Kind.TIME else pa.type_for_alias(types.arrow)


def _parsed(texts: Sequence[str | None], kind: Any) -> Any:
    """The values of a type, or None if one is not of it."""
    import pyarrow as pa

    if kind is None:
        return None
    try:
        return pa.array(texts, pa.string()).cast(kind)
    except pa.ArrowException:
        return None


def _guessed(texts: Sequence[str | None]) -> Any:
    """Integers, dates or text: the first that fits all, and gives the same text again."""
    import pyarrow as pa

    for kind in (pa.int64(), pa.timestamp("us")):
        values = _parsed(texts, kind)
        if values is not None and (
            pa.types.is_timestamp(kind) or values.cast(pa.string()).to_pylist() == list(texts)
        ):
            return values
    return pa.array(texts, pa.string())
