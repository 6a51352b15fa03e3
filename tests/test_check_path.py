"""The short way and the ordinary route give the same bytes for every request."""

from __future__ import annotations

import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from authsvc.api.check_path import CheckPath
from authsvc.app import create_app
from authsvc.decision_cache import DecisionCache
from authsvc.records import Change
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import settings_for

Asgi = Callable[[dict[str, Any], Any, Any], Awaitable[None]]


@pytest.fixture
async def app(
    storage: Storage, clock: ControlledClock, tenant: TenantAtWork
) -> AsyncIterator[FastAPI]:
    """The application on a tenant with a little of everything."""
    await tenant.write(
        Change("add_role", role="reader"),
        Change("add_role", role="lead"),
        Change("add_parent", role="lead", parent="reader"),
        Change("grant", role="reader", permission="doc:*"),
        Change("grant", role="lead", permission="deploy"),
        Change("add_member", user="alice@example.com", role="lead"),
        Change("add_member", user="bob", role="reader", scope="a"),
        Change("add_member", user="carol|x+y", role="reader", expires_at=clock.advance(0)),
        Change("add_member", user=".dot", role="reader"),
    )
    made = create_app(settings_for(storage), clock=clock)
    async with made.router.lifespan_context(made):
        yield made


async def call(
    app: Asgi, request: dict[str, Any], body: bytes = b""
) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of one request."""
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body, "more_body": False}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    await app(dict(request), receive, send)
    answered = b"".join(message.get("body", b"") for message in sent[1:])
    return sent[0]["status"], list(sent[0]["headers"]), answered


def ordinary(app: FastAPI) -> Asgi:
    """The application without its short way."""

    async def answer(scope: dict[str, Any], receive: Any, send: Any) -> None:
        await FastAPI.__call__(app, scope, receive, send)

    return answer


def request(key: str, path: str, **more: Any) -> dict[str, Any]:
    """An ASGI scope as uvicorn makes it."""
    from urllib.parse import unquote

    plain, _, query = path.partition("?")
    headers = [
        (b"host", b"auth.example.com"),
        (b"authorization", f"Bearer {key}".encode()),
        (b"x-request-id", b"fixed"),
    ]
    return {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": unquote(plain),
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": headers,
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 5000),
        **more,
    }


USERS = [
    "alice@example.com", "alice%40example.com", "bob", "carol|x+y", "carol%7Cx%2By",
    "carol%7cx%2by", "nobody", ".dot", "..", ".", "a" * 254, "a" * 255, "%41lice", "al%ZZice",
    "x%0A", "x y", "%C3%A9", "", "a:b", "a%3Ab", "a%3ab", "*",
]  # fmt: skip
PERMISSIONS = [
    "deploy", "doc:read", "doc%3Aread", "doc", "doc:a:b", "doc:*", "*", "p" * 128, "p" * 129,
    "x%0A", ".", ".x", "", "deploy/", "deploy/more", "a@b", "de%70loy",
]  # fmt: skip
EXTRA_HEADERS: list[list[tuple[bytes, bytes]]] = [
    [],
    [(b"origin", b"https://a.example")],
    [(b"content-length", b"0")],
    [(b"accept", b"text/html"), (b"user-agent", b"curl")],
    [(b"traceparent", b"00-1-2-3")],
    [(b"authorization", b"Bearer second")],
    [(b"host", b"second.example")],
]


async def tokens_of(app: FastAPI, key: str) -> list[str]:
    """Access tokens of a key: two in force, one that may do less, one of a family that ended."""
    transport = httpx.ASGITransport(app)
    async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as http:
        grant = {"grant_type": "client_credentials", "client_secret": key}
        found = []
        for more in ({}, {}, {"scope": "check"}, {}):
            answer = await http.post("/api/token", data=grant | more)
            found.append(answer.json()["access_token"])
        await http.post("/api/token/revoke", data={"token": found[-1], "client_secret": key})
    return found


def random_request(rng: random.Random, key: str) -> dict[str, Any]:
    """A request for a check, in every form that somebody might send."""
    path = f"/api/has_permission/{rng.choice(USERS)}/{rng.choice(PERMISSIONS)}"
    path += rng.choice(["", "", "", "", "?scope=a", "?explain=true", "?x=1", "?"])
    sent = rng.choice([key, key, key, key, key.upper(), "nonsense", ""])
    made = request(sent, path)
    made["headers"] = made["headers"] + rng.choice([[], [], *EXTRA_HEADERS])
    if rng.random() < 0.1:
        made["headers"] = [pair for pair in made["headers"] if pair[0] != b"authorization"]
    if rng.random() < 0.05:
        made["method"] = rng.choice(["POST", "HEAD", "DELETE"])
    if rng.random() < 0.1:
        scheme = rng.choice([b"bearer ", b"BEARER  ", b"Basic "])
        made["headers"] = [
            (name, scheme + key.encode()) if name == b"authorization" else (name, value)
            for name, value in made["headers"]
        ]
    return made


async def differences(app: FastAPI, tenant: TenantAtWork, *, seed: int, number: int) -> list[str]:
    """Requests that the two ways answer differently."""
    rng = random.Random(seed)
    found = []
    tokens = await tokens_of(app, tenant.key)
    for _ in range(number):
        asked = random_request(rng, rng.choice([tenant.key, *tokens]))
        short = await call(app, asked)
        long = await call(ordinary(app), asked)
        if short != long:
            found.append(f"{asked['raw_path']!r} {asked['headers']}: {short} against {long}")
    return found


async def test_both_ways_give_the_same_bytes(app: FastAPI, tenant: TenantAtWork) -> None:
    assert await differences(app, tenant, seed=1, number=1000) == []


async def test_another_body_would_be_noticed(
    app: FastAPI, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("authsvc.api.check_path.check_body", lambda *_: b"{}")
    assert await differences(app, tenant, seed=1, number=1000)


async def taken(app: FastAPI, asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether the short way answers a request itself."""
    handed_on: list[bool] = []
    short_way = app.short_way  # type: ignore[attr-defined]
    assert isinstance(short_way, CheckPath)
    following = short_way._app

    async def noted(scope: Any, receive: Any, send: Any) -> None:
        handed_on.append(True)
        await following(scope, receive, send)

    with monkeypatch.context() as patch:
        patch.setattr(short_way, "_app", noted)
        await call(app, asked)
    return not handed_on


