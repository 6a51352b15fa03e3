"""What is a tenant's state now? Answered by a read that started after the question.

Everything remembered about a tenant is true exactly as long as its (revision, head) has not
moved, so this one fact is all that a request answered from memory needs from the database.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import quote
from uuid import UUID

import asyncpg
import structlog

from authsvc.clock import Clock
from authsvc.errors import Unavailable
from authsvc.records import EMPTY, Stamp

log = structlog.get_logger("authsvc.gate")

DEADLINE_SECONDS = 1.0
"""A read that takes longer is no answer: whoever waits for it is refused."""

Connect = Callable[[], Any]


class Now(NamedTuple):
    """A tenant's state, the number of the read that found it, and the instant of that read.

    Reads are numbered in the order they *started*. ``stamp`` is ``EMPTY`` for a tenant that is
    not there.
    """

    stamp: Stamp
    read: int
    at: datetime


class SqliteGate:
    """Over a file that this process alone serves, though commands may write beside it.

    ``PRAGMA data_version`` changes when any other connection has committed, of this process or of
    another. The connection is the gate's own, never writes and never holds a transaction, because
    the version only speaks of others' commits and only outside of one.
    """

    def __init__(self, path: Path, clock: Clock) -> None:
        self._uri = f"file:{quote(str(path))}?mode=ro"
        self._clock = clock
        self._connection: sqlite3.Connection | None = None
        self._version = -1
        self._stamps: dict[UUID, Stamp] = {}
        self._shared: dict[UUID, Now] = {}
        self.reads = 0

    def now(self, tenant_id: UUID) -> Now:
        """The tenant's state; microseconds, so it never waits. Raises Unavailable."""
        self.reads += 1
        try:
            connection = self._connection or self._open()
            # The version first: what is read after it may be newer than it, never older.
            version = connection.execute("PRAGMA data_version").fetchall()[0][0]
            if version != self._version:
                self._stamps = {}
                self._version = version
            stamp = self._stamps.get(tenant_id)
            if stamp is None:
                stamp = self._stamps[tenant_id] = self._read(connection, tenant_id)
        except (sqlite3.Error, OSError) as error:
            self.close()
            log.warning("gate_refused", kind=type(error).__name__)
            raise Unavailable from None
        return Now(stamp, self.reads, self._clock())

    async def current(self, tenant_id: UUID) -> Now:
        """As ``now``, shared by the requests that had all come before this read.

        The loop takes in what clients have sent and only then, in its next turn, goes on with the
        requests it has: whoever asks in the same turn as this had come before the read, and what
        comes later asks in a later turn. By then the read is forgotten, since the call that
        forgets it is the first to be queued for that turn.
        """
        found = self._shared.get(tenant_id)
        if found is None:
            if not self._shared:
                asyncio.get_running_loop().call_soon(self._shared.clear)
            found = self._shared[tenant_id] = self.now(tenant_id)
        return found

    def _open(self) -> sqlite3.Connection:
        self._connection = sqlite3.connect(
            self._uri, uri=True, isolation_level=None, timeout=0.1, check_same_thread=False
        )
        self._version = -1
        return self._connection

    @staticmethod
    def _read(connection: sqlite3.Connection, tenant_id: UUID) -> Stamp:
        rows = connection.execute(
            "SELECT revision, head FROM tenant_head WHERE tenant_id = ?", (tenant_id.bytes,)
        ).fetchall()
        return Stamp(*rows[0]) if rows else EMPTY

    def close(self) -> None:
        """Give the connection up; the next question opens another."""
        connection, self._connection = self._connection, None
        self._stamps = {}
        if connection is not None:
            connection.close()

    async def stop(self) -> None:
        """End for good."""
        self.close()


# Both answer for tenants that are not there. The usual case, one tenant, has a statement of its own
# because an array costs as much again as all the rest.
_ONE = (
    "SELECT $1::uuid, h.revision, h.head, pg_is_in_recovery(), clock_timestamp()"
    " FROM (SELECT) AS always LEFT JOIN tenant_head h ON h.tenant_id = $1"
)
_SEVERAL = (
    "SELECT asked.id, h.revision, h.head, pg_is_in_recovery(), clock_timestamp()"
    " FROM unnest($1::uuid[]) AS asked (id) LEFT JOIN tenant_head h ON h.tenant_id = asked.id"
)
# Otherwise the server plans the second anew each time.
_PLAN_ONCE = "SET plan_cache_mode = force_generic_plan"

