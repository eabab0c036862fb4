"""The limits of the machine: an empty FastAPI route, and one that does a bare MGET.

    python -m benchmarks.online.bare PORT REDIS_PORT

They run on uvicorn with the options of ``tally serve``.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson
import uvicorn
from benchmarks.online.serving_repo import BARE_ROW, bare_key
from benchmarks.wide_views import KEY, VIEWS
from fastapi import FastAPI, Request, Response
from redis.asyncio import Redis


def create_app(redis_port: int) -> FastAPI:
    """Both routes, and one to ask whether the server is there."""
    client: Any = Redis(host="127.0.0.1", port=redis_port)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await client.aclose()

    app = FastAPI(lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)

    @app.get("/ready")
    async def ready() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/noop")
    async def noop() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/mget")
    async def mget(request: Request) -> Response:
        entities = orjson.loads(await request.body())["entities"][KEY]
        keys = [bare_key(view, entity) for entity in entities for view in range(VIEWS)]
        found = await client.mget(keys)
        unpacked = [BARE_ROW.unpack(row) for row in found]
        rows = [
            [value for part in unpacked[start : start + VIEWS] for value in part]
            for start in range(0, len(unpacked), VIEWS)
        ]
        return Response(orjson.dumps({"rows": rows}), media_type="application/json")

    return app


def main() -> None:
    """Serve until SIGTERM."""
    port, redis_port = map(int, sys.argv[1:])
    uvicorn.run(
        create_app(redis_port),
        host="127.0.0.1",
        port=port,
        access_log=False,
        log_config=None,
        server_header=False,
        lifespan="on",
    )


if __name__ == "__main__":
    main()
