"""The routes of Feast's own server, so that its ``remote`` online store works with this server."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from tallystick.clock import process_clock
from tallystick.errors import InputError
from tallystick_serving.error_responses import ProblemList, TooLargeError, shown
from tallystick_serving.feast_server import OnlineFeaturesRequest, PushRequest, WriteRequest
from tallystick_serving.online_features import FeaturePlan
from tallystick_serving.request_values import object_of
from tallystick_serving.server_state import ServerState, state_of

router = APIRouter()
Body = TypeVar("Body", bound=BaseModel)


async def get_online_features(state: ServerState, name: str, body: bytes) -> bytes:
    """Answer with features from the online store, in Feast's form."""
    del name
    content = object_of(body)
    plan = state.feast.plans.find(content)
    if plan is not None:
        answer = await _planned(state, plan, content.get("entities"))
        if answer is not None:
            return answer
    request = _validated(OnlineFeaturesRequest, content)
    _check_rows(request.entities, state.settings.request_rows_max)
    return orjson.dumps(await state.feast.online_features(request))


async def _planned(state: ServerState, plan: FeaturePlan, entities: Any) -> bytes | None:
    """The answer by a plan; None if Feast has to answer or refuse."""
    if not isinstance(entities, dict) or entities.keys() != plan.keys:
        return None
    lengths = {len(values) if isinstance(values, list) else 0 for values in entities.values()}
    if len(lengths) != 1 or not 0 < min(lengths) <= state.settings.request_rows_max:
        return None
    try:
        return await plan.answer(entities, request_us=process_clock().now_us())
    except InputError:
        return None  # a key of another type, which Feast may accept


@router.post("/push")
async def push(request: Request) -> Response:
    """Push rows to the stores."""
    body = await _read(request, PushRequest)
    _check_columns(body.df)
    await state_of(request).feast.push(body)
    return Response()


@router.post("/write-to-online-store")
async def write_to_online_store(request: Request) -> Response:
    """Write rows of a view to the online store."""
    body = await _read(request, WriteRequest)
    _check_columns(body.df)
    await state_of(request).feast.write(body)
    return Response(b"null", media_type="application/json")


async def _read(request: Request, model: type[Body]) -> Body:
    return _validated(model, object_of(await request.body()))


def _validated(model: type[Body], content: dict[str, Any]) -> Body:
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = ProblemList()
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            problems.add(where, item["msg"], shown(item["input"]))
        problems.raise_if_any("The body does not have the form that Feast's server requires.")
        raise


def _check_rows(columns: dict[str, list[object]], rows_max: int) -> None:
    _check_columns(columns)
    rows = len(next(iter(columns.values())))
    if rows > rows_max:
        raise TooLargeError(f"The request has {rows} rows; at most {rows_max} are allowed.")


def _check_columns(columns: dict[str, list[object]]) -> None:
    """Refuse columns of different lengths, and a request without rows."""
    problems = ProblemList()
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or not max(lengths.values()):
        problems.add("columns", "at least one row", "none")
    elif len(set(lengths.values())) > 1:
        problems.add("columns", "columns of one length", shown(lengths))
    problems.raise_if_any("The body has no usable rows.")
