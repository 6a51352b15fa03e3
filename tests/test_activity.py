"""Activity events: what is recorded of requests that change nothing, and what it costs them."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
import pytest
from sqlalchemy import select

import encrypted
from authsvc import models
from authsvc.app import create_app
from authsvc.credentials import new_client_key
from authsvc.database import Database
from authsvc.errors import Unavailable
from authsvc.records import EMPTY, Caller, Change
from authsvc.services import activity as module
from authsvc.services.activity import Activity
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, settings_for

CALLER = Caller(None, "key_1", b"", frozenset(), EMPTY, address="192.0.2.1", request_id="r1")


async def rows(database: Database, **wanted: Any) -> list[Any]:
    """The activity events there are, in order, as rows."""
    event = models.activity_event
    async with database.read() as tx:
        found = await tx.execute(
            select(event).where(*(event.c[name] == value for name, value in wanted.items()))
            .order_by(event.c.id)
        )  # fmt: skip
        return await encrypted.activity(tx, found.all())


class Served:
    """A service whose callers come from addresses of the test's choice."""

    def __init__(self, storage: Storage, clock: ControlledClock, **settings: Any) -> None:
        self.app = create_app(settings_for(storage, **settings), clock=clock)
        self.clock = clock
        self.activity: Activity = self.app.state.service.activity

    async def __aenter__(self) -> Served:
        self._lifespan = self.app.router.lifespan_context(self.app)
        await self._lifespan.__aenter__()
        return self

    async def __aexit__(self, *_error: object) -> None:
        await self._lifespan.__aexit__(None, None, None)

    def api(self, key: str | None, address: str = "192.0.2.1") -> Api:
        transport = httpx.ASGITransport(self.app, client=(address, 4711))
        return Api(httpx.AsyncClient(transport=transport, base_url="http://t"), self.clock, key)


async def settled(served: Served) -> None:
    """Everything noted so far is written."""
    served.activity._close_windows(everything=True)
    await served.activity.flush()


async def test_a_flood_of_bad_keys_writes_a_few_rows(
    storage: Storage, tenant: TenantAtWork
) -> None:
    addresses = ("192.0.2.1", "192.0.2.2", "2001:db8::1")
    async with Served(storage, tenant.clock) as served:
        for number in range(1000):
            api = served.api(new_client_key(), addresses[number % 3])
            await api.refused(401, "unauthorized", "GET", "/api/roles")
        await settled(served)
    found = await rows(tenant.database, action="auth_failure")
    assert sum(row.details["count"] for row in found) == 1000
    assert {row.ip_address for row in found} == {"192.0.2.1", "192.0.2.2", "2001:db8::/64"}
    assert len(found) == 3
    assert {row.details["reason"] for row in found} == {"unknown"}
    assert {row.tenant_id for row in found} == {None}
    assert served.activity.failures == {"unknown": 1000}


async def test_windows_of_failures_are_apart(storage: Storage, tenant: TenantAtWork) -> None:
    async with Served(storage, tenant.clock) as served:
        for _ in range(3):
            await served.api(None).refused(401, "unauthorized", "GET", "/api/roles")
            tenant.clock.advance(module.WINDOW_SECONDS)
        await settled(served)
    found = await rows(tenant.database, action="auth_failure")
    assert [(row.details["reason"], row.details["count"]) for row in found] == [("missing", 1)] * 3
    assert not any(row.success for row in found)


