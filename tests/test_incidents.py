"""An incident: who is affected, what undoes it and nothing else, and a lockdown that is at once."""

from __future__ import annotations

import asyncio
import random
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from authsvc.app import create_app
from authsvc.database import Database
from authsvc.errors import AuthsvcError, Conflict, NotFound
from authsvc.records import Change
from authsvc.services import incidents, operator
from authsvc.services.changes import Outcome, apply_changes
from authsvc.services.incidents import Plan, Window
from authsvc.services.replay_review import replayed, review_tenant
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork
from http_api import Api, served, settings_for
from replay import Policy, stored_policy


async def key_for(tenant: TenantAtWork, name: str) -> operator.Issued:
    """A further client key of a tenant."""
    return await tenant.database.write(
        tenant.id,
        lambda tx: operator.issue_key(tx, name, "second", ["admin"], None, tenant.clock),
    )


async def write_as(tenant: TenantAtWork, key_id: str, *changes: Change) -> Outcome:
    """Apply changes as another key of the tenant does."""
    caller = replace(await tenant.caller(), key_id=key_id)
    return await tenant.database.write(
        tenant.id, lambda tx: apply_changes(tx, caller, changes, tenant.clock)
    )


async def planned(tenant: TenantAtWork, window: Window) -> Plan:
    async with tenant.database.read() as tx:
        return await incidents.plan(tx, "acme", window)


async def reverted(tenant: TenantAtWork, window: Window, seen: Plan) -> int:
    return await tenant.database.write(
        tenant.id,
        lambda tx: incidents.revert(tx, "acme", window, seen, tenant.clock, None),
        idle_seconds=60,
    )


async def policy_of(tenant: TenantAtWork) -> dict[str, Any]:
    """The policy by names: what two databases can have in common."""
    async with tenant.database.read() as tx:
        found: Policy = await stored_policy(tx, tenant.id)
    names = {role_id: role.name for role_id, role in found.roles.items()}
    return {
        "roles": {role.name: role.description for role in found.roles.values()},
        "grants": {(names[role], permission) for role, permission in found.grants},
        "edges": {(names[role], names[parent]) for role, parent in found.edges},
        "members": {(u, names[r], s): bounds for (u, r, s), bounds in found.memberships.items()},
        "strict": found.strict_users,
    }


def good_change(dice: random.Random, tenant: TenantAtWork) -> Change:
    role = f"team{dice.randrange(20)}"
    end = tenant.clock() + timedelta(days=400) if dice.random() < 0.1 else None
    return dice.choice(
        [
            Change("grant", role=role, permission=f"doc:{dice.randrange(5000)}"),
            Change("grant", role=role, permission=f"doc:{dice.randrange(5000)}"),
            Change("revoke", role=role, permission=f"doc:{dice.randrange(5000)}"),
            Change(
                "add_member", user=f"user{dice.randrange(2000)}", role=role,
                scope=dice.choice(["eu", None]), expires_at=end,
            ),
            Change("add_member", user=f"user{dice.randrange(2000)}", role=role),
            Change("remove_member", user=f"user{dice.randrange(2000)}", role=role),
        ]
    )  # fmt: skip


def hostile_change(dice: random.Random, number: int) -> Change:
    """Something no good change touches: its own users and permissions, in the teams' roles too."""
    role = f"team{dice.randrange(20)}"
    return dice.choice(
        [
            Change("grant", role=role, permission=f"evil:{number}"),
            Change("add_member", user=f"mallory{number}", role=role),
            Change("add_role", role=f"backdoor{number}", description="nothing to see"),
            Change("add_parent", role=f"team{dice.randrange(10)}",
                   parent=f"hidden{dice.randrange(20)}"),
        ]
    )  # fmt: skip


async def applied(tenant: TenantAtWork, key_id: str, changes: list[Change]) -> int:
    """Apply those of these changes that have an effect, in lists; how many had one."""
    count = 0
    for start in range(0, len(changes), 250):
        tenant.clock.advance(1)
        count += (await write_as(tenant, key_id, *changes[start : start + 250])).applied
    return count


