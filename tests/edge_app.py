"""A small application behind the edge, and ways to ask it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Annotated, Any, Literal
from urllib.parse import unquote

import httpx
from fastapi import APIRouter, Body, Depends, FastAPI, Query, Request, Response
from fastapi.exceptions import ResponseValidationError
from pydantic import AfterValidator, BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError
from starlette.responses import StreamingResponse
from starlette.types import ASGIApp, Message, Scope

from authsvc import errors
from authsvc.api.envelope import Envelope, ListEnvelope, answer
from authsvc.api.middleware import Edge
from authsvc.api.problems import exception_handlers
from authsvc.api.route import ContractRoute
from authsvc.sanitizer import check_role

NOW = datetime(2026, 11, 23, 10, 11, 12, 5, tzinfo=UTC)
JSON = {"content-type": "application/json"}
SECRET = "hunter2-and-more"

EVERYWHERE = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-xss-protection": "1; mode=block",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "referrer-policy": "no-referrer",
}


def clock() -> datetime:
    return NOW


def _role(text: str) -> str:
    try:
        return check_role(text)
    except errors.InputError as refusal:
        raise PydanticCustomError("name", "{rule}", {"rule": refusal.details[0].message}) from None


class Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class AddRole(Model):
    op: Literal["add_role"]
    role: Annotated[str, AfterValidator(_role)]
    description: str | None = Field(default=None, max_length=5)


class Grant(Model):
    op: Literal["grant"]
    role: Annotated[str, AfterValidator(_role)]
    permission: str


class Changes(Model):
    changes: list[Annotated[AddRole | Grant, Field(discriminator="op")]] = Field(min_length=1)
    dry_run: bool = False


class Description(Model):
    description: str


class Page(BaseModel):
    limit: int | None = Field(default=None, ge=1, le=10_000)


async def tracing(trace: str | None = None) -> str | None:
    return trace


FAILURES: dict[str, Callable[[], Exception]] = {
    "401": lambda: errors.Unauthorized(sent=False),
    "401-sent": lambda: errors.Unauthorized(sent=True),
    "403": lambda: errors.Forbidden("no"),
    "404": lambda: errors.NotFound("role_not_found", "Role 'ops' does not exist"),
    "404-field": lambda: errors.NotFound("role_not_found", "gone", "changes.3.role"),
    "409": lambda: errors.RoleCycle("a, b, a"),
    "409-field": lambda: errors.Conflict("no", "changes.0.role"),
    "422": lambda: errors.CursorExpired("Start again"),
    "500": lambda: RuntimeError(SECRET),
    "500-chained": lambda: errors.SettingsError(SECRET),
    "500-response": lambda: ResponseValidationError([{"input": SECRET}]),
    "503": lambda: errors.Busy("Others are writing", 7),
}


def make_router() -> APIRouter:
    router = APIRouter(route_class=ContractRoute)

    @router.post("/changes", response_model=Envelope[dict[str, int]])
    async def changes(body: Changes) -> Response:
        return answer({"applied": len(body.changes)}, "Done", 17, NOW, result=True)

    @router.post("/check")
    async def check(body: Annotated[Any, Body()]) -> Response:
        return answer(body, "Done", 1, NOW)

    @router.post("/role/{role}")
    async def add_role(role: str, body: Description | None = None) -> Response:
        return answer({"role": check_role(role), "body": body is not None}, "Done", 1, NOW)

    @router.get("/role/{role}")
    async def get_role(role: str) -> Response:
        return answer({"role": check_role(role)}, "Done", 1, NOW)

    @router.delete("/role/{role}")
    async def remove_role(role: str) -> Response:
        return answer({"role": check_role(role)}, "Done", 1, NOW)

    @router.post("/grant/{role}/{permission}")
    async def grant(role: str, permission: str) -> Response:
        return answer([role, permission], "Done", 1, NOW)

    @router.post("/keys/rotate")
    async def rotate() -> Response:
        return answer({}, "Done", 1, NOW)

    @router.get("/list", response_model=ListEnvelope[str])
    async def list_(page: Annotated[Page, Query()]) -> Response:
        return answer([], "Done", 1, NOW, result=[], next=str(page.limit))

    @router.get("/flag")
    async def flag(direct: bool = False) -> Response:
        return answer({"direct": direct}, "Done", 1, NOW)

    @router.get("/fail/{which}")
    async def fail(which: str) -> Response:
        raise FAILURES[which]()

    @router.get("/cut")
    async def cut() -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"begin"
            raise RuntimeError(SECRET)

        return StreamingResponse(pieces())

    @router.get("/credentials")
    async def credentials(request: Request) -> Response:
        return answer(request.headers.getlist("authorization"), "Done", 1, NOW)

    return router


def make_app() -> FastAPI:
    app = FastAPI(
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=exception_handlers(clock),
    )
    app.include_router(make_router(), prefix="/api", dependencies=[Depends(tracing)])

    @app.get("/page")
    async def page() -> Response:
        headers = {"server": "x", "x-frame-options": "ALLOW", "cache-control": "no-cache"}
        return Response("<p>", media_type="text/html", headers=headers)

    return app


def edge(app: ASGIApp | None = None, **parameters: Any) -> Edge:
    return Edge(app or make_app(), clock=clock, **parameters)


def connect(app: ASGIApp) -> httpx.AsyncClient:
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    return httpx.AsyncClient(transport=transport, base_url="http://authsvc")


class Sent:
    """What an application sent for one hand-made request."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    @property
    def status(self) -> int:
        return int(self.messages[0]["status"]) if self.messages else 0

    @property
    def body(self) -> Any:
        return json.loads(b"".join(one.get("body", b"") for one in self.messages))

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return list(self.messages[0]["headers"])


async def ask(
    app: ASGIApp,
    method: str = "GET",
    raw_path: bytes = b"/api/flag",
    *,
    path: str | None = None,
    headers: list[tuple[bytes, bytes]] | None = None,
    chunks: list[bytes] | None = None,
    disconnect: bool = False,
    decoded_only: bool = False,
    **more: Any,
) -> Sent:
    """One request with every byte as given, which no HTTP client lets through."""
    sent = Sent()
    waiting = list(chunks or [b""])

    async def receive() -> Message:
        if waiting:
            body = waiting.pop(0)
            return {"type": "http.request", "body": body, "more_body": bool(waiting) or disconnect}
        return {"type": "http.disconnect"}

    async def send(message: Message) -> None:
        sent.messages.append(message)

    scope: Scope = {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(raw_path.decode("latin-1")) if path is None else path,
        **({} if decoded_only else {"raw_path": raw_path}),
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"authsvc")] if headers is None else headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 2),
        **more,
    }
    await app(scope, receive, send)
    return sent


def assert_failure(found: httpx.Response, status: int, word: str) -> dict[str, Any]:
    body: dict[str, Any] = found.json()
    assert list(body) == [
        "success",
        "code",
        "error",
        "message",
        "details",
        "request_id",
        "timestamp",
    ]
    assert (found.status_code, body["success"], body["code"]) == (status, False, status)
    assert body["error"] == word
    assert found.headers["content-type"] == "application/json"
    assert body["request_id"] == found.headers["x-request-id"]
    assert body["timestamp"] == "2026-11-23T10:11:12.000005Z"
    assert SECRET not in found.text
    return body
