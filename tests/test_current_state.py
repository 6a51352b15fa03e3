"""What is answered from memory is what the database would answer: always, from every process."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from authsvc.credentials import digest_of
from authsvc.database import Database
from authsvc.decision_cache import DecisionCache, TenantState
from authsvc.records import Change, Membership, Stamp
from authsvc.revision_gate import Gate
from authsvc.services.checks import Question, check, check_now, explain, explain_now
from authsvc.services.current_state import CurrentState
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork
from test_revision_gate import open_gate

USERS = ["alice", "bob", "carol", "dave"]
ROLES = ["reader", "writer", "admin", "owner", "guest"]
PERMISSIONS = ["doc:read", "doc:write", "doc:line:read", "deploy"]
GRANTS = [*PERMISSIONS, "doc:*", "doc:line:*"]
SCOPES = [None, "a", "b"]
QUESTIONS = [Question(u, p, s) for u in USERS for p in PERMISSIONS for s in SCOPES]


class Process:
    """What one server process has: connections, a gate and a memory of its own."""

    def __init__(self, database: Database, gate: Gate, megabytes: int = 16) -> None:
        self.database = database
        self.gate = gate
        self.cache = DecisionCache(megabytes)
        self.current = CurrentState(database, gate, self.cache)

    async def differences(self, tenant: TenantAtWork) -> list[str]:
        """Where memory and database differ about any question of a tenant."""
        now = tenant.clock()
        credential, _at = await self.current.credential(digest_of(tenant.key))
        if credential is None:
            return ["the key is unknown"]
        caller = replace(await tenant.caller(), stamp=credential.stamp)
        remembered, stamp = await check_now(self.current, caller, QUESTIONS, now)
        true, true_stamp = await check(self.database, tenant.id, QUESTIONS, now)
        found = [
            f"{question}: {mine} instead of {theirs}"
            for question, mine, theirs in zip(QUESTIONS, remembered, true, strict=True)
            if mine != theirs
        ]
        if stamp != true_stamp:
            found.append(f"answered at {stamp.revision} instead of {true_stamp.revision}")
        return found


@pytest.fixture
async def processes(storage: Storage, clock: ControlledClock) -> AsyncIterator[list[Process]]:
    """Two processes on one database."""
    made = [Process(storage.open(), open_gate(storage, clock)) for _ in range(2)]
    yield made
    for process in made:
        await process.gate.stop()


def random_change(rng: random.Random, tenant: TenantAtWork) -> Change:
    """Any change, most of them effective sooner or later."""
    role, other = rng.sample(ROLES, 2)
    user, permission, scope = rng.choice(USERS), rng.choice(GRANTS), rng.choice(SCOPES)
    now = tenant.clock()
    start = rng.choice([None, None, now + timedelta(seconds=rng.randint(-30, 30))])
    end = rng.choice([None, None, (start or now) + timedelta(seconds=rng.randint(1, 40))])
    return rng.choice(
        [
            Change("add_role", role=role, description=rng.choice([None, "x"])),
            Change("grant", role=role, permission=permission),
            Change("grant", role=role, permission=permission),
            Change("revoke", role=role, permission=permission),
            Change("add_member", user=user, role=role),
            Change("add_member", user=user, role=role, scope=scope),
            Change("add_member", user=user, role=role, not_before=start, expires_at=end),
            Change("remove_member", user=user, role=role, scope=scope),
            Change("add_parent", role=role, parent=other),
            Change("remove_parent", role=role, parent=other),
            Change("remove_role", role=role),
            Change("remove_user", user=user),
        ]
    )


async def written(rng: random.Random, tenant: TenantAtWork, database: Database) -> None:
    """Write one to three random changes; what cannot be applied is left out."""
    from authsvc.errors import AuthsvcError

    changes = [random_change(rng, tenant) for _ in range(rng.choice([1, 1, 3]))]
    try:
        await tenant.write(*changes, database=database)
    except AuthsvcError:
        return


async def found_in_a_walk(
    tenant: TenantAtWork, processes: list[Process], *, seed: int, steps: int
) -> list[str]:
    """Write through one process, ask both, again and again; the first differences met."""
    rng = random.Random(seed)
    await tenant.write(*[Change("add_role", role=role) for role in ROLES])
    for step in range(steps):
        await written(rng, tenant, processes[step % 2].database)
        tenant.clock.advance(rng.choice([0, 0, 7]))
        for process in processes:
            found = await process.differences(tenant)
            if found:
                return found
    return []


@pytest.mark.parametrize("seed", [1, 2])
async def test_memory_equals_the_database(
    tenant: TenantAtWork, processes: list[Process], seed: int
) -> None:
    assert await found_in_a_walk(tenant, processes, seed=seed, steps=60) == []


async def test_a_dropped_invalidation_is_noticed(
    tenant: TenantAtWork, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TenantState, "_touch", lambda _self, _payload: None)
    assert await found_in_a_walk(tenant, processes, seed=1, steps=60)


async def test_a_gate_that_does_not_look_again_is_noticed(
    tenant: TenantAtWork, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    for process in processes:
        first: dict[UUID, Any] = {}
        asked = process.gate.current

        async def current(
            tenant_id: UUID, first: dict[UUID, Any] = first, asked: Any = asked
        ) -> Any:
            if tenant_id not in first:
                first[tenant_id] = await asked(tenant_id)
            return first[tenant_id]

        monkeypatch.setattr(process.gate, "current", current)
    assert await found_in_a_walk(tenant, processes, seed=1, steps=60)


async def test_a_load_of_an_older_state_that_is_installed_is_noticed(
    tenant: TenantAtWork, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A load that a write has overtaken, passed off as one of the newest state."""
    from authsvc.repositories import policy
    from authsvc.services import current_state

    load = policy.load_policy

    async def overtaken(database: Database, tenant_id: UUID, *args: Any, **kwargs: Any) -> Any:
        loaded = await load(database, tenant_id, *args, **kwargs)
        await tenant.write(Change("grant", role="reader", permission="deploy"))
        await tenant.write(Change("revoke", role="reader", permission="deploy"))
        await tenant.write(Change("add_member", user="alice", role="reader"))
        await tenant.write(Change("grant", role="reader", permission="doc:read"))
        return replace(loaded, stamp=(await processes[0].gate.current(tenant_id)).stamp)

    await tenant.write(Change("add_role", role="reader"))
    process = processes[0]
    assert await process.differences(tenant) == []
    process.cache.drop(tenant.id)
    monkeypatch.setattr(current_state, "load_policy", overtaken)
    caller = replace(await tenant.caller(), stamp=Stamp(0, b""))
    await process.current.holdings(tenant.id, {"alice"}, caller.stamp)
    monkeypatch.setattr(current_state, "load_policy", load)
    assert await process.differences(tenant)