async def test_a_remembered_check_goes_the_short_way(
    app: FastAPI, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = request(tenant.key, "/api/has_permission/alice%40example.com/doc:read")
    assert not await taken(app, plain, monkeypatch), "nothing is remembered yet"
    assert await taken(app, plain, monkeypatch)
    assert not await taken(app, {**plain, "query_string": b"explain=true"}, monkeypatch)
    # After a write that touches the user it is asked the ordinary way once.
    await tenant.write(Change("remove_member", user="alice@example.com", role="lead"))
    status, _, body = await call(app, plain)
    assert (status, b'"has_permission":false' in body) == (200, True)
    assert await taken(app, plain, monkeypatch)


async def test_a_remembered_token_goes_the_short_way(
    app: FastAPI, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    token, _, narrow, ended = await tokens_of(app, tenant.key)
    path = "/api/has_permission/alice%40example.com/doc:read"
    for sent in (token, narrow):
        assert not await taken(app, request(sent, path), monkeypatch), "not remembered yet"
        assert await taken(app, request(sent, path), monkeypatch)
    for _ in range(2):
        assert not await taken(app, request(ended, path), monkeypatch)
        assert (await call(app, request(ended, path)))[0] == 401


async def test_a_revoke_through_another_process_is_seen_by_the_very_next_check(
    app: FastAPI, tenant: TenantAtWork, storage: Storage
) -> None:
    other = storage.open()
    asked = request(tenant.key, "/api/has_permission/alice@example.com/deploy")
    for _ in range(20):
        await tenant.write(Change("grant", role="lead", permission="deploy"), database=other)
        assert b'"has_permission":true' in (await call(app, asked))[2]
        await tenant.write(Change("revoke", role="lead", permission="deploy"), database=other)
        assert b'"has_permission":false' in (await call(app, asked))[2]


def batch(key: str, body: Any) -> tuple[dict[str, Any], bytes]:
    """A request for many checks, and its body."""
    sent = json.dumps(body).encode()
    asked = request(key, "/api/check")
    headers = [
        *asked["headers"],
        (b"content-type", b"application/json"),
        (b"content-length", b"%d" % len(sent)),
    ]
    return {**asked, "method": "POST", "headers": headers}, sent


async def test_many_checks_are_the_single_ones_remembered_or_not(
    app: FastAPI, tenant: TenantAtWork
) -> None:
    chance = random.Random(3)
    users = ["alice@example.com", "bob", "carol|x+y", ".dot", "nobody"]
    permissions = ["doc:read", "doc:x:y", "deploy", "nothing"]
    for _ in range(60):
        some = chance.sample(users, chance.randint(1, 5))
        items = [
            {"user": chance.choice(some), "permission": chance.choice(permissions)}
            for _ in range(chance.randint(1, 12))
        ]
        asked, body = batch(tenant.key, {"checks": items})
        status, _, answered = await call(app, asked, body)
        assert status == 200
        singles = [
            json.loads(
                (
                    await call(
                        ordinary(app),
                        request(
                            tenant.key, f"/api/has_permission/{item['user']}/{item['permission']}"
                        ),
                    )
                )[2]
            )["data"]["has_permission"]
            for item in items
        ]
        assert json.loads(answered)["data"]["results"] == singles
        if chance.random() < 0.3:
            permission = chance.choice(["deploy", "x"])
            grant = Change("grant", role="lead", permission=permission)
            revoke = Change("revoke", role="lead", permission=permission)
            await tenant.write(chance.choice([grant, revoke]))


@pytest.mark.parametrize(
    ("item", "field"),
    [
        ({"user": "bob", "permission": "doc:*"}, "permission"),
        ({"user": "bob", "permission": 3}, "permission"),
        ({"user": ["bob"], "permission": "deploy"}, "user"),
        ({"user": "bob", "role": "deploy"}, "permission"),
        ({"user": "..", "permission": "deploy"}, "user"),
    ],
)
async def test_what_is_not_a_name_is_refused_among_remembered_ones(
    app: FastAPI, tenant: TenantAtWork, item: dict[str, Any], field: str
) -> None:
    good = [{"user": "alice@example.com", "permission": "deploy"}] * 3
    for _ in range(2):
        asked, body = batch(tenant.key, {"checks": good})
        assert json.loads((await call(app, asked, body))[2])["data"]["allowed"] == 3
        asked, body = batch(tenant.key, {"checks": [*good, item]})
        status, _, answered = await call(app, asked, body)
        assert status == 422
        assert f"checks.3.{field}" in {d["field"] for d in json.loads(answered)["details"]}


async def test_it_is_off_where_a_rule_reads_more(storage: Storage) -> None:
    for settings in (
        settings_for(storage, check_short_way=False),
        settings_for(storage, strict_names=True),
    ):
        app = create_app(settings)
        assert app.short_way is None  # type: ignore[attr-defined]


async def test_a_foreign_host_goes_the_ordinary_way(
    storage: Storage, tenant: TenantAtWork, clock: ControlledClock
) -> None:
    settings = settings_for(storage, allowed_hosts=("auth.example.com",))
    app = create_app(settings, clock=clock)
    async with app.router.lifespan_context(app):
        asked = request(tenant.key, "/api/has_permission/alice/deploy")
        for _ in range(2):
            assert (await call(app, asked))[0] == 200
        asked["headers"] = [(b"host", b"evil.example"), *asked["headers"][1:]]
        assert (await call(app, asked))[0] == 400


def test_the_cache_has_one_owner_for_a_digest() -> None:
    assert DecisionCache(1).owner(b"x" * 32) is None
