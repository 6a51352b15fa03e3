"""Rate limits over HTTP: every route that is not exempt, every budget, one process and several."""

from __future__ import annotations

import asyncio
import itertools
import re
import runpy
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from fastapi.routing import iter_route_contexts

from authsvc import shared_counts
from authsvc.api.rate_limits import budgets_of_routes, prefix_of
from authsvc.app import create_app
from authsvc.credentials import new_client_key
from authsvc.errors import StartError
from authsvc.rate_budgets import PROFILES, parse_rates
from authsvc.services import rate_limits
from authsvc.services.rate_limits import RateLimits
from authsvc.shared_counts import ANSWER_SECONDS, SharedCounts
from conftest import Storage, TenantAtWork
from http_api import Api, NewTenant, Serve, check_problem, settings_for
from redis_server import RedisServer

pytest_plugins = ["http_fixtures"]

TOLD = (
    "ratelimit", "ratelimit-policy", "x-ratelimit-limit", "x-ratelimit-remaining",
    "x-ratelimit-reset",
)  # fmt: skip
BUDGETS = ("check", "read", "write", "token")
ONE_EACH: dict[str, Any] = {f"rate_limit_{name}": "1/hour" for name in BUDGETS}
PATH = "/api/has_permission/alice/deploy"


@pytest.fixture(scope="module")
def redis_module() -> Iterator[RedisServer]:
    """A Redis of this module's own."""
    server = RedisServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture
def redis(redis_module: RedisServer) -> RedisServer:
    """A Redis that runs and holds nothing."""
    assert redis_module.ask("FLUSHALL") == b"+OK"
    return redis_module


def limited(response: httpx.Response, budget: str | None = None) -> Any:
    """A 429 with all it has to carry; its body."""
    body = check_problem(response, 429, "rate_limited")
    seconds = response.headers["retry-after"]
    assert re.fullmatch(r"[1-9][0-9]*", seconds)
    told(response)
    assert f"{seconds} s" in body["message"]
    assert response.headers["x-ratelimit-remaining"] == "0"
    if budget is not None:
        assert response.headers["ratelimit"].startswith(f'"{budget}";r=0;t=')
    return body


def told(response: httpx.Response) -> None:
    """Every header that tells of a limit."""
    found = response.headers
    for name in TOLD:
        assert len(found.get_list(name)) == 1, name
    for name in TOLD[2:]:
        assert re.fullmatch(r"[0-9]+", found[name])
    amount, left, seconds = (found[name] for name in TOLD[2:])
    assert re.fullmatch(rf'"[a-z-]+";r={left};t={seconds}', found["ratelimit"])
    assert re.fullmatch(rf'"[a-z-]+";q={amount};w=[1-9][0-9]*', found["ratelimit-policy"])


def untold(response: httpx.Response) -> None:
    """No header that tells of a limit."""
    assert not any(name in response.headers for name in TOLD)


async def statuses(api: Api, number: int, method: str = "GET", path: str = PATH) -> Counter[int]:
    """How often each status was answered, one request after the other."""
    found: Counter[int] = Counter()
    for _ in range(number):
        found[(await api.send(method, path)).status_code] += 1
    return found


# Every route


def routes_of(app: FastAPI) -> list[tuple[str, str]]:
    """(method, path) of every route, the parameters filled in."""
    made = []
    for context in iter_route_contexts(app.routes):
        path = re.sub(r"\{[^}]*\}", "alice", str(context.path))
        made += [(method, path) for method in sorted((context.methods or set()) - {"HEAD"})]
    return made


async def test_every_route_is_limited_or_known_to_be_free(
    app: FastAPI, serve: Serve, new_tenant: NewTenant
) -> None:
    routes = routes_of(app)
    free, counted = [], []
    async with serve(**ONE_EACH, rate_limit_role_create="1/hour") as service:
        for method, path in routes:
            known = service.with_key((await new_tenant()).key)
            for _ in range(2):
                fields = {"grant_type": "client_credentials", "token": "x"}
                body = {"data": fields} if path.startswith("/api/token") else {}
                response = await known.send(method, path, **body)
            if path.startswith("/api/"):
                limited(response)
                counted.append(path)
            else:
                assert response.status_code != 429
                untold(response)
                free.append(path)
    assert len(counted) >= 28
    assert {"/ping", "/health", "/health/live", "/health/ready", "/"} <= set(free)