async def test_a_load_that_a_write_overtook_is_not_installed(
    tenant: TenantAtWork, processes: list[Process], monkeypatch: pytest.MonkeyPatch
) -> None:
    from authsvc.repositories import policy
    from authsvc.services import current_state

    load = policy.load_policy
    overtakes = 3

    async def overtaken(database: Database, tenant_id: UUID, *args: Any, **kwargs: Any) -> Any:
        nonlocal overtakes
        loaded = await load(database, tenant_id, *args, **kwargs)
        if overtakes:
            overtakes -= 1
            await tenant.write(Change("add_member", user="alice", role="reader"))
            await tenant.write(Change("remove_member", user="alice", role="reader"))
            await tenant.write(Change("grant", role="reader", permission=f"p{overtakes}"))
            await tenant.write(Change("add_member", user="alice", role="reader"))
        return loaded

    await tenant.write(Change("add_role", role="reader"))
    monkeypatch.setattr(current_state, "load_policy", overtaken)
    for process in processes:
        # Written while it is asked: this answer may be of any state in between.
        overtakes = 3
        await process.differences(tenant)
        overtakes = 0
        assert await process.differences(tenant) == []


async def test_the_same_revision_with_another_head_is_another_state(
    tenant: TenantAtWork, processes: list[Process], storage: Storage
) -> None:
    """A promoted standby that lost its tail, and went on writing to the same number."""
    await tenant.write(
        Change("add_role", role="reader"),
        Change("grant", role="reader", permission="deploy"),
        Change("add_member", user="alice", role="reader"),
    )
    for process in processes:
        assert await process.differences(tenant) == []
    await replace_tail(tenant, storage)
    for process in processes:
        assert await process.differences(tenant) == []


async def replace_tail(tenant: TenantAtWork, storage: Storage) -> None:
    """Take the newest event and what it did away, as a lost tail does, and write another."""
    from sqlalchemy import Connection, delete, func, select, update

    from authsvc import models

    def cut(connection: Connection) -> None:
        event = models.audit_event
        mine = event.c.tenant_id == tenant.id
        last = (connection.execute(select(func.max(event.c.seq)).where(mine))).scalar_one()
        connection.execute(delete(event).where(mine, event.c.seq == last))
        connection.execute(
            delete(models.membership).where(models.membership.c.tenant_id == tenant.id)
        )
        head = (
            connection.execute(select(event.c.hash).where(mine, event.c.seq == last - 1))
        ).scalar_one()
        connection.execute(
            update(models.tenant_head)
            .where(models.tenant_head.c.tenant_id == tenant.id)
            .values(revision=last - 1, head=head)
        )

    await storage.forge(cut)
    await tenant.write(Change("add_role", role="other"))


