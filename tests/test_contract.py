"""What holds for every request, asked of every route that the OpenAPI document names."""

from __future__ import annotations

import json
import logging
import re
import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts
from jsonschema import Draft202012Validator
from openapi_spec_validator import validate
from pydantic import TypeAdapter, ValidationError
from sqlalchemy.engine.default import DefaultDialect

from authsvc import models
from authsvc.api.dependencies import Service
from authsvc.app import create_app
from authsvc.schemas.names import GrantName, PermissionName, RoleName, ScopeName, UserName
from authsvc.settings import build_settings
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, Serve, bearer, check_headers, check_problem, same_but_for_the_moment

pytest_plugins = ("http_fixtures",)

METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", "TRACE", "PROPFIND")
PUBLIC = {"/ping", "/health", "/health/live", "/health/ready"}
TOKENS = {"/api/token", "/api/token/revoke", "/api/token/introspect"}
"""Shaped by their own standards: tests/test_tokens.py."""
"""The documented paths that ask for no credential."""
PAGES = {"/", "/docs", "/openapi.json", "/static/{name:path}"}
"""What is served and is no part of the document."""
BULK = {"/api/check", "/api/changes"}
NAMES = {
    "user": "alice",
    "role": "admin",
    "parent": "staff",
    "permission": "deploy",
    "workflow": "deploy",
    "key_id": "key_00000000000000000000",
}
LEAKS = re.compile(
    r"Traceback|File \"|SELECT |INSERT |DELETE FROM|UPDATE |DROP TABLE|sqlalchemy|asyncpg|sqlite3"
    r"|aiosqlite|pydantic|\.py\b"
)


@dataclass(frozen=True)
class Operation:
    """One method of one path, as the document has it."""

    method: str
    template: str
    spec: dict[str, Any]

    def url(self, **names: str) -> str:
        """The path with its names filled in, escaped."""
        escaped = {name: quote(value, safe="") for name, value in (NAMES | names).items()}
        return self.template.format_map(escaped)

    def parameters(self, place: str) -> list[str]:
        """The names of its parameters in the path or the query."""
        return [one["name"] for one in self.spec.get("parameters", ()) if one["in"] == place]

    @property
    def takes_body(self) -> bool:
        return "requestBody" in self.spec

    @property
    def under_api(self) -> bool:
        return self.template.startswith("/api/")

    def __str__(self) -> str:
        return f"{self.method} {self.template}"


def _document() -> dict[str, Any]:
    app = create_app(
        build_settings(sqlite_path="/nonexistent/authsvc.sqlite3", jwt_secret_key="x" * 32)
    )
    return app.openapi()


DOCUMENT = _document()
OPERATIONS = [
    Operation(method.upper(), template, spec)
    for template, methods in DOCUMENT["paths"].items()
    for method, spec in methods.items()
    if template not in TOKENS
]
API = [one for one in OPERATIONS if one.under_api]
WITH_BODY = [one for one in OPERATIONS if one.takes_body]

CHANGES: list[dict[str, Any]] = [
    {"op": "add_role", "role": "r", "description": "text"},
    {"op": "remove_role", "role": "r"},
    {"op": "grant", "role": "r", "permission": "p"},
    {"op": "revoke", "role": "r", "permission": "p"},
    {
        "op": "add_member",
        "user": "u",
        "role": "r",
        "scope": "s",
        "not_before": "2026-01-01T00:00:00Z",
        "expires_at": "2027-01-01T00:00:00Z",
    },
    {"op": "remove_member", "user": "u", "role": "r", "scope": "s"},
    {"op": "add_parent", "role": "r", "parent": "q"},
    {"op": "remove_parent", "role": "r", "parent": "q"},
    {"op": "remove_user", "user": "u"},
]
_CHECK = {"user": "u", "permission": "p", "scope": "s"}
BODIES: dict[str, list[dict[str, Any]]] = {
    "/api/role/{role}": [{"description": "text"}],
    "/api/membership/{user}/{role}": [
        {
            "scope": "s",
            "not_before": "2026-01-01T00:00:00Z",
            "expires_at": "2027-01-01T00:00:00Z",
        }
    ],
    "/api/check": [
        {"checks": [_CHECK], "explain": False},
        {"user": "u", "permissions": ["p"], "scope": "s", "explain": False},
    ],
    "/api/changes": [{"changes": [change], "dry_run": True} for change in CHANGES],
    "/api/keys": [{"label": "web", "scopes": ["check"], "expires_at": "2027-01-01T00:00:00Z"}],
    "/api/keys/rotate": [{"overlap_seconds": 60}],
    "/api/apikeys/user/{user}": [{"label": "laptop", "expires_at": "2027-01-01T00:00:00Z"}],
    "/api/settings": [{"strict_users": False}],
    "/api/apikeys/validate": [{"api_key": "rak_" + "0" * 43}],
    "/api/apikeys/check_permission": [{"api_key": "rak_" + "0" * 43, "permission": "p"}],
}
"""Path to bodies that together hold every field it knows."""

