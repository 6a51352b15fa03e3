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
        """As ``now``."""
        return self.now(tenant_id)

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


_QUERY = (
    "SELECT tenant_id, revision, head, pg_is_in_recovery(), clock_timestamp()"
    " FROM tenant_head WHERE tenant_id = ANY($1::uuid[])"
    " UNION ALL SELECT NULL, NULL, NULL, pg_is_in_recovery(), clock_timestamp()"
)


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
        self._waiting: list[tuple[UUID, asyncio.Future[Now]]] = []
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
        self._drop()
        self._refuse(self._take())

    async def _own(self) -> None:
        while True:
            await self._asked.wait()
            waiters = self._take()
            try:
                async with asyncio.timeout(DEADLINE_SECONDS):
                    if self._connection is None or self._connection.is_closed():
                        self._connection = await self._connect()
                    # Whoever asked while the connection was made is served by this read too.
                    waiters += self._take()
                    self.reads += 1
                    number = self.reads
                    rows = await self._connection.fetch(
                        _QUERY, list({tenant_id for tenant_id, _ in waiters})
                    )
            except asyncio.CancelledError:
                self._refuse(waiters)
                raise
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
                log.warning("gate_refused", kind=type(error).__name__)
                self._drop()
                self._refuse(waiters)
            except Exception:
                log.exception("gate_failed")
                self._drop()
                self._refuse(waiters)
            else:
                self._answer(waiters, rows, number)

    def _take(self) -> list[tuple[UUID, asyncio.Future[Now]]]:
        waiters, self._waiting = self._waiting, []
        self._asked.clear()
        return waiters

    def _answer(
        self,
        waiters: list[tuple[UUID, asyncio.Future[Now]]],
        rows: list[Any],
        number: int,
    ) -> None:
        *found, (_, _, _, standby, at) = rows
        if standby:
            log.warning("gate_refused", kind="standby")
            self._drop()
            self._refuse(waiters)
            return
        if self._clock is not None:
            at = self._clock()
        answers = {
            tenant_id: Now(Stamp(revision, head), number, at)
            for tenant_id, revision, head, _, _ in found
        }
        missing = Now(EMPTY, number, at)
        for tenant_id, future in waiters:
            if not future.done():
                future.set_result(answers.get(tenant_id, missing))

    @staticmethod
    def _refuse(waiters: list[tuple[UUID, asyncio.Future[Now]]]) -> None:
        for _, future in waiters:
            if not future.done():
                future.set_exception(Unavailable())

    def _drop(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.terminate()


Gate = SqliteGate | PostgresGate
