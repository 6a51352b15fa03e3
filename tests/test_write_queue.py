"""Writes that wait together are written together, and none of them notices the others."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest

from authsvc.audit_chain import read_payload
from authsvc.change_set import ChangeSet
from authsvc.credentials import digest_of, new_client_key, new_key_id
from authsvc.database import Transaction
from authsvc.decision_cache import Credential
from authsvc.errors import AuthsvcError, Busy, NotFound, Unauthorized, Unavailable
from authsvc.records import SCOPES, Caller, Change, ClientKey
from authsvc.repositories.keys import Keys
from authsvc.repositories.tenants import Tenants
from authsvc.services import write_queue as write_queue_module
from authsvc.services.changes import Outcome, key_event, lock_tenant, record
from authsvc.services.write_queue import WriteQueue
from conftest import ControlledClock, MakeTenant, Storage, TenantAtWork
from replay import stored_events
from test_current_state import PERMISSIONS, ROLES, Process, random_change
from test_revision_gate import open_gate
from test_write_path import attempt, end_key, held_in_tables


@pytest.fixture
async def process(storage: Storage, clock: ControlledClock) -> AsyncIterator[Process]:
    """What one server process has."""
    made = Process(storage.open(), open_gate(storage, clock))
    yield made
    await made.gate.stop()


@pytest.fixture
def queue(process: Process, clock: ControlledClock) -> WriteQueue:
    """The queue of that process."""
    return WriteQueue(process.database, clock, process.current)


@pytest.fixture
def commits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for every transaction of the queue that reached its end."""
    ended: list[int] = []
    original = write_queue_module.write_together

    async def counted(*arguments: Any) -> Any:
        written = await original(*arguments)
        ended.append(len(written.outcomes))
        return written

    monkeypatch.setattr(write_queue_module, "write_together", counted)
    return ended


def grant(number: int, role: str = "r") -> Change:
    """One of many changes that have nothing to do with each other."""
    return Change("grant", role=role, permission=f"p{number}")


async def together(
    queue: WriteQueue, wanted: Sequence[tuple[Caller, Change]]
) -> list[Outcome | BaseException]:
    """Ask for all at once; what came of each."""
    return await asyncio.gather(
        *(
            queue.apply(caller.tenant_id, caller, change)
            for caller, change in wanted
            if caller.tenant_id is not None
        ),
        return_exceptions=True,
    )


