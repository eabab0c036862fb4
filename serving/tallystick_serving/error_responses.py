"""Errors as answers: RFC 9457 problem details, in one place.

The ``type`` of a problem is ``urn:tallystick:problem:<slug>``; docs/http-api.md lists the slugs.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, ClassVar, Final

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

MEDIA_TYPE: Final = "application/problem+json"
LISTED_MAX: Final = 50
"""Mismatches that an answer lists; further ones are counted."""
RETRY_AFTER_S: Final = 1


class RequestError(InputError):
    """A request that is refused; each kind has its status and its type."""

    status: ClassVar[int] = 422
    slug: ClassVar[str] = "invalid-request"
    title: ClassVar[str] = "The request cannot be used"


class NoJSONError(RequestError):
    """The body is not JSON, or not of the expected outline."""

    status = 400
    slug = "no-json"
    title = "The body cannot be read"


class TooLargeError(RequestError):
    """The body or the batch is larger than the settings allow."""

    status = 413
    slug = "too-large"
    title = "The request is too large"


class TooSlowError(RequestError):
    """The body did not arrive in time."""

    status = 408
    slug = "too-slow"
    title = "The request took too long to arrive"


class MethodError(RequestError):
    """The route takes another method.

    Args:
        method: The one that was used.
        path: The route.
    """

    status = 405
    slug = "method-not-allowed"
    title = "Method Not Allowed"

    def __init__(self, method: str, path: str) -> None:
        super().__init__(f"{method} {path}: this route takes POST. See docs/http-api.md.")


class UnknownModelError(RequestError):
    """There is no such model."""

    status = 404
    slug = "unknown-model"
    title = "There is no such model"


class NotFoundError(RequestError):
    """Something that the request names is not in the Feast registry."""

    status = 404
    slug = "not-found"
    title = "The request names something that does not exist"


class NotReadyError(StateError):
    """The model exists, but no version of it can answer now."""


class BusyError(UnavailableError):
    """A buffer is full; the caller may come back."""


class NotLoggedError(UnavailableError):
    """What the caller wants to be logged for certain is not on disk; it may be later."""


class PredictionError(ProblemsError):
    """The model failed, or gave something that is no probability."""


class ProblemList:
    """Collects mismatches; keeps the first ``LISTED_MAX`` and counts the others."""

    def __init__(self) -> None:
        self.listed: list[Problem] = []
        self.count = 0

    def add(self, where: str, expected: str, got: str) -> None:
        """Add a mismatch."""
        self.count += 1
        if len(self.listed) < LISTED_MAX:
            self.listed.append(Problem(where, expected, got))

    def raise_if_any(self, what: str) -> None:
        """Refuse the request if anything was wrong with it.

        Raises:
            RequestError: Something was.
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


def problem_response(
    *,
    status: int,
    slug: str,
    title: str,
    detail: str,
    errors: Iterable[Problem] = (),
    retry: bool = False,
) -> Response:
    """An answer of ``application/problem+json``."""
    body: dict[str, Any] = {
        "type": f"urn:tallystick:problem:{slug}",
        "title": title,
        "status": status,
        "detail": detail,
    }
    if listed := [
        {"where": item.where, "expected": item.expected, "got": item.got} for item in errors
    ]:
        body["errors"] = listed
    headers = {"Retry-After": str(RETRY_AFTER_S)} if retry else None
    return Response(orjson.dumps(body), status_code=status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Have every error of ``app`` answered as a problem."""
    app.add_exception_handler(TallystickError, _answer_tallystick)
    app.add_exception_handler(HTTPException, _answer_http)
    app.add_exception_handler(Exception, _answer_any)


def response_of(error: TallystickError) -> Response:
    """The answer to one of Tallystick's errors."""
    errors: tuple[Problem, ...] = ()
    detail = str(error)
    if isinstance(error, ProblemsError):
        errors = error.problems
        detail = " ".join(filter(None, [error.what, error.hint]))
    if isinstance(error, RequestError):
        response = problem_response(
            status=error.status, slug=error.slug, title=error.title, detail=detail, errors=errors
        )
        if isinstance(error, MethodError):
            response.headers["Allow"] = "POST"
        return response
    if isinstance(error, UnavailableError):
        busy = isinstance(error, BusyError)
        return problem_response(
            status=503,
            slug="busy" if busy else "unavailable",
            title="Too much at once" if busy else "A service that is needed did not answer",
            detail=detail,
            retry=True,
        )
    if isinstance(error, NotReadyError):
        return problem_response(
            status=503,
            slug="not-ready",
            title="The model cannot answer yet",
            detail=detail,
            errors=errors,
            retry=True,
        )
    if isinstance(error, InputError):
        return problem_response(
            status=422,
            slug=RequestError.slug,
            title=RequestError.title,
            detail=detail,
            errors=errors,
        )
    logger.error("A request failed: %s", error, exc_info=error)
    return problem_response(
        status=500,
        slug="prediction-failed" if isinstance(error, PredictionError) else "internal",
        title="The server could not answer",
        detail=detail,
        errors=errors,
    )


async def _answer_tallystick(request: Request, error: Exception) -> Response:
    del request
    assert isinstance(error, TallystickError)
    return response_of(error)


async def _answer_http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    status = HTTPStatus(error.status_code)
    response = problem_response(
        status=status,
        slug=status.phrase.lower().replace(" ", "-"),
        title=status.phrase,
        detail=f"{request.method} {request.url.path}: {error.detail}. See docs/http-api.md.",
    )
    response.headers.update(error.headers or {})
    return response


async def _answer_any(request: Request, error: Exception) -> Response:
    # The server logs the error with its trace.
    del request, error
    return unforeseen()


def unforeseen() -> Response:
    """The answer to an error whose text may hold what is no business of the caller."""
    return problem_response(
        status=500,
        slug="internal",
        title="The server could not answer",
        detail="An error that was not foreseen; the server's log has it.",
    )
