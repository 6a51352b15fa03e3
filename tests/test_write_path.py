"""The write path under races, faults and cancellation, on both engines.

Each ``check_*`` function plays one situation and returns what went wrong; a test demands that
nothing did, and a ``..._notices_...`` test beside it breaks the engine on purpose and demands that
the same function says so.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest
from sqlalchemy import exc, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection

from authsvc import database as database_module
from authsvc import models
from authsvc.credentials import digest_of, new_client_key, new_key_id
from authsvc.database import Database, Transaction
from authsvc.errors import (
    AuthsvcError,
    Busy,
    OutcomeUnknown,
    ReadOnly,
    Unauthorized,
    Unavailable,
)
from authsvc.records import SCOPES, Caller, Change, ClientKey, Page
from authsvc.repositories.audit import Audit
from authsvc.repositories.heads import Heads
from authsvc.repositories.keys import Keys
from authsvc.services import changes as changes_module
from authsvc.services.changes import (
    Outcome,
    RegisteredMeanwhile,
    apply_changes,
    key_event,
    lock_tenant,
    record,
)
from authsvc.services.checks import Question, check
from authsvc.services.roles import list_roles
from authsvc.services.tenants import create_tenant
from conftest import ControlledClock, Storage, TenantAtWork, authenticate
from replay import stored_events, stored_policy, stored_stamp, violations
from services import PostgresServer

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
LONG_ENOUGH = 20
"""Seconds after which something that should have happened is given up."""


@pytest.fixture
def patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Locks are waited for as long as a slow machine may need; use it before ``storage``."""
    monkeypatch.setattr(database_module, "LOCK_SECONDS", LONG_ENOUGH)
    monkeypatch.setattr(database_module, "QUEUE_SECONDS", 60)
    monkeypatch.setattr(
        database_module,
        "_BEGIN_WRITE",
        text(
            "SELECT set_config('synchronous_commit', 'on', true),"
            f" set_config('lock_timeout', '{LONG_ENOUGH}s', true)"
        ),
    )


@asynccontextmanager
async def begun(
    tenant: TenantAtWork, *changes: Change, database: Database | None = None
) -> AsyncIterator[asyncio.Task[Outcome]]:
    """A write that has done everything but its COMMIT; it goes on when the context ends."""
    used = database or tenant.database
    caller = await tenant.caller(used)
    at_the_end, go_on = asyncio.Event(), asyncio.Event()

    async def work(tx: Transaction) -> Outcome:
        outcome = await apply_changes(tx, caller, changes, tenant.clock)
        at_the_end.set()
        await go_on.wait()
        return outcome

    task = asyncio.create_task(used.write(tenant.id, work))
    reached = asyncio.create_task(at_the_end.wait())
    await asyncio.wait([task, reached], return_when="FIRST_COMPLETED", timeout=LONG_ENOUGH)
    if not at_the_end.is_set():
        reached.cancel()
        await task
    try:
        yield task
    finally:
        go_on.set()
        await asyncio.wait([task])


async def until_it_waits(storage: Storage, task: asyncio.Task[Any]) -> None:
    """Until a write is stopped by a lock, or is through because nothing stops it."""
    deadline = asyncio.get_running_loop().time() + LONG_ENOUGH
    while not task.done() and asyncio.get_running_loop().time() < deadline:
        if storage.engine == "sqlite":
            # The file's lock is waited for out of sight, and nothing can pass it.
            await asyncio.wait([task], timeout=0.2)
            return
        async with storage.administrator() as connection:
            waiting = await connection.fetchval(
                "SELECT count(*) FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event_type = 'Lock'"
            )
        if waiting:
            return
        await asyncio.wait([task], timeout=0.02)


async def held_in_tables(tenant: TenantAtWork) -> set[tuple[str, str]]:
    """(role name, permission) of every stored grant."""
    async with tenant.database.read() as tx:
        policy = await stored_policy(tx, tenant.id)
    return {(policy.name_of(role), permission) for role, permission in policy.grants}


async def attempt(write: Awaitable[Outcome]) -> Outcome | BaseException:
    """The outcome of a write, or the error it ended in."""
    return (await asyncio.gather(write, return_exceptions=True))[0]


# --- Writers of one tenant -------------------------------------------------------------------


