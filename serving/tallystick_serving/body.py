"""Bodies of requests: read no further than allowed, and decoded once."""

from __future__ import annotations

from typing import Any

import orjson
from fastapi import Request

from tallystick_serving.problems import NoJSONError, TooLargeError, shown


async def read_object(request: Request, *, bytes_max: int) -> dict[str, Any]:
    """Read a JSON object.

    Args:
        request: The request; its body is not read past ``bytes_max``, declared or not.
        bytes_max: Largest body, in bytes.

    Raises:
        TooLargeError: The body is larger.
        NoJSONError: It is not a JSON object.
    """
    raw = await _read(request, bytes_max)
    try:
        content = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise NoJSONError(f"The body is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise NoJSONError(f"The body must be a JSON object, not {shown(content)}.")
    return content


async def _read(request: Request, bytes_max: int) -> bytes:
    declared = request.headers.get("content-length", "")
    if declared.isdigit() and int(declared) > bytes_max:
        raise TooLargeError(f"The body has {declared} bytes; at most {bytes_max} are allowed.")
    chunks = []
    total = 0
    async for chunk in request.stream():
        total += len(chunk)
        if total > bytes_max:
            raise TooLargeError(f"The body has more than the {bytes_max} bytes allowed.")
        chunks.append(chunk)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)