@asynccontextmanager
async def busy(tenant: TenantAtWork, process: Process) -> AsyncIterator[None]:
    """Another write of this process has its turn for as long as the context lasts."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def work(_tx: Transaction) -> None:
        begun.set()
        await go_on.wait()

    task = asyncio.create_task(process.database.write(tenant.id, work, idle_seconds=60))
    await begun.wait()
    try:
        yield
    finally:
        go_on.set()
        await task


async def test_each_has_a_revision_and_an_event_of_its_own(
    queue: WriteQueue, tenant: TenantAtWork, commits: list[int]
) -> None:
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()
    ends = await together(queue, [(caller, grant(number)) for number in range(40)])
    outcomes = [end for end in ends if isinstance(end, Outcome)]
    assert [o.stamp.revision for o in outcomes] == [caller.stamp.revision + n for n in range(1, 41)]
    async with tenant.database.read() as tx:
        heads = {event.seq: event.hash for event in await stored_events(tx, tenant.id)}
    assert all(heads[o.stamp.revision] == o.stamp.head for o in outcomes)
    assert await tenant.violations() == []
    assert await held_in_tables(tenant) == {("r", f"p{number}") for number in range(40)}
    assert len(commits) < 10, commits
    assert sum(commits) == 40


async def check_refused_among_others(
    queue: WriteQueue, tenant: TenantAtWork, process: Process
) -> list[str]:
    """Of four writes that wait, one is about no role and one comes from a key that has ended."""
    await tenant.write(Change("add_role", role="r"))
    other = await second_caller(tenant)
    caller = await tenant.caller()
    wanted = [
        (caller, grant(1)),
        (caller, grant(2, role="nobody_made_it")),
        (other, grant(3)),
        (caller, grant(4)),
    ]
    async with busy(tenant, process):
        waiting = asyncio.create_task(together(queue, wanted))
        await asyncio.sleep(0.05)
    ends = await waiting
    expected = [Outcome, NotFound, Unauthorized, Outcome]
    wrong = [
        f"{number}: {end!r}"
        for number, (end, kind) in enumerate(zip(ends, expected, strict=True))
        if type(end) is not kind
    ]
    if await held_in_tables(tenant) != {("r", "p1"), ("r", "p4")}:
        wrong.append(f"stored: {await held_in_tables(tenant)}")
    return wrong + await tenant.violations()


async def second_caller(tenant: TenantAtWork) -> Caller:
    """A caller whose key has ended since it was authenticated."""
    key = new_client_key()
    now = tenant.clock()
    stored = ClientKey(new_key_id(), tenant.id, "", frozenset(SCOPES), now, None, None)

    async def add(tx: Transaction) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        await Keys(tx, tenant.id).add(stored, digest_of(key))
        await record(tx, tenant.id, stamp, [key_event("create", stored)], {"actor": "tests"}, now)

    await tenant.database.write(tenant.id, add)
    other = TenantAtWork(tenant.database, tenant.clock, tenant.id, key)
    caller = await other.caller()
    await end_key(other, caller, at=None)
    return caller


async def test_what_is_refused_takes_nothing_from_the_others(
    queue: WriteQueue, tenant: TenantAtWork, process: Process
) -> None:
    assert await check_refused_among_others(queue, tenant, process) == []


async def test_refused_notices_a_skipped_recheck(
    queue: WriteQueue, tenant: TenantAtWork, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def recheck(*_arguments: object) -> None:
        return None

    monkeypatch.setattr(write_queue_module, "recheck", recheck)
    assert await check_refused_among_others(queue, tenant, process) != []


async def test_a_key_is_looked_up_once_for_all_who_came_with_it(
    queue: WriteQueue, tenant: TenantAtWork, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    looked_up: list[bytes] = []
    original = Tenants.credential

    async def counted(self: Tenants, digest: bytes) -> Credential | None:
        looked_up.append(digest)
        return await original(self, digest)

    await tenant.write(Change("add_role", role="r"))
    ended = await second_caller(tenant)
    caller = await tenant.caller()
    await tenant.write(Change("add_role", role="s"))
    monkeypatch.setattr(Tenants, "credential", counted)
    wanted = [(who, grant(number)) for number in range(10) for who in (caller, ended)]
    async with busy(tenant, process):
        waiting = asyncio.create_task(together(queue, wanted))
        await asyncio.sleep(0.05)
    assert [type(end) for end in await waiting] == [Outcome, Unauthorized] * 10
    assert looked_up == [caller.digest, ended.digest]


async def test_a_bug_meets_only_the_write_it_is_about(
    queue: WriteQueue, tenant: TenantAtWork, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()
    original = ChangeSet.apply

    def apply(change_set: ChangeSet, index: int, change: Change) -> Any:
        effect = original(change_set, index, change)
        if change.permission == "p2":
            raise RuntimeError("a bug")
        return effect

    monkeypatch.setattr(ChangeSet, "apply", apply)
    async with busy(tenant, process):
        waiting = asyncio.create_task(together(queue, [(caller, grant(n)) for n in range(4)]))
        await asyncio.sleep(0.05)
    assert [type(end) for end in await waiting] == [Outcome, Outcome, RuntimeError, Outcome]
    assert await held_in_tables(tenant) == {("r", "p0"), ("r", "p1"), ("r", "p3")}
    assert await tenant.violations() == []


async def test_who_stops_waiting_before_its_turn_leaves_nothing(
    queue: WriteQueue, tenant: TenantAtWork, process: Process
) -> None:
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()
    async with busy(tenant, process):
        tasks = [
            asyncio.create_task(queue.apply(tenant.id, caller, grant(number)))
            for number in range(3)
        ]
        await asyncio.sleep(0.05)
        tasks[1].cancel()
    ends = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(end) for end in ends] == [Outcome, asyncio.CancelledError, Outcome]
    assert await held_in_tables(tenant) == {("r", "p0"), ("r", "p2")}


async def test_what_is_wrong_with_the_database_meets_all(
    queue: WriteQueue, tenant: TenantAtWork, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()

    async def append(*_arguments: object) -> None:
        raise Unavailable

    with monkeypatch.context() as patch:
        patch.setattr(write_queue_module, "append", append)
        async with busy(tenant, process):
            waiting = asyncio.create_task(together(queue, [(caller, grant(n)) for n in range(4)]))
            await asyncio.sleep(0.05)
        assert [type(end) for end in await waiting] == [Unavailable] * 4
    assert await held_in_tables(tenant) == set()
    assert isinstance(await queue.apply(tenant.id, caller, grant(5)), Outcome)
    assert await tenant.violations() == []


async def test_who_has_waited_too_long_is_told_so(
    queue: WriteQueue, tenant: TenantAtWork, process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()
    monkeypatch.setattr(write_queue_module, "QUEUE_SECONDS", 0.01)
    async with busy(tenant, process):
        waiting = asyncio.create_task(together(queue, [(caller, grant(n)) for n in range(3)]))
        await asyncio.sleep(0.1)
    assert [type(end) for end in await waiting] == [Busy] * 3
    assert await held_in_tables(tenant) == set()


async def test_memory_goes_along_with_what_was_committed(
    queue: WriteQueue, tenant: TenantAtWork, process: Process
) -> None:
    await tenant.write(Change("add_role", role="r"), Change("add_member", role="r", user="alice"))
    assert await process.differences(tenant) == []
    caller = await tenant.caller()
    [*_, last] = await together(
        queue, [(caller, Change("grant", role="r", permission=p)) for p in PERMISSIONS]
    )
    assert isinstance(last, Outcome)
    state = process.cache.state(tenant.id)
    assert state is not None
    assert state.stamp == last.stamp
    assert await process.differences(tenant) == []


@pytest.mark.parametrize("seed", range(4))
async def test_writing_together_is_writing_one_after_the_other(
    queue: WriteQueue, process: Process, make_tenant: MakeTenant, commits: list[int], seed: int
) -> None:
    rng = random.Random(seed)
    grouped, single = await make_tenant("grouped"), await make_tenant("single")
    for tenant in (grouped, single):
        await tenant.write(*[Change("add_role", role=role) for role in ROLES])
    changes = [random_change(rng, grouped) for _ in range(120)]
    met: list[Outcome | BaseException] = []
    expected: list[Outcome | BaseException] = []
    while changes:
        size = rng.randint(1, 20)
        group, changes = changes[:size], changes[size:]
        caller = await grouped.caller()
        met += await together(queue, [(caller, change) for change in group])
        assert await process.differences(grouped) == []
        expected += [await attempt(single.write(change)) for change in group]
        for tenant in (grouped, single):
            tenant.clock.advance(0.5 if tenant is grouped else 0)
    for one, other in zip(met, expected, strict=True):
        assert summary(one) == summary(other)
    assert len(commits) < len(met) / 2
    assert await told(grouped) == await told(single)
    assert await grouped.violations() == []


def summary(end: Outcome | BaseException) -> Any:
    """What of an end does not depend on whose tenant it was."""
    if isinstance(end, AuthsvcError):
        return type(end), str(end)
    assert isinstance(end, Outcome), end
    return end.stamp.revision, end.effects


async def told(tenant: TenantAtWork) -> list[Any]:
    """The tenant's events, without who they are about."""
    async with tenant.database.read() as tx:
        payloads = [read_payload(event) for event in await stored_events(tx, tenant.id)]
    return [(p["action"], p["entity_type"], p["entity_id"], p["details"]) for p in payloads[2:]]
