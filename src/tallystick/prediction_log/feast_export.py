"""Export of the log for Feast's tools: a copy in Feast's layout of a feature service's logs.

The copy is written through Feast's own interface to the destination in the service's
``LoggingConfig``, so that ``FeatureStore.validate_logged_features`` and other tools find it. The
config's ``sample_rate`` selects whole entities, as ``TALLYSTICK_LOG_SHARE`` does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tallystick.point_in_time.feature_status import Status
from tallystick.prediction_log.compactor import only_compactor
from tallystick.prediction_log.log_writer import are_sampled
from tallystick.prediction_log.parquet_files import read_file
from tallystick.prediction_log.streams import PREDICTIONS, log_location

if TYPE_CHECKING:
    import pyarrow as pa

    from tallystick.definitions.contract import ModelContract
    from tallystick.definitions.feature_repo import Repo
    from tallystick.prediction_log.manifest import LogFile


def export_log(repo: Repo) -> dict[str, int]:
    """Copy what was not copied yet to the destinations of the models' feature services.

    A file is marked after it was copied. If the process is killed in between, the next run copies
    that file again; ``__request_id`` identifies the repeated predictions.

    Args:
        repo: The repo, applied.

    Returns:
        Model → rows copied, for the models whose service has a logging config.

    Raises:
        DefinitionError: The offline store does not write to a destination.
        DamagedError: A file of the log cannot be read.
    """
    location = log_location(repo.state_dir)
    done: dict[str, int] = {}
    for name, model in sorted(repo.models.items()):
        service = repo.store.get_feature_service(model.features.name)
        # Feast does not register a config that is added to a service later.
        service.logging_config = model.features.logging_config or service.logging_config
        if service.logging_config is None:
            continue

        def copy(file: LogFile, service: Any = service) -> int:
            table = as_feast_logs(repo, service, *read_file(location, PREDICTIONS, file))
            if table.num_rows:
                repo.store.write_logged_features(table, service)
            return int(table.num_rows)

        with only_compactor(repo.state_dir, PREDICTIONS) as compactor:
            done[name] = compactor.export(name, copy)
    return done


def as_feast_logs(repo: Repo, service: Any, contract: ModelContract, rows: pa.Table) -> pa.Table:
    """Logged predictions in the layout of Feast's logs of a feature service.

    Args:
        repo: The repo, applied.
        service: Feast's feature service, with a logging config.
        contract: The contract of the rows.
        rows: The rows, by ``record.log_schema``.

    Returns:
        The sampled ones, by ``FeatureServiceLoggingSource.get_schema``; a column that the contract
        does not have is null.
    """
    import pyarrow as pa
    from feast.feature_logging import FeatureServiceLoggingSource

    schema = FeatureServiceLoggingSource(service, repo.project).get_schema(repo.store.registry)
    share = float(service.logging_config.sample_rate)
    if share < 1:
        keys = [rows[f"entity.{key.name}"].to_pylist() for key in contract.entity_keys]
        rows = rows.filter(pa.array(are_sampled(keys, share), pa.bool_()))
    columns = _columns(contract, rows)
    nulls = pa.nulls(rows.num_rows)
    return pa.table(
        [columns.get(field.name, nulls).cast(field.type) for field in schema], schema=schema
    )


def _columns(contract: ModelContract, rows: pa.Table) -> dict[str, Any]:
    """Feast's name of a column → its values."""
    import pyarrow as pa
    import pyarrow.compute as pc
    from feast.protos.feast.serving.ServingService_pb2 import FieldStatus

    number = FieldStatus.Value
    request_time = rows["request_time"]
    columns = {
        "__log_timestamp": request_time,
        "__log_date": request_time.cast(pa.timestamp("us")).cast(pa.date32()),
        "__request_id": rows["prediction_id"],
    }
    columns |= {key.name: rows[f"entity.{key.name}"] for key in contract.entity_keys}
    columns |= {field.name: rows[f"request.{field.name}"] for field in contract.request_fields}
    of_view = {f"{use.name}__{each}": use.name for use in contract.views for each in use.columns}
    for name in contract.value_columns:
        values = rows[f"feature.{name}"]
        present = pc.if_else(pc.is_valid(values), number(Status.PRESENT), number(Status.NULL_VALUE))
        times, status = request_time, present
        if view := of_view.get(name):
            times = rows[f"view.{view}.event_time"]
            logged = rows[f"view.{view}.status"]
            for each in (Status.NOT_FOUND, Status.OUTSIDE_MAX_AGE):
                status = pc.if_else(pc.equal(logged, each), number(each), status)
        columns |= {name: values, f"{name}__timestamp": times, f"{name}__status": status}
    return columns
