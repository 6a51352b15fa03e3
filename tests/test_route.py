"""What is asked of a request before its endpoint runs: bodies and query strings."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest
from fastapi import APIRouter, FastAPI, Request, Response
from starlette.types import Message, Receive, Scope, Send

from authsvc import errors
from authsvc.api.envelope import answer
from authsvc.api.problems import exception_handlers
from authsvc.api.route import contract_route
from edge_app import JSON, NOW, Changes, ask, assert_failure, clock, connect, edge, make_app


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect(edge()) as made:
        yield made


# Bodies


@pytest.mark.parametrize(
    "kind",
    [
        "",
        "text/plain",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=x",
        "application/json; charset=utf-16",
        "application/jsonx",
        "application/merge-patch+json",
        "application/json, text/plain",
        "text/json",
    ],
)
@pytest.mark.parametrize("path", ["/api/changes", "/api/role/x", "/api/grant/a/b", "/api/check"])
async def test_other_content_types_are_refused_unread(path: str, kind: str) -> None:
    read = False

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def watched() -> Message:
            nonlocal read
            read = True
            return await receive()

        await inner(scope, watched, send)

    inner = make_app()
    headers = [(b"content-type", kind.encode()), (b"content-length", b"2")]
    found = await ask(edge(app), "POST", path.encode(), headers=headers, chunks=[b"{}"])
    assert (found.status, found.body["error"]) == (415, "unsupported_media_type")
    assert not read


@pytest.mark.parametrize(
    "kind",
    [
        "application/json",
        "Application/JSON",
        "application/json;charset=UTF-8",
        'application/json ; charset="utf-8"',
    ],
)
async def test_json_by_its_names(client: httpx.AsyncClient, kind: str) -> None:
    found = await client.post("/api/check", content=b"[1]", headers={"content-type": kind})
    assert found.json()["data"] == [1]


async def test_absent_bodies(client: httpx.AsyncClient) -> None:
    details = assert_failure(await client.post("/api/changes"), 422, "invalid_input")["details"]
    assert details == [{"field": "body", "message": "A JSON body is required."}]
    assert (await client.post("/api/role/x")).json()["data"]["body"] is False
    null = await client.post("/api/role/x", content=b"null", headers=JSON)
    assert null.json()["data"]["body"] is False
    form = {"content-type": "application/x-www-form-urlencoded"}
    assert (await client.post("/api/role/x", headers=form)).status_code == 200


async def test_routes_without_a_body_ignore_none(client: httpx.AsyncClient) -> None:
    assert (await client.post("/api/grant/a/b")).status_code == 200
    assert (await client.post("/api/grant/a/b", json={})).status_code == 200
    found = await client.post("/api/grant/a/b", json={"tenant_id": 1})
    assert assert_failure(found, 422, "invalid_input")["details"][0]["field"] == "body"
    for body in (b"x" * 100, b"{"):
        request = client.build_request("DELETE", "/api/role/x", content=body, headers=JSON)
        assert (await client.send(request)).status_code == 200


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"changes":[],"changes":[]}', 400),
        (b"[NaN]", 400),
        (b"\xef\xbb\xbf{}", 400),
        (b"[" * 60_000, 422),
        (b'{"dry_run":1e400}', 422),
        (b'{"dry_run":' + b"9" * 5_000 + b"}", 422),
        (b'{"dry_run":"\\ud800"}', 422),
        (b'{"dry_run":"true","changes":[]}', 422),
        (b"[]", 422),
        (b"0", 422),
    ],
)
async def test_json_goes_through_the_one_parser(
    client: httpx.AsyncClient, body: bytes, status: int
) -> None:
    found = await client.post("/api/changes", content=body, headers=JSON)
    assert_failure(found, status, "bad_request" if status == 400 else "invalid_input")


# Query strings


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("limit=1&limit=2", "limit"),
        ("limit=1&limit=1", "limit"),
        ("lim%69t=1&limit=1", "limit"),
        ("Limit=1", "Limit"),
        ("page=1", "page"),
        ("tenant_id=1", "tenant_id"),
        ("limit=1&x", "x"),
        ("limit[]=1", "query"),
        ("=1", "query"),
        ("%00=1", "query"),
        ("%3Cscript%3E=1", "query"),
        ("limit=", "limit"),
        ("limit=0", "limit"),
        ("limit=10001", "limit"),
        ("limit=1;limit=2", "limit"),
        ("limit=" + "9" * 5_000, "limit"),
        ("limit=1e1", "limit"),
        ("limit=%EF%BC%91", "limit"),
    ],
)
async def test_query_parameters_are_known_and_single(
    client: httpx.AsyncClient, query: str, field: str
) -> None:
    found = await client.get(f"/api/list?{query}")
    details = assert_failure(found, 422, "invalid_input")["details"]
    assert [one["field"] for one in details] == [field]
    assert "script" not in found.text


async def test_parameters_of_dependencies_are_known(client: httpx.AsyncClient) -> None:
    for path in ("/api/list?trace=x&limit=1", "/api/flag?trace=x&direct=true", "/api/flag?"):
        assert (await client.get(path)).status_code == 200
    assert (await client.post("/api/role/x?trace=1&trace=2")).status_code == 422


# Variants


async def test_admission_comes_before_everything_else() -> None:
    asked: list[str] = []

    async def admit(request: Request) -> None:
        asked.append(request.url.path)
        if "authorization" not in request.headers:
            raise errors.Unauthorized(sent=False)

    router = APIRouter(route_class=contract_route(admit))

    @router.post("/api/changes")
    async def changes(body: Changes) -> Response:
        return answer({}, "Done", 1, NOW)

    app = FastAPI(exception_handlers=exception_handlers(clock))
    app.include_router(router)
    async with connect(edge(app)) as client:
        for more in ({"data": {"a": 1}}, {"content": b"{", "headers": JSON}, {}):
            found = await client.post("/api/changes?unknown=1", **more)
            assert_failure(found, 401, "unauthorized")
        known = await client.post("/api/changes", headers={"authorization": "x"})
        assert_failure(known, 422, "invalid_input")
    assert len(asked) == 4


async def test_bodies_can_be_left_to_the_endpoint() -> None:
    router = APIRouter(route_class=contract_route(json_bodies=False))

    @router.post("/api/token")
    async def token(request: Request) -> Response:
        return answer((await request.body()).decode(), "Done", 1, NOW)

    app = FastAPI(exception_handlers=exception_handlers(clock))
    app.include_router(router)
    async with connect(edge(app)) as client:
        found = await client.post("/api/token", data={"grant_type": "client_credentials"})
        assert found.json()["data"] == "grant_type=client_credentials"
        assert (await client.post("/api/token?x=1")).status_code == 422