@pytest.mark.parametrize(
    "path",
    ["/api/forgotten", "/api/token/all", "/api/tokens", "/docs-export", "/healthy", "/pings"],
)
def test_a_route_that_nobody_thought_of_stops_the_start(tmp_path: Path, path: str) -> None:
    storage = Storage("sqlite", tmp_path / "auth.sqlite3")
    app = create_app(settings_for(storage))
    limits = app.state.service.limits

    @app.get(path)
    async def forgotten() -> None:
        """Nothing."""

    with pytest.raises(StartError, match=f"{path} has no rate limit"):
        budgets_of_routes(app, limits)


async def test_a_limit_that_does_not_count_would_be_noticed(
    serve: Serve, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing(*_: Any) -> None:
        return None

    monkeypatch.setattr(RateLimits, "take", nothing)
    monkeypatch.setattr(RateLimits, "take_check", lambda *_: True)
    async with serve(**ONE_EACH) as service:
        assert await statuses(service.with_key(api.key), 5) == {200: 5}


# The budgets


def test_the_profiles_are_the_contracts() -> None:
    guide = "100/hour;10/minute"
    assert PROFILES["strict"] == {
        "check": guide, "read": guide, "write": guide, "role_create": "5/minute",
        "token": "10/minute", "auth_failure": "10/minute",
    }  # fmt: skip
    assert PROFILES["service"] == {
        "check": "20000/second", "read": "1000/second", "write": "200/second",
        "token": "60/minute", "auth_failure": "30/minute",
    }  # fmt: skip
    strict = [(rate.amount, rate.seconds) for rate in parse_rates(guide)]
    assert strict == [(10, 60), (100, 3600)]


async def test_the_guides_figures(serve: Serve, new_tenant: NewTenant, owner: TenantAtWork) -> None:
    clock = owner.clock
    async with serve(rate_limit_profile="strict") as service:
        for path in (PATH, "/api/roles"):
            known = service.with_key((await new_tenant()).key)
            clock.instant = clock.instant.replace(minute=0, second=0, microsecond=0)
            total: Counter[int] = Counter()
            for _ in range(12):
                found = await statuses(known, 12, path=path)
                total += found
                clock.advance(60)
                await asyncio.sleep(0)
            # Ten a minute, and after ten minutes the hundred of the hour are used up.
            assert total == {200: 100, 429: 44}
            clock.instant += timedelta(hours=1)
        known = service.with_key((await new_tenant()).key)
        made = [await known.send("POST", f"/api/role/r{number}") for number in range(7)]
        assert [one.status_code for one in made] == [200] * 5 + [429] * 2
        limited(made[-1], "role-create")
        assert (await known.send("POST", "/api/permission/r1/deploy")).status_code == 200
        ops = [{"op": "add_role", "role": f"x{number}"} for number in range(3)]
        limited(await known.send("POST", "/api/changes", {"changes": ops}), "role-create")
        dry = await known.send("POST", "/api/changes", {"changes": ops, "dry_run": True})
        assert dry.status_code == 200


async def test_headers_on_everything_but_checks(serve: Serve, api: Api) -> None:
    limits: dict[str, Any] = {
        "rate_limit_check": "3/minute",
        "rate_limit_write": "3/minute;100/hour",
    }
    async with serve(**limits) as service:
        known = service.with_key(api.key)
        for left in (2, 1, 0):
            untold(await known.send("GET", PATH))
            response = await known.send("POST", "/api/role/ops")
            told(response)
            assert response.headers["x-ratelimit-remaining"] == str(left)
            assert response.headers["ratelimit-policy"] == '"write";q=3;w=60'
        limited(await known.send("GET", PATH), "check")
        limited(await known.send("POST", "/api/check", {"checks": []}), "check")
        limited(await known.send("POST", "/api/role/ops"), "write")
        refused = await known.send("GET", "/api/roles?x=1")
        assert refused.status_code == 422
        untold(refused)


async def test_tenants_are_apart_and_keys_of_one_are_not(
    serve: Serve, api: Api, new_tenant: NewTenant
) -> None:
    second = (await api.data("POST", "/api/keys", {"label": "second"}))["key"]
    token = await api.http.post(
        "/api/token", data={"grant_type": "client_credentials", "client_secret": second}
    )
    async with serve(rate_limit_check="6/minute") as service:
        credentials = [api.key, second, token.json()["access_token"]]
        for credential in credentials:
            assert await statuses(service.with_key(credential), 2) == {200: 2}
        for credential in credentials:
            assert await statuses(service.with_key(credential), 1) == {429: 1}
        other = service.with_key((await new_tenant()).key)
        assert await statuses(other, 6) == {200: 6}


async def test_windows_end(serve: Serve, api: Api, owner: TenantAtWork) -> None:
    async with serve(rate_limit_check="2/minute", rate_limit_read="2/minute") as service:
        known = service.with_key(api.key)
        for path in (PATH, "/api/roles"):
            assert await statuses(known, 3, path=path) == {200: 2, 429: 1}
        seconds = int((await known.send("GET", PATH)).headers["retry-after"])
        assert 1 <= seconds <= 60
        owner.clock.advance(seconds)
        for path in (PATH, "/api/roles"):
            assert await statuses(known, 3, path=path) == {200: 2, 429: 1}


async def test_failures_count_against_the_address(serve: Serve, api: Api) -> None:
    async with serve(rate_limit_auth_failure="5/minute") as service:
        codes = []
        for _ in range(10):
            guess = service.with_key(new_client_key())
            response = await guess.send("GET", "/api/roles")
            codes.append(response.status_code)
        assert codes == [401] * 5 + [429] * 5
        limited(response, "auth-failure")
        # What is known is served as ever, from the same address.
        assert await statuses(service.with_key(api.key), 5) == {200: 5}
        refused = await service.http.post("/api/token", data={"grant_type": "refresh_token",
                                          "refresh_token": "rft_" + "a" * 65})  # fmt: skip
        limited(refused, "auth-failure")
        limited(await service.http.post("/api/token", data={"grant_type": "x"}), "auth-failure")
        # Nobody escapes by another address of the same subscriber, or by a header.
        transport = httpx.ASGITransport(service.http._transport.app, client=("203.0.113.9", 1))  # type: ignore[attr-defined]
        async with httpx.AsyncClient(transport=transport, base_url="http://testserver") as other:
            assert (await other.get("/api/roles")).status_code == 401
        spoofed = {"X-Forwarded-For": "198.51.100.7", "Forwarded": "for=198.51.100.7"}
        limited(await service.http.get("/api/roles", headers=spoofed), "auth-failure")


async def test_ten_thousand_guesses_from_one_address(serve: Serve) -> None:
    async with serve(rate_limit_profile="service", client_registration="open") as service:
        found: Counter[int] = Counter()
        for _ in range(400):
            guess = service.with_key(new_client_key())
            found[(await guess.send("GET", PATH)).status_code] += 1
        assert found == {200: 30, 429: 370}
        # Nor can one make tenants without end.
        limited(await service.with_key(new_client_key()).send("POST", "/api/role/ops"))


async def test_a_new_key_counts_until_its_tenant_is_made(serve: Serve) -> None:
    limits: dict[str, Any] = {"rate_limit_auth_failure": "2/minute", "client_registration": "open"}
    async with serve(**limits) as service:
        made = service.with_key(new_client_key())
        await made.ok("POST", "/api/role/ops")
        for _ in range(5):
            await made.ok("POST", "/api/role/ops")
            assert (await made.send("GET", PATH)).status_code == 200


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::9", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        (None, "no address", True),
    ],
)
def test_addresses_that_count_together(one: str | None, other: str, same: bool) -> None:
    assert (prefix_of(one) == prefix_of(other)) is same


