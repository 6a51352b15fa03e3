"""Failures as answers: the one table from error class to status, and the one failure shape.

``render`` makes the bytes, ``exception_handlers`` hooks it into the application, and
``error_responses`` says the same in OpenAPI. Nothing here repeats what the caller sent, and
nothing that was not raised on purpose explains itself.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal

from fastapi.exceptions import RequestValidationError
from fastapi.routing import iter_route_contexts
from pydantic import BaseModel, Field
from pydantic_core import from_json, to_json
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from authsvc import errors
from authsvc.api.envelope import timestamp
from authsvc.api.field_problems import input_error
from authsvc.clock import Clock

STATUS: dict[type[errors.AuthsvcError], int] = {
    errors.InputError: 422,
    errors.BadRequest: 400,
    errors.Unauthorized: 401,
    errors.TokenRefused: 400,
    errors.Forbidden: 403,
    errors.NotFound: 404,
    errors.Conflict: 409,
    errors.Unavailable: 503,
}
"""Class to status; a subclass without a row of its own has its parent's."""

_WORDS = {
    400: "bad_request",
    401: "unauthorized",
    403: "insufficient_scope",
    404: "not_found",
    405: "method_not_allowed",
    409: "conflict",
    413: "body_too_large",
    415: "unsupported_media_type",
    422: "invalid_input",
    429: "rate_limited",
    500: "internal_error",
    503: "storage_unavailable",
}
_SENTENCES = {
    404: "There is nothing at this path",
    405: "This path does not answer that method; see the Allow header",
    500: "Something went wrong on our side; the request id finds it in the log",
}
_REALM = 'Bearer realm="authsvc"'

Headers = list[tuple[bytes, bytes]]
Handler = Callable[[Request, Any], Coroutine[Any, Any, Response]]


def body_too_large(limit: int) -> HTTPException:
    """413: the request's body has more than ``limit`` bytes."""
    return HTTPException(413, f"The body may have at most {limit} bytes")


def unsupported_media_type() -> HTTPException:
    """415: a body that does not call itself JSON."""
    return HTTPException(415, "Send the body as 'Content-Type: application/json'")


def status_of(error: Exception) -> int:
    """The status an exception is answered with; 500 for everything not raised on purpose."""
    if isinstance(error, HTTPException):
        return error.status_code
    for kind in type(error).__mro__:
        if (status := STATUS.get(kind)) is not None:
            return status
    return 500


def render(error: Exception, request_id: str, now: datetime) -> tuple[int, Headers, bytes]:
    """Status, headers and body of the answer to a request that ended in ``error``."""
    if isinstance(error, RequestValidationError):
        error = input_error(error.errors(), error.body, placed=True)
    status = status_of(error)
    headers: Headers = [(b"content-type", b"application/json")]
    details: list[dict[str, str]] = []
    if status == 500:
        word, sentence = _WORDS[500], _SENTENCES[500]
    elif isinstance(error, HTTPException):
        word = _WORDS.get(status, "bad_request" if status < 500 else "internal_error")
        sentence = _SENTENCES.get(status) or str(error.detail)
        headers += [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in (error.headers or {}).items()
        ]
    elif isinstance(error, errors.AuthsvcError):
        word, sentence = error.code, error.message
        details = _details(error)
        headers += _headers(error)
    told: dict[str, Any] = {
        "success": False,
        "code": status,
        "error": word,
        "message": sentence,
        "details": details,
        "request_id": request_id,
        "timestamp": timestamp(now),
    }
    if isinstance(error, errors.UserNotKeyBacked):
        told |= {"result": False, "reason": error.code}
    body = to_json(told)
    headers.append((b"content-length", b"%d" % len(body)))
    return status, headers, body


def _details(error: errors.AuthsvcError) -> list[dict[str, str]]:
    if isinstance(error, errors.InputError):
        return [{"field": one.field, "message": one.message} for one in error.details]
    field = getattr(error, "field", None)
    return [{"field": field, "message": error.message}] if field else []


def _headers(error: errors.AuthsvcError) -> Headers:
    made: Headers = []
    if isinstance(error, errors.Unauthorized):
        challenge = _REALM + (', error="invalid_token"' if error.sent else "")
        made.append((b"www-authenticate", challenge.encode()))
    if (seconds := getattr(error, "retry_after", None)) is not None:
        made.append((b"retry-after", b"%d" % seconds))
    return made


