"""The route for labels: outcomes of answered requests, when they become known."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response

from tallystick.clock import process_clock, to_us
from tallystick.definitions.contract import ModelContract
from tallystick.prediction_log.sent_labels import LabelRow
from tallystick_serving.durability import append_durably
from tallystick_serving.error_responses import (
    ProblemList,
    RequestError,
    TooLargeError,
    shown,
)
from tallystick_serving.request_values import FieldReader, field_reader, moment, object_of
from tallystick_serving.server_state import state_of

router = APIRouter()

_BY_ID = frozenset({"prediction_id", "value"})
_BY_KEYS = frozenset({"keys", "request_time", "value"})
_OPTIONAL = frozenset({"known_time"})
_TIME = "an ISO 8601 time like 2013-07-01T12:00:00Z"


@router.post("/v1/models/{name}/labels")
async def take_labels(request: Request, name: str) -> Response:
    """Take labels: all of a request, or none."""
    state = state_of(request)
    contract = state.champions.predictor(name).contract
    body = object_of(await request.body())
    labels = body.get("labels")
    if not isinstance(labels, list) or len(body) != 1:
        raise RequestError('The body must be {"labels": [...]}.')
    if not labels:
        raise RequestError("There are no labels; send at least one.")
    rows_max = state.settings.request_rows_max
    if len(labels) > rows_max:
        raise TooLargeError(
            f"The request has {len(labels)} labels; at most {rows_max} are allowed."
        )
    rows = _LabelReader(contract, now_us=process_clock().now_us()).read(labels)
    await append_durably(
        lambda report: state.labels.append(contract, rows, on_written=report),
        log="The label log",
        timeout_s=state.settings.log_timeout_s,
    )
    return Response(
        orjson.dumps({"accepted": len(rows)}), status_code=202, media_type="application/json"
    )


class _LabelReader:
    """Converts the labels of a request, and collects all mismatches with the contract."""

    def __init__(self, contract: ModelContract, *, now_us: int) -> None:
        self._keys: dict[str, FieldReader] = {
            column.name: field_reader(column)
            for column in contract.label_key_columns(contract.label.keys)
        }
        self._now_us = now_us
        self._problems = ProblemList()

    def read(self, labels: list[Any]) -> list[LabelRow]:
        rows = [self._row(f"labels[{row}]", label) for row, label in enumerate(labels)]
        self._problems.raise_if_any("The labels cannot be used.")
        return [row for row in rows if row is not None]

    def _row(self, where: str, label: Any) -> LabelRow | None:
        names = label.keys() - _OPTIONAL if isinstance(label, dict) else frozenset()
        if names not in (_BY_ID, _BY_KEYS):
            self._problems.add(
                where,
                "prediction_id and value, or keys, request_time and value; and known_time if it "
                "is not now",
                shown(label),
            )
            return None
        value = label["value"]
        if type(value) is not int or value not in {0, 1}:
            self._problems.add(f"{where}.value", "0 or 1", shown(value))
        known_us = self._now_us
        if "known_time" in label:
            known_us = self._moment(f"{where}.known_time", label["known_time"])
        if names == _BY_ID:
            prediction_id = self._converted(
                f"{where}.prediction_id",
                label["prediction_id"],
                lambda given: str(UUID(given)),
                "the prediction_id of an answer",
            )
            return LabelRow(value=value, known_us=known_us, prediction_id=prediction_id)
        request_us = self._moment(f"{where}.request_time", label["request_time"])
        if known_us < request_us:
            self._problems.add(f"{where}.known_time", "a time after request_time", "one before it")
        return LabelRow(
            value=value,
            known_us=known_us,
            keys=self._read_keys(f"{where}.keys", label["keys"]),
            request_us=request_us,
        )

    def _read_keys(self, where: str, keys: Any) -> dict[str, Any]:
        if not isinstance(keys, dict) or keys.keys() != self._keys.keys():
            self._problems.add(where, f"an object of {', '.join(self._keys)}", shown(keys))
            return {}
        return {
            name: self._converted(f"{where}.{name}", keys[name], kind.read, kind.expected)
            for name, kind in self._keys.items()
        }

    def _moment(self, where: str, value: Any) -> int:
        read = self._converted(where, value, moment, _TIME)
        return 0 if read is None else to_us(read)

    def _converted(
        self, where: str, value: Any, convert: Callable[[Any], Any], expected: str
    ) -> Any:
        try:
            return convert(value)
        except (ValueError, AttributeError, TypeError):
            self._problems.add(where, expected, shown(value))
            return None
