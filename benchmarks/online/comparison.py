"""Whether two servers give the same answer: names, values and statuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any, Final

import orjson
from benchmarks.online.client import ask
from benchmarks.online.engines import (
    FEAST,
    FEAST_PRECOMPUTED,
    SIZES,
    TALLYSTICK_FEATURES,
    Engine,
)

COMPARED: Final = 5
"""Requests of each size."""
SHOWN: Final = 5


def compare(ports: Mapping[str, int], *, entities: int) -> dict[str, bool]:
    """Compare Feast's precomputed answers and ours with Feast's plain ones; tell what differs.

    Returns:
        Engine → whether all its answers were equal.
    """
    equal = {}
    for engine in (FEAST_PRECOMPUTED, TALLYSTICK_FEATURES):
        differences: list[str] = []
        for size in SIZES:
            pairs = zip(
                FEAST.requests(size, entities=entities)[:COMPARED],
                engine.requests(size, entities=entities)[:COMPARED],
                strict=True,
            )
            for expected_request, request in pairs:
                expected = _answer(FEAST, ports, expected_request)
                got = _answer(engine, ports, request)
                differences += [f"{size} entities, {text}" for text in _differences(expected, got)]
        equal[engine.name] = not differences
        for text in differences[:SHOWN]:
            print(f"NOT EQUAL  {engine.name}: {text}", file=sys.stderr)
    return equal


def _answer(engine: Engine, ports: Mapping[str, int], request: bytes) -> dict[str, Any]:
    """Short name → values and statuses."""
    status, body = ask(ports[engine.server], request)
    if status != 200:
        return {"status": (status, body[:300])}
    answer = orjson.loads(body)
    return {
        name.rpartition("__")[2]: (result["values"], result["statuses"])
        for name, result in zip(answer["metadata"]["feature_names"], answer["results"], strict=True)
    }


def _differences(expected: Mapping[str, Any], got: Mapping[str, Any]) -> list[str]:
    names = [
        f"{name}: only in {'Feast' if name in expected else 'this'}"
        for name in sorted(expected.keys() ^ got.keys())
    ]
    values = [
        f"{name}: {_shown(got[name])} rather than {_shown(expected[name])}"
        for name in sorted(expected.keys() & got.keys())
        if got[name] != expected[name]
    ]
    return names + values


def _shown(value: Any) -> str:
    return repr(value)[:120]
