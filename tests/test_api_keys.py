"""Keys of a tenant's own users over HTTP, on both engines."""

from __future__ import annotations

import asyncio
import json
import re
from typing import Any

import pytest
from sqlalchemy import select

from authsvc import models
from authsvc.credentials import new_api_key, parse_api_key
from authsvc.decision_cache import TenantState
from authsvc.repositories.api_keys import ApiKeys
from authsvc.services.api_keys import MOST_ACTIVE
from conftest import TenantAtWork
from http_api import Api, NewTenant, Serve, check_problem, instant

pytest_plugins = ["http_fixtures"]

ALICE = "/api/apikeys/user/alice"
VALIDATE = "/api/apikeys/validate"
CHECK = "/api/apikeys/check_permission"
IDEMPOTENT = {"Idempotency-Key": "a-request-that-may-repeat"}


async def said_of(api: Api, key: str) -> Any:
    """What the service says about a presented key."""
    return await api.data("POST", VALIDATE, {"api_key": key})


async def later(owner: TenantAtWork, seconds: float) -> None:
    """Let time pass, and the turn of the loop in which the gate has told the time before."""
    owner.clock.advance(seconds)
    await asyncio.sleep(0)


def test_the_form_of_a_key() -> None:
    made = {new_api_key() for _ in range(1000)}
    assert len(made) == 1000
    assert all(re.fullmatch(r"rak_[0-9A-Za-z]{43}", key) for key in made)
    assert len({character for key in made for character in key[4:]}) == 62
    for wrong in ("", "rak_", "rak_" + "a" * 42, "rak_" + "a" * 44, "rak_" + "a" * 43 + "\n",
                  "RAK_" + "a" * 43, "rak_" + "é" * 43, "\ud800"):  # fmt: skip
        assert parse_api_key(wrong) is None


async def test_a_key_is_shown_once_and_only_its_digest_is_stored(
    api: Api, owner: TenantAtWork
) -> None:
    now = instant(owner.clock())
    made = await api.data("POST", ALICE, {"label": "laptop"})
    secret = made.pop("api_key")
    assert parse_api_key(secret)
    assert made == {
        "key_id": made["key_id"],
        "user": "alice",
        "label": "laptop",
        "key_prefix": secret[:10],
        "created": now,
        "expires_at": None,
    }
    listed = await api.data("GET", ALICE)
    assert listed == {
        "count": 1,
        "keys": [
            {
                "key_id": made["key_id"],
                "key_prefix": secret[:10],
                "label": "laptop",
                "is_active": True,
                "created": now,
                "revoked_at": None,
                "expires_at": None,
                "last_used_at": None,
            }
        ],
    }
    assert await said_of(api, secret) == {
        "valid": True,
        "user": "alice",
        "key_id": made["key_id"],
        "label": "laptop",
        "expires_at": None,
    }
    async with owner.database.read() as tx:
        for table in (models.api_key, models.audit_event, models.minted):
            rows = (await tx.execute(select(table).where(table.c.tenant_id == owner.id))).all()
            assert secret not in str(rows)
            assert not any(secret.encode() in bytes(v) for r in rows for v in r
                           if isinstance(v, bytes))  # fmt: skip
    assert await owner.violations() == []


async def test_a_repeat_gets_the_first_key(api: Api) -> None:
    body = {"label": "laptop"}
    first = await api.ok("POST", ALICE, body, headers=IDEMPOTENT)
    assert await api.ok("POST", ALICE, body, headers=IDEMPOTENT) == first
    for path, other in ((ALICE, {}), ("/api/apikeys/user/bob", body)):
        await api.refused(409, "idempotency_mismatch", "POST", path, other, headers=IDEMPOTENT)
    assert (await api.data("GET", ALICE))["count"] == 1


async def test_a_revoked_key_is_refused_by_every_process(
    api: Api, serve: Serve, owner: TenantAtWork
) -> None:
    made = await api.data("POST", ALICE, {})
    await api.apply({"op": "add_role", "role": "ops"})
    await api.apply({"op": "grant", "role": "ops", "permission": "deploy"})
    await api.apply({"op": "add_member", "user": "alice", "role": "ops"})
    async with serve() as elsewhere:
        question = {"api_key": made["api_key"], "permission": "deploy"}
        for process in (api, elsewhere.with_key(api.key)):
            assert (await process.data("POST", CHECK, question))["has_permission"] is True
            assert (await process.data("POST", CHECK, question | {"permission": "x"}))[
                "has_permission"
            ] is False
        path = f"{ALICE}/{made['key_id']}"
        assert await api.data("DELETE", path) == {"revoked": True, "already_revoked": False}
        refused = {"valid": False, "reason": "revoked"}
        for process in (api, elsewhere.with_key(api.key)):
            assert await said_of(process, made["api_key"]) == refused
            denied = await process.data("POST", CHECK, question)
            assert denied == refused | {"has_permission": False}
    assert await api.data("DELETE", path) == {"revoked": True, "already_revoked": True}
    assert await owner.violations() == []


async def test_a_memory_that_misses_a_revocation_is_noticed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await api.data("POST", ALICE, {})
    assert (await said_of(api, made["api_key"]))["valid"]
    monkeypatch.setattr(TenantState, "_touch", lambda *_: None)
    await api.data("DELETE", f"{ALICE}/{made['key_id']}")
    # The attack of the test above succeeds on this variant.
    assert (await said_of(api, made["api_key"]))["valid"]


