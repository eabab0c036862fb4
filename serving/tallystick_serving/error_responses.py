"""Errors as HTTP answers: the errors that only serving has, and one table from error to answer.

An answer is a problem by RFC 9457 with the type ``urn:tallystick:problem:<slug>``;
docs/http-api.md lists the slugs.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from http import HTTPStatus
from typing import Any, Final, NamedTuple

import orjson
from fastapi import FastAPI, Request
from starlette.exceptions import HTTPException
from starlette.responses import Response

from tallystick.errors import (
    InputError,
    Problem,
    ProblemsError,
    StateError,
    TallystickError,
    UnavailableError,
)

logger = logging.getLogger(__name__)

LISTED_MAX: Final = 50
"""Mismatches that an answer lists; it counts the others."""


class RequestError(InputError):
    """The request does not have the form that the route or the model's contract requires."""


class NotJSONError(RequestError):
    """The body is not a JSON object."""


class TooLargeError(RequestError):
    """The body or the batch is larger than the settings allow."""


class TooSlowError(RequestError):
    """The body did not arrive in time."""


class MethodError(RequestError):
    """The route takes POST only."""


class UnknownModelError(RequestError):
    """The repo has no such model."""


class NotFoundError(RequestError):
    """Something that the request names is not in the Feast registry."""


class NotReadyError(StateError):
    """The model exists, but no version of it can answer now."""


class BusyError(UnavailableError):
    """A limit is reached; the caller may try again."""


class NotLoggedError(UnavailableError):
    """A log did not acknowledge rows in time; it may still write them."""


class PredictionError(ProblemsError):
    """The model failed, or its prediction is not a probability."""


class ProblemType(NamedTuple):
    """How an error is answered."""

    status: int
    slug: str
    title: str
    headers: Mapping[str, str] | None = None


_RETRY: Final = {"Retry-After": "1"}
PROBLEM_TYPES: Final[dict[type[Exception], ProblemType]] = {
    NotJSONError: ProblemType(400, "no-json", "The body cannot be read"),
    UnknownModelError: ProblemType(404, "unknown-model", "There is no such model"),
    NotFoundError: ProblemType(404, "not-found", "The request names something that does not exist"),
    MethodError: ProblemType(405, "method-not-allowed", "Method Not Allowed", {"Allow": "POST"}),
    TooSlowError: ProblemType(408, "too-slow", "The request took too long to arrive"),
    TooLargeError: ProblemType(413, "too-large", "The request is too large"),
    InputError: ProblemType(422, "invalid-request", "The request cannot be used"),
    PredictionError: ProblemType(500, "prediction-failed", "The server could not answer"),
    Exception: ProblemType(500, "internal", "The server could not answer"),
    BusyError: ProblemType(503, "busy", "Too many requests at once", _RETRY),
    NotReadyError: ProblemType(503, "not-ready", "Not ready to answer", _RETRY),
    UnavailableError: ProblemType(503, "unavailable", "A required service did not answer", _RETRY),
}
"""How each error is answered; an error that is not listed is answered as its base class is."""


class ProblemList:
    """Collects mismatches: the first ``LISTED_MAX`` are listed, the others counted."""

    def __init__(self) -> None:
        self.listed: list[Problem] = []
        self.count = 0

    def add(self, where: str, expected: str, got: str) -> None:
        """Add a mismatch."""
        self.count += 1
        if len(self.listed) < LISTED_MAX:
            self.listed.append(Problem(where, expected, got))

    def raise_if_any(self, what: str) -> None:
        """Refuse the request if there is a mismatch.

        Raises:
            RequestError: There is.
        """
        if not self.count:
            return
        more = self.count - len(self.listed)
        raise RequestError(f"{what} {more} more are not listed." if more else what, self.listed)


def shown(value: Any) -> str:
    """A value of a request as an error shows it: as JSON, cut to a sensible length."""
    try:
        text = orjson.dumps(value).decode()
    except (TypeError, orjson.JSONEncodeError):
        text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"  # noqa: PLR2004 one line


def problem_response(kind: ProblemType, detail: str, **members: Any) -> Response:
    """An answer of ``application/problem+json``, with further members."""
    body = {
        "type": f"urn:tallystick:problem:{kind.slug}",
        "title": kind.title,
        "status": kind.status,
        "detail": detail,
        **members,
    }
    return Response(
        orjson.dumps(body),
        status_code=kind.status,
        headers=kind.headers,
        media_type="application/problem+json",
    )


def response_of(error: Exception) -> Response:
    """The answer to an error: the one boundary at which errors become answers."""
    if isinstance(error, HTTPException):  # of the framework: no such route, or another method
        phrase = HTTPStatus(error.status_code).phrase
        slug = phrase.lower().replace(" ", "-")
        kind = ProblemType(error.status_code, slug, phrase, error.headers)
        return problem_response(kind, f"{error.detail}. See docs/http-api.md.")
    kind = next(PROBLEM_TYPES[base] for base in type(error).__mro__ if base in PROBLEM_TYPES)
    if kind.status == HTTPStatus.INTERNAL_SERVER_ERROR:
        logger.error("A request failed: %s", error, exc_info=error)
    if not isinstance(error, TallystickError):  # its text may hold what callers must not see
        return problem_response(kind, "Unexpected error; see the server's log.")
    if not isinstance(error, ProblemsError):
        return problem_response(kind, str(error))
    problems = [
        {"where": item.where, "expected": item.expected, "got": item.got} for item in error.problems
    ]
    detail = " ".join(filter(None, [error.what, error.hint]))
    return problem_response(kind, detail, **({"errors": problems} if problems else {}))


def install(app: FastAPI) -> None:
    """Have ``app`` answer every error as a problem."""

    async def answer(_: Request, error: Exception) -> Response:
        return response_of(error)

    for kind in (TallystickError, HTTPException, Exception):
        app.add_exception_handler(kind, answer)