HOSTILE = (
    "a\n",
    "\na",
    "a\r\nX-Evil: 1",
    "a\0b",
    "\0",
    "\u0430dmin",
    "\uff41dmin",
    "adm\u0131n",
    "<script>alert(1)</script>",
    "a b",
    " a",
    "a ",
    "\ta",
    "a\x7f",
    "a\x85",
    "a\u200bb",
    "a\u202eb",
    "a\ufeff",
    "e\u0301",
    "\u00e9",
    "\U0001f600",
    "..",
    ".",
    "",
    "a\\b",
    "a/../b",
    "'; DROP TABLE role; --",
    '" OR "1"="1',
    "%00",
    "%2e%2e",
    "a%",
    "${jndi:ldap://x}",
    "{{7*7}}",
    "*",
    "a;b=c",
    "a?b",
    "a#b",
    "x" * 2000,
)
HOSTILE_TEXT = (
    "a\n",
    "a\0b",
    "a\tb",
    "a\x7f",
    "a\x85",
    "a\u200bb",
    "a\u202eb",
    "\ufeffa",
    "e\u0301",
    "<script>alert(1)</script>",
    "a > b",
    "x" * 513,
    "\u2028",
    "\ue000",
)
"""What even a description, which may hold any language, may not hold."""


@pytest.fixture(autouse=True)
def nothing_leaks(request: pytest.FixtureRequest) -> None:
    """Whatever is answered: no key, no statement, no code."""
    if "client" not in request.fixturenames:
        return
    client: httpx.AsyncClient = request.getfixturevalue("client")
    owner: TenantAtWork = request.getfixturevalue("owner")

    async def look(response: httpx.Response) -> None:
        await response.aread()
        text = response.text + repr(response.headers.multi_items())
        if response.request.url.path.startswith(("/docs", "/static", "/openapi.json")):
            return
        assert not LEAKS.search(text), text
        assert owner.key not in text.lower()

    client.event_hooks["response"] = [look]


def refused_somehow(response: httpx.Response, *statuses: int) -> Any:
    """The body of a failure with one of these statuses."""
    assert response.status_code in statuses, (response.request, response.text)
    return check_problem(response, response.status_code)


def fields(body: Any) -> list[str]:
    return [problem["field"] for problem in body["details"]]


class TestDocument:
    def test_it_is_valid(self) -> None:
        assert DOCUMENT["openapi"].startswith("3.1.")
        validate(DOCUMENT)

    async def test_it_is_what_is_served(self, client: httpx.AsyncClient) -> None:
        response = await client.get("/openapi.json")
        check_headers(response)
        assert response.json() == DOCUMENT

    def test_it_names_every_route(self, app: FastAPI) -> None:
        deployed = {
            (method, route.path)
            for route in iter_route_contexts(app.routes)
            for method in route.methods or ()
        }
        documented = {(one.method, one.template) for one in OPERATIONS}
        documented |= {("POST", path) for path in TOKENS}
        assert documented <= deployed
        assert {path for _, path in deployed - documented} == PAGES

    def test_every_route_has_a_credential_or_is_public(self) -> None:
        for one in OPERATIONS:
            if one.template in PUBLIC:
                assert "security" not in one.spec
            else:
                assert one.under_api
                assert one.spec["security"] == [{"credential": []}, {"token": []}]
        assert DOCUMENT["components"]["securitySchemes"]["credential"]["scheme"] == "bearer"

    def test_every_route_explains_itself(self) -> None:
        tags = {tag["name"] for tag in DOCUMENT["tags"]}
        for one in OPERATIONS:
            spec = one.spec
            assert len(spec["summary"]) > 5, one
            assert len(spec["description"]) > 30, one
            assert len(spec["tags"]) == 1, one
            assert set(spec["tags"]) <= tags, one
            for parameter in spec.get("parameters", ()):
                assert parameter["description"], (one, parameter["name"])
        ids = [one.spec["operationId"] for one in OPERATIONS]
        assert len(set(ids)) == len(ids)

    def test_every_route_tells_its_failures(self) -> None:
        for one in OPERATIONS:
            expected = {"200", "400", "422", "500"}
            if one.under_api:
                expected |= {"401", "403", "503"}
            if one.method == "POST":
                expected |= {"413", "415"}
            assert expected <= set(one.spec["responses"]), one

    def test_every_answer_has_a_schema_and_examples_that_fit_it(self) -> None:
        # References inside the schemas lead to the components beside them.
        components = {"components": DOCUMENT["components"]}
        for one in OPERATIONS:
            for status, answer in one.spec["responses"].items():
                content = answer["content"]["application/json"]
                validator = Draft202012Validator(components | content["schema"])
                examples = [named["value"] for named in content.get("examples", {}).values()]
                examples += [content["example"]] if "example" in content else []
                if one.under_api:
                    assert examples, (one, status)
                for example in examples:
                    validator.validate(example)

    def test_every_body_has_an_example_that_fits_it(self) -> None:
        components = {"components": DOCUMENT["components"]}
        for one in WITH_BODY:
            schema = one.spec["requestBody"]["content"]["application/json"]["schema"]
            reference = schema.get("$ref", "").rpartition("/")[2]
            found = DOCUMENT["components"]["schemas"][reference] if reference else schema
            assert found["examples"], one
            for example in found["examples"]:
                Draft202012Validator(components | schema).validate(example)

    @pytest.mark.parametrize(
        ("kind", "most"),
        [
            (RoleName, 64),
            (PermissionName, 128),
            (GrantName, 128),
            (UserName, 254),
            (ScopeName, 254),
        ],
        ids=["role", "permission", "grant", "user", "scope"],
    )
    def test_patterns_say_what_is_accepted(self, kind: Any, most: int) -> None:
        adapter = TypeAdapter(kind)
        # '$' of ECMAScript is the end; that of Python also comes before a last newline.
        pattern = re.compile(adapter.json_schema()["pattern"].replace("$", r"\Z"))
        characters = [chr(code) for code in range(0x300)]
        texts = [*characters, *(f"a{c}" for c in characters), *(f"{c}a" for c in characters)]
        texts += ["", ".", "..", "...", ".a", "*", ":*", "::*", "a:*", "a:b:*", "a:*:*", ":a:*"]
        texts += ["a:*\n", "\uff41", "x" * most, "x" * (most + 1)]
        texts += ["x" * (most - 2) + ":*", "x" * (most - 1) + ":*"]
        for text in texts:
            try:
                adapter.validate_python(text)
            except ValidationError:
                assert not pattern.search(text), repr(text)
            else:
                assert pattern.search(text), repr(text)

    def test_the_bodies_of_this_file_hold_every_field(self) -> None:
        assert {one.template for one in WITH_BODY} == set(BODIES)
        for one in WITH_BODY:
            sent = {key for body in BODIES[one.template] for key in _keys(body)}
            schema = one.spec["requestBody"]["content"]["application/json"]["schema"]
            assert _properties(schema) == sent, one


