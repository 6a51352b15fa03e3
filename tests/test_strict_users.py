"""Tenants whose users need an API key: every decision, on both engines, from every process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from fastapi import FastAPI

from authsvc.decision_cache import KeyBacked, TenantState
from conftest import ControlledClock, TenantAtWork
from http_api import PROBLEM_FIELDS, Api, NewTenant, Serve, instant

pytest_plugins = ["http_fixtures"]

REASON = "user_not_key_backed"
ALICE = "/api/apikeys/user/alice"
MEMBER = "/api/membership/alice/ops"


async def choose(api: Api, strict: bool) -> Any:
    """Turn strict users on or off."""
    return await api.ok("PUT", "/api/settings", {"strict_users": strict})


@pytest.fixture
async def ops(api: Api) -> Api:
    """A caller whose tenant has alice in a role that may deploy."""
    await api.apply(
        {"op": "add_role", "role": "ops"},
        {"op": "grant", "role": "ops", "permission": "deploy"},
        {"op": "add_member", "user": "alice", "role": "ops"},
    )
    return api


@pytest.fixture
async def elsewhere(serve: Serve, api: Api) -> AsyncIterator[Api]:
    """The same caller at another process."""
    async with serve() as other:
        yield other.with_key(api.key)


async def decisions(api: Api, user: str = "alice") -> list[Any]:
    """What every way of asking says about a user, asked twice: memory answers the second time."""
    found: list[Any] = []
    single = f"/api/has_permission/{user}/deploy"
    check = {"user": user, "permission": "deploy"}
    for _ in range(2):
        found += [
            await api.data("GET", single),
            await api.data("GET", single, params={"explain": "true"}),
            await api.data("GET", f"/api/membership/{user}/ops"),
            await api.data("GET", f"/api/workflow/user/{user}/can_run/deploy"),
            (await api.data("POST", "/api/check", {"checks": [check]}))["results"],
            (await api.data("POST", "/api/check", {"checks": [check], "explain": True}))["results"],
            await api.data("POST", "/api/check", {"user": user, "permissions": ["deploy"]}),
        ]
    return found


def yes(found: Any) -> Any:
    """An answer without its reasons."""
    text = str(found)
    return "True" in text and "False" not in text


REFUSED = [
    {"has_permission": False, "reason": REASON},
    {"has_permission": False, "why": {"denied_because": REASON}, "reason": REASON},
    {"has_permission": False, "reason": REASON},
    {"has_permission": False, "reason": REASON},
    [False],
    [{"has_permission": False, "why": {"denied_because": REASON}}],
    {"results": {"deploy": False}},
] * 2


async def test_settings_are_a_change_like_any_other(api: Api, owner: TenantAtWork) -> None:
    first = await api.ok("GET", "/api/settings")
    assert first["data"] == {"strict_users": False}
    on = await choose(api, True)
    assert (on["data"], on["revision"]) == ({"strict_users": True}, first["revision"] + 1)
    assert (await choose(api, True))["revision"] == on["revision"]
    assert await api.data("GET", "/api/settings") == {"strict_users": True}
    assert (await choose(api, False))["revision"] == on["revision"] + 1
    assert await owner.violations() == []
    for body in ({}, {"strict_users": None}, {"strict_users": 1}, {"other": True}):
        await api.refused(422, "invalid_input", "PUT", "/api/settings", body)


async def test_settings_with_a_key_that_is_not_known_yet(serve: Serve) -> None:
    async with serve(client_registration="open") as stranger:
        new = stranger.with_key("5b1c1a52-6f0e-4a39-9d8e-2f6f0c3d4e5f")
        assert await new.data("GET", "/api/settings") == {"strict_users": False}
        assert (await choose(new, False))["revision"] == 0
        assert (await choose(new, True))["revision"] == 3
        assert await new.data("GET", "/api/settings") == {"strict_users": True}


async def test_every_decision_needs_a_live_key(
    ops: Api, elsewhere: Api, clock: ControlledClock, owner: TenantAtWork
) -> None:
    async def everywhere(expected: bool) -> None:
        for process in (ops, elsewhere):
            found = await decisions(process)
            assert found == REFUSED if not expected else all(map(yes, found)), found

    await everywhere(True)
    await choose(ops, True)
    await everywhere(False)
    made = await ops.data("POST", ALICE, {})
    await everywhere(True)
    question = {"api_key": made["api_key"], "permission": "deploy"}
    for process in (ops, elsewhere):
        answered = await process.data("POST", "/api/apikeys/check_permission", question)
        assert answered["has_permission"] is True
    await ops.data("DELETE", f"{ALICE}/{made['key_id']}")
    await everywhere(False)
    # Judged at the check: the key ends without anybody's doing.
    end = instant(clock().replace(minute=10))
    await ops.data("POST", ALICE, {"expires_at": end})
    await everywhere(True)
    clock.advance(600)
    await asyncio.sleep(0)
    await everywhere(False)
    await choose(ops, False)
    await everywhere(True)
    assert await owner.violations() == []


async def test_the_key_that_ends_last_counts(ops: Api, clock: ControlledClock) -> None:
    await choose(ops, True)
    now = clock()
    for minute in (10, 30, 20):
        await ops.data("POST", ALICE, {"expires_at": instant(now.replace(minute=minute))})
    clock.advance(29 * 60)
    await asyncio.sleep(0)
    assert all(map(yes, await decisions(ops)))
    clock.advance(60)
    await asyncio.sleep(0)
    assert await decisions(ops) == REFUSED
    await ops.data("POST", ALICE, {})
    await ops.data("POST", ALICE, {"expires_at": instant(clock().replace(minute=40))})
    clock.advance(24 * 3600)
    await asyncio.sleep(0)
    assert all(map(yes, await decisions(ops)))


async def test_nobody_is_told_apart_for_want_of_a_key(ops: Api) -> None:
    await choose(ops, True)
    assert await decisions(ops, "nobody") == REFUSED
    await ops.data("POST", "/api/apikeys/user/nobody", {})
    explained = await ops.data(
        "GET", "/api/has_permission/nobody/deploy", params={"explain": "true"}
    )
    assert explained == {"has_permission": False, "why": {"denied_because": "no_such_user"}}


async def test_another_tenant_is_not_touched(ops: Api, new_tenant: NewTenant) -> None:
    await choose(ops, True)
    theirs = ops.with_key((await new_tenant()).key)
    await theirs.apply(
        {"op": "add_role", "role": "ops"},
        {"op": "grant", "role": "ops", "permission": "deploy"},
        {"op": "add_member", "user": "alice", "role": "ops"},
    )
    # Their alice's key backs no alice of ours.
    await theirs.data("POST", ALICE, {})
    assert all(map(yes, await decisions(theirs)))
    assert await decisions(ops) == REFUSED


async def test_adding_a_user_without_a_key_is_refused(ops: Api, owner: TenantAtWork) -> None:
    await choose(ops, True)
    for path in (MEMBER, "/api/membership/bob/ops"):
        answered = await ops.send("POST", path)
        assert answered.status_code == 409
        body = answered.json()
        assert list(body) == [*PROBLEM_FIELDS, "result", "reason"]
        assert (body["error"], body["result"], body["reason"]) == (REASON, False, REASON)
    await ops.refused(404, "role_not_found", "POST", "/api/membership/bob/none")
    changes = [
        {"op": "add_role", "role": "other"},
        {"op": "add_member", "user": "bob", "role": "ops"},
    ]
    for dry_run in (True, False):
        body = {"changes": changes, "dry_run": dry_run}
        refused = (await ops.send("POST", "/api/changes", body)).json()
        assert (refused["error"], refused["result"]) == (REASON, False)
        assert [one["field"] for one in refused["details"]] == ["changes.1.user"]
    await ops.refused(404, "role_not_found", "GET", "/api/role/other")
    await ops.data("POST", "/api/apikeys/user/bob", {})
    assert (await ops.apply(*changes))["applied"] == 2
    # Who is removed on the way loses the key too.
    changes = [{"op": "remove_user", "user": "bob"}, changes[1]]
    answered = await ops.send("POST", "/api/changes", {"changes": changes})
    assert answered.json()["error"] == REASON
    assert await owner.violations() == []


async def test_lists_and_removals_are_never_blocked(ops: Api) -> None:
    await choose(ops, True)
    assert await ops.data("GET", "/api/members/ops") == [{"user": "alice", "role": "ops"}]
    assert await ops.data("GET", "/api/user_roles/alice") == [{"user": "alice", "role": "ops"}]
    assert (await ops.data("GET", "/api/user_permissions/alice"))["count"] == 1
    assert len(await ops.data("GET", "/api/which_users_can/deploy")) == 1
    assert (await ops.data("DELETE", MEMBER))["removed"] is True
    assert (await ops.data("DELETE", "/api/user/alice"))["memberships_removed"] == 0


async def wrong_answers(ops: Api, clock: ControlledClock) -> int:
    """How many decisions are positive that must not be: after a revocation, and after an end."""
    await choose(ops, True)
    made = await ops.data("POST", ALICE, {})
    await decisions(ops)
    await ops.data("DELETE", f"{ALICE}/{made['key_id']}")
    wrong = sum(map(yes, await decisions(ops)))
    await ops.data("POST", ALICE, {"expires_at": instant(clock().replace(minute=10))})
    await decisions(ops)
    clock.advance(600)
    await asyncio.sleep(0)
    return int(wrong + sum(map(yes, await decisions(ops))))


async def test_no_answer_is_wrong(ops: Api, clock: ControlledClock) -> None:
    assert await wrong_answers(ops, clock) == 0


async def test_a_memory_that_misses_the_end_of_a_key_is_noticed(
    ops: Api, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(KeyBacked, "refuses", lambda *_: False)
    assert await wrong_answers(ops, clock) > 0


async def test_a_memory_that_misses_a_revocation_is_noticed(
    ops: Api, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TenantState, "_forget_user", lambda *_: None)
    assert await wrong_answers(ops, clock) > 0


async def test_a_short_way_that_knows_nothing_of_keys_is_noticed(
    ops: Api, app: FastAPI, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    remembered = app.state.service.current.remembered

    def bare(state: TenantState, user: str) -> Any:
        kept = remembered(state, user)
        return kept.held if isinstance(kept, KeyBacked) else kept

    monkeypatch.setattr(app.state.service.current, "remembered", bare)
    assert await wrong_answers(ops, clock) > 0