async def test_exactly_what_was_hostile_is_undone(
    make_tenant: MakeTenant, tenant: TenantAtWork
) -> None:
    """500 hostile changes among 5 000 good ones, before, between and after."""
    dice = random.Random(42)
    twin = await make_tenant("twin")  # where only the good ones happen
    bad = await key_for(tenant, "acme")
    roles = [Change("add_role", role=f"team{n}", description=f"team {n}") for n in range(20)]
    roles += [Change("add_role", role=f"hidden{n}") for n in range(20)]
    for one in (tenant, twin):
        await applied(one, "good", roles)
    good = hostile = 0
    begun = None
    number = 0
    while good < 5000 or hostile < 500:
        some = [good_change(dice, tenant) for _ in range(250)]
        if good < 5000:
            good += await applied(tenant, "good", some)
            twin.clock.advance(-1)
            await applied(twin, "good", some)
        if good > 1500 and hostile < 500:
            begun = begun or tenant.clock()
            some = [hostile_change(dice, number + n) for n in range(min(50, 500 - hostile))]
            number += len(some)
            hostile += await applied(tenant, bad.key.id, some)
    assert begun is not None
    window = Window(bad.key.id, begun)
    before = await policy_of(tenant)
    seen = await planned(tenant, window)
    assert await policy_of(tenant) == before
    assert len(seen.hostile) == hostile == 500
    assert seen.skipped == []
    assert seen.size == 500
    assert await reverted(tenant, window, seen) == 500
    assert await policy_of(tenant) == await policy_of(twin)
    async with tenant.database.read() as tx:
        assert (await review_tenant(tx, tenant.id)).findings == []
    assert (await planned(tenant, window)).size == 0


@pytest.mark.parametrize("seed", range(12))
async def test_the_result_is_what_would_have_been(
    make_tenant: MakeTenant, tenant: TenantAtWork, seed: int
) -> None:
    """Hostile and good changes of the same few names, deletions too."""
    dice = random.Random(seed)
    twin = await make_tenant("twin")
    bad = await key_for(tenant, "acme")
    names = [f"r{n}" for n in range(4)]
    users = [f"u{n}" for n in range(4)]

    def change() -> Change:
        role, other, user = dice.choice(names), dice.choice(names), dice.choice(users)
        scope = dice.choice(["", "eu"]) or None
        return dice.choice(
            [
                Change("add_role", role=role, description=dice.choice(["a", "b"])),
                Change("remove_role", role=role),
                Change("grant", role=role, permission=f"p{dice.randrange(3)}"),
                Change("revoke", role=role, permission=f"p{dice.randrange(3)}"),
                Change("add_member", user=user, role=role, scope=scope),
                Change("remove_member", user=user, role=role, scope=scope),
                Change("remove_user", user=user),
                Change("add_parent", role=role, parent=other),
                Change("remove_parent", role=role, parent=other),
            ]
        )

    async def attempt(one: TenantAtWork, key_id: str, wanted: Change) -> bool:
        try:
            return bool((await write_as(one, key_id, wanted)).applied)
        except AuthsvcError:
            return False

    begun = tenant.clock.advance(1)
    for _ in range(120):
        wanted = change()
        if dice.random() < 0.4:
            await attempt(tenant, bad.key.id, wanted)
        elif await attempt(tenant, "good", wanted):
            # The twin has it only where it can happen without the hostile ones.
            await attempt(twin, "good", wanted)
    window = Window(bad.key.id, begun)
    seen = await planned(tenant, window)
    await reverted(tenant, window, seen)
    found, expected = await policy_of(tenant), await policy_of(twin)
    async with tenant.database.read() as tx:
        assert (await review_tenant(tx, tenant.id)).findings == []
        actual = await replayed(tx, tenant.id)
    assert _words(actual) == _words(seen.without)
    if not seen.skipped:
        assert found == expected


def _words(state: Any) -> Any:
    grants = {(role, p) for role, ps in state.grants.items() for p in ps}
    parents = {(role, p) for role, ps in state.parents.items() for p in ps}
    roles = {name: role.description for name, role in state.roles.items()}
    return roles, grants, parents, sorted(state.memberships())


