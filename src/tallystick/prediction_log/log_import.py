"""Import of predictions that another server logged.

docs/prediction-log.md describes the record. Imported predictions are audited, monitored and used
for training like those that were served here. A file is imported once, however often it is given.
"""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from tallystick.clock import EPOCH
from tallystick.definitions.contract import (
    FeatureReference,
    LabelSpec,
    ModelContract,
    Reference,
    TrainingData,
)
from tallystick.errors import DataError, InputError, Problem, did_you_mean
from tallystick.point_in_time.feature_status import Status
from tallystick.prediction_log.compactor import only_compactor
from tallystick.prediction_log.record import log_schema
from tallystick.prediction_log.streams import PREDICTIONS
from tallystick.storage.atomic_files import sha256_of

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.feature_repo import Repo

_VERSION: Final = "imported"
_GIVEN: Final = ("prediction_id", "model_version", "latency_us")
"""Columns that get a default where they are missing."""


def import_file(state_dir: Path, contract: ModelContract, path: Path) -> int:
    """Take the predictions of a Parquet file into the log.

    Args:
        state_dir: The repo's state folder.
        contract: The contract under which they were made.
        path: The file.

    Returns:
        How many were taken; 0 if the file was taken before.

    Raises:
        DataError: The file cannot be read, or lacks columns, or has some of a wrong type; all of it
            is listed.
        StateError: A compactor runs for too long.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        given = pq.read_table(path, partitioning=None)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is not a Parquet file that can be read: {error}") from error
    name = sha256_of(path)
    table = as_record(contract, given, what=str(path), name=name)
    with only_compactor(state_dir, PREDICTIONS) as compactor:
        return compactor.add(contract, table, name)


def observed_contract(repo: Repo, service: str) -> ModelContract:
    """The contract of a model that was not trained here, but answers from a feature service.

    It follows from the definitions as they are applied now, without training data or label.

    Args:
        repo: An applied repo.
        service: Name of the feature service, which becomes the name of the model.

    Raises:
        StateError: The repo has not been applied, or has no such service.
        DefinitionError: The definitions cannot serve a model; every reason is listed.
    """
    inputs = repo.service_inputs(repo.feature_service(service))
    return ModelContract(
        **inputs.model_copy(update={"model": service}).model_dump(),
        label=LabelSpec(column="", keys=(), matures_after_us=0),
        threshold=0.5,
        slices=(),
        reference=Reference(
            features={},
            views={},
            prediction=FeatureReference(rows=0, null_share=0.0),
            label_rate=0.0,
        ),
        data=TrainingData(
            start=EPOCH,
            end=EPOCH,
            known_until=EPOCH,
            rows=0,
            quarantined_rows=0,
            clock="knowledge",
            content_hash="",
        ),
        packages={},
    )


def as_record(contract: ModelContract, given: pa.Table, *, what: str, name: str) -> pa.Table:
    """Rows as the log has them.

    Args:
        contract: The contract under which they were made.
        given: The rows, with the columns of :func:`tallystick.prediction_log.record.log_schema`;
            the model's version, the latency and what is known of views may be missing.
        what: The rows in messages.
        name: Makes prediction ids, where none are given: the same name, the same ids.

    Raises:
        DataError: Columns are missing or of a wrong type.
        InputError: There are columns that no record has.
    """
    import pyarrow as pa

    schema = log_schema(contract)
    _check(contract, given, schema, what)
    columns: list[Any] = []
    problems = []
    for field in schema:
        if field.name in given.column_names:
            column = given[field.name]
        else:
            column = _missing(contract, given, field, name)
        try:
            columns.append(_cast(column, field))
        except pa.ArrowException as error:
            problems.append(Problem(f"column {field.name}", str(field.type), str(error)))
    if problems:
        raise DataError(f"{what} has values that the contract does not allow.", problems)
    return pa.table(columns, schema=schema)


def _check(contract: ModelContract, given: pa.Table, schema: pa.Schema, what: str) -> None:
    views = tuple(f"view.{use.name}." for use in contract.views)
    given_for = {*_GIVEN, "prediction"} if contract.is_observed else _GIVEN
    needed = [name for name in schema.names if name not in given_for and not name.startswith(views)]
    missing = [
        Problem(f"column {name}", str(schema.field(name).type), "no such column")
        for name in needed
        if name not in given.column_names
    ]
    if missing:
        raise DataError(
            f"{what} is not a log of model {contract.model!r}.",
            missing,
            hint="docs/prediction-log.md has the record that is imported.",
        )
    unknown = [name for name in given.column_names if name not in schema.names]
    if unknown:
        raise InputError(
            f"{what} has columns that are not in the record of model {contract.model!r}.",
            [Problem(f"column {name}", did_you_mean(name, schema.names), name) for name in unknown],
            hint="Leave them out, or give them the record's names: docs/prediction-log.md.",
        )


def _missing(contract: ModelContract, given: pa.Table, field: pa.Field, name: str) -> Any:
    """What stands in a column that is not given."""
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = given.num_rows
    if field.name == "prediction_id":
        space = uuid.UUID(name[:32])
        return pa.array([str(uuid.uuid5(space, str(row))) for row in range(rows)], field.type)
    if field.name == "prediction":
        # Another server answered with features, and what its client predicted is unknown.
        return pa.repeat(pa.scalar(float("nan")), rows)
    if field.name in _GIVEN:
        value = _VERSION if field.name == "model_version" else 0
        return pa.repeat(pa.scalar(value, field.type), rows)
    for use in contract.views:
        if field.name == f"view.{use.name}.status":
            is_there = pa.array([False] * rows)
            for column in use.columns:
                values = given[f"feature.{use.name}__{column}"]
                is_there = pc.or_(is_there, pc.is_valid(values))
            return pc.if_else(is_there, Status.PRESENT, Status.NOT_FOUND)
    return pa.nulls(rows, field.type)


def _cast(column: Any, field: pa.Field) -> Any:
    import pyarrow as pa

    if pa.types.is_timestamp(field.type) and getattr(column.type, "tz", None) is None:
        column = column.cast(pa.timestamp("us")).cast(field.type)
    cast = column.cast(field.type)
    if not field.nullable and cast.null_count:
        raise pa.ArrowInvalid(f"{cast.null_count} nulls")
    return cast