def _keys(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        yield from value
        value = list(value.values())
    if isinstance(value, list):
        for item in value:
            yield from _keys(item)


def _properties(schema: Any) -> set[str]:
    """Every property that a schema knows, however deep."""
    found: set[str] = set()
    if isinstance(schema, list):
        return found.union(*map(_properties, schema))
    if isinstance(schema, dict):
        if "$ref" in schema:
            name = schema["$ref"].rpartition("/")[2]
            return _properties(DOCUMENT["components"]["schemas"][name])
        properties = schema.get("properties", {})
        found.update(properties)
        for key in ("items", "anyOf", "oneOf"):
            found |= _properties(schema.get(key))
        for one in properties.values():
            found |= _properties(one)
    return found


async def test_every_route_answers_with_every_header(api: Api) -> None:
    for one in OPERATIONS:
        json_body = BODIES[one.template][0] if one.takes_body else None
        more = {"json": json_body} if json_body else {}
        response = await api.send(one.method, one.url(), **more)
        assert response.status_code < 500, one
        check_headers(response)
        assert response.headers["content-type"] == "application/json"
        if response.status_code != 200:
            check_problem(response, response.status_code)
    for path in ("/", "/docs", "/openapi.json", "/static/docs.js", "/static/none"):
        check_headers(await api.http.get(path))


KEY = "2f1d6c1e-8f0a-4d3b-9c2e-5a7b8c9d0e1f"
MALFORMED = [
    value.encode("latin-1")
    for value in (
        "",
        "Bearer",
        "Bearer ",
        "Bearer not-a-key",
        f"Basic {KEY}",
        f"Token {KEY}",
        f"Digest {KEY}",
        KEY,
        f"Bearer{KEY}",
        f"Bearer\t{KEY}",
        f"Bearer {KEY}, Bearer {KEY}",
        f"Bearer {KEY},{KEY}",
        f"Bearer {KEY} {KEY}",
        f"Bearer {KEY}=",
        f"Bearer key={KEY}",
        f'Bearer "{KEY}"',
        f"Bearer {{{KEY}}}",
        f"Bearer urn:uuid:{KEY}",
        f"Bearer {KEY.replace('-', '')}",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY}0",
        f"Bearer {KEY[:-1]}g",
        f"Bearer {KEY.replace('-4d3b-', '-1d3b-')}",
        f"Bearer {KEY.replace('-4d3b-', '-3d3b-')}",
        f"Bearer {KEY.replace('-4d3b-', '-5d3b-')}",
        f"Bearer {KEY.replace('-4d3b-', '-7d3b-')}",
        f"Bearer {KEY.replace('-9c2e-', '-cc2e-')}",
        f"Bearer {KEY.replace('-9c2e-', '-0c2e-')}",
        f"Bearer {uuid.UUID(int=0)}",
        f"Bearer {uuid.UUID(int=2**128 - 1)}",
        "Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.",
        "Bearer " + "a" * 4000,
        f"Bearer {KEY}\x7f",
        f"Bearer {KEY}".replace("2", "²"),
        f"Bearer {KEY}\u00a0",
        "Bearer ' OR 1=1 --",
        f"Bearer {KEY}",
        f"bEARER  {KEY.upper()}",
    )
]


