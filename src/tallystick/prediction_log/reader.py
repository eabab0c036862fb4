"""Reads the log back, checked against the contract that lies beside it."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from tallystick.bundle import read_contract
from tallystick.clock import to_us
from tallystick.contract import ModelContract
from tallystick.errors import ContractError, DamagedError, Problem
from tallystick.prediction_log.labels import labels_dir
from tallystick.prediction_log.record import log_schema
from tallystick.prediction_log.writer import log_dir

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class LogPart:
    """The logged predictions of one contract.

    Attributes:
        contract: The contract under which they were made.
        table: One row per prediction, by ``record.log_schema``, ordered by request time.
    """

    contract: ModelContract
    table: pa.Table


def read_log(
    state_dir: Path,
    model: str,
    *,
    start: datetime,
    end: datetime,
    columns: Callable[[ModelContract], Collection[str]] | None = None,
) -> list[LogPart]:
    """Read the predictions requested in [start, end), one part per contract.

    Args:
        state_dir: The repo's state folder.
        model: Whose predictions.
        start: First request time, included.
        end: Last request time, excluded.
        columns: Which columns to read under a contract, ``request_time`` among them; all by
            default. What is not read costs nothing.

    Raises:
        DamagedError: A file cannot be read.
        ContractError: A file's columns are not those of the contract beside it.
    """
    import pyarrow as pa

    parts = []
    for folder in sorted((log_dir(state_dir) / model).glob("*/")):
        paths = list(_files(folder, start, end))
        if not paths:
            continue
        contract, schema = _contract_of(folder)
        wanted = schema.names if columns is None else list(columns(contract))
        tables = [
            _between(_read_file(path, schema, wanted), "request_time", start, end) for path in paths
        ]
        whole = pa.concat_tables(tables)
        if whole.num_rows:
            parts.append(
                LogPart(contract=contract, table=whole.sort_by("request_time").combine_chunks())
            )
    return parts


def has_records(state_dir: Path, model: str, *, start: datetime, end: datetime) -> bool:
    """Whether a file of the log can hold predictions requested in [start, end)."""
    folders = (log_dir(state_dir) / model).glob("*/")
    return any(True for folder in folders for _ in _files(folder, start, end))


def read_labels(state_dir: Path, model: str, *, known_until: datetime) -> pa.Table | None:
    """Read the labels sent for a model that were known by ``known_until``; None if there are none.

    Columns: ``value``, ``known_time``, ``prediction_id``, ``request_time``, ``key.<name>``. Several
    rows for one prediction are corrections: the one known last counts.
    """
    import pyarrow as pa

    folder = labels_dir(state_dir, model)
    beginning = datetime.min  # noqa: DTZ901 compared as a number only
    tables = [_read_file(path) for path in _files(folder, beginning, known_until, closed=True)]
    if not tables:
        return None
    table = pa.concat_tables(tables, promote_options="default")
    import pyarrow.compute as pc

    return table.filter(pc.less_equal(table["known_time"], pa.scalar(known_until)))


def _files(folder: Path, start: datetime, end: datetime, *, closed: bool = False) -> Iterator[Path]:
    """Files of a folder that can hold times of [start, end), by name; names alone are looked at."""
    low, high = to_us(start), to_us(end) + int(closed)
    names = os.listdir(folder) if folder.is_dir() else []  # noqa: PTH208 names, without paths
    for name in sorted(names):
        if name.startswith(".") or not name.endswith(".parquet"):
            continue
        _, first, last, _ = name.removesuffix(".parquet").split("_")
        if int(first) < high and int(last) >= low:
            yield folder / name


@lru_cache(maxsize=64)
def _contract_of(folder: Path) -> tuple[ModelContract, pa.Schema]:
    """The contract that lies beside log files, and their schema; neither ever changes."""
    contract = read_contract(folder / "contract.json")
    return contract, log_schema(contract)


def _read_file(
    path: Path, expected: pa.Schema | None = None, columns: Collection[str] | None = None
) -> pa.Table:
    """Read a file, or some columns of it, after comparing its schema with the expected one."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            if expected is not None and not file.schema_arrow.equals(expected):
                _check_schema(path, expected, file.schema_arrow)
            table = file.read(columns=None if columns is None else list(columns))
            return table if columns is None else table.select(list(columns))
    except (pa.ArrowException, OSError) as error:
        raise DamagedError(
            f"Log file {path} cannot be read: {error}",
            hint="Move it aside to go on without its records; they will count as lost.",
        ) from error


def _between(table: pa.Table, column: str, start: datetime, end: datetime) -> pa.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    times = table[column]
    inside = pc.and_(pc.greater_equal(times, pa.scalar(start)), pc.less(times, pa.scalar(end)))
    return table.filter(inside)


def _check_schema(path: Path, expected: pa.Schema, got: pa.Schema) -> None:
    ours = {field.name: str(field.type) for field in expected}
    theirs = {field.name: str(field.type) for field in got}
    problems = [
        Problem(f"column {name}", ours.get(name, "absent"), theirs.get(name, "absent"))
        for name in sorted(ours.keys() | theirs.keys())
        if ours.get(name) != theirs.get(name)
    ]
    if problems:
        raise ContractError(f"Log file {path} does not fit the contract beside it.", problems)
