"""The routes for predictions, in the form of KServe's V1 protocol, and for a model's features."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, Final

import orjson

from tallystick.clock import from_us, process_clock
from tallystick.definitions.columns import plain
from tallystick.online_store.view_decoder import ViewRows
from tallystick.prediction_log.record import Predictions
from tallystick_serving.durability import append_durably
from tallystick_serving.error_responses import ProblemList, RequestError, TooLargeError, shown
from tallystick_serving.json_columns import json_column
from tallystick_serving.predictor import Predictor
from tallystick_serving.request_values import object_of
from tallystick_serving.server_state import ServerState

_PARAMETERS: Final = frozenset({"features", "durable"})


async def predict(state: ServerState, name: str, body: bytes) -> bytes:
    """Predict each instance, and log features and prediction."""
    started_ns = time.perf_counter_ns()
    predictor = state.champions.predictor(name)
    settings = state.settings
    instances, parameters = _read_body(object_of(body), rows_max=settings.request_rows_max)
    columns = predictor.instances.columns(instances)
    record = await predictor.predict(
        columns, request_us=process_clock().now_us(), started_ns=started_ns
    )
    if parameters.get("durable", settings.log_durable):
        await append_durably(
            lambda report: state.predictions.append(predictor.contract, record, on_written=report),
            log="The prediction log",
            timeout_s=settings.log_timeout_s,
        )
    else:
        state.predictions.append(predictor.contract, record)
    state.metrics.count_predictions(
        predictor.champion,
        len(instances),
        {view: read.status for view, read in record.views.items()},
    )
    explained = parameters.get("features", False)
    return orjson.dumps(_answer_body(predictor, record, explained=explained))


async def read_features(state: ServerState, name: str, body: bytes) -> bytes:
    """Answer with the features that the model sees for each instance, column by column."""
    predictor = state.champions.predictor(name)
    content = object_of(body)
    instances, parameters = _read_body(content, rows_max=state.settings.request_rows_max)
    if any(parameters.values()):
        raise RequestError("This route has no parameters: it always answers with features.")
    columns = predictor.instances.columns(instances)
    request_us = process_clock().now_us()
    views, values = await predictor.features(columns, request_us=request_us)
    return orjson.dumps(
        {
            "model_name": predictor.contract.model,
            "model_version": predictor.champion.version,
            "contract_hash": predictor.contract.contract_hash,
            "request_time": from_us(request_us),
            "features": {
                feature: json_column(dtype)(values[feature])
                for feature, dtype in predictor.contract.value_columns.items()
            },
            "views": {view: _view_columns(rows) for view, rows in views.items()},
        },
        option=orjson.OPT_SERIALIZE_NUMPY | orjson.OPT_NAIVE_UTC,
    )


def _view_columns(rows: ViewRows) -> Mapping[str, Any]:
    return {
        "status": rows.status,
        "event_time": _times(rows.event_us),
        "created_time": _times(rows.created_us),
        "write_time": _times(rows.write_us),
        "definition": rows.definition,
    }


def _times(times_us: Any) -> Any:
    if not isinstance(times_us, list):
        return times_us.view("M8[us]")
    return [None if time_us is None else from_us(time_us) for time_us in times_us]


def _read_body(body: dict[str, Any], *, rows_max: int) -> tuple[list[Any], dict[str, bool]]:
    """The instances and the parameters of a body."""
    problems = ProblemList()
    for name in body.keys() - {"instances", "parameters"}:
        problems.add(name[:80], "only instances and parameters", shown(body[name]))
    instances = body.get("instances")
    if not isinstance(instances, list):
        problems.add("instances", "a list of objects", shown(instances))
    parameters = body.get("parameters", {})
    if not isinstance(parameters, dict) or parameters.keys() - _PARAMETERS:
        expected = "an object of features and durable, each true or false"
        problems.add("parameters", expected, shown(parameters))
    else:
        for name, value in parameters.items():
            if not isinstance(value, bool):
                problems.add(f"parameters.{name}", "true or false", shown(value))
    problems.raise_if_any("The body does not have the form of a prediction request.")
    assert isinstance(instances, list)
    if not instances:
        raise RequestError("There are no instances; send at least one.")
    if len(instances) > rows_max:
        raise TooLargeError(
            f"The request has {len(instances)} instances; at most {rows_max} are allowed."
        )
    return instances, parameters


def _answer_body(predictor: Predictor, record: Predictions, *, explained: bool) -> dict[str, Any]:
    threshold = predictor.contract.threshold
    predictions: list[dict[str, Any]] = [
        {
            "prediction_id": prediction_id,
            "probability": probability,
            "positive": probability >= threshold,
        }
        for prediction_id, probability in zip(record.prediction_id, record.prediction, strict=True)
    ]
    if explained:
        features = {
            name: plain(json_column(dtype)(record.values[name]))
            for name, dtype in predictor.contract.value_columns.items()
        }
        views = {
            view: (read, [*map(plain, (read.event_us, read.created_us, read.write_us))])
            for view, read in record.views.items()
        }
        for row, prediction in enumerate(predictions):
            prediction["features"] = {name: values[row] for name, values in features.items()}
            prediction["views"] = {
                view: {
                    "status": read.status[row],
                    "event_time": _time(event_us[row]),
                    "created_time": _time(created_us[row]),
                    "write_time": _time(write_us[row]),
                    "definition": read.definition[row],
                }
                for view, (read, (event_us, created_us, write_us)) in views.items()
            }
    return {
        "model_name": predictor.contract.model,
        "model_version": record.model_version,
        "contract_hash": predictor.contract.contract_hash,
        "request_time": from_us(record.request_us),
        "predictions": predictions,
    }


def _time(microseconds: int | None) -> str | None:
    return None if microseconds is None else from_us(microseconds).isoformat()
