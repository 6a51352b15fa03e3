"""The audit trail is complete: every change that was acknowledged is in it once, and no other."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import pytest
from sqlalchemy import Connection, exc, text

from authsvc.app import create_app
from authsvc.audit_chain import AuditKeys, read_payload
from authsvc.errors import Unavailable
from authsvc.records import Change
from authsvc.repositories.audit_pages import pages
from authsvc.repositories.retention import Retention
from authsvc.services import operator
from authsvc.services.audit_proof import prove_tenant
from authsvc.services.replay_review import review_tenant
from conftest import RUNTIME_ROLE, ControlledClock, Storage, TenantAtWork, copied, runtime_url
from http_api import Api, served, settings_for
from services import PostgresServer
from test_cli import FIRST_KEY, STRONG, Home, Serving

AUDIT_KEY = "Mx7cVb2nQ8wEr5tYu1iOp4aSd6fGh9jKl3zXk0Lm"
KEYS = AuditKeys(AUDIT_KEY.encode())
WRITERS = 32
CHANGES = 10_000

Said = list[dict[str, Any]]


async def trail(tenant: TenantAtWork) -> Said:
    """What the tenant's events say, in order."""
    async with tenant.database.read() as tx:
        return [
            read_payload(stored.event) | {"seq": stored.event.seq}
            async for page in pages(tx, tenant.id, 0)
            for stored in page
        ]


async def whole(tenant: TenantAtWork, keys: AuditKeys) -> Said:
    """The trail, once it is proven to have no gap and no fork and to be what the tables hold."""
    async with tenant.database.read() as tx:
        proof = await prove_tenant(tx, tenant.id, "acme", keys)
        review = await review_tenant(tx, tenant.id)
    assert proof.problem is None
    assert review.findings == []
    events = await trail(tenant)
    assert [event["seq"] for event in events] == list(range(1, len(events) + 1))
    assert proof.checked == len(events) == proof.end.revision
    return events


# --- 32 writers ---


@pytest.mark.timeout(600)
async def test_many_writers_leave_one_event_for_each_change(
    storage: Storage, tenant: TenantAtWork
) -> None:
    """Single writes and lists, through two processes' applications on PostgreSQL."""
    acknowledged: list[tuple[str, int]] = []
    left = CHANGES

    async def write(api: Api, number: int) -> None:
        nonlocal left
        dice = random.Random(number)
        count = 0
        while left > 0:
            size = 1 if dice.random() < 0.6 else dice.randrange(2, 20)
            left -= size
            names = [f"w{number}:{count + n}" for n in range(size)]
            count += size
            if size == 1:
                answer = await api.ok("POST", f"/api/permission/role{number % 4}/{names[0]}")
            else:
                listed = [
                    {"op": "grant", "role": f"role{number % 4}", "permission": name}
                    for name in names
                ]
                answer = await api.ok("POST", "/api/changes", {"changes": listed})
                assert answer["data"]["applied"] == size
            acknowledged.extend((name, answer["revision"]) for name in names)

    await tenant.write(*[Change("add_role", role=f"role{n}") for n in range(4)])
    apps = 1 if storage.path is not None else 2
    async with AsyncExitStack() as stack:
        apis = []
        for _ in range(apps):
            app = create_app(settings_for(storage, audit_key=AUDIT_KEY), clock=tenant.clock)
            http = await stack.enter_async_context(served(app))
            apis.append(Api(http, tenant.clock, tenant.key))
        await asyncio.gather(*(write(apis[n % apps], n) for n in range(WRITERS)))
    events = await whole(tenant, KEYS)
    granted = {e["entity_id"]: e["seq"] for e in events if e["action"] == "grant"}
    assert Counter(e["entity_id"] for e in events if e["action"] == "grant") == Counter(
        name for name, _ in acknowledged
    )
    assert len(acknowledged) >= CHANGES
    # What was acknowledged at a revision had happened by then.
    assert all(granted[name] <= revision for name, revision in acknowledged)
    assert len({event["seq"] for event in events}) == len(events)