async def test_tokens_have_a_budget(serve: Serve, api: Api, new_tenant: NewTenant) -> None:
    async with serve(rate_limit_token="3/minute") as service:
        grant = {"grant_type": "client_credentials", "client_secret": api.key or ""}
        answers = [await service.http.post("/api/token", data=grant) for _ in range(4)]
        assert [one.status_code for one in answers] == [200] * 3 + [429]
        told(answers[0])
        limited(answers[-1], "token")
        spent = answers[0].json()["refresh_token"]
        again = {"grant_type": "refresh_token", "refresh_token": spent}
        limited(await service.http.post("/api/token", data=again), "token")
        asked = {"token": spent, "client_secret": api.key or ""}
        for path in ("revoke", "introspect"):
            limited(await service.http.post(f"/api/token/{path}", data=asked), "token")
        other = {"grant_type": "client_credentials", "client_secret": (await new_tenant()).key}
        assert (await service.http.post("/api/token", data=other)).status_code == 200


async def test_off_is_off(serve: Serve, api: Api) -> None:
    off: dict[str, Any] = {f"rate_limit_{name}": "off" for name in BUDGETS}
    for profile, more in (("off", {}), ("strict", off)):
        async with serve(rate_limit_profile=profile, **more) as service:
            known = service.with_key(api.key)
            for method, path in (("GET", PATH), ("GET", "/api/roles"), ("DELETE", "/api/role/x")):
                assert await statuses(known, 30, method, path) == {200: 30}