async def test_keys_that_it_made_are_hostile_too(storage: Storage, tenant: TenantAtWork) -> None:
    bad = await key_for(tenant, "acme")
    begun = tenant.clock.advance(1)
    app = create_app(settings_for(storage), clock=tenant.clock)
    async with served(app) as http:
        api = Api(http, tenant.clock, bad.secret)
        made = await api.data("POST", "/api/keys", {"label": "more", "scopes": ["admin"]})
        child = api.with_key(made["key"])
        await child.ok("POST", "/api/role/backdoor")
        await child.ok("POST", "/api/membership/mallory/backdoor")
        minted = await child.data("POST", "/api/apikeys/user/mallory", {"label": "x"})
        await child.ok("PUT", "/api/settings", {"strict_users": True})
        seen = await planned(tenant, Window(bad.key.id, begun))
        assert seen.actors == sorted([bad.key.id, made["key_id"]])
        assert seen.keys == [made["key_id"]]
        assert len(seen.api_keys) == 1
        assert seen.strict_users is False
        assert await reverted(tenant, Window(bad.key.id, begun), seen) == 4
        await child.refused(401, "unauthorized", "GET", "/api/roles")
        owner = api.with_key(tenant.key)
        assert (await owner.data("GET", "/api/settings")) == {"strict_users": False}
        assert (await owner.ok("GET", "/api/roles"))["data"] == []
        assert minted


async def test_a_change_since_the_preview_is_looked_at_again(tenant: TenantAtWork) -> None:
    bad = await key_for(tenant, "acme")
    begun = tenant.clock.advance(1)
    await write_as(tenant, bad.key.id, Change("add_role", role="backdoor"))
    window = Window(bad.key.id, begun)
    seen = await planned(tenant, window)
    await write_as(tenant, bad.key.id, Change("add_role", role="another"))
    with pytest.raises(Conflict, match="look at it again"):
        await reverted(tenant, window, seen)
    assert set((await policy_of(tenant))["roles"]) == {"backdoor", "another"}


async def test_what_rests_on_hostile_changes_is_told(tenant: TenantAtWork) -> None:
    bad = await key_for(tenant, "acme")
    begun = tenant.clock.advance(1)
    await write_as(tenant, bad.key.id, Change("add_role", role="backdoor"))
    await write_as(tenant, "good", Change("add_member", user="alice", role="backdoor"))
    window = Window(bad.key.id, begun)
    seen = await planned(tenant, window)
    assert [change.op for change in seen.changes] == ["remove_role"]
    assert len(seen.skipped) == 1
    assert "add membership 'alice'" in seen.skipped[0]
    assert await reverted(tenant, window, seen) == 1
    assert (await policy_of(tenant))["members"] == {}


async def test_who_is_affected(tenant: TenantAtWork) -> None:
    bad = await key_for(tenant, "acme")
    await tenant.write(
        Change("add_role", role="reader"),
        Change("add_role", role="admin"),
        Change("grant", role="reader", permission="doc:*"),
        Change("grant", role="admin", permission="all"),
        Change("add_member", user="alice", role="reader"),
        Change("add_member", user="bob", role="reader"),
        Change("add_member", user="carol", role="admin"),
    )
    begun = tenant.clock.advance(1)
    await write_as(
        tenant,
        bad.key.id,
        Change("add_parent", role="reader", parent="admin"),
        Change("remove_member", user="carol", role="admin"),
        Change("add_member", user="mallory", role="admin", scope="eu"),
        Change("remove_member", user="bob", role="reader"),
    )
    await write_as(tenant, "good", Change("add_member", user="bob", role="reader"))
    await write_as(tenant, "good", Change("remove_user", user="bob"))
    seen = await planned(tenant, Window(bad.key.id, begun))
    found = {one.user: (one.gained, one.lost) for one in incidents.affected(seen, tenant.clock())}
    # Bob was removed by a good change after all.
    assert found == {
        "alice": ([("all", "")], []),
        "carol": ([], [("all", "")]),
        "mallory": ([("all", "eu")], []),
    }