async def test_more_addresses_than_are_told_apart_are_one_row(
    database: Database, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WINDOWS", 10)
    activity = Activity(database, clock, enabled=True)
    for number in range(300):
        activity.failed("unknown", f"192.0.2.{number}", None, clock())
    activity._close_windows(everything=True)
    await activity.flush()
    found = await rows(database)
    assert len(found) == 11
    assert sum(row.details["count"] for row in found) == 300


async def test_an_ended_key_is_told_by_its_tenant(storage: Storage, tenant: TenantAtWork) -> None:
    async with Served(storage, tenant.clock) as served:
        api = served.api(tenant.key)
        made = await api.data("POST", "/api/keys", {"label": "old"})
        token = (await api.send("POST", "/api/token", {"grant_type": "client_credentials"})).json()
        await api.data("DELETE", f"/api/keys/{made['key_id']}")
        await served.api(made["key"]).refused(401, "unauthorized", "GET", "/api/roles")
        tenant.clock.advance(3600)
        await asyncio.sleep(0)
        await served.api(token["access_token"]).refused(401, "unauthorized", "GET", "/api/roles")
        await settled(served)
    old, late = await rows(tenant.database, action="auth_failure")
    assert (old.tenant_id, old.actor, old.entity_id) == (tenant.id, made["key_id"], made["key_id"])
    assert old.details["reason"] == late.details["reason"] == "ended"
    assert late.tenant_id == tenant.id


async def test_a_refused_scope_is_recorded(storage: Storage, tenant: TenantAtWork) -> None:
    async with Served(storage, tenant.clock) as served:
        made = await served.api(tenant.key).data("POST", "/api/keys", {"scopes": ["check"]})
        api = served.api(made["key"])
        await api.refused(
            403, "insufficient_scope", "POST", "/api/role/admin",
            headers={"X-Request-ID": "req-7", "User-Agent": "curl"},
        )  # fmt: skip
        await settled(served)
    (row,) = await rows(tenant.database)
    assert (row.action, row.entity_type, row.entity_id) == (
        "scope_refused", "credential", made["key_id"],
    )  # fmt: skip
    assert row.details == {"scope": "write", "method": "POST", "route": "/api/role/{role}"}
    assert (row.tenant_id, row.actor, row.ip_address) == (tenant.id, made["key_id"], "192.0.2.1")
    assert (row.request_id, row.user_agent, row.success) == ("req-7", "curl", False)


async def test_the_life_of_tokens_is_recorded(storage: Storage, tenant: TenantAtWork) -> None:
    async with Served(storage, tenant.clock) as served:
        api = served.api(tenant.key)
        form = {"grant_type": "client_credentials", "scope": "check"}
        first = (await api.send("POST", "/api/token", form)).json()
        form = {"grant_type": "refresh_token", "refresh_token": first["refresh_token"]}
        second = (await served.api(None).send("POST", "/api/token", form)).json()
        assert second["access_token"]
        bad = await served.api(new_client_key()).send(
            "POST", "/api/token", {"grant_type": "client_credentials"}
        )
        assert bad.status_code == 401
        await settled(served)
    issue, refresh = await rows(tenant.database, entity_type="token")
    assert (issue.action, refresh.action) == ("issue", "refresh")
    assert issue.entity_id == refresh.entity_id
    assert issue.entity_id.startswith("fam_")
    assert issue.tenant_id == refresh.tenant_id == tenant.id
    assert issue.actor == refresh.actor
    (failure,) = await rows(tenant.database, action="auth_failure")
    assert failure.details["reason"] == "invalid_client"


QUESTIONS = [("alice", "deploy"), ("alice", "destroy"), ("nobody", "deploy")]


@pytest.mark.parametrize("checks", ["off", "deny", "all"])
async def test_checks_are_recorded_as_asked_for(
    storage: Storage, tenant: TenantAtWork, checks: str
) -> None:
    await tenant.write(
        Change("add_role", role="ops"),
        Change("grant", role="ops", permission="deploy"),
        Change("add_member", user="alice", role="ops"),
    )
    expected = []
    async with Served(storage, tenant.clock, audit_checks=checks) as served:
        api = served.api(tenant.key)
        for _ in range(3):
            # From the second time on the short way would answer.
            for user, permission in QUESTIONS:
                allowed = await api.can(user, permission)
                assert allowed == ((user, permission) == QUESTIONS[0])
                expected.append((user, permission, allowed))
        body = {"checks": [{"user": u, "permission": p, "scope": "s"} for u, p in QUESTIONS]}
        assert (await api.data("POST", "/api/check", body))["results"] == [True, False, False]
        plain = {"checks": [{"user": u, "permission": p} for u, p in QUESTIONS]}
        assert (await api.data("POST", "/api/check", plain))["results"] == [True, False, False]
        expected += 2 * [(u, p, (u, p) == QUESTIONS[0]) for u, p in QUESTIONS]
        await settled(served)
    found = [
        (row.details["user"], row.entity_id, row.success)
        for row in await rows(tenant.database, action="check")
    ]
    kept = {"off": (), "deny": (False,), "all": (False, True)}[checks]
    assert sorted(found) == sorted(one for one in expected if one[2] in kept)
    if checks == "all":
        scopes = [row.details.get("scope") for row in await rows(tenant.database, action="check")]
        assert scopes.count("s") == 3


async def test_nothing_is_recorded_when_it_is_switched_off(
    storage: Storage, tenant: TenantAtWork
) -> None:
    settings: dict[str, Any] = {"enable_audit_logging": False, "audit_checks": "all"}
    async with Served(storage, tenant.clock, **settings) as served:
        await served.api(None).refused(401, "unauthorized", "GET", "/api/roles")
        assert not await served.api(tenant.key).can("alice", "deploy")
        await served.api(tenant.key).send(
            "POST", "/api/token", {"grant_type": "client_credentials"}
        )
    assert await rows(tenant.database) == []


async def test_no_row_holds_a_credential(storage: Storage, tenant: TenantAtWork) -> None:
    async with Served(storage, tenant.clock, audit_checks="all") as served:
        api = served.api(tenant.key)
        token = (await api.send("POST", "/api/token", {"grant_type": "client_credentials"})).json()
        wrong = new_client_key()
        secrets = [tenant.key, wrong, token["access_token"], token["refresh_token"], "pass-word"]
        await served.api(wrong).send("GET", "/api/roles")
        await served.api("pass-word").send("GET", "/api/roles")
        await served.api(token["access_token"]).can("alice", "deploy")
        await served.api(None).send(
            "POST", "/api/token", {"grant_type": "refresh_token", "refresh_token": "pass-word"}
        )
        await settled(served)
    found = await rows(tenant.database)
    assert len(found) >= 4
    for row in found:
        assert not any(secret in repr(row) for secret in secrets)


async def test_a_full_queue_is_counted_and_said(
    database: Database, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_WAITING", 20)
    activity = Activity(database, clock, enabled=True)
    for _ in range(25):
        activity.note("scope_refused", "credential", "key_1", CALLER, clock(), {})
    assert activity.dropped == 5
    assert "dropped" in str(activity.reduced)
    await activity.flush()
    assert activity.reduced is None
    found = await rows(database)
    assert [row.action for row in found].count("scope_refused") == 20
    (told,) = [row for row in found if row.action == "drop"]
    assert told.details == {"count": 5}


async def test_readiness_tells_of_a_full_queue(
    storage: Storage, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Served(storage, tenant.clock) as served:
        monkeypatch.setattr(module, "MOST_WAITING", 0)
        served.activity.note("scope_refused", "credential", "k", CALLER, tenant.clock(), {})
        ready = (await served.api(None).send("GET", "/health/ready")).json()
        assert ready["status"] == "degraded"
        assert "dropped" in ready["reasons"][0]


async def test_what_the_database_refused_is_written_later(
    database: Database, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    activity = Activity(database, clock, enabled=True)
    write = database.write

    async def refuse(*_given: Any, **_more: Any) -> None:
        raise Unavailable

    with monkeypatch.context() as away:
        away.setattr(database, "write", refuse)
        activity.start()
        for _ in range(3):
            activity.note("scope_refused", "credential", "key_1", CALLER, clock(), {})
            await asyncio.sleep(0.05)
        assert activity.recorded == 0
    assert database.write == write
    await activity.stop()
    assert len(await rows(database)) == 3
    assert activity.recorded == 3


async def test_events_are_written_beside_the_requests(
    storage: Storage, tenant: TenantAtWork
) -> None:
    """Without anybody flushing: within moments, or at once when there are many."""
    async with Served(storage, tenant.clock, audit_checks="all") as served:
        api = served.api(tenant.key)
        body = {"checks": [{"user": "u", "permission": f"p{n}"} for n in range(1200)]}
        await api.data("POST", "/api/check", body)
        for _ in range(100):
            if served.activity.recorded == 1200:
                break
            await asyncio.sleep(0.05)
        assert served.activity.recorded == 1200
    assert len(await rows(tenant.database, action="check")) == 1200


async def test_old_activity_can_be_deleted(database: Database, clock: ControlledClock) -> None:
    from authsvc.repositories.activity import ActivityEvents

    activity = Activity(database, clock, enabled=True)
    for _ in range(4):
        activity.note("scope_refused", "credential", "key_1", CALLER, clock(), {})
        clock.advance(60)
    await activity.flush()
    gone = await database.write(
        "x", lambda tx: ActivityEvents(tx).delete_before(clock.advance(-100), 10)
    )
    assert gone == 3
    assert len(await rows(database)) == 1