async def check_revoke_behind_grant(storage: Storage, tenant: TenantAtWork) -> list[str]:
    """A revoke arrives while the grant it is about is not committed yet."""
    second = storage.open()
    await tenant.write(Change("add_role", role="r"))
    async with begun(tenant, Change("grant", role="r", permission="p")) as grant:
        revoke = asyncio.create_task(
            tenant.write(Change("revoke", role="r", permission="p"), database=second)
        )
        await until_it_waits(storage, revoke)
    await asyncio.wait([revoke])
    wrong = await tenant.violations()
    wrong += [
        f"not acknowledged: {task.exception()!r}" for task in (grant, revoke) if task.exception()
    ]
    if await held_in_tables(tenant):
        wrong.append("the grant is in force after its revocation was acknowledged")
    return wrong


async def lock_nothing(repository: Heads) -> Any:
    """In place of ``Heads.lock``: read the state and hold nothing."""
    return await repository.current()


@pytest.mark.usefixtures("patient")
async def test_a_revoke_behind_a_grant_takes_effect(storage: Storage, tenant: TenantAtWork) -> None:
    assert await check_revoke_behind_grant(storage, tenant) == []


@on_postgresql
@pytest.mark.usefixtures("patient")
async def test_revoke_behind_a_grant_notices_a_skipped_lock(
    storage: Storage, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heads, "lock", lock_nothing)
    assert await check_revoke_behind_grant(storage, tenant) != []


async def check_writers(
    databases: Sequence[Database], tenant: TenantAtWork, writers: int
) -> list[str]:
    """Many writers of one tenant at once, each with two changes of its own in one list."""
    await tenant.write(Change("add_role", role="r"))
    before = (await tenant.caller()).stamp.revision

    async def write(number: int) -> Outcome:
        return await tenant.write(
            Change("grant", role="r", permission=f"p{number}"),
            Change("add_member", role="r", user=f"u{number}"),
            database=databases[number % len(databases)],
        )

    ends = await asyncio.gather(*map(write, range(writers)), return_exceptions=True)
    wrong = [f"not acknowledged: {end!r}" for end in ends if isinstance(end, BaseException)]
    outcomes = [end for end in ends if not isinstance(end, BaseException)]
    revisions = sorted(outcome.stamp.revision for outcome in outcomes)
    if revisions != [before + 2 * (n + 1) for n in range(writers)]:
        wrong.append(f"revisions answered: {revisions}")
    async with tenant.database.read() as tx:
        heads = {event.seq: event.hash for event in await stored_events(tx, tenant.id)}
    if any(heads.get(o.stamp.revision) != o.stamp.head for o in outcomes):
        wrong.append("a head answered is not the hash of the event of its number")
    return wrong + await tenant.violations()


@pytest.mark.usefixtures("patient")
async def test_32_writers_leave_one_chain_without_gap_or_fork(
    storage: Storage, tenant: TenantAtWork
) -> None:
    databases = [tenant.database, storage.open()]
    assert await check_writers(databases, tenant, 32) == []


@on_postgresql
@pytest.mark.usefixtures("patient")
async def test_writers_notice_a_skipped_lock(
    storage: Storage, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Heads, "lock", lock_nothing)
    assert await check_writers([tenant.database, storage.open()], tenant, 32) != []