# Several processes


@asynccontextmanager
async def processes(serve: Serve, number: int, **settings: Any) -> AsyncIterator[list[Api]]:
    """Services that count together, each as a process would."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(serve(**settings)) for _ in range(number)]


async def together(apis: list[Api], key: str | None, number: int, path: str) -> Counter[int]:
    """Requests to all of them in turn, some at the same time."""
    turns = itertools.cycle(apis)
    found: Counter[int] = Counter()
    for _ in range(number // 10):
        sent = [next(turns).with_key(key).send("GET", path) for _ in range(10)]
        found += Counter(one.status_code for one in await asyncio.gather(*sent))
    return found


async def test_four_processes_share_a_count(
    serve: Serve, api: Api, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # This is about the count, however busy the machine is.
    monkeypatch.setattr(shared_counts, "ANSWER_SECONDS", 5)
    limits: dict[str, Any] = {"rate_limit_read": "100/hour", "rate_limit_storage_url": redis.url}
    async with processes(serve, 4, **limits) as apis:
        found = await together(apis, api.key, 200, "/api/roles")
        assert found == {200: 100, 429: 100}
        for one in apis:
            assert (await one.http.get("/health/ready")).json()["reasons"] == []


async def test_checks_are_settled_ten_times_a_second(
    serve: Serve, api: Api, redis: RedisServer
) -> None:
    limits: dict[str, Any] = {"rate_limit_check": "100/hour", "rate_limit_storage_url": redis.url}
    async with processes(serve, 4, **limits) as apis:
        found: Counter[int] = Counter()
        for _ in range(20):
            found += await together(apis, api.key, 10, PATH)
            await asyncio.sleep(rate_limits.SETTLE_SECONDS)
        # What four processes let through in a tenth of a second may be too much.
        assert 100 <= found[200] <= 110
        assert found[200] + found[429] == 200
        await asyncio.sleep(2 * rate_limits.SETTLE_SECONDS)
        for one in apis:
            assert await statuses(one.with_key(api.key), 2) == {429: 2}


async def test_without_settling_the_overshoot_would_be_noticed(
    serve: Serve, api: Api, redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def never(_: RateLimits) -> None:
        return None

    monkeypatch.setattr(RateLimits, "_settle", never)
    limits: dict[str, Any] = {"rate_limit_check": "100/hour", "rate_limit_storage_url": redis.url}
    async with processes(serve, 4, **limits) as apis:
        assert (await together(apis, api.key, 200, PATH))[200] == 200


Break = Callable[[RedisServer], None]


def _flush(server: RedisServer) -> None:
    server.ask("FLUSHALL")


@pytest.mark.parametrize("how", [RedisServer.kill, RedisServer.pause, _flush])
async def test_redis_away_costs_no_error(
    serve: Serve, api: Api, redis: RedisServer, how: Break, caplog: pytest.LogCaptureFixture
) -> None:
    limits: dict[str, Any] = {"rate_limit_read": "1000/hour", "rate_limit_storage_url": redis.url}
    async with serve(**limits) as service:
        known = service.with_key(api.key)
        assert await statuses(known, 5, path="/api/roles") == {200: 5}
        how(redis)
        try:
            slow = []
            for _ in range(60):
                began = time.perf_counter()
                assert (await known.send("GET", "/api/roles")).status_code == 200
                slow.append(time.perf_counter() - began > ANSWER_SECONDS)
            # Those wait that come before Redis is known to be away, and the machine may be busy.
            assert sum(slow) <= 10
            if how is not _flush:
                await _ready(service, "degraded")
            ready = await service.http.get("/health/ready")
            assert ready.status_code == 200
            if how is _flush:
                return
            assert ready.json()["status"] == "degraded"
            assert "Redis" in ready.json()["reasons"][0]
            assert redis.url not in caplog.text
            lost = [one for one in caplog.records if one.name == "authsvc.rate_limits"]
            assert len(lost) == 1
        finally:
            if how is RedisServer.kill:
                redis.start()
            redis.resume()
        await _ready(service)
        assert await statuses(known, 5, path="/api/roles") == {200: 5}


async def _ready(service: Api, status: str = "ready") -> None:
    """Wait until the service says so of itself."""
    for _ in range(100):
        if (await service.http.get("/health/ready")).json()["status"] == status:
            return
        await asyncio.sleep(0.1)
    raise AssertionError(f"it does not become {status}")


async def test_redis_away_from_the_start(serve: Serve, api: Api, redis: RedisServer) -> None:
    redis.kill()
    try:
        limits: dict[str, Any] = {"rate_limit_read": "10/hour", "rate_limit_storage_url": redis.url}
        async with serve(**limits) as service:
            known = service.with_key(api.key)
            # Counted alone, and not let through without end.
            assert await statuses(known, 15, path="/api/roles") == {200: 10, 429: 5}
            redis.start()
            await _ready(service)
    finally:
        if redis.ask("PING") != b"+PONG":
            redis.start()


async def test_alone_a_process_lets_through_its_share() -> None:
    limits = RateLimits(
        {"read": parse_rates("100/hour"), "check": parse_rates("8/hour")}, workers=4
    )
    found = [await limits.take("read", "tenant") for _ in range(30)]
    assert sum(one is not None and not one.exceeded for one in found) == 25
    assert sum(limits.take_check("tenant") for _ in range(10)) == 2
    assert limits.reduced is None


async def test_alone_a_share_is_what_the_process_let_through_itself(redis: RedisServer) -> None:
    shared = SharedCounts(redis.url)
    limits = RateLimits({"check": parse_rates("100/hour")}, shared=shared, workers=4)
    for _ in range(5):
        assert limits.take_check("tenant")
    await shared.add(f"check:tenant:3600:{int(time.time() // 3600)}", 3600, 50)
    await limits._settle()
    shared.away = True
    await limits._settle()
    # Others used up half of it together; of its own quarter this one has used five.
    assert sum(limits.take_check("tenant") for _ in range(50)) == 20
    shared.away = False
    await limits._settle()
    assert sum(limits.take_check("tenant") for _ in range(50)) == 25
    await shared.close()


async def test_what_was_counted_alone_is_told_later(redis: RedisServer) -> None:
    shared = SharedCounts(redis.url)
    limits = RateLimits({"read": parse_rates("100/hour")}, shared=shared, workers=4)
    shared.away = True
    for _ in range(10):
        await limits.take("read", "tenant")
    shared.away = False
    standing = await limits.take("read", "tenant")
    assert standing is not None
    assert standing.remaining == 89
    await shared.close()


async def test_one_late_answer_is_no_absence(caplog: pytest.LogCaptureFixture) -> None:
    late = [0.1]

    async def answer(received: bytes) -> bytes:
        if late:
            await asyncio.sleep(late.pop())
        return b":1\r\n" * received.count(b"*")

    async with pretender(answer) as url:
        shared = SharedCounts(url)
        assert await shared.add("key", 60, 1) is None
        for _ in range(100):
            if not shared.away:
                break
            await asyncio.sleep(0.01)
        assert await shared.add("key", 60, 1) == 1
        await shared.close()
    assert not [one for one in caplog.records if one.name == "authsvc.rate_limits"]


Answer = Callable[[bytes], Awaitable[bytes]]


@asynccontextmanager
async def pretender(answer: Answer) -> AsyncIterator[str]:
    """Something that answers in place of a Redis; its URL."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while received := await reader.read(65536):
                writer.write(await answer(received))
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"redis://127.0.0.1:{server.sockets[0].getsockname()[1]}/0"
    finally:
        server.close()