async def test_a_key_ends_at_its_end(api: Api, owner: TenantAtWork) -> None:
    end = instant(owner.clock.advance(0).replace(minute=30))
    await api.refused(422, "invalid_input", "POST", ALICE, {"expires_at": instant(owner.clock())})
    made = await api.data("POST", ALICE, {"expires_at": end})
    assert (await said_of(api, made["api_key"]))["expires_at"] == end
    await later(owner, 1800)
    assert await said_of(api, made["api_key"]) == {"valid": False, "reason": "expired"}
    [listed] = (await api.data("GET", ALICE))["keys"]
    assert (listed["is_active"], listed["revoked_at"]) == (False, None)


async def test_what_is_no_key_of_this_tenant_is_unknown(api: Api, new_tenant: NewTenant) -> None:
    theirs = api.with_key((await new_tenant()).key)
    made = await theirs.data("POST", ALICE, {})
    unknown = {"valid": False, "reason": "unknown_key"}
    for key in (made["api_key"], new_api_key(), "", "x", api.key or "", "a\0b", "\ud800"):
        body = f'{{"api_key": {json.dumps(key)}}}'
        answered = await api.send(
            "POST", VALIDATE, content=body, headers={"Content-Type": "application/json"}
        )
        if key == "\ud800" and answered.status_code != 200:
            check_problem(answered, answered.status_code)
            assert answered.status_code in (400, 422)
            continue
        assert answered.json()["data"] == unknown
    question = {"api_key": made["api_key"], "permission": "deploy"}
    assert await api.data("POST", CHECK, question) == unknown | {"has_permission": False}
    for path in (f"{ALICE}/{made['key_id']}", f"{ALICE}/key_{'0' * 20}"):
        await api.refused(404, "key_not_found", "DELETE", path)
    mine = await api.data("POST", ALICE, {})
    other = f"/api/apikeys/user/bob/{mine['key_id']}"
    await api.refused(404, "key_not_found", "DELETE", other)
    assert (await said_of(theirs, made["api_key"]))["valid"]


async def test_a_user_who_is_removed_loses_the_keys(api: Api, owner: TenantAtWork) -> None:
    made = [await api.data("POST", ALICE, {}) for _ in range(3)]
    await api.data("DELETE", f"{ALICE}/{made[0]['key_id']}")
    bob = await api.data("POST", "/api/apikeys/user/bob", {})
    for key in (*made, bob):
        await said_of(api, key["api_key"])
    gone = await api.data("DELETE", "/api/user/alice")
    assert gone == {"memberships_removed": 0, "api_keys_revoked": 2}
    for key in made:
        assert (await said_of(api, key["api_key"]))["reason"] == "revoked"
    assert (await said_of(api, bob["api_key"]))["valid"]
    again = await api.data("DELETE", "/api/user/alice")
    assert again == {"memberships_removed": 0, "api_keys_revoked": 0}
    applied = await api.apply({"op": "remove_user", "user": "bob"})
    assert applied["applied"] == 1
    assert (await said_of(api, bob["api_key"]))["reason"] == "revoked"
    assert await owner.violations() == []


async def test_a_list_has_pages(api: Api, owner: TenantAtWork) -> None:
    made = []
    for _ in range(5):
        made.append((await api.data("POST", ALICE, {}))["key_id"])
        owner.clock.advance(1)
    seen: list[str] = []
    cursor: dict[str, str] = {}
    while True:
        page = await api.ok("GET", ALICE, params={"limit": 2} | cursor)
        seen += [key["key_id"] for key in page["data"]["keys"]]
        if "next" not in page:
            break
        cursor = {"cursor": page["next"]}
    assert seen == made


async def active_after_many_at_once(api: Api, serve: Serve) -> list[int]:
    """Statuses of forty requests to two processes, and how many keys are in force then."""
    async with serve() as elsewhere:
        processes = (api, elsewhere.with_key(api.key))
        answers = await asyncio.gather(
            *(processes[n % 2].send("POST", ALICE, {}) for n in range(40))
        )
        for answered in answers:
            if answered.status_code != 200:
                check_problem(answered, 409, "conflict")
        made = [answered.status_code for answered in answers].count(200)
        active = [key["is_active"] for key in (await api.data("GET", ALICE))["keys"]]
        return [made, active.count(True)]


async def test_a_user_has_at_most_25_keys_in_force(
    api: Api, serve: Serve, owner: TenantAtWork
) -> None:
    assert MOST_ACTIVE == 25
    assert await active_after_many_at_once(api, serve) == [25, 25]
    # What is over does not count.
    [first, *_] = (await api.data("GET", ALICE))["keys"]
    await api.data("DELETE", f"{ALICE}/{first['key_id']}")
    end = instant(owner.clock().replace(minute=30))
    await api.data("POST", ALICE, {"expires_at": end})
    await api.refused(409, "conflict", "POST", ALICE, {})
    await api.data("POST", "/api/apikeys/user/bob", {})
    await later(owner, 1800)
    await api.data("POST", ALICE, {})
    assert await owner.violations() == []


async def test_a_count_from_before_the_lock_is_noticed(
    api: Api, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def counted_earlier(*_: object) -> int:
        return 0

    monkeypatch.setattr(ApiKeys, "count_active", counted_earlier)
    assert await active_after_many_at_once(api, serve) != [25, 25]