class _Silence(Response):
    """The answer to a caller who has gone."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        return None


def exception_handlers(clock: Clock) -> dict[int | type[Exception], Handler]:
    """For ``FastAPI(exception_handlers=...)``: every failure in the one shape.

    Unhandled exceptions are rendered here and logged by ``Edge``, which sees them next.
    """

    async def answer(request: Request, error: Exception) -> Response:
        if isinstance(error, HTTPException) and error.status_code == 405:
            error = HTTPException(405, headers={"Allow": ", ".join(_allowed(request))})
        status, headers, body = render(
            error, request.scope.get("state", {}).get("request_id", ""), clock()
        )
        response = Response(body, status)
        response.raw_headers = headers
        return response

    async def nobody_listens(_request: Request, _error: ClientDisconnect) -> Response:
        return _Silence()

    return {
        errors.AuthsvcError: answer,
        RequestValidationError: answer,
        HTTPException: answer,
        ClientDisconnect: nobody_listens,
        Exception: answer,
    }


def _allowed(request: Request) -> list[str]:
    """Every method that some route with this path takes (the router names one route's only)."""
    path = request.scope["path"].removeprefix(request.scope.get("root_path", ""))
    allowed: set[str] = set()
    for route in iter_route_contexts(request.app.routes):
        if (regex := getattr(route, "path_regex", None)) is not None and regex.match(path):
            allowed |= route.methods or set()
    return sorted(allowed)


class FieldProblem(BaseModel):
    """One thing wrong with one field."""

    field: str = Field(description="Path of the field as sent, such as `changes.3.role`.")
    message: str


class Problem(BaseModel):
    """The answer to a request that failed."""

    success: Literal[False]
    code: int = Field(description="The HTTP status.")
    error: str = Field(description="Stable machine-readable word.")
    message: str = Field(description="For people; never to be parsed.")
    details: list[FieldProblem]
    request_id: str
    timestamp: datetime
    result: Literal[False] = Field(default=False, description="Only with `user_not_key_backed`")
    reason: str = Field(default="", description="Only with `user_not_key_backed`, the same word")


_EXAMPLES: dict[str, Exception] = {
    "bad_request": errors.BadRequest("The body is not valid JSON at character 12"),
    "unauthorized": errors.Unauthorized(sent=True),
    "insufficient_scope": errors.Forbidden("This needs a credential with the scope 'write'"),
    "tenant_disabled": errors.Forbidden("This tenant is disabled", "tenant_disabled"),
    "not_found": HTTPException(404),
    "role_not_found": errors.NotFound("role_not_found", "Role 'ops' does not exist"),
    "key_not_found": errors.NotFound("key_not_found", "There is no such key"),
    "method_not_allowed": HTTPException(405),
    "conflict": errors.Conflict("This contradicts what is in force"),
    "idempotency_mismatch": errors.IdempotencyMismatch(
        "This Idempotency-Key was used for another request: choose a fresh one"
    ),
    "role_cycle": errors.RoleCycle("A role cannot inherit from itself: lead, admin, lead"),
    "user_not_key_backed": errors.UserNotKeyBacked("User 'bob' has no API key in force"),
    "body_too_large": body_too_large(65_536),
    "unsupported_media_type": unsupported_media_type(),
    "invalid_input": errors.InputError.of("role", "A role is 1 to 64 characters of A-Z a-z …"),
    "limit_required": errors.LimitRequired("More than 10000 items: ask with 'limit'"),
    "cursor_expired": errors.CursorExpired("Start the list again without 'cursor'"),
    "rate_limited": HTTPException(429, "Too many requests; wait as long as Retry-After says"),
    "internal_error": Exception(),
    "storage_unavailable": errors.Unavailable(),
    "busy": errors.Busy("Others are writing; nothing was changed"),
    "read_only": errors.ReadOnly("The database accepts no writes; nothing was changed"),
    "outcome_unknown": errors.OutcomeUnknown("The write may or may not be in force; look again"),
}
_EXAMPLE_TIME = datetime(2026, 11, 23, 10, 11, 12, 345678, tzinfo=UTC)


def error_responses(*failures: int | str) -> dict[int | str, dict[str, Any]]:
    """OpenAPI's ``responses=`` for these failures, each with an example.

    A failure is named by its word (``"role_cycle"``) or, for the usual one of a status, by the
    status (``409``).
    """
    made: dict[int | str, dict[str, Any]] = {}
    for name in failures:
        word = _WORDS[name] if isinstance(name, int) else name
        status, _, body = render(_EXAMPLES[word], "4f1c0b2a9d7e4c55a1f2", _EXAMPLE_TIME)
        entry = made.setdefault(
            status,
            {
                "model": Problem,
                "description": HTTPStatus(status).phrase,
                "content": {"application/json": {"examples": {}}},
            },
        )
        examples = entry["content"]["application/json"]["examples"]
        examples[word] = {"value": from_json(body)}
    return made