async def test_writers_notice_an_event_not_written(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def append(_repository: Audit, _events: object, _payloads: object) -> None:
        return None

    monkeypatch.setattr(Audit, "append", append)
    assert await check_writers([tenant.database], tenant, 2) != []


async def test_writers_notice_a_head_that_stays(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def advance(_repository: Heads, _to: object) -> None:
        return None

    monkeypatch.setattr(Heads, "advance", advance)
    assert await check_writers([tenant.database], tenant, 2) != []


@pytest.mark.usefixtures("patient")
async def test_64_identical_writes_leave_one_row_and_64_good_answers(
    storage: Storage, tenant: TenantAtWork
) -> None:
    databases = [tenant.database, storage.open()]
    await tenant.write(Change("add_role", role="r"))
    ends = await asyncio.gather(
        *(
            tenant.write(
                Change("add_role", role="one"),
                Change("add_member", role="one", user="alice"),
                database=databases[number % 2],
            )
            for number in range(64)
        )
    )
    assert sorted(outcome.applied for outcome in ends) == [0] * 63 + [2]
    assert len({outcome.stamp for outcome in ends}) == 1
    assert await tenant.violations() == []
    assert (await tenant.caller()).stamp.revision == 5


@pytest.mark.usefixtures("patient")
async def test_roles_with_crossed_parents_never_make_a_cycle(
    storage: Storage, tenant: TenantAtWork
) -> None:
    databases = [tenant.database, storage.open()]
    await tenant.write(*(Change("add_role", role=name) for name in "abc"))
    pairs = [("a", "b"), ("b", "c"), ("c", "a")] * 4
    ends = await asyncio.gather(
        *(
            tenant.write(
                Change("add_parent", role=child, parent=parent), database=databases[number % 2]
            )
            for number, (child, parent) in enumerate(pairs)
        ),
        return_exceptions=True,
    )
    refused = [end for end in ends if isinstance(end, BaseException)]
    assert all(getattr(end, "code", "") == "role_cycle" for end in refused)
    # The replay refuses an edge that closes a cycle.
    assert await tenant.violations() == []


# --- Credentials that end, and keys that begin, while a write waits --------------------------


async def end_key(tenant: TenantAtWork, caller: Caller, *, at: datetime | None) -> None:
    """Revoke the caller's key, or let it end at an instant, the way a key route would."""

    async def work(tx: Transaction) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        keys = Keys(tx, tenant.id)
        [stored] = [key for key in await keys.labelled("") if key.id == caller.key_id]
        if at is None:
            await keys.revoke(stored.id, tenant.clock())
        else:
            await keys.set_end(stored.id, at)
        event = key_event("update" if at else "delete", stored)
        if at:
            event["details"]["expires_at"] = at.isoformat()
        await record(tx, tenant.id, stamp, [event], {"actor": "tests"}, tenant.clock())

    await tenant.database.write(tenant.id, work)


async def check_write_of_an_ended_key(
    tenant: TenantAtWork, end: Callable[[Caller], Awaitable[None]]
) -> list[str]:
    """A write that was authenticated before its key ended, and gets its turn afterwards."""
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()
    await end(caller)
    answer = await attempt(
        tenant.database.write(
            tenant.id,
            lambda tx: apply_changes(
                tx, caller, [Change("grant", role="r", permission="p")], tenant.clock
            ),
        )
    )
    wrong = await tenant.violations()
    if not isinstance(answer, Unauthorized):
        wrong.append(f"answered {answer!r}")
    if await held_in_tables(tenant):
        wrong.append("an ended key has written")
    return wrong


async def test_a_key_revoked_while_its_write_waited_is_refused(tenant: TenantAtWork) -> None:
    assert await check_write_of_an_ended_key(tenant, lambda c: end_key(tenant, c, at=None)) == []


async def test_a_key_given_an_end_while_its_write_waited_is_refused(tenant: TenantAtWork) -> None:
    async def end(caller: Caller) -> None:
        await end_key(tenant, caller, at=tenant.clock() + timedelta(seconds=1))
        tenant.clock.advance(1)

    assert await check_write_of_an_ended_key(tenant, end) == []


async def test_a_key_that_expired_while_its_write_waited_is_refused(tenant: TenantAtWork) -> None:
    await end_key(tenant, await tenant.caller(), at=tenant.clock() + timedelta(seconds=1))

    async def end(_caller: Caller) -> None:
        tenant.clock.advance(1)

    assert await check_write_of_an_ended_key(tenant, end) == []


async def test_ended_keys_notice_a_skipped_recheck(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def recheck(*_arguments: object) -> None:
        return None

    monkeypatch.setattr(changes_module, "recheck", recheck)
    assert await check_write_of_an_ended_key(tenant, lambda c: end_key(tenant, c, at=None)) != []


@pytest.mark.usefixtures("patient")
async def test_a_revocation_that_the_write_waits_for_is_seen(
    storage: Storage, tenant: TenantAtWork
) -> None:
    """The revocation holds the lock; what waits behind it was authenticated before."""
    await tenant.write(Change("add_role", role="r"))
    second = storage.open()
    caller = await tenant.caller(second)
    holds, go_on = asyncio.Event(), asyncio.Event()

    async def revoke(tx: Transaction) -> None:
        stamp = await lock_tenant(tx, tenant.id)
        await Keys(tx, tenant.id).revoke(str(caller.key_id), tenant.clock())
        event = {
            "action": "grant",
            "entity_type": "permission",
            "entity_id": "seen",
            "details": {"role": "r"},
        }
        await record(tx, tenant.id, stamp, [event], {"actor": "tests"}, tenant.clock())
        holds.set()
        await go_on.wait()

    revocation = asyncio.create_task(tenant.database.write(tenant.id, revoke))
    await holds.wait()
    write = asyncio.create_task(
        second.write(
            tenant.id,
            lambda tx: apply_changes(
                tx, caller, [Change("grant", role="r", permission="p")], tenant.clock
            ),
        )
    )
    await until_it_waits(storage, write)
    go_on.set()
    await revocation
    with pytest.raises(Unauthorized):
        await write
    assert await held_in_tables(tenant) == set()


async def register(
    database: Database, key: str, clock: ControlledClock, *changes: Change
) -> Outcome:
    """A first write with an open registration, started over as the entry point does."""
    while True:
        caller = await authenticate(database, [f"Bearer {key}"], clock(), registration_open=True)

        def work(tx: Transaction, caller: Caller = caller) -> Awaitable[Outcome]:
            return apply_changes(tx, caller, changes, clock)

        try:
            return await database.write(caller.tenant_id or caller.digest, work)
        except RegisteredMeanwhile:
            continue


@pytest.mark.usefixtures("patient")
@pytest.mark.parametrize("processes", [1, 2])
async def test_first_writes_with_one_unknown_key_make_one_tenant(
    storage: Storage, clock: ControlledClock, processes: int
) -> None:
    databases = [storage.open() for _ in range(processes)]
    key = new_client_key()
    outcomes = await asyncio.gather(
        *(
            register(
                databases[number % processes], key, clock, Change("add_role", role=f"r{number}")
            )
            for number in range(8)
        )
    )
    assert [outcome.applied for outcome in outcomes] == [1] * 8
    assert sorted(outcome.stamp.revision for outcome in outcomes) == list(range(3, 11))
    async with databases[0].read() as tx:
        [tenant_id] = (await tx.execute(select(models.tenant.c.id))).scalars().all()
        assert await violations(tx, tenant_id) == []
        roles = await list_roles(tx, tenant_id, Page())
        [digest] = (await tx.execute(select(models.client_key.c.digest))).scalars().all()
    assert {role.name for role in roles.items} == {f"r{number}" for number in range(8)}
    assert digest == digest_of(key)


async def test_questions_and_empty_writes_of_an_unknown_key_store_nothing(
    database: Database, clock: ControlledClock
) -> None:
    key = new_client_key()
    outcome = await register(database, key, clock, Change("remove_role", role="r"))
    assert (outcome.applied, outcome.stamp.revision) == (0, 0)
    async with database.read() as tx:
        assert (await tx.execute(select(models.tenant))).all() == []
        assert (await tx.execute(select(models.client_key))).all() == []


async def test_one_key_or_name_cannot_make_two_tenants(
    database: Database, tenant: TenantAtWork, clock: ControlledClock
) -> None:
    for name, key in (("acme", new_client_key()), ("other", tenant.key)):

        async def work(tx: Transaction, name: str = name, key: str = key) -> object:
            return await create_tenant(tx, name, clock(), actor="tests", key=key)

        with pytest.raises(AuthsvcError) as refused:
            await database.write(name, work)
        assert refused.value.code == "conflict"
    async with database.read() as tx:
        assert (await tx.execute(select(models.tenant.c.name))).scalars().all() == ["acme"]


# --- Errors on the way -----------------------------------------------------------------------


async def check_swallowed_error(tenant: TenantAtWork) -> list[str]:
    """A statement fails in the middle of a write, and the code above it goes on regardless."""
    await tenant.write(Change("add_role", role="r"))
    caller = await tenant.caller()

    async def work(tx: Transaction) -> Outcome:
        outcome = await apply_changes(
            tx, caller, [Change("grant", role="r", permission="p")], tenant.clock
        )
        row = {"tenant_id": tenant.id, "role_id": 1_000_000, "permission": "no such role"}
        with suppress(exc.IntegrityError):
            await tx.execute(insert(models.role_permission), row)
        return outcome

    answer = await attempt(tenant.database.write(tenant.id, work))
    wrong = await tenant.violations()
    if isinstance(answer, Outcome):
        wrong.append("acknowledged")
    elif type(answer) is not Unavailable:
        wrong.append(f"answered {answer!r}")
    if await held_in_tables(tenant):
        wrong.append("half of the write is in force")
    return wrong


async def test_a_swallowed_error_is_not_acknowledged(tenant: TenantAtWork) -> None:
    assert await check_swallowed_error(tenant) == []
    assert (await tenant.write(Change("grant", role="r", permission="q"))).applied == 1


async def test_swallowed_error_notices_a_flag_ignored(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    ignored = property(lambda _tx: False, lambda _tx, _value: None)
    monkeypatch.setattr(Transaction, "failed", ignored, raising=False)
    assert await check_swallowed_error(tenant) != []


async def test_an_error_of_the_work_leaves_nothing(tenant: TenantAtWork) -> None:
    with pytest.raises(AuthsvcError) as missing:
        await tenant.write(
            Change("add_role", role="r"), Change("grant", role="absent", permission="p")
        )
    assert missing.value.code == "role_not_found"
    assert (await tenant.caller()).stamp.revision == 2
    assert await tenant.violations() == []


class Stop(Exception):
    """Not one of ours."""


@pytest.mark.parametrize("where", ["lock", "append", "advance"])
async def test_a_bug_in_the_middle_leaves_nothing(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    async def stop(*_arguments: object) -> None:
        raise Stop

    with monkeypatch.context() as patched:
        patched.setattr(Audit if where == "append" else Heads, where, stop)
        with pytest.raises(Stop):
            await tenant.write(Change("add_role", role="r"))
    assert (await tenant.caller()).stamp.revision == 2
    assert (await tenant.write(Change("add_role", role="r"))).stamp.revision == 3
    assert await tenant.violations() == []


async def test_dry_runs_write_nothing_and_say_what_would_change(tenant: TenantAtWork) -> None:
    await tenant.write(Change("add_role", role="r"))
    stamp = (await tenant.caller()).stamp
    changes = [
        Change("add_role", role="s", description="new"),
        Change("grant", role="s", permission="p"),
        Change("grant", role="s", permission="p"),
        Change("add_member", role="r", user="alice"),
        Change("remove_role", role="r"),
        Change("remove_user", user="alice"),
    ]
    outcome = await tenant.write(*changes, dry_run=True)
    assert [effect.changed for effect in outcome.effects] == [True, True, False, True, True, False]
    assert outcome.stamp == stamp
    assert (await tenant.caller()).stamp == stamp
    assert await tenant.violations() == []
    real = await tenant.write(*changes)
    assert real.effects == outcome.effects
    assert real.stamp.revision == stamp.revision + real.applied == stamp.revision + 4


async def test_a_write_without_effect_is_answered_at_the_state_it_met(
    tenant: TenantAtWork,
) -> None:
    made = await tenant.write(Change("add_role", role="r", description="d"))
    again = await tenant.write(
        Change("add_role", role="r"),
        Change("add_role", role="r", description="d"),
        Change("revoke", role="r", permission="p"),
        Change("remove_member", role="absent", user="u"),
        Change("remove_parent", role="r", parent="absent"),
    )
    assert (again.applied, again.stamp) == (0, made.stamp)
    assert await tenant.violations() == []


# --- Requests that go away -------------------------------------------------------------------


@pytest.mark.usefixtures("patient")
async def test_cancelled_requests_leave_their_writes_whole_or_absent(
    database: Database, tenant: TenantAtWork
) -> None:
    await tenant.write(Change("add_role", role="r"))
    # Cancelled after more and more steps of the loop: in the queue, at BEGIN, at COMMIT, after it.
    for number in range(40):
        task = asyncio.create_task(
            tenant.write(
                Change("grant", role="r", permission=f"p{number}"),
                Change("add_member", role="r", user=f"u{number}"),
            )
        )
        for _ in range(number):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        # What comes later waits for what is still under way, and answers the truth.
        await tenant.write(Change("add_role", role=f"after{number}"))
        [can], _ = await check(
            database, tenant.id, [Question(f"u{number}", f"p{number}")], tenant.clock()
        )
        granted = ("r", f"p{number}") in await held_in_tables(tenant)
        assert can is granted
    assert await tenant.violations() == []


@pytest.mark.usefixtures("patient")
async def test_a_request_cancelled_at_its_commit_is_whole(tenant: TenantAtWork) -> None:
    await tenant.write(Change("add_role", role="r"))
    async with begun(tenant, Change("grant", role="r", permission="p")) as task:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
    await tenant.write(Change("add_role", role="s"))
    assert await held_in_tables(tenant) == {("r", "p")}
    assert await tenant.violations() == []


@pytest.mark.usefixtures("patient")
async def test_closing_the_database_waits_for_writes_under_way(
    storage: Storage, tenant: TenantAtWork
) -> None:
    second = storage.open()
    async with begun(tenant, Change("add_role", role="r"), database=second) as task:
        task.cancel()
        closing = asyncio.create_task(second.dispose())
        await asyncio.wait([closing], timeout=0.1)
        assert not closing.done()
    await closing
    async with tenant.database.read() as tx:
        assert len((await stored_policy(tx, tenant.id)).roles) == 1


# --- Databases that refuse -------------------------------------------------------------------


@asynccontextmanager
async def locked_by_another(storage: Storage, tenant_id: UUID) -> AsyncIterator[None]:
    """A connection of somebody else's holds the lock that the tenant's writes need."""
    if storage.path is not None:
        connection = sqlite3.connect(storage.path, isolation_level=None)
        try:
            connection.execute("BEGIN IMMEDIATE")
            yield
        finally:
            connection.close()
        return
    async with storage.administrator() as administrator, administrator.transaction():
        await administrator.execute(
            "SELECT 1 FROM tenant_head WHERE tenant_id = $1 FOR UPDATE", tenant_id
        )
        yield


async def test_a_lock_held_by_another_is_busy_within_the_lock_timeout(
    storage: Storage, tenant: TenantAtWork
) -> None:
    await tenant.write(Change("add_role", role="r"))
    loop = asyncio.get_running_loop()
    async with locked_by_another(storage, tenant.id):
        started = loop.time()
        with pytest.raises(Busy) as busy:
            await tenant.write(Change("grant", role="r", permission="p"))
        waited = loop.time() - started
        assert busy.value.code == "busy"
        # Reads do not wait for anybody.
        [can], _ = await check(tenant.database, tenant.id, [Question("alice", "p")], tenant.clock())
        assert not can
    assert database_module.LOCK_SECONDS * 0.9 <= waited < database_module.LOCK_SECONDS + 10
    assert await held_in_tables(tenant) == set()
    assert (await tenant.write(Change("grant", role="r", permission="p"))).applied == 1
    assert await tenant.violations() == []


async def test_a_queue_that_does_not_move_is_busy(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(database_module, "QUEUE_SECONDS", 0.05)
    caller = await tenant.caller()
    async with begun(tenant, Change("add_role", role="r")):
        write = tenant.database.write(
            tenant.id,
            lambda tx: apply_changes(tx, caller, [Change("add_role", role="s")], tenant.clock),
        )
        with pytest.raises(Busy):
            await write
    async with tenant.database.read() as tx:
        roles = await list_roles(tx, tenant.id, Page())
    assert [role.name for role in roles.items] == ["r"]


@on_postgresql
async def test_a_read_only_database_is_said_to_be_one(
    storage: Storage, tenant: TenantAtWork
) -> None:
    async with storage.administrator() as administrator:
        await administrator.execute(
            f'ALTER DATABASE "{storage.name}" SET default_transaction_read_only = on'
        )
    database = storage.open()
    with pytest.raises(ReadOnly) as refused:
        await tenant.write(Change("add_role", role="r"), database=database)
    assert refused.value.code == "read_only"
    [can], _ = await check(database, tenant.id, [Question("alice", "p")], tenant.clock())
    assert not can
    assert await tenant.violations() == []


async def own_process(tx: Transaction) -> int:
    """The server process behind a transaction."""
    return int((await tx.execute(text("SELECT pg_backend_pid()"))).scalar_one())


@on_postgresql
@pytest.mark.parametrize("moment", ["before the work", "after the work"])
async def test_a_connection_killed_before_commit_leaves_nothing(
    storage: Storage, tenant: TenantAtWork, moment: str
) -> None:
    caller = await tenant.caller()

    async def work(tx: Transaction) -> Outcome:
        process = await own_process(tx)
        outcome = None
        if moment == "after the work":
            outcome = await apply_changes(tx, caller, [Change("add_role", role="r")], tenant.clock)
        async with storage.administrator() as administrator:
            assert await administrator.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
        # Whatever comes next meets the dead connection.
        await own_process(tx)
        assert outcome is not None
        return outcome

    with pytest.raises(Unavailable) as refused:
        await tenant.database.write(tenant.id, work)
    assert refused.value.code == "storage_unavailable"
    assert (await tenant.caller()).stamp.revision == 2
    assert (await tenant.write(Change("add_role", role="r"))).applied == 1
    assert await tenant.violations() == []


@on_postgresql
async def test_a_connection_found_dead_at_commit_has_an_unknown_outcome(
    storage: Storage, tenant: TenantAtWork
) -> None:
    caller = await tenant.caller()

    async def work(tx: Transaction) -> Outcome:
        process = await own_process(tx)
        outcome = await apply_changes(tx, caller, [Change("add_role", role="r")], tenant.clock)
        async with storage.administrator() as administrator:
            assert await administrator.fetchval("SELECT pg_terminate_backend($1, 5000)", process)
        return outcome

    with pytest.raises(OutcomeUnknown) as refused:
        await tenant.database.write(tenant.id, work)
    assert refused.value.code == "outcome_unknown"
    assert (await tenant.write(Change("add_role", role="r"))).applied == 1
    assert await tenant.violations() == []


@asynccontextmanager
async def waiting_for_a_standby(
    server: PostgresServer, storage: Storage
) -> AsyncIterator[asyncpg.Connection]:
    """Every COMMIT waits for a standby that does not exist; gives the administrator."""
    if not server.private:
        pytest.skip("settings of a server that is not ours are left alone")
    async with storage.administrator() as administrator:
        await administrator.execute("ALTER SYSTEM SET synchronous_standby_names = 'nobody'")
        await administrator.execute("SELECT pg_reload_conf()")
        try:
            yield administrator
        finally:
            await administrator.execute("ALTER SYSTEM RESET synchronous_standby_names")
            await administrator.execute("SELECT pg_reload_conf()")


async def check_interrupted_commit(
    server: PostgresServer, storage: Storage, tenant: TenantAtWork, interruption: str
) -> list[str]:
    """COMMIT waits for its standby when the wait is cancelled, or the connection killed."""
    async with waiting_for_a_standby(server, storage) as administrator:
        write = asyncio.create_task(tenant.write(Change("add_role", role="r")))
        process = None
        while process is None and not write.done():
            process = await administrator.fetchval(
                "SELECT pid FROM pg_stat_activity"
                " WHERE datname = current_database() AND wait_event = 'SyncRep'"
            )
            await asyncio.sleep(0.02)
        if process is not None:
            await administrator.fetchval(f"SELECT {interruption}($1)", process)
        answer = await attempt(write)
    wrong = await tenant.violations()
    if process is None:
        wrong.append("COMMIT did not wait for the standby")
    if not isinstance(answer, OutcomeUnknown):
        wrong.append(f"answered {answer!r}")
    return wrong


@on_postgresql
@pytest.mark.parametrize("interruption", ["pg_cancel_backend", "pg_terminate_backend"])
async def test_an_interrupted_commit_has_an_unknown_outcome(
    postgres_server: PostgresServer, storage: Storage, tenant: TenantAtWork, interruption: str
) -> None:
    assert await check_interrupted_commit(postgres_server, storage, tenant, interruption) == []
    # Here it was written; the caller reads the state and finds out.
    assert (await tenant.write(Change("add_role", role="r"))).applied == 0


@on_postgresql
async def test_interrupted_commit_notices_a_warning_unheard(
    postgres_server: PostgresServer,
    storage: Storage,
    tenant: TenantAtWork,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def commit(_database: Database, connection: AsyncConnection) -> None:
        await connection.commit()

    monkeypatch.setattr(Database, "_commit", commit)
    found = await check_interrupted_commit(postgres_server, storage, tenant, "pg_cancel_backend")
    assert any("answered Outcome(" in violation for violation in found)


@on_postgresql
async def test_a_role_that_would_not_wait_for_its_standby_does(
    storage: Storage, tenant: TenantAtWork
) -> None:
    async with storage.administrator() as administrator:
        name = storage.name
        await administrator.execute(f'ALTER DATABASE "{name}" SET synchronous_commit = off')
    database = storage.open()

    async def work(tx: Transaction) -> str:
        setting = await tx.execute(text("SELECT current_setting('synchronous_commit')"))
        return str(setting.scalar_one())

    assert await database.write(tenant.id, work) == "on"


async def test_a_commit_whose_answer_is_lost_has_an_unknown_outcome(
    tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = AsyncConnection.commit

    async def lose_the_answer(connection: AsyncConnection) -> None:
        await commit(connection)
        raise ConnectionResetError

    with monkeypatch.context() as patched:
        patched.setattr(AsyncConnection, "commit", lose_the_answer)
        with pytest.raises(OutcomeUnknown):
            await tenant.write(Change("add_role", role="r"))
    assert (await tenant.write(Change("add_role", role="r"))).applied == 0
    assert await tenant.violations() == []


async def test_writes_of_different_tenants_do_not_wait_for_each_other(
    storage: Storage, tenant: TenantAtWork, clock: ControlledClock
) -> None:
    if storage.engine == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    key = new_client_key()
    await register(tenant.database, key, clock, Change("add_role", role="theirs"))
    async with begun(tenant, Change("add_role", role="r")):
        outcome = await register(tenant.database, key, clock, Change("add_role", role="more"))
    assert outcome.applied == 1


async def test_a_disabled_tenant_is_refused_when_its_write_gets_its_turn(
    tenant: TenantAtWork,
) -> None:
    caller = await tenant.caller()
    await tenant.write(Change("add_role", role="r"))

    async def disable(tx: Transaction) -> None:
        await tx.execute(update(models.tenant).values(disabled_at=tenant.clock()))

    await tenant.database.write(tenant.id, disable)
    with pytest.raises(AuthsvcError) as refused:
        await tenant.database.write(
            tenant.id,
            lambda tx: apply_changes(tx, caller, [Change("add_role", role="s")], tenant.clock),
        )
    assert refused.value.code == "tenant_disabled"
    async with tenant.database.read() as tx:
        assert (await stored_stamp(tx, tenant.id)).revision == 3


CAP = 25


class Meeting:
    """Where two that are able to meet do meet, and one that comes alone goes on after a while."""

    def __init__(self) -> None:
        self.arrived = 0
        self.both = asyncio.Event()

    async def wait(self) -> None:
        self.arrived += 1
        if self.arrived == 2:
            self.both.set()
        with suppress(TimeoutError):
            async with asyncio.timeout(0.3):
                await self.both.wait()


async def minted(
    tenant: TenantAtWork, database: Database, meeting: Meeting | None, *, locked: bool
) -> bool:
    """Mint one more key unless there are ``CAP`` of its label already."""

    async def work(tx: Transaction) -> bool:
        stamp = await (lock_tenant(tx, tenant.id) if locked else Heads(tx, tenant.id).current())
        keys = Keys(tx, tenant.id)
        if len(await keys.labelled("minted")) >= CAP:
            tx.abandon()
            return False
        if meeting is not None:
            await meeting.wait()
        key = ClientKey(
            new_key_id(), tenant.id, "minted", frozenset(SCOPES), tenant.clock(), None, None
        )
        await keys.add(key, digest_of(new_client_key()))
        if locked:
            by = {"actor": "tests", "request_id": None, "ip_address": None, "user_agent": None}
            await record(tx, tenant.id, stamp, [key_event("create", key)], by, tenant.clock())
        return True

    return await database.write(tenant.id, work)


async def keys_of_two_for_the_last_place(
    tenant: TenantAtWork, storage: Storage, *, locked: bool
) -> int:
    """How many keys there are when two processes at once mint the last one allowed."""
    for _ in range(CAP - 1):
        assert await minted(tenant, tenant.database, None, locked=True)
    meeting = Meeting()
    databases = [tenant.database, storage.open()]
    await asyncio.gather(*(minted(tenant, one, meeting, locked=locked) for one in databases))
    async with tenant.database.read() as tx:
        return len(await Keys(tx, tenant.id).labelled("minted"))


async def test_a_cap_is_exact_under_concurrent_mints(
    patient: None, tenant: TenantAtWork, storage: Storage
) -> None:
    assert await keys_of_two_for_the_last_place(tenant, storage, locked=True) == CAP
    other = storage.open()
    got = await asyncio.gather(
        *(minted(tenant, [tenant.database, other][n % 2], None, locked=True) for n in range(64))
    )
    assert not any(got)
    assert await tenant.violations() == []


async def test_many_concurrent_mints_stop_at_the_cap(
    patient: None, tenant: TenantAtWork, storage: Storage
) -> None:
    other = storage.open()
    got = await asyncio.gather(
        *(minted(tenant, [tenant.database, other][n % 2], None, locked=True) for n in range(64))
    )
    assert sum(got) == CAP
    assert await tenant.violations() == []


# SQLite's transaction holds the file's lock from its first statement, whatever the code does.
@on_postgresql
async def test_a_cap_counted_without_the_lock_is_noticed(
    patient: None, tenant: TenantAtWork, storage: Storage
) -> None:
    assert await keys_of_two_for_the_last_place(tenant, storage, locked=False) == CAP + 1