class TestCredential:
    async def test_every_bad_one_has_the_same_answer(
        self, client: httpx.AsyncClient, owner: TenantAtWork
    ) -> None:
        good = f"Bearer {owner.key}".encode()
        seen = []
        for values in [[], *([one] for one in MALFORMED), [good, good], [good, b"Basic x"]]:
            headers = [(b"authorization", value) for value in values]
            response = await client.get("/api/roles", headers=headers)
            check_problem(response, 401, "unauthorized")
            challenge = 'Bearer realm="authsvc"'
            if headers:
                challenge += ', error="invalid_token"'
            assert response.headers.get_list("www-authenticate") == [challenge], headers
            seen.append(same_but_for_the_moment(response))
        assert len(seen) > 35
        assert all(one == seen[0] for one in seen)
        assert seen[0][1]["details"] == []

    async def test_every_route_asks_for_one_first(self, client: httpx.AsyncClient) -> None:
        expected = None
        for one in API:
            credentials: list[dict[str, str]] = [{}, bearer(KEY), bearer("not-a-key")]
            for headers in credentials:
                for query, kind, content in (
                    ("", "application/json", b""),
                    ("?unknown=1", "application/json", b""),
                    ("", "application/json", b"{"),
                    ("", "text/plain", b"a=b"),
                ):
                    response = await client.request(
                        one.method,
                        one.url() + query,
                        content=content,
                        headers=headers | {"Content-Type": kind},
                    )
                    check_problem(response, 401, "unauthorized")
                    found = same_but_for_the_moment(response)
                    expected = expected or found
                    assert found == expected, one

    async def test_the_public_ones_do_not(self, client: httpx.AsyncClient) -> None:
        for path in sorted(PUBLIC | {"/", "/docs", "/openapi.json"}):
            for headers in ({}, bearer("not-a-key")):
                assert (await client.get(path, headers=headers)).status_code == 200

    async def test_a_key_has_one_meaning_in_any_case(self, api: Api) -> None:
        assert api.key is not None
        await api.ok("POST", "/api/role/admin")
        for value in (f"bearer {api.key}", f"BEARER {api.key.upper()}"):
            response = await api.http.get("/api/roles", headers={"authorization": value})
            assert response.json()["data"] == [{"role": "admin", "description": ""}]

    async def test_a_key_elsewhere_is_none(self, api: Api) -> None:
        for headers in ({"X-API-Key": api.key}, {"Cookie": f"key={api.key}"}):
            response = await api.http.get("/api/roles", headers=headers)  # type: ignore[arg-type]
            check_problem(response, 401, "unauthorized")
        response = await api.http.get("/api/roles", params={"access_token": api.key})
        check_problem(response, 401, "unauthorized")


