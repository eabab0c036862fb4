"""The routes of Feast's own server, so that its ``remote`` online store works against this one."""

from __future__ import annotations

from typing import TypeVar

import orjson
from fastapi import APIRouter, Request
from pydantic import BaseModel, ValidationError
from starlette.responses import Response

from tallystick_serving.body import read_object
from tallystick_serving.feast_store import OnlineFeaturesRequest, PushRequest, WriteRequest
from tallystick_serving.problems import ProblemList, TooLargeError, shown
from tallystick_serving.service import service_of

router = APIRouter()
Body = TypeVar("Body", bound=BaseModel)


@router.post("/get-online-features")
async def get_online_features(request: Request) -> Response:
    """Features from the online store, as Feast answers."""
    service = service_of(request)
    body = await _read(request, OnlineFeaturesRequest)
    _check_rows(body.entities, service.settings.request_rows_max)
    answer = await service.feast.online_features(body)
    return Response(orjson.dumps(answer), media_type="application/json")


@router.post("/push")
async def push(request: Request) -> Response:
    """Push rows to the stores."""
    body = await _read(request, PushRequest)
    _check_columns(body.df)
    await service_of(request).feast.push(body)
    return Response()


@router.post("/write-to-online-store")
async def write_to_online_store(request: Request) -> Response:
    """Write rows of a view to the online store."""
    body = await _read(request, WriteRequest)
    _check_columns(body.df)
    await service_of(request).feast.write(body)
    return Response(b"null", media_type="application/json")


async def _read(request: Request, model: type[Body]) -> Body:
    service = service_of(request)
    content = await read_object(request, bytes_max=service.settings.request_bytes_max)
    try:
        return model.model_validate(content)
    except ValidationError as error:
        problems = ProblemList()
        for item in error.errors():
            where = ".".join(map(str, item["loc"]))
            problems.add(where, item["msg"], shown(item["input"]))
        problems.raise_if_any("The body does not have the outline that Feast's server takes.")
        raise


def _check_rows(columns: dict[str, list[object]], rows_max: int) -> None:
    _check_columns(columns)
    rows = len(next(iter(columns.values())))
    if rows > rows_max:
        raise TooLargeError(f"The request has {rows} rows; at most {rows_max} are allowed.")


def _check_columns(columns: dict[str, list[object]]) -> None:
    """Refuse columns of different lengths, or none."""
    problems = ProblemList()
    lengths = {name: len(values) for name, values in columns.items()}
    if not lengths or not max(lengths.values()):
        problems.add("columns", "at least one row", "none")
    elif len(set(lengths.values())) > 1:
        problems.add("columns", "columns of one length", shown(lengths))
    problems.raise_if_any("The body has no usable rows.")