_Waiters = list[tuple[UUID, asyncio.Future[Now]]]


class PostgresGate:
    """Over a connection of its own: one small query serves everybody who asked before it started.

    Questions that arrive while a read is under way wait together for the next one. One task owns
    the connection; every waiter has a future of its own, so that one that goes away takes nothing
    from the others. The connection is in autocommit and never inside a transaction; once a read
    fails or passes its deadline it is closed and never used again.
    """

    def __init__(self, connect: Connect, clock: Clock | None = None) -> None:
        """``connect`` makes an asyncpg connection; ``clock`` replaces the primary's, in tests."""
        self._connect = connect
        self._clock = clock
        self._connection: Any = None
        self._one: Any = None
        self._several: Any = None
        self._waiting: _Waiters = []
        self._served: _Waiters = []
        self._due = 0.0
        self._watch: asyncio.TimerHandle | None = None
        self._asked = asyncio.Event()
        self._owner: asyncio.Task[None] | None = None
        self.reads = 0

    def current(self, tenant_id: UUID) -> asyncio.Future[Now]:
        """The tenant's state, to be awaited. Raises Unavailable."""
        future: asyncio.Future[Now] = asyncio.get_running_loop().create_future()
        self._waiting.append((tenant_id, future))
        if self._owner is None:
            self._owner = asyncio.create_task(self._own())
        self._asked.set()
        return future

    async def stop(self) -> None:
        """End for good; whoever waits is refused."""
        if self._owner is not None:
            self._owner.cancel()
            await asyncio.wait([self._owner])
            self._owner = None
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None
        self._drop()
        self._refuse(self._take())

    async def _own(self) -> None:
        while True:
            await self._asked.wait()
            self._served = self._take()
            self._set_deadline()
            try:
                if self._connection is None or self._connection.is_closed():
                    await self._open()
                    # Whoever asked while the connection was made is served by this read too.
                    self._served += self._take()
                self.reads += 1
                number = self.reads
                tenants = {tenant_id for tenant_id, _ in self._served}
                if len(tenants) == 1:
                    rows = await self._one.fetch(*tenants)
                else:
                    rows = await self._several.fetch(list(tenants))
                self._answer(self._served, rows, number)
            except asyncio.CancelledError:
                self._refuse(self._served)
                raise
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("gate_refused", kind=type(error).__name__)
                self._drop()
                self._refuse(self._served)
            except Exception:
                log.exception("gate_failed")
                self._drop()
                self._refuse(self._served)
            self._served = []

    async def _open(self) -> None:
        self._connection = await self._connect()
        await self._connection.execute(_PLAN_ONCE)
        self._one = await self._connection.prepare(_ONE)
        self._several = await self._connection.prepare(_SEVERAL)

    def _set_deadline(self) -> None:
        """The read that begins now may take this long. One timer is kept for all of them."""
        loop = asyncio.get_running_loop()
        self._due = loop.time() + DEADLINE_SECONDS
        if self._watch is None:
            self._watch = loop.call_at(self._due, self._look)

    def _look(self) -> None:
        """Refuse those who have waited too long, and give up the connection that made them wait."""
        self._watch = None
        if not self._served:
            return
        loop = asyncio.get_running_loop()
        if loop.time() < self._due:
            self._watch = loop.call_at(self._due, self._look)
            return
        log.warning("gate_refused", kind="deadline")
        self._refuse(self._served)
        if self._connection is not None:
            # Whoever reads from it is told so.
            self._connection.terminate()

    def _take(self) -> _Waiters:
        waiters, self._waiting = self._waiting, []
        self._asked.clear()
        return waiters

    def _answer(self, waiters: _Waiters, rows: list[Any], number: int) -> None:
        if any(standby for _, _, _, standby, _ in rows):
            log.warning("gate_refused", kind="standby")
            self._drop()
            self._refuse(waiters)
            return
        answers = {
            tenant_id: Now(
                EMPTY if revision is None else Stamp(revision, head),
                number,
                at if self._clock is None else self._clock(),
            )
            for tenant_id, revision, head, _, at in rows
        }
        for tenant_id, future in waiters:
            if not future.done():
                future.set_result(answers[tenant_id])

    @staticmethod
    def _refuse(waiters: _Waiters) -> None:
        for _, future in waiters:
            if not future.done():
                future.set_exception(Unavailable())

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


Gate = SqliteGate | PostgresGate
