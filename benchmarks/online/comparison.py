"""Whether two servers give the same answer: names, values and statuses."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final

import httpx
from benchmarks.online.answering_engines import (
    FEAST,
    FEAST_PRECOMPUTED,
    SIZES,
    TALLYSTICK_FEATURES,
    Engine,
    samples,
)

COMPARED: Final = 5
"""Requests of each size."""
SHOWN: Final = 5
TIMEOUT_S: Final = 60.0


def compare(ports: Mapping[str, int], *, entities: int) -> dict[str, bool]:
    """Compare Feast's precomputed answers and ours with Feast's plain ones; print what differs.

    Returns:
        Engine → whether all its answers were equal.
    """
    equal = {}
    for engine in (FEAST_PRECOMPUTED, TALLYSTICK_FEATURES):
        differences = [
            f"{size} entities, {text}"
            for size in SIZES
            for sample in samples(size, entities, COMPARED)
            for text in _differences(_answer(FEAST, ports, sample), _answer(engine, ports, sample))
        ]
        equal[engine.name] = not differences
        for text in differences[:SHOWN]:
            print(f"NOT EQUAL  {engine.name}: {text}", file=sys.stderr)
    return equal


def _answer(engine: Engine, ports: Mapping[str, int], sample: Sequence[int]) -> dict[str, Any]:
    """Short name → values and statuses."""
    url = f"http://127.0.0.1:{ports[engine.server]}{engine.path}"
    response = httpx.post(url, json=engine.body(sample), timeout=TIMEOUT_S)
    if response.status_code != 200:
        return {"status": (response.status_code, response.text[:300])}
    answer = response.json()
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
