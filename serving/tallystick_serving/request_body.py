"""Decodes the bodies of requests; admission control has read them and bounds their size."""

from __future__ import annotations

from typing import Any

import orjson

from tallystick_serving.error_responses import NotJSONError, shown


def object_of(body: bytes) -> dict[str, Any]:
    """Decode a JSON object.

    Raises:
        NotJSONError: The body is not a JSON object.
    """
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise NotJSONError(f"The body is not JSON: {error}.") from error
    if not isinstance(content, dict):
        raise NotJSONError(f"The body must be a JSON object, not {shown(content)}.")
    return content
