"""Callers of the service over HTTP, and what every answer has to look like."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Protocol

import httpx
from fastapi import FastAPI

import encrypted
from authsvc.clock import Clock
from authsvc.services.changes import lock_tenant, record
from authsvc.settings import Settings, build_settings
from conftest import Storage, TenantAtWork

MISSING: Any = object()
"""Stands for a body that is not sent and a ``result`` that is not there."""

WITH_RESULT = re.compile(
    r"POST /api/role/[^/]+|GET /api/roles|(POST|DELETE|GET) /api/permission/[^/]+/[^/]+"
    r"|(POST|DELETE) /api/membership/[^/]+/[^/]+|GET /api/(user_roles|members)/[^/]+"
    r"|GET /api/which_(roles|users)_can/[^/]+"
)
"""The requests whose answers carry ``result`` beside ``data``."""

PROBLEM_FIELDS = ["success", "code", "error", "message", "details", "request_id", "timestamp"]

HEADERS = {
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "x-xss-protection": "1; mode=block",
    "strict-transport-security": "max-age=31536000; includeSubDomains",
    "referrer-policy": "no-referrer",
}
"""On every answer, whoever made it."""


def instant(moment: datetime) -> str:
    """A moment as answers write it."""
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


def bearer(key: str) -> dict[str, str]:
    """The header that carries a client key."""
    return {"Authorization": f"Bearer {key}"}


def check_headers(response: httpx.Response) -> None:
    """Every header that every answer has to carry."""
    found = response.headers
    path = response.request.url.path
    for name, value in HEADERS.items():
        assert found.get_list(name) == [value], (name, response.request, response.status_code)
    assert re.fullmatch(r"[A-Za-z0-9._\-]{1,128}", found["x-request-id"])
    policy = found["content-security-policy"]
    if path == "/" or path.startswith(("/docs", "/static/")):
        assert policy == "default-src 'self'"
    else:
        assert policy == "default-src 'none'; frame-ancestors 'none'"
    if path.startswith("/api/"):
        assert found.get_list("cache-control") == ["no-store"]
    assert "server" not in found


def check_problem(response: httpx.Response, status: int, error: str | None = None) -> Any:
    """The one shape of every failure; its body."""
    assert response.status_code == status, (response.request, response.text)
    check_headers(response)
    assert response.headers["content-type"] == "application/json"
    body = response.json()
    assert list(body) == PROBLEM_FIELDS, body
    assert body["success"] is False
    assert body["code"] == status
    assert re.fullmatch(r"[a-z_]+", body["error"])
    if error is not None:
        assert body["error"] == error, body
    assert body["message"]
    assert isinstance(body["details"], list)
    for problem in body["details"]:
        assert list(problem) == ["field", "message"]
        assert problem["field"]
        assert problem["message"]
    assert body["request_id"] == response.headers["x-request-id"]
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", body["timestamp"])
    return body


@dataclass(frozen=True)
class Api:
    """One caller of the service: an HTTP client and a client key (None: no credential)."""

    http: httpx.AsyncClient
    clock: Clock
    key: str | None

    async def send(self, method: str, path: str, json: Any = MISSING, **more: Any) -> Any:
        """The response, unexamined."""
        if self.key is not None:
            more["headers"] = bearer(self.key) | more.get("headers", {})
        if json is not MISSING:
            more["json"] = json
        return await self.http.request(method, path, **more)

    async def ok(self, method: str, path: str, json: Any = MISSING, **more: Any) -> Any:
        """The body of a success, whose envelope has every field in its place."""
        response: httpx.Response = await self.send(method, path, json, **more)
        assert response.status_code == 200, response.text
        check_headers(response)
        assert response.headers["content-type"] == "application/json"
        body = response.json()
        plain = path.partition("?")[0]
        expected = ["success", "code", "message", "data"]
        expected += ["result"] if WITH_RESULT.fullmatch(f"{method} {plain}") else []
        expected += ["revision", "timestamp"]
        assert list(body) in (expected, [*expected, "next"]), body
        assert body["success"] is True
        assert body["code"] == 200
        assert body["message"]
        assert type(body["revision"]) is int
        assert body["timestamp"] == instant(self.clock())
        if isinstance(body["data"], list) and "result" in body:
            assert body["result"] == body["data"]
        return body

    async def data(self, method: str, path: str, json: Any = MISSING, **more: Any) -> Any:
        """``data`` of a success."""
        return (await self.ok(method, path, json, **more))["data"]

    async def refused(
        self, status: int, error: str, method: str, path: str, json: Any = MISSING, **more: Any
    ) -> Any:
        """The body of a failure of exactly this kind."""
        return check_problem(await self.send(method, path, json, **more), status, error)

    async def apply(self, *changes: dict[str, Any]) -> Any:
        """Many writes in one request."""
        return await self.data("POST", "/api/changes", {"changes": list(changes)})

    async def can(self, user: str, permission: str, scope: str | None = None) -> bool:
        """The single check."""
        params = {} if scope is None else {"scope": scope}
        path = f"/api/has_permission/{user}/{permission}"
        found = await self.data("GET", path, params=params)
        assert list(found) == ["has_permission"]
        assert type(found["has_permission"]) is bool
        return bool(found["has_permission"])

    def with_key(self, key: str | None) -> Api:
        """The same service, another caller."""
        return Api(self.http, self.clock, key)


def settings_for(storage: Storage, **more: Any) -> Settings:
    """Settings of a service on this database; closed to unknown keys unless told otherwise."""
    values: dict[str, Any] = {
        "client_registration": "closed",
        "rate_limit_profile": "off",
        "jwt_secret_key": "a secret of the tests, long enough to be one",
        **encrypted.SETTINGS,
    } | more
    if storage.path is not None:
        return build_settings(sqlite_path=storage.path, **values)
    return build_settings(postgresql_url=storage.url, **values)


@asynccontextmanager
async def served(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client of an app whose lifespan has begun, until the context ends."""
    async with app.router.lifespan_context(app):
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as http:
            yield http


class Serve(Protocol):
    """Starts a service; without a database named, on the one that tests share. It has no key."""

    def __call__(
        self, storage: Storage | None = None, **settings: Any
    ) -> AbstractAsyncContextManager[Api]: ...


NewTenant = Callable[[], Awaitable[TenantAtWork]]


async def announce(tenant: TenantAtWork, statement: Any) -> None:
    """Run a statement on a tenant and record it as a change, as the operator's commands do."""

    async def work(tx: Any) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        await tx.execute(statement)
        event = {
            "action": "update",
            "entity_type": "tenant",
            "entity_id": "acme",
            "details": {},
        }
        by = {"actor": "tests", "request_id": None, "ip_address": None, "user_agent": None}
        await record(tx, tenant.id, stamp, [event], by, tenant.clock())

    await tenant.database.write(tenant.id, work)


def same_but_for_the_moment(response: httpx.Response) -> tuple[int, dict[str, Any]]:
    """Status and body without what differs between any two requests."""
    body = response.json()
    body.pop("request_id", None)
    body.pop("timestamp", None)
    return response.status_code, body