async def test_an_incident_of_nobody_changes_nothing(tenant: TenantAtWork) -> None:
    seen = await planned(tenant, Window("key_unknown", tenant.clock()))
    assert seen.size == 0
    assert await reverted(tenant, Window("key_unknown", tenant.clock()), seen) == 0
    with pytest.raises(NotFound):
        async with tenant.database.read() as tx:
            await incidents.plan(tx, "nobody", Window("key_1", tenant.clock()))


# --- Lockdown ---


async def locked_down(database: Database, clock: ControlledClock, **more: bool) -> Any:
    options = {"keys": False, "disable": False} | more
    return await database.write(
        "acme", lambda tx: incidents.lock_down(tx, "acme", "a laptop is gone", clock, **options)
    )


async def test_every_token_is_refused_at_once_on_every_process(
    storage: Storage, tenant: TenantAtWork
) -> None:
    apps = [create_app(settings_for(storage), clock=tenant.clock) for _ in range(2)]
    form = {"grant_type": "client_credentials"}
    async with served(apps[0]) as one, served(apps[1]) as other:
        apis = [Api(http, tenant.clock, tenant.key) for http in (one, other)]
        tokens = [(await api.send("POST", "/api/token", form)).json() for api in apis * 2]
        for api in apis:
            for token in tokens:
                assert not await api.with_key(token["access_token"]).can("alice", "deploy")
        command = storage.open()  # as another process
        async with command.read() as tx:
            shown = await incidents.preview_lockdown(tx, "acme", tenant.clock())
        assert (shown.families, shown.keys) == (4, 1)
        done = await locked_down(command, tenant.clock)
        assert (done.families, done.keys) == (4, 0)
        await asyncio.sleep(0)
        for api in apis:
            for token in tokens:
                await api.with_key(token["access_token"]).refused(
                    401, "unauthorized", "GET", "/api/has_permission/alice/deploy"
                )
                refresh = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
                refused = await api.with_key(None).send("POST", "/api/token", refresh)
                assert refused.status_code == 400
                assert refused.json()["error"] == "invalid_grant"
            fresh = (await api.send("POST", "/api/token", form)).json()
            assert not await api.with_key(fresh["access_token"]).can("alice", "deploy")
    async with tenant.database.read() as tx:
        assert (await review_tenant(tx, tenant.id)).findings == []


async def test_a_lockdown_can_end_keys_and_shut_the_door(
    storage: Storage, tenant: TenantAtWork
) -> None:
    app = create_app(settings_for(storage), clock=tenant.clock)
    async with served(app) as http:
        api = Api(http, tenant.clock, tenant.key)
        second = await key_for(tenant, "acme")
        done = await locked_down(storage.open(), tenant.clock, keys=True)
        assert done.keys == 2
        await asyncio.sleep(0)
        for key in (tenant.key, second.secret):
            await api.with_key(key).refused(401, "unauthorized", "GET", "/api/roles")
        third = await key_for(tenant, "acme")
        await api.with_key(third.secret).ok("GET", "/api/roles")
        await locked_down(storage.open(), tenant.clock, disable=True)
        await asyncio.sleep(0)
        await api.with_key(third.secret).refused(403, "tenant_disabled", "GET", "/api/roles")
    async with tenant.database.read() as tx:
        assert (await review_tenant(tx, tenant.id)).findings == []


async def test_a_token_that_is_asked_for_during_a_lockdown_is_before_or_after_it(
    storage: Storage, tenant: TenantAtWork
) -> None:
    """Many at once: none of a family that the lockdown should have ended goes on."""
    app = create_app(settings_for(storage), clock=tenant.clock)
    form = {"grant_type": "client_credentials"}
    async with served(app) as http:
        api = Api(http, tenant.clock, tenant.key)
        command = storage.open()
        for _ in range(5):
            asked = [asyncio.ensure_future(api.send("POST", "/api/token", form)) for _ in range(6)]
            await asyncio.gather(locked_down(command, tenant.clock), *asked)
            await asyncio.sleep(0)
            for answer in asked:
                token = answer.result().json()
                check = await api.with_key(token["access_token"]).send(
                    "GET", "/api/has_permission/a/b"
                )
                refresh = await api.with_key(None).send(
                    "POST",
                    "/api/token",
                    {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]},
                )
                assert (check.status_code, refresh.status_code) in {(200, 200), (401, 400)}