class TestPathsAndMethods:
    async def test_unknown_paths(self, api: Api) -> None:
        for path in (
            "/nope",
            "/api",
            "/api/",
            "/api/nope",
            "/api/role",
            "/api/roles/",
            "/api/Roles",
            "/API/roles",
            "/api/role/a/",
            "/api/role/a/b",
            "/api/permission/a",
            "/api/has_permission/a",
            "/api/check/",
            "/api/v1/roles",
            "/ping/",
            "/health/dead",
            "/roles",
            "/.env",
            "/api/keys/x/y/z",
        ):
            for method in ("GET", "POST", "DELETE"):
                for caller in (api, api.with_key(None)):
                    await caller.refused(404, "not_found", method, path)

    async def test_other_methods(self, api: Api) -> None:
        for template, methods in DOCUMENT["paths"].items():
            allowed = {method.upper() for method in methods}
            path = Operation("", template, {}).url()
            if path == "/api/keys/rotate":
                allowed.add("DELETE")  # It is also the path of a key called 'rotate'.
            for method in METHODS:
                if method in allowed:
                    continue
                response = await api.send(method, path)
                if method != "HEAD":
                    check_problem(response, 405, "method_not_allowed")
                check_headers(response)
                assert response.status_code == 405, (method, path)
                assert set(response.headers["allow"].split(", ")) == allowed

    async def test_methods_are_not_overridden(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin")
        for name in ("X-HTTP-Method-Override", "X-Method-Override", "X-HTTP-Method"):
            await api.ok("GET", "/api/role/admin", headers={name: "DELETE"})
            await api.ok("POST", "/api/role/admin?", headers={name: "DELETE"})
        await api.refused(422, "invalid_input", "POST", "/api/role/admin?_method=DELETE")
        await api.ok("GET", "/api/role/admin")

    async def test_paths_that_can_be_read_in_two_ways(self, app: FastAPI, api: Api) -> None:
        assert api.key is not None
        for raw in (
            b"/api/role/a%2Fb",
            b"/api/role/a%2fb",
            b"/api/role/a%5Cb",
            b"/api/role/a%00b",
            b"/api/role/a\\b",
            b"/api/role/%2e%2e",
            b"/api/role/..",
            b"/api/role/../roles",
            b"/api/./roles",
            b"/api//roles",
            b"//api/roles",
            b"/api/role/%c0%af",
            b"/api/role/%ed%a0%80",
            b"/api/role/%ff",
            b"/api/role/%",
            b"/api/role/%zz",
            b"/api/role/%4",
            "/api/role/é".encode(),
            b"/api/role/a b",
        ):
            status, body = await raw_request(app, "GET", raw, [bearer_pair(api.key)])
            assert status == 400, (raw, body)
            assert json.loads(body)["error"] == "bad_request"


def bearer_pair(key: str) -> tuple[bytes, bytes]:
    return (b"authorization", f"Bearer {key}".encode())


async def raw_request(
    app: FastAPI,
    method: str,
    raw_path: bytes,
    headers: list[tuple[bytes, bytes]],
    chunks: tuple[bytes, ...] = (b"",),
) -> tuple[int, bytes]:
    """A request with a path and headers that a well-behaved client would not send."""
    path, _, query = raw_path.partition(b"?")
    escaped = re.sub(rb"%([0-9A-Fa-f]{2})", lambda found: bytes([int(found[1], 16)]), path).decode(
        "utf-8", "replace"
    )
    scope = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": escaped,
        "raw_path": path,
        "query_string": query,
        "root_path": "",
        "headers": [(b"host", b"testserver"), *headers],
        "client": ("127.0.0.1", 1),
        "server": ("testserver", 80),
    }
    waiting = list(chunks)
    answered: list[Any] = []

    async def receive() -> dict[str, Any]:
        if not waiting:
            return {"type": "http.disconnect"}
        chunk = waiting.pop(0)
        return {"type": "http.request", "body": chunk, "more_body": bool(waiting)}

    async def send(message: Any) -> None:
        answered.append(message)

    await app(scope, receive, send)
    body = b"".join(message.get("body", b"") for message in answered[1:])
    assert not LEAKS.search(body.decode())
    return answered[0]["status"], body


def chunked(size: int, step: int = 64 * 1024) -> Callable[[], AsyncIterator[bytes]]:
    async def make() -> AsyncIterator[bytes]:
        for start in range(0, size, step):
            yield b" " * min(step, size - start)

    return make


