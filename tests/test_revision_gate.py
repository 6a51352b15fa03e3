"""The gate answers with a read that started after the question, or not at all."""

from __future__ import annotations

import asyncio
import sqlite3
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import asyncpg
import pytest

from authsvc.errors import Unavailable
from authsvc.records import EMPTY, Change, Stamp
from authsvc.revision_gate import Gate, Now, PostgresGate, SqliteGate
from conftest import ControlledClock, Storage, TenantAtWork, connect_driver

TENANT = uuid.UUID("5f0c2e7e-6c5a-4b6e-9d3e-0c8f6f1f5a10")
AT = datetime(2026, 3, 1, tzinfo=UTC)


def open_gate(storage: Storage, clock: ControlledClock) -> Gate:
    """A gate of each kind on a test's database."""
    if storage.path is not None:
        return SqliteGate(storage.path, clock)
    return PostgresGate(lambda: connect_driver(storage.url), clock)


@pytest.fixture
async def gate(storage: Storage, clock: ControlledClock) -> AsyncIterator[Gate]:
    """A gate beside the test's own database object."""
    made = open_gate(storage, clock)
    yield made
    await made.stop()


class SlowDatabase:
    """A stand-in for a driver connection whose reads end when they are told to."""

    def __init__(self) -> None:
        self.revision = 1
        self.standby = False
        self.started: list[list[uuid.UUID]] = []
        self.release = asyncio.Semaphore(0)
        self.terminated = False

    def is_closed(self) -> bool:
        return self.terminated

    def terminate(self) -> None:
        self.terminated = True

    async def execute(self, _command: str) -> None:
        pass

    async def prepare(self, _query: str) -> SlowDatabase:
        return self

    async def fetch(self, asked: uuid.UUID | list[uuid.UUID]) -> list[Any]:
        # A database answers from its state at some moment of the read; the earliest is the worst.
        seen = self.revision
        tenants = asked if isinstance(asked, list) else [asked]
        self.started.append(tenants)
        released = asyncio.ensure_future(self.release.acquire())
        while not released.done():
            if self.terminated:
                released.cancel()
                raise asyncpg.ConnectionDoesNotExistError("closed in the middle of a read")
            await asyncio.sleep(0.001)
        return [(tenant, seen, b"h%d" % seen, self.standby, AT) for tenant in tenants]


def gate_over(database: SlowDatabase) -> PostgresGate:
    """A gate whose connection is the stand-in."""

    async def connect() -> SlowDatabase:
        database.terminated = False
        return database

    return PostgresGate(connect)


async def late_question(gate: PostgresGate, database: SlowDatabase) -> int:
    """The revision told to a question that comes after a write which a running read misses."""
    first = gate.current(TENANT)
    await asyncio.sleep(0.01)
    database.revision = 2
    second = asyncio.ensure_future(gate.current(TENANT))
    database.release.release()
    await asyncio.sleep(0.01)
    database.release.release()
    assert (await first).stamp.revision == 1
    return (await second).stamp.revision


async def test_a_question_waits_for_a_read_that_starts_after_it() -> None:
    database = SlowDatabase()
    gate = gate_over(database)
    assert await late_question(gate, database) == 2
    await gate.stop()


async def test_a_gate_that_joins_the_running_read_would_be_noticed() -> None:
    database = SlowDatabase()

    class JoiningGate(PostgresGate):
        def _answer(self, waiters: list[Any], rows: list[Any], number: int) -> None:
            super()._answer(waiters + self._take(), rows, number)

    async def connect() -> SlowDatabase:
        return database

    gate = JoiningGate(connect)
    assert await late_question(gate, database) == 1
    await gate.stop()


async def test_one_read_serves_everybody_who_asked_before_it() -> None:
    database = SlowDatabase()
    gate = gate_over(database)
    first = gate.current(TENANT)
    await asyncio.sleep(0.01)
    others = [gate.current(uuid.uuid4()) for _ in range(50)]
    database.release.release()
    database.release.release()
    assert (await first).read == 1
    assert {now.read for now in await asyncio.gather(*others)} == {2}
    assert [len(tenants) for tenants in database.started] == [1, 50]
    await gate.stop()


async def test_who_goes_away_takes_nothing_from_the_others() -> None:
    database = SlowDatabase()
    gate = gate_over(database)
    waiters = [asyncio.ensure_future(_ask(gate)) for _ in range(4)]
    await asyncio.sleep(0.01)
    waiters[0].cancel()
    waiters[2].cancel()
    database.release.release()
    await asyncio.gather(*waiters, return_exceptions=True)
    assert [waiter.cancelled() for waiter in waiters] == [True, False, True, False]
    assert waiters[1].result() == waiters[3].result() == 1
    await gate.stop()


async def _ask(gate: PostgresGate) -> int:
    return (await gate.current(TENANT)).stamp.revision


async def test_a_standby_is_no_answer() -> None:
    database = SlowDatabase()
    database.standby = True
    gate = gate_over(database)
    database.release.release()
    with pytest.raises(Unavailable):
        await gate.current(TENANT)
    assert database.terminated
    await gate.stop()


async def test_a_read_past_its_deadline_is_no_answer_and_its_connection_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("authsvc.revision_gate.DEADLINE_SECONDS", 0.05)
    database = SlowDatabase()
    gate = gate_over(database)
    with pytest.raises(Unavailable):
        await gate.current(TENANT)
    assert database.terminated
    # The next question gets a connection and an answer of its own.
    database.release.release()
    database.release.release()
    assert (await gate.current(TENANT)).stamp == Stamp(1, b"h1")
    await gate.stop()


