"""The servers' ways of answering: the routes, the bodies, and how each answer is checked."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import orjson
from benchmarks.online.load_client import Check
from benchmarks.online.serving_repo import MODEL, REQUEST_FIELD, SERVICE
from benchmarks.wide_views import FEATURES, KEY

SIZES: Final = (1, 10, 100)
"""Entities in a request."""
DIFFERENT: Final = 500
"""Requests of each kind; they are sent in turn."""
SEED: Final = 7


@dataclass(frozen=True, slots=True)
class Engine:
    """One way of answering.

    Attributes:
        name: Its key in the report.
        server: The process that answers.
        path: Its route.
        body: Entities → what is sent.
        mark: A text that the answer has a known number of times, so that every answer is checked
            without being decoded.
        marks: How often at least.
        marks_per_row: How often more for each entity.
        ours: Whether it is Tallystick; then it gets the full number of requests.
    """

    name: str
    server: str
    path: str
    body: Callable[[Sequence[int]], Any]
    mark: bytes
    marks: int = 0
    marks_per_row: int = 0
    ours: bool = False

    def check(self, size: int) -> Check:
        """What an answer for ``size`` entities must have."""
        return Check(self.mark, self.marks + self.marks_per_row * size)

    def request(self, entities: Sequence[int]) -> bytes:
        """The bytes of one request."""
        body = orjson.dumps(self.body(entities))
        head = (
            f"POST {self.path} HTTP/1.1\r\nHost: 127.0.0.1\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        return head.encode() + body

    def requests(self, size: int, *, entities: int) -> list[bytes]:
        """Many requests for ``size`` random entities each; the same for every engine."""
        return [self.request(sample) for sample in samples(size, entities, DIFFERENT)]


def samples(size: int, entities: int, count: int) -> list[list[int]]:
    """Random entities of so many requests; always the same."""
    chance = random.Random(SEED * 1_000 + size)
    return [chance.sample(range(entities), size) for _ in range(count)]


def _features(entities: Sequence[int]) -> Any:
    return {"feature_service": SERVICE, "entities": {KEY: list(entities)}}


def _features_by_full_names(entities: Sequence[int]) -> Any:
    """Feast finds what it has precomputed by full names only."""
    return {**_features(entities), "full_feature_names": True}


def _instances(entities: Sequence[int]) -> Any:
    return {
        "instances": [{KEY: entity, REQUEST_FIELD: 5.0 + entity % 1_000 / 8} for entity in entities]
    }


_FEATURES_PATH: Final = "/get-online-features"


def _features_engine(
    name: str, server: str, body: Callable[[Sequence[int]], Any] = _features, *, ours: bool = False
) -> Engine:
    # An answer in Feast's form has a status for each value, and for the key: all must be there.
    return Engine(
        name,
        server,
        _FEATURES_PATH,
        body,
        mark=b'"PRESENT"',
        marks_per_row=FEATURES + 1,
        ours=ours,
    )


FEAST: Final = _features_engine("feast", "feast")
FEAST_PRECOMPUTED: Final = _features_engine(
    "feast_precomputed", "feast_precomputed", _features_by_full_names
)
NOOP: Final = Engine("noop", "bare", "/noop", _features, mark=b'{"status":"ok"}', marks=1)
MGET: Final = Engine("mget", "bare", "/mget", _features, mark=b"[", marks=1, marks_per_row=1)
TALLYSTICK_FEATURES: Final = _features_engine("tallystick_features", "tally", ours=True)
TALLYSTICK_PREDICT: Final = Engine(
    "tallystick_predict",
    "tally",
    f"/v1/models/{MODEL}:predict",
    _instances,
    mark=b'"prediction_id"',
    marks_per_row=1,
    ours=True,
)
ENGINES: Final = (FEAST, FEAST_PRECOMPUTED, NOOP, MGET, TALLYSTICK_FEATURES, TALLYSTICK_PREDICT)