# --- SIGKILL in the middle ---


@pytest.fixture
async def home(
    storage_source: Path | str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[tuple[Home, Storage]]:
    """Settings of real servers on a database of each kind, and a way past them."""
    settings = {
        "AUTH_CLIENT_KEY": FIRST_KEY,
        "AUTH_JWT_SECRET_KEY": STRONG,
        "AUTH_AUDIT_KEY": AUDIT_KEY,
        "AUTH_RATE_LIMIT_PROFILE": "off",
    }
    if isinstance(storage_source, Path):
        storage = Storage("sqlite", tmp_path / ".auth.sqlite3")
        yield Home(tmp_path, settings), storage
        await storage.close()
    else:
        server: PostgresServer = request.getfixturevalue("postgres_server")
        async with copied(server, storage_source) as storage:
            url = runtime_url(server, storage.name)
            yield Home(tmp_path, settings | {"AUTH_POSTGRESQL_URL": url}), storage


@dataclass
class Writers:
    """Clients that write until the server is gone, and what they were told."""

    acknowledged: list[str] = field(default_factory=list)
    sent: set[str] = field(default_factory=set)

    def run(self, server: Serving, round_: int, clients: int = 4) -> list[threading.Thread]:
        def one(number: int) -> None:
            dice = random.Random(f"{round_} {number}")
            headers = {"Authorization": f"Bearer {FIRST_KEY}"}
            with httpx.Client(trust_env=False, timeout=20, headers=headers) as http:
                for count in range(100_000):
                    size = 1 if dice.random() < 0.7 else 8
                    names = [f"r{round_}:{number}:{count}:{n}" for n in range(size)]
                    self.sent.update(names)
                    try:
                        if size == 1:
                            url = f"{server.url}/api/permission/ops/{names[0]}"
                            answer = http.post(url)
                        else:
                            listed = [
                                {"op": "grant", "role": "ops", "permission": n} for n in names
                            ]
                            answer = http.post(
                                f"{server.url}/api/changes", json={"changes": listed}
                            )
                    except httpx.HTTPError:
                        return
                    if answer.status_code == 200:
                        self.acknowledged.extend(names)

        threads = [threading.Thread(target=one, args=(n,)) for n in range(clients)]
        for thread in threads:
            thread.start()
        return threads


@pytest.mark.parametrize("rounds", [2, pytest.param(100, marks=pytest.mark.campaign)])
@pytest.mark.timeout(3000)
async def test_a_server_that_is_killed_loses_nothing_acknowledged(
    home: tuple[Home, Storage], rounds: int
) -> None:
    place, storage = home
    dice = random.Random(rounds)
    writers = Writers()

    def kill_one(round_: int) -> None:
        with place.serving() as server:
            if not round_:
                url = f"{server.url}/api/role/ops"
                made = server.http.post(url, headers={"Authorization": f"Bearer {FIRST_KEY}"})
                assert made.status_code == 200
            threads = writers.run(server, round_)
            threads[0].join(0.3 + dice.random())
            server.process.kill()
            for thread in threads:
                thread.join()

    for round_ in range(rounds):
        before = len(writers.acknowledged)
        await asyncio.to_thread(kill_one, round_)
        assert len(writers.acknowledged) > before
        database = storage.open()
        async with database.read() as tx:
            found = (await tx.execute(text("SELECT id FROM tenant WHERE name = 'default'"))).one()
        tenant_id = UUID(bytes=found.id) if isinstance(found.id, bytes) else found.id
        tenant = TenantAtWork(database, ControlledClock(), tenant_id, FIRST_KEY)
        events = await whole(tenant, KEYS)
        granted = Counter(e["entity_id"] for e in events if e["action"] == "grant")
        assert set(granted.values()) == {1}
        assert set(writers.acknowledged) <= granted.keys() <= writers.sent
        await database.dispose()


# --- What cannot be recorded does not happen ---

_FAILING = {
    "sqlite": [
        "CREATE TRIGGER failing BEFORE INSERT ON audit_event BEGIN SELECT RAISE(ABORT, 'no'); END"
    ],
    "postgresql": [
        "CREATE FUNCTION failing() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN RAISE EXCEPTION 'no'; END $$",
        "CREATE TRIGGER failing BEFORE INSERT ON audit_event"
        " FOR EACH ROW EXECUTE FUNCTION failing()",
    ],
}
_WORKING = {
    "sqlite": ["DROP TRIGGER failing"],
    "postgresql": ["DROP TRIGGER failing ON audit_event"],
}


async def as_owner(storage: Storage, statements: list[str]) -> None:
    def run(connection: Connection) -> None:
        for statement in statements:
            connection.exec_driver_sql(statement)

    owner = storage.open(as_owner=True)
    async with owner.writer.begin() as connection:
        await connection.run_sync(run)
    await owner.dispose()


async def test_what_cannot_be_recorded_does_not_happen(
    storage: Storage, tenant: TenantAtWork
) -> None:
    app = create_app(settings_for(storage), clock=tenant.clock)
    async with served(app) as http:
        api = Api(http, tenant.clock, tenant.key)
        await api.ok("POST", "/api/role/ops")
        await api.ok("POST", "/api/permission/ops/deploy")
        await api.ok("POST", "/api/membership/alice/ops")
        form = {"grant_type": "client_credentials"}
        token = (await api.send("POST", "/api/token", form)).json()
        before, keys = await trail(tenant), await api.data("GET", "/api/keys")
        await as_owner(storage, _FAILING[storage.engine])
        asked: list[tuple[Any, ...]] = [
            ("POST", "/api/role/more"),
            ("DELETE", "/api/role/ops"),
            ("DELETE", "/api/permission/ops/deploy"),
            ("DELETE", "/api/membership/alice/ops"),
            ("POST", "/api/membership/bob/ops"),
            ("POST", "/api/changes", {"changes": [{"op": "add_role", "role": "x"}] * 2}),
            ("POST", "/api/keys", {"label": "more"}),
            ("POST", "/api/keys/rotate", {}),
            ("PUT", "/api/settings", {"strict_users": True}),
            ("POST", "/api/apikeys/user/alice", {"label": "x"}),
        ]
        for method, path, *body in asked:
            problem = await api.refused(503, "storage_unavailable", method, path, *body)
            assert "no" not in problem["message"].split(), problem
        revoked = await api.send("POST", "/api/token/revoke", {"token": token["access_token"]})
        assert revoked.status_code == 503
        await as_owner(storage, _WORKING[storage.engine])
        assert await trail(tenant) == before
        assert len(await api.data("GET", "/api/keys")) == len(keys)
        assert await api.can("alice", "deploy")
        assert not await api.with_key(token["access_token"]).can("alice", "destroy")
        assert await api.data("GET", "/api/settings") == {"strict_users": False}
        await api.ok("POST", "/api/role/more")
    assert len(await whole(tenant, AuditKeys())) == len(before) + 1


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_a_right_that_was_taken_away_is_the_same(
    storage: Storage, tenant: TenantAtWork
) -> None:
    await as_owner(storage, [f"REVOKE INSERT ON audit_event FROM {RUNTIME_ROLE}"])
    with pytest.raises(Unavailable):
        await tenant.write(Change("add_role", role="ops"))
    await as_owner(storage, [f"GRANT INSERT ON audit_event TO {RUNTIME_ROLE}"])
    assert len(await whole(tenant, AuditKeys())) == 2


async def test_what_changes_nothing_is_no_event(storage: Storage, tenant: TenantAtWork) -> None:
    app = create_app(settings_for(storage), clock=tenant.clock)
    async with served(app) as http:
        api = Api(http, tenant.clock, tenant.key)
        asked: list[tuple[Any, ...]] = [
            ("POST", "/api/role/ops"),
            ("POST", "/api/permission/ops/deploy"),
            ("POST", "/api/membership/alice/ops"),
            ("PUT", "/api/settings", {"strict_users": False}),
            ("POST", "/api/changes", {"changes": [{"op": "add_role", "role": "ops"}]}),
        ]
        for _ in range(2):
            for method, path, *body in asked:
                await api.ok(method, path, *body)
        for _ in range(2):
            await api.ok("DELETE", "/api/membership/alice/ops")
            await api.ok("DELETE", "/api/role/ops")
    assert len(await whole(tenant, AuditKeys())) == 2 + 3 + 2


# --- Who, from where, and what it was before ---

# One effective request for every route that changes policy: method, path, body, events.
EXPECTED: dict[str, tuple[str, Any, list[tuple[str, str]]]] = {
    "POST /api/role/{role}": ("/api/role/new", None, [("create", "role")]),
    "DELETE /api/role/{role}": ("/api/role/gone", None, [("delete", "role")]),
    "POST /api/role/{role}/parent/{parent}": (
        "/api/role/ops/parent/base", None, [("add", "role_parent")],
    ),
    "DELETE /api/role/{role}/parent/{parent}": (
        "/api/role/lead/parent/base", None, [("remove", "role_parent")],
    ),
    "POST /api/permission/{role}/{permission}": (
        "/api/permission/ops/new", None, [("grant", "permission")],
    ),
    "DELETE /api/permission/{role}/{permission}": (
        "/api/permission/ops/old", None, [("revoke", "permission")],
    ),
    "POST /api/membership/{user}/{role}": (
        "/api/membership/bob/ops", None, [("add", "membership")],
    ),
    "DELETE /api/membership/{user}/{role}": (
        "/api/membership/alice/ops", None, [("remove", "membership")],
    ),
    "DELETE /api/user/{user}": ("/api/user/carol", None, [("delete", "user")]),
    "POST /api/changes": (
        "/api/changes",
        {"changes": [{"op": "add_role", "role": "one"}, {"op": "add_role", "role": "two"}]},
        [("create", "role"), ("create", "role")],
    ),
    "POST /api/keys": ("/api/keys", {"label": "more"}, [("create", "key")]),
    "DELETE /api/keys/{key_id}": ("/api/keys/{second}", None, [("delete", "key")]),
    "POST /api/keys/rotate": (
        "/api/keys/rotate", {"overlap_seconds": 60}, [("create", "key"), ("update", "key")],
    ),
    "POST /api/apikeys/user/{user}": (
        "/api/apikeys/user/alice", {"label": "x"}, [("create", "api_key")],
    ),
    "DELETE /api/apikeys/user/{user}/{key_id}": (
        "/api/apikeys/user/dave/{minted}", None, [("delete", "api_key")],
    ),
    "PUT /api/settings": ("/api/settings", {"strict_users": True}, [("update", "settings")]),
    "POST /api/token/revoke": ("/api/token/revoke", {"token": "{token}"}, [("revoke", "token")]),
}  # fmt: skip
CHANGES_NOTHING = {
    "POST /api/check",
    "POST /api/token",
    "POST /api/token/introspect",
    "POST /api/apikeys/validate",
    "POST /api/apikeys/check_permission",
}
BEFORE = {("update", "settings"), ("remove", "membership"), ("delete", "user")}
"""Events about something that was otherwise before, which say how."""


async def test_every_route_that_changes_something_says_who_and_from_where(
    storage: Storage, tenant: TenantAtWork
) -> None:
    await tenant.write(
        *[Change("add_role", role=role) for role in ("ops", "base", "lead", "gone")],
        Change("add_parent", role="lead", parent="base"),
        Change("grant", role="ops", permission="old"),
        Change("add_member", user="alice", role="ops"),
        Change("add_member", user="carol", role="ops"),
    )
    app = create_app(settings_for(storage), clock=tenant.clock)
    transport = httpx.ASGITransport(app, client=("192.0.2.7", 4711))
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://t") as http,
    ):
        api = Api(http, tenant.clock, tenant.key)
        document = (await api.send("GET", "/openapi.json")).json()
        routes = {
            f"{method.upper()} {path}"
            for path, operations in document["paths"].items()
            for method in operations
            if method != "get"
        }
        assert routes - CHANGES_NOTHING == set(EXPECTED)
        second = (await api.data("POST", "/api/keys", {"label": "second"}))["key_id"]
        minted = await api.data("POST", "/api/apikeys/user/dave", {"label": "x"})
        token = (await api.send("POST", "/api/token", {"grant_type": "client_credentials"})).json()
        me = next(k for k in (await operator_keys(tenant)) if k.id != second)
        places = {"second": second, "token": token["access_token"]}
        places["minted"] = next(v for k, v in minted.items() if k in ("id", "key_id"))
        for number, (route, (path, body, wanted)) in enumerate(sorted(EXPECTED.items())):
            before = len(await trail(tenant))
            headers = {"X-Request-ID": f"request-{number}", "User-Agent": "tests/1"}
            more: dict[str, Any] = {"headers": headers}
            if body is not None:
                filled = {
                    k: v.format_map(places) if isinstance(v, str) else v for k, v in body.items()
                }
                more["json"] = filled
            answer = await api.send(route.partition(" ")[0], path.format_map(places), **more)
            assert answer.status_code == 200, (route, answer.text)
            new = (await trail(tenant))[before:]
            assert [(e["action"], e["entity_type"]) for e in new] == wanted, route
            for event in new:
                assert event["actor"] == me.id, route
                assert event["request_id"] == f"request-{number}"
                assert (event["ip_address"], event["user_agent"]) == ("192.0.2.7", "tests/1")
                if (event["action"], event["entity_type"]) in BEFORE:
                    assert event["details"]["before"], route
    await whole(tenant, AuditKeys())