class TestBodies:
    JSON = {"Content-Type": "application/json"}  # noqa: RUF012

    def limit(self, one: Operation) -> int:
        return 8 * 1024 * 1024 if one.template in BULK else 64 * 1024

    async def test_too_large_as_declared(self, app: FastAPI, api: Api) -> None:
        assert api.key is not None
        for one in OPERATIONS:
            for size in (self.limit(one) + 1, 10**12, 10**30):
                headers = [
                    bearer_pair(api.key),
                    (b"content-type", b"application/json"),
                    (b"content-length", b"%d" % size),
                ]
                status, body = await raw_request(app, one.method, one.url().encode(), headers)
                assert status == 413, (one, size)
                assert json.loads(body)["error"] == "body_too_large"

    async def test_too_large_as_it_arrives(self, api: Api) -> None:
        for one in API:
            if one.method == "POST":
                response = await api.send(
                    one.method,
                    one.url(),
                    content=chunked(self.limit(one) + 1)(),
                    headers=self.JSON,
                )
                check_problem(response, 413, "body_too_large")

    async def test_exactly_as_large_as_allowed(self, api: Api) -> None:
        await api.ok("POST", "/api/role/admin")
        await api.ok("POST", "/api/role/staff")
        for one in API:
            if one.method == "POST":
                body = json.dumps(BODIES[one.template][0] if one.takes_body else {}).encode()
                padded = body + b" " * (self.limit(one) - len(body))
                response = await api.send(one.method, one.url(), content=padded, headers=self.JSON)
                assert response.status_code in (200, 404), (one, response.text)
                assert response.status_code == 200 or one.template == "/api/changes"

    async def test_other_types(self, api: Api) -> None:
        for one in API:
            if one.method != "POST":
                continue
            for kind in (
                "application/x-www-form-urlencoded",
                "multipart/form-data; boundary=x",
                "text/plain",
                "text/json",
                "application/xml",
                "application/jsonp",
                "application/json; charset=latin-1",
                "application/json; charset=utf-16",
                "application/json, text/plain",
                "application/vnd.api+json",
                "*/*",
                "",
                None,
            ):
                headers = {} if kind is None else {"Content-Type": kind}
                response = await api.send(one.method, one.url(), content=b"{}", headers=headers)
                check_problem(response, 415, "unsupported_media_type")

    async def test_json_by_any_of_its_spellings(self, api: Api) -> None:
        for kind in ("application/json; charset=utf-8", 'Application/JSON;charset="UTF-8"'):
            response = await api.send(
                "POST", "/api/role/admin", content=b"{}", headers={"Content-Type": kind}
            )
            assert response.status_code == 200

    @pytest.mark.parametrize("one", WITH_BODY, ids=str)
    async def test_what_cannot_be_parsed(self, api: Api, one: Operation) -> None:
        good = json.dumps(BODIES[one.template][0]).encode()
        repeated = good[:-1] + b"," + good[1:]
        for content in (
            b"{",
            b"}",
            good[:-1],
            good + b"x",
            good + good,
            b"'a'",
            b"{a: 1}",
            b"{'a': 1}",
            b"[1,]",
            b"nul",
            b"\xff\xfe",
            b'{"a": "\xff"}',
            b"\xef\xbb\xbf" + good,
            good.decode().encode("utf-16"),
            repeated,
            b'{"x": {"a": 1, "a": 2}}',
            b'{"x": NaN}',
            b'{"x": Infinity}',
            b'{"x": -Infinity}',
            b'{"x": "a\nb"}',
            b'{"x": 01}',
            b'{"x": "\\x41"}',
        ):
            response = await api.send(one.method, one.url(), content=content, headers=self.JSON)
            body = check_problem(response, 400, "bad_request")
            assert body["details"] == []

    @pytest.mark.parametrize("one", WITH_BODY, ids=str)
    async def test_what_parses_and_cannot_be_meant(self, api: Api, one: Operation) -> None:
        for content in (
            b"[]",
            b'"text"',
            b"1",
            b"true",
            b'{"x": 1}',
            b'{"x": 1e400}',
            b'{"x": ' + b"9" * 5000 + b"}",
            b"[" * 33 + b"]" * 33,
            b'{"a":' * 5000 + b"1" + b"}" * 5000,
            b'{"x": "\\ud800"}',
            b'{"\\udfff": 1}',
        ):
            response = await api.send(one.method, one.url(), content=content, headers=self.JSON)
            check_problem(response, 422, "invalid_input")

    async def test_routes_without_a_body_take_none(self, api: Api) -> None:
        await api.apply(*({"op": "add_role", "role": role} for role in ("admin", "staff")))
        for one in API:
            if one.method == "POST" and not one.takes_body:
                await api.ok(one.method, one.url(), {})
                body = await api.refused(422, "invalid_input", one.method, one.url(), {"a": 1})
                assert fields(body) == ["body"]


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every value in a body with the way to it, the body itself left out."""
    if path:
        yield path, value
    if isinstance(value, dict | list):
        steps = value.items() if isinstance(value, dict) else enumerate(value)
        for step, inner in steps:
            yield from places(inner, (*path, step))


def with_value(body: Any, path: tuple[Any, ...], value: Any) -> Any:
    """A copy of a body with another value in one place."""
    copy = json.loads(json.dumps(body))
    at = copy
    for step in path[:-1]:
        at = at[step]
    at[path[-1]] = value
    return copy


EVERY_BODY = [(one, body) for one in WITH_BODY for body in BODIES[one.template]]


class TestFields:
    async def test_unknown_fields_are_refused(self, api: Api) -> None:
        columns = {column.name for table in models.metadata.tables.values() for column in table.c}
        extra = columns | {"is_admin", "tenant", "force", "__proto__", "constructor", "$where"}
        for one, body in EVERY_BODY:
            inside = [(path, value) for path, value in places(body) if isinstance(value, dict)]
            for path, value in [((), body), *inside]:
                for name in sorted(extra - value.keys()):
                    if path == () and name in _top_level(one):
                        continue
                    if path:
                        sent = with_value(body, path, value | {name: "x"})
                    else:
                        sent = body | {name: "x"}
                    response = await api.send(one.method, one.url(), sent)
                    answered = check_problem(response, 422, "invalid_input")
                    expected = ".".join(str(step) for step in (*path, name))
                    if re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
                        assert fields(answered) == [expected]
                    else:
                        assert fields(answered)

    async def test_nothing_is_converted(self, api: Api) -> None:
        for one, body in EVERY_BODY:
            for path, value in places(body):
                wrong: list[Any] = [1, 1.5, 0, {}, [], [1], {"a": 1}, ""]
                if isinstance(value, bool):
                    wrong += ["true", "false", "1", None]
                elif isinstance(value, int):
                    wrong = [-1, 1.5, True, "60", {}, [], [1], None, 2_592_001]
                elif isinstance(value, str):
                    wrong += [True, False]
                elif isinstance(value, list):
                    wrong += ["x", True, {"0": value[0]}]
                    wrong.remove([1])
                elif isinstance(value, dict):
                    wrong += ["x", True, None, [value]]
                optional_text = path[-1] in ("description", "label")
                for bad in wrong:
                    if optional_text and bad == "":
                        continue
                    # Whatever was presented as a key is one that is not known.
                    if path[-1] == "api_key" and bad == "":
                        continue
                    # An empty list of changes is one.
                    if one.template == "/api/changes" and path == ("changes",) and bad == []:
                        continue
                    sent = with_value(body, path, bad)
                    response = await api.send(one.method, one.url(), sent)
                    answered = check_problem(response, 422, "invalid_input")
                    where = ".".join(str(step) for step in path)
                    for field in fields(answered):
                        assert field == where or field.startswith(f"{where}."), (sent, field)

    async def test_unknown_parameters_are_refused(self, api: Api) -> None:
        for one in OPERATIONS:
            response = await api.send(one.method, f"{one.url()}?surprise=1")
            assert fields(check_problem(response, 422, "invalid_input")) == ["surprise"], one
            for name in one.parameters("query"):
                response = await api.send(one.method, f"{one.url()}?{name}=1&{name}=1")
                assert fields(check_problem(response, 422, "invalid_input")) == [name]
                swapped = name.upper()
                response = await api.send(one.method, f"{one.url()}?{swapped}=1")
                assert fields(check_problem(response, 422, "invalid_input")) == [swapped]

    async def test_parameters_have_types(self, api: Api) -> None:
        for one in OPERATIONS:
            for name in one.parameters("query"):
                for bad in ("", "maybe", "2", "[]", "null", "1.5", "0x1"):
                    if name == "scope" and bad in ("maybe", "2", "null", "1.5", "0x1"):
                        continue
                    if name in ("limit", "hours") and bad == "2":
                        continue
                    # Anything may be looked for, and need not be found.
                    if name in ("entity_id", "actor", "ip") and bad:
                        continue
                    if name in ("action", "entity_type") and bad in ("maybe", "null"):
                        continue
                    response = await api.send(one.method, one.url(), params={name: bad})
                    assert fields(check_problem(response, 422, "invalid_input")) == [name], bad


def _top_level(one: Operation) -> set[str]:
    """The fields that the body of a route itself may have."""
    return {key for body in BODIES[one.template] for key in body}


class TestHostileNames:
    async def test_in_paths(self, api: Api) -> None:
        for one in API:
            for name in one.parameters("path"):
                for value in HOSTILE:
                    # The client takes dots out of a path; see the paths that are sent raw.
                    if value in ("", ".", ".."):
                        continue
                    response = await api.send(one.method, one.url(**{name: value}))
                    body = refused_somehow(response, 400, 422)
                    if body["code"] == 422:
                        assert fields(body) == [name], (one, value)
                    else:
                        assert set(value) & set("/\\\0"), (one, value)
        assert (await api.ok("GET", "/api/roles"))["revision"] == 2

    async def test_in_parameters(self, api: Api) -> None:
        for one in API:
            for name in {"scope", "cursor"} & set(one.parameters("query")):
                for value in HOSTILE:
                    # A slash is at home in a scope.
                    if name == "scope" and value == "a/../b":
                        continue
                    path = f"{one.url()}?{name}={quote(value, safe='')}"
                    response = await api.send(one.method, path)
                    body = check_problem(response, 422, "invalid_input")
                    assert fields(body) == [name], (one, value)
                path = f"{one.url()}?{name}=%ED%A0%80"
                response = await api.send(one.method, path)
                refused_somehow(response, 400, 422)
        assert (await api.ok("GET", "/api/roles"))["revision"] == 2

    async def test_in_bodies(self, api: Api) -> None:
        for one, body in EVERY_BODY:
            for path, value in places(body):
                if not isinstance(value, str):
                    continue
                where = ".".join(str(step) for step in path)
                for hostile in HOSTILE_TEXT if path[-1] in ("description", "label") else HOSTILE:
                    if path[-1] == "scope" and hostile == "a/../b":
                        continue
                    if path[-1] == "api_key" and len(hostile) <= 512:
                        continue
                    sent = with_value(body, path, hostile)
                    response = await api.send(one.method, one.url(), sent)
                    answered = check_problem(response, 422, "invalid_input")
                    assert fields(answered) == [where], (sent, answered)
                content = json.dumps(with_value(body, path, "\ud800")).encode()
                response = await api.send(
                    one.method,
                    one.url(),
                    content=content,
                    headers={"Content-Type": "application/json"},
                )
                assert fields(check_problem(response, 422, "invalid_input")) == ["body"]
        assert (await api.ok("GET", "/api/roles"))["revision"] == 2

    async def test_what_was_sent_is_not_repeated(self, api: Api) -> None:
        marker = "<img src=x onerror=alert(1)>"
        for one, body in EVERY_BODY:
            for path, value in places(body):
                if isinstance(value, str):
                    sent = with_value(body, path, marker)
                    response = await api.send(one.method, one.url(), sent)
                    assert marker not in response.text
                    assert "onerror" not in response.text


class TestRequestIds:
    async def test_a_good_one_is_echoed(self, api: Api) -> None:
        for one in OPERATIONS:
            response = await api.send(one.method, one.url(), headers={"X-Request-ID": "abc.1-_"})
            assert response.headers.get_list("x-request-id") == ["abc.1-_"]
        body = await api.refused(404, "not_found", "GET", "/nope", headers={"X-Request-ID": "z9"})
        assert body["request_id"] == "z9"

    async def test_others_are_made(self, api: Api) -> None:
        seen = set()
        for sent in (None, "", "a b", "a\x7f", "é", "a" * 129, "<b>", "a;b", '"'):
            headers = {} if sent is None else {"X-Request-ID": sent.encode("latin-1")}
            response = await api.send("GET", "/api/roles", headers=headers)
            made = response.headers["x-request-id"]
            assert re.fullmatch(r"[0-9a-f]{32}", made)
            seen.add(made)
        assert len(seen) == 9


class TestFailures:
    async def test_a_bug(
        self, api: Api, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        secret = f"SELECT * FROM role WHERE key = '{api.key}'"

        async def broken(*_args: Any, **_more: Any) -> None:
            raise RuntimeError(secret)

        monkeypatch.setattr(Service, "authenticated", broken)
        with caplog.at_level(logging.DEBUG):
            for one in API:
                body = await api.refused(500, "internal_error", one.method, one.url())
                assert body["details"] == []
        assert "RuntimeError" in caplog.text
        assert str(api.key) not in caplog.text

    async def test_a_bug_deeper_down(self, api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
        await api.ok("POST", "/api/role/admin")

        def broken(*_args: Any, **_more: Any) -> None:
            raise KeyError("INSERT INTO role")

        monkeypatch.setattr("authsvc.change_set.ChangeSet.apply", broken)
        for one in API:
            if one.template.startswith(("/api/keys", "/api/apikeys")):
                continue  # Their changes are not made of ``ChangeSet``.
            if one.method == "DELETE" or (one.method == "POST" and not one.takes_body):
                await api.refused(500, "internal_error", one.method, one.url())
        monkeypatch.undo()
        assert (await api.ok("GET", "/api/roles"))["revision"] == 3

    @pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
    async def test_a_file_that_cannot_be_read(
        self, api: Api, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(*_args: Any, **_more: Any) -> None:
            error = sqlite3.OperationalError("disk I/O error in SELECT secret FROM role")
            error.sqlite_errorcode = sqlite3.SQLITE_IOERR
            raise error

        monkeypatch.setattr(DefaultDialect, "do_execute", broken)
        monkeypatch.setattr(DefaultDialect, "do_executemany", broken)
        await self.nothing_is_answered(api)
        monkeypatch.undo()
        await api.ok("POST", "/api/role/admin")

    @pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
    async def test_a_server_that_is_gone(
        self, storage: Storage, serve: Serve, clock: ControlledClock
    ) -> None:
        async with serve(storage, client_registration="open") as service:
            api = service.with_key(str(uuid.uuid4()))
            await api.ok("POST", "/api/role/admin")
            allow = 'ALTER DATABASE "{}" ALLOW_CONNECTIONS {}'
            end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1"
            owner = Storage(
                "postgresql", owner_url=storage.owner_url.replace(storage.name, "postgres")
            )
            async with owner.administrator() as connection:
                await connection.execute(allow.format(storage.name, "false"))
                try:
                    await connection.execute(end.replace("$1", f"'{storage.name}'"))
                    await self.nothing_is_answered(api)
                finally:
                    await connection.execute(allow.format(storage.name, "true"))
            await api.ok("POST", "/api/role/staff")

    async def nothing_is_answered(self, api: Api) -> None:
        """With no database there is no decision: 503, and when to try again."""
        for one in API:
            more = {"json": BODIES[one.template][0]} if one.takes_body else {}
            response = await api.send(one.method, one.url(), **more)
            check_problem(response, 503, "storage_unavailable")
            assert re.fullmatch(r"[1-9]\d*", response.headers["retry-after"])
        for path, status in (("/health", "unhealthy"), ("/health/ready", "not_ready")):
            response = await api.send("GET", path)
            check_headers(response)
            assert (response.status_code, response.json()["status"]) == (503, status)
            assert response.headers["retry-after"]
            assert not LEAKS.search(response.text)
        for path in ("/ping", "/health/live"):
            assert (await api.send("GET", path)).status_code == 200

    async def test_a_foreign_host(self, serve: Serve) -> None:
        async with serve(allowed_hosts="auth.example.com") as service:
            for one in OPERATIONS:
                await service.refused(400, "bad_request", one.method, one.url())
            headers = {"Host": "auth.example.com"}
            assert (await service.send("GET", "/ping", headers=headers)).status_code == 200