GARBAGE = [
    b"", b"\x00\xff" * 100 + b"\r\n", b"HTTP/1.1 200 OK\r\n\r\n", b"-ERR no\r\n", b"+OK\r\n",
    b"$-1\r\n", b":-5\r\n", b":0\r\n", b"*2\r\n:1\r\n:2\r\n", b"$5\r\nhello\r\n", b":99",
    b"$99999999\r\n", b"*99999\r\n",
]  # fmt: skip


@pytest.mark.parametrize("text", GARBAGE)
async def test_redis_that_answers_garbage(serve: Serve, api: Api, text: bytes) -> None:
    async def answer(_: bytes) -> bytes:
        return text

    async with pretender(answer) as url:
        limits: dict[str, Any] = {"rate_limit_read": "10/hour", "rate_limit_storage_url": url}
        async with serve(**limits) as service:
            known = service.with_key(api.key)
            assert await statuses(known, 12, path="/api/roles") == {200: 10, 429: 2}
            await _ready(service, "degraded")


async def test_redis_that_is_slow() -> None:
    async def answer(received: bytes) -> bytes:
        await asyncio.sleep(0.2)
        return b":1\r\n" * received.count(b"*")

    async with pretender(answer) as url:
        shared = SharedCounts(url)
        waited = []
        for _ in range(20):
            began = time.perf_counter()
            assert await shared.add("key", 60, 1) is None
            waited.append(time.perf_counter() - began)
        await shared.close()
    assert sum(seconds > ANSWER_SECONDS / 2 for seconds in waited) <= 3


async def test_the_redis_of_the_compose_stack() -> None:
    """Its generated configuration and its generated URL belong together."""
    script = Path(__file__).parents[1] / "scripts" / "make_secrets.py"
    made = runpy.run_path(str(script))["contents"]()
    server = RedisServer(config=made["redis_config"])
    server.start()
    try:
        url = made["redis_url"].strip().replace("redis:6379", f"127.0.0.1:{server.port}")
        shared = SharedCounts(url)
        await shared.open()
        assert await shared.add("key", 60, 3) == 3
        assert await shared.add("key", 60, 3) == 6
        await shared.close()
        refused = SharedCounts(f"redis://127.0.0.1:{server.port}/0")
        await refused.open()
        assert refused.away
        await refused.close()
    finally:
        server.stop()


async def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rate_limits, "_MOST_CELLS", 100)
    limits = RateLimits({"auth_failure": parse_rates("5/minute"), "check": parse_rates("5/minute")})
    for number in range(1000):
        await limits.take("auth_failure", number)
        limits.take_check(number)
    assert len(limits._cells) <= 100
    assert len(limits._checks) <= 100