async def test_a_restored_older_state_is_answered_from(
    tenant: TenantAtWork, processes: list[Process], storage: Storage
) -> None:
    await tenant.write(Change("add_role", role="reader"))
    await tenant.write(Change("grant", role="reader", permission="deploy"))
    await tenant.write(Change("add_member", user="alice", role="reader"))
    for process in processes:
        assert await process.differences(tenant) == []
    await replace_tail(tenant, storage)
    await tenant.write(Change("add_role", role="more"))
    for process in processes:
        assert await process.differences(tenant) == []


async def test_far_behind_means_starting_over(
    tenant: TenantAtWork, processes: list[Process]
) -> None:
    await tenant.write(Change("add_role", role="reader"))
    for process in processes:
        assert await process.differences(tenant) == []
    await tenant.write(
        *[Change("grant", role="reader", permission=f"p{n}") for n in range(1500)],
        Change("grant", role="reader", permission="deploy"),
        Change("add_member", user="alice", role="reader"),
    )
    for process in processes:
        assert await process.differences(tenant) == []


async def test_tenants_do_not_share_what_is_remembered(
    make_tenant: MakeTenant, processes: list[Process]
) -> None:
    one, other = await make_tenant("one"), await make_tenant("other")
    for tenant in (one, other):
        await tenant.write(Change("add_role", role="reader"))
        await tenant.write(Change("add_member", user="alice", role="reader"))
    await one.write(Change("grant", role="reader", permission="deploy"))
    for process in processes:
        assert await process.differences(one) == []
        assert await process.differences(other) == []


async def test_a_revoked_key_is_refused_by_every_process_at_once(
    tenant: TenantAtWork, processes: list[Process]
) -> None:
    from authsvc.repositories.keys import Keys
    from authsvc.services.authentication import is_alive
    from authsvc.services.changes import key_event, lock_tenant, origin, record

    digest = digest_of(tenant.key)
    for process in processes:
        for _ in range(2):
            credential, _at = await process.current.credential(digest)
            assert credential is not None
            assert is_alive(credential, tenant.clock())
    caller = await tenant.caller()
    key = credential.key if credential is not None else None
    assert key is not None

    async def revoke(tx: Any) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        await Keys(tx, tenant.id).revoke(key.id, tenant.clock())
        event = key_event("delete", key)
        await record(tx, tenant.id, stamp, [event], origin(caller, key.id), tenant.clock())

    await processes[0].database.write(tenant.id, revoke)
    for process in processes:
        credential, _at = await process.current.credential(digest)
        assert credential is not None
        assert not is_alive(credential, tenant.clock())


async def test_reasons_from_memory_equal_those_of_the_database(
    tenant: TenantAtWork, processes: list[Process]
) -> None:
    rng = random.Random(7)
    await tenant.write(*[Change("add_role", role=role) for role in ROLES])
    for _ in range(25):
        await written(rng, tenant, tenant.database)
    caller = await tenant.caller()
    for process in processes:
        mine, _ = await explain_now(process.current, caller, QUESTIONS, tenant.clock())
        true, _ = await explain(process.database, tenant.id, QUESTIONS, tenant.clock())
        for question, one, other in zip(QUESTIONS, mine, true, strict=True):
            assert one.reason == other.reason, question
            assert sorted(map(repr, one.grounds)) == sorted(map(repr, other.grounds)), question


async def test_memory_stays_within_its_bound_under_a_scan_of_all_users(
    tenant: TenantAtWork, storage: Storage, clock: ControlledClock
) -> None:
    await tenant.write(
        Change("add_role", role="reader"),
        *[Change("add_member", user=f"user-{n}", role="reader") for n in range(9_000)],
    )
    process = Process(tenant.database, open_gate(storage, clock), megabytes=1)
    caller = await tenant.caller()
    most = 0
    for start in range(0, 9_000, 500):
        questions = [Question(f"user-{n}", "deploy") for n in range(start, start + 500)]
        await check_now(process.current, caller, questions, clock())
        state = process.cache.state(tenant.id)
        assert state is not None
        most = max(most, len(state.fresh) + len(state.aged))
    # About 180 bytes a user, in 1 MiB: some thousands, and never all of them.
    assert 1_000 < most < 7_000
    await process.gate.stop()


def test_users_with_the_same_roles_share_what_is_remembered() -> None:
    state = TenantState(Stamp(1, b""), 1)
    alice = state.held_by([Membership("alice", 3, "", None, None)])
    bob = state.held_by([Membership("bob", 3, "", None, None)])
    assert alice is bob