async def test_stopping_refuses_who_waits() -> None:
    database = SlowDatabase()
    gate = gate_over(database)
    waiting = gate.current(TENANT)
    await asyncio.sleep(0.01)
    await gate.stop()
    with pytest.raises(Unavailable):
        await waiting


async def test_every_commit_is_seen_at_once(
    gate: Gate, tenant: TenantAtWork, storage: Storage
) -> None:
    other_process = storage.open()
    assert (await gate.current(uuid.uuid4())).stamp == EMPTY
    for number in range(10):
        writer = other_process if number % 2 else tenant.database
        change = Change("add_role", role=f"r{number}")
        outcome = await tenant.write(change, database=writer)
        now = await gate.current(tenant.id)
        assert now.stamp == outcome.stamp
        assert (await gate.current(tenant.id)).stamp == outcome.stamp


def sqlite_file(template: Any, folder: Any) -> tuple[Any, sqlite3.Connection]:
    """A file with one tenant at revision 1, and a connection that writes to it."""
    path = folder / "auth.sqlite3"
    path.write_bytes(template.read_bytes())
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("PRAGMA journal_mode=WAL")
    writer.execute(
        "INSERT INTO tenant (id, name, created_at, settings, token_generation)"
        " VALUES (?, 't', '2026-01-01 00:00:00.000000', '{}', 0)",
        (TENANT.bytes,),
    )
    writer.execute(
        "INSERT INTO tenant_head (tenant_id, revision, head) VALUES (?, 1, ?)",
        (TENANT.bytes, bytes(32)),
    )
    return path, writer


async def told_after_commits(gate: SqliteGate, writer: sqlite3.Connection) -> list[int]:
    """What a gate tells to requests that each come in a turn of the loop after a commit."""
    told = []
    for revision in range(2, 6):
        writer.execute("UPDATE tenant_head SET revision = ?", (revision,))
        asyncio.get_running_loop().call_soon(lambda: None)
        await asyncio.sleep(0)
        told.append((await gate.current(TENANT)).stamp.revision)
    return told


async def test_on_sqlite_a_read_is_shared_within_a_turn_of_the_loop_and_no_longer(
    sqlite_template: Any, tmp_path: Any, clock: ControlledClock
) -> None:
    path, writer = sqlite_file(sqlite_template, tmp_path)
    gate = SqliteGate(path, clock)
    together = await asyncio.gather(*(gate.current(TENANT) for _ in range(20)))
    assert {now.read for now in together} == {1}
    assert await told_after_commits(gate, writer) == [2, 3, 4, 5]

    class Never(dict[uuid.UUID, Now]):
        def clear(self) -> None:
            pass

    keeping = SqliteGate(path, clock)
    keeping._shared = Never()
    writer.execute("UPDATE tenant_head SET revision = 1")
    await keeping.current(TENANT)
    assert await told_after_commits(keeping, writer) == [1, 1, 1, 1]
    gate.close()
    keeping.close()
    writer.close()


async def test_the_instant_is_the_clocks(
    gate: Gate, tenant: TenantAtWork, clock: ControlledClock
) -> None:
    clock.advance(60)
    assert (await gate.current(tenant.id)).at == clock()


async def test_sqlite_reads_the_version_before_the_revision(
    sqlite_template: Any, tmp_path: Any, clock: ControlledClock
) -> None:
    """A commit between the two reads must leave the remembered version the older one."""
    path, writer = sqlite_file(sqlite_template, tmp_path)

    class Interrupted(SqliteGate):
        """A commit comes right after the gate has read."""

        commits = 0

        def _read(  # type: ignore[override]
            self, connection: sqlite3.Connection, tenant_id: uuid.UUID
        ) -> Stamp:
            found = SqliteGate._read(connection, tenant_id)
            if not self.commits:
                self.commits += 1
                writer.execute("UPDATE tenant_head SET revision = 2")
            return found

    gate = Interrupted(path, clock)
    assert gate.now(TENANT).stamp.revision == 1
    assert gate.now(TENANT).stamp.revision == 2
    gate.close()
    writer.close()


async def test_a_killed_connection_is_replaced(
    postgresql_template: str, tenant_on_postgresql: tuple[PostgresGate, TenantAtWork, Storage]
) -> None:
    gate, tenant, storage = tenant_on_postgresql
    before = (await gate.current(tenant.id)).stamp
    async with storage.administrator() as administrator:
        await administrator.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
            " WHERE pid <> pg_backend_pid() AND query LIKE '%FROM tenant_head WHERE%ANY%'"
        )
    seen = None
    for _ in range(20):
        try:
            seen = (await gate.current(tenant.id)).stamp
            break
        except Unavailable:
            await asyncio.sleep(0.05)
    assert seen == before


@pytest.fixture
async def tenant_on_postgresql(
    postgres_server: Any, postgresql_template: str, clock: ControlledClock
) -> AsyncIterator[tuple[PostgresGate, TenantAtWork, Storage]]:
    """A tenant and a gate, on PostgreSQL whatever the test's engine."""
    from authsvc.credentials import new_client_key
    from authsvc.services.tenants import create_tenant
    from conftest import copied

    async with copied(postgres_server, postgresql_template) as storage:
        database = storage.open()
        key = new_client_key()
        made = await database.write(
            "acme", lambda tx: create_tenant(tx, "acme", clock(), actor="tests", key=key)
        )
        gate = PostgresGate(lambda: connect_driver(storage.url), clock)
        yield gate, TenantAtWork(database, clock, made.id, key), storage
        await gate.stop()