async def operator_keys(tenant: TenantAtWork) -> list[Any]:
    async with tenant.database.read() as tx:
        return await operator.list_keys(tx, "acme")


# --- The database's own refusals ---

_EVENT_STATEMENTS = [
    "UPDATE audit_event SET payload = payload",
    "UPDATE audit_event SET actor = 'nobody' WHERE seq = 2",
    "DELETE FROM audit_event",
    "DELETE FROM audit_event WHERE seq = 2",
]


@pytest.mark.parametrize("statement", _EVENT_STATEMENTS)
async def test_the_trail_is_only_added_to_even_by_its_owner(
    storage: Storage, tenant: TenantAtWork, statement: str
) -> None:
    await tenant.write(Change("add_role", role="ops"))
    with pytest.raises(exc.DBAPIError, match="only added to"):
        await as_owner(storage, [statement])
    assert len(await whole(tenant, AuditKeys())) == 3
    # And it is the triggers that refuse.
    await storage.forge(lambda connection: connection.exec_driver_sql(statement))


async def test_it_cannot_be_emptied_or_replaced(storage: Storage, tenant: TenantAtWork) -> None:
    if storage.path is None:
        for table in ("audit_event", "audit_checkpoint", "tenant_erasure"):
            with pytest.raises(exc.DBAPIError, match="only added to"):
                await as_owner(storage, [f"TRUNCATE {table} CASCADE"])
    else:
        with pytest.raises(exc.DBAPIError, match="only added to"):
            await as_owner(
                storage,
                ["INSERT OR REPLACE INTO audit_event SELECT * FROM audit_event WHERE seq = 2"],
            )
    assert len(await whole(tenant, AuditKeys())) == 2


async def test_events_go_below_the_anchor_and_no_further(
    storage: Storage, tenant: TenantAtWork
) -> None:
    await tenant.write(*[Change("add_role", role=f"r{n}") for n in range(6)])
    owner = storage.open(as_owner=True)
    async with owner.read() as tx:
        events = [s.event async for page in pages(tx, tenant.id, 0) for s in page]
    stamp = events[3].stamp
    await owner.write("x", lambda tx: Retention(tx).set_anchor(tenant.id, stamp, tenant.clock()))
    with pytest.raises(exc.DBAPIError, match="only added to"):
        await as_owner(storage, ["DELETE FROM audit_event WHERE seq <= 5"])
    await as_owner(storage, ["DELETE FROM audit_event WHERE seq <= 4"])
    assert len(await trail(tenant)) == 4
