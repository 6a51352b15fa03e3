"""The one way to the database: a read transaction, a single-statement read, a write transaction.

Only this file commits. A write transaction remembers every error that passed through it and
refuses to commit after one, because both drivers' COMMIT returns normally on a transaction that
the server has already given up (nothing would have been written, and success acknowledged).
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import (
    AsyncIterator,
    Awaitable,
    Callable,
    Hashable,
    Mapping,
    Sequence,
)
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import UUID
from weakref import WeakValueDictionary

import aiosqlite
import structlog
from sqlalchemy import (
    URL,
    AsyncAdaptedQueuePool,
    Engine,
    StaticPool,
    create_engine,
    event,
    exc,
    text,
)
from sqlalchemy.engine import CursorResult, Row
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.sql.base import Executable

from authsvc.audit_chain import NO_KEYS, AuditKeys
from authsvc.database_refusals import refusal, refusals, sqlite_code, sqlstate
from authsvc.encryption import DataKeys, FieldCipher
from authsvc.errors import Busy, OutcomeUnknown, Unavailable

log = structlog.get_logger("authsvc.database")

T = TypeVar("T")

LOCK_SECONDS = 2
"""How long a write waits for another process's lock before it is refused as busy."""
IDLE_SECONDS = 2
"""How long a write may hold its tenant's lock without saying anything to PostgreSQL."""
QUEUE_SECONDS = 10
"""How long a write waits for this process's own writers before it is refused as busy."""
STATEMENT_SECONDS = 30
"""How long one statement may take before its connection is given up."""

# Settings of one write transaction, whatever the server's or the role's defaults are.
_BEGIN_WRITE = text(
    "SELECT set_config('synchronous_commit', 'on', true),"
    f" set_config('lock_timeout', '{LOCK_SECONDS}s', true),"
    " set_config('idle_in_transaction_session_timeout', :idle, true)"
)
_IN_RECOVERY = text("SELECT pg_is_in_recovery()")

_SQLITE_DEFINITE = {sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY}


class Transaction:
    """What repositories work with: statements in, rows out. Carries no commit.

    ``generations`` are those of the tenants whose heads it has read, ``ciphers`` the ones it used.
    """

    def __init__(
        self, connection: AsyncConnection, audit_keys: AuditKeys, data_keys: DataKeys
    ) -> None:
        self._connection = connection
        self.audit_keys = audit_keys
        self.data_keys = data_keys
        self.generations: dict[UUID, int] = {}
        self.ciphers: dict[UUID, FieldCipher] = {}
        self.events = 0
        self.failed = False
        self.abandoned = False

    @property
    def engine_name(self) -> str:
        """``sqlite`` or ``postgresql``."""
        return self._connection.dialect.name

    def abandon(self) -> None:
        """Say that there is nothing to keep: the transaction is rolled back when its work ends."""
        self.abandoned = True

    async def execute(
        self,
        statement: Executable,
        parameters: Mapping[str, Any] | Sequence[Mapping[str, Any]] | None = None,
    ) -> CursorResult[Any]:
        """Run a statement; a list of parameters runs it once for each.

        Raises what the driver raises, and marks the transaction as failed.
        """
        try:
            return await self._connection.execute(statement, parameters)
        except BaseException:
            self.failed = True
            raise


class Database:
    """Engines, queues and transactions of one database.

    ``reader`` and ``writer`` are one engine on PostgreSQL. On SQLite there are two: a writer with
    one connection (SQLite has one writer at a time anyway, and below 3.51.3 two connections that
    checkpoint can damage a WAL file), and readers that never write. ``audit_keys`` seal the audit
    events that write transactions append; ``events_written`` counts those. ``data_keys`` encrypt
    names.
    """

    def __init__(
        self, reader: AsyncEngine, writer: AsyncEngine, label: str, direct: Engine | None = None
    ) -> None:
        self.reader = reader
        self.writer = writer
        self.label = label
        self._direct = direct
        self.audit_keys = NO_KEYS
        self.data_keys = DataKeys()
        self.events_written = 0
        self.is_sqlite = writer.dialect.name == "sqlite"
        self._locks: WeakValueDictionary[Hashable, asyncio.Lock] = WeakValueDictionary()
        self._pending: set[asyncio.Task[Any]] = set()

    @classmethod
    def sqlite(cls, path: Path, *, beside_server: bool = False) -> Database:
        """A file that already exists. ``beside_server``: leave checkpoints to the server."""
        # mode=rw: a file that was moved away must be an error, not a new empty database.
        uri = f"file:{quote(str(path))}?mode=rw"

        def connect() -> aiosqlite.Connection:
            return aiosqlite.connect(uri, uri=True, isolation_level=None, timeout=LOCK_SECONDS)

        def engine(begin: str, size: int, checkpoint_pages: int) -> AsyncEngine:
            made = create_async_engine(
                "sqlite+aiosqlite://",
                async_creator=connect,
                poolclass=AsyncAdaptedQueuePool,
                pool_size=size,
                max_overflow=0,
                pool_timeout=QUEUE_SECONDS,
                hide_parameters=True,
            )

            @event.listens_for(made.sync_engine, "connect")
            def configure(connection: Any, _record: Any) -> None:
                cursor = connection.cursor()
                for pragma in (
                    "journal_mode=WAL",
                    "synchronous=FULL",
                    "foreign_keys=ON",
                    "trusted_schema=OFF",
                    "mmap_size=0",
                    f"busy_timeout={LOCK_SECONDS * 1000}",
                    f"wal_autocheckpoint={checkpoint_pages}",
                ):
                    cursor.execute(f"PRAGMA {pragma}")
                cursor.close()

            # The driver opens no transaction of its own (isolation_level=None), so that reads of
            # several statements are one snapshot and writers take their lock at once.
            @event.listens_for(made.sync_engine, "begin")
            def begin_transaction(connection: Any) -> None:
                if connection.get_execution_options().get("isolation_level") != "AUTOCOMMIT":
                    connection.exec_driver_sql(begin)

            return made

        def connect_here() -> sqlite3.Connection:
            made = sqlite3.connect(uri, uri=True, isolation_level=None, timeout=0.1)
            for pragma in ("query_only=ON", "trusted_schema=OFF", "wal_autocheckpoint=0"):
                made.execute(f"PRAGMA {pragma}")
            return made

        reader = engine("BEGIN", 4, 0)
        writer = engine("BEGIN IMMEDIATE", 1, 0 if beside_server else 1000)
        # A small read takes microseconds: less than handing it to a thread and back.
        direct = create_engine(
            "sqlite://", creator=connect_here, poolclass=StaticPool, hide_parameters=True
        )
        return cls(reader, writer, f"SQLite file {path}", direct)

    @classmethod
    def postgresql(
        cls,
        url: URL,
        connect_args: Mapping[str, Any],
        *,
        pool_size: int = 10,
        pgbouncer: bool = False,
    ) -> Database:
        """A server. ``pgbouncer``: behind a transaction-mode pooler, so nothing is prepared."""
        arguments: dict[str, Any] = {
            "command_timeout": STATEMENT_SECONDS,
            "timeout": 5,
            **connect_args,
        }
        if isinstance(arguments.get("host"), list):
            arguments.setdefault("target_session_attrs", "primary")
        if pgbouncer:
            arguments |= {
                "statement_cache_size": 0,
                "prepared_statement_cache_size": 0,
                "prepared_statement_name_func": lambda: "",
            }
        else:
            # Lists are bound as arrays, and a generic plan guesses their length: from the sixth
            # execution on, a long list would scan whole tables.
            plans = {"plan_cache_mode": "force_custom_plan"}
            arguments["server_settings"] = plans | dict(arguments.get("server_settings", {}))
        made = create_async_engine(
            url,
            connect_args=arguments,
            pool_size=pool_size,
            max_overflow=0,
            pool_timeout=LOCK_SECONDS,
            isolation_level="READ COMMITTED",
            hide_parameters=True,
        )

        @event.listens_for(made.sync_engine, "connect")
        def listen(connection: Any, record: Any) -> None:
            warnings: list[str] = []
            record.info["warnings"] = warnings
            driver = connection.driver_connection

            def heard(_connection: Any, message: Any) -> None:
                if message.severity_en == "WARNING":
                    warnings.append(str(message.sqlstate))

            driver.add_log_listener(heard)

        # Cheaper than a ping: a connection the server closed is known to be closed.
        @event.listens_for(made.sync_engine, "checkout")
        def still_open(connection: Any, _record: Any, _proxy: Any) -> None:
            if connection.driver_connection.is_closed():
                raise exc.DisconnectionError

        label = f"PostgreSQL database {url.database} on {url.host or 'a local socket'}"
        return cls(made, made, label)

    async def dispose(self) -> None:
        """Let writes that are under way end, then close every connection."""
        if self._pending:
            await asyncio.wait(self._pending)
        await self.writer.dispose()
        await self.reader.dispose()
        if self._direct is not None:
            self._direct.dispose()

    @asynccontextmanager
    async def read(self) -> AsyncIterator[Transaction]:
        """Several statements, one state of the database. Never of a standby."""
        with refusals():
            async with self.reader.connect() as connection:
                if not self.is_sqlite:
                    connection = await connection.execution_options(
                        isolation_level="REPEATABLE READ", postgresql_readonly=True
                    )
                transaction = Transaction(connection, self.audit_keys, self.data_keys)
                if not self.is_sqlite:
                    await self._refuse_standby(transaction)
                yield transaction

    async def rows(
        self, statement: Executable, parameters: Mapping[str, Any], *, large: bool = False
    ) -> Sequence[Row[Any]]:
        """One statement on its own, which is one snapshot without any transaction around it.

        ``large``: it may take longer than a millisecond, so SQLite runs it in a thread.
        """
        with refusals():
            if self._direct is not None and not large:
                with self._direct.connect() as here:
                    return here.execute(statement, parameters).fetchall()
            async with self.reader.connect() as connection:
                connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
                return (await connection.execute(statement, parameters)).fetchall()

    async def write(
        self,
        tenant: Hashable,
        work: Callable[[Transaction], Awaitable[T]],
        *,
        idle_seconds: int = IDLE_SECONDS,
    ) -> T:
        """Run ``work`` in one transaction and commit it; its result is the answer.

        Writers of one tenant queue here in memory, before any of them takes a connection. Once
        begun, a write runs to its end whoever stops waiting for it, so that a request that is
        cancelled leaves it whole or absent. ``idle_seconds`` is how long ``work`` may think between
        two statements before PostgreSQL ends the transaction and lets the next writer go on.

        Raises Busy, ReadOnly or Unavailable when nothing was written, OutcomeUnknown when the
        answer to the COMMIT was lost, and whatever ``work`` raises.
        """
        task = asyncio.ensure_future(self._write(tenant, work, idle_seconds))
        self._pending.add(task)
        task.add_done_callback(self._settled)
        return await asyncio.shield(task)

    def _settled(self, task: asyncio.Task[Any]) -> None:
        self._pending.discard(task)
        if not task.cancelled():
            task.exception()  # read here, since a caller that went away never will

    async def _write(
        self, tenant: Hashable, work: Callable[[Transaction], Awaitable[T]], idle_seconds: int
    ) -> T:
        key = "the file" if self.is_sqlite else tenant
        lock = self._locks.get(key)
        if lock is None:
            lock = self._locks[key] = asyncio.Lock()
        try:
            async with asyncio.timeout(QUEUE_SECONDS):
                await lock.acquire()
        except TimeoutError:
            raise Busy("Too many writes are waiting; nothing was changed, try again") from None
        try:
            with refusals():
                async with self.writer.connect() as connection:
                    return await self._run(connection, work, idle_seconds)
        finally:
            lock.release()

    async def _run(
        self,
        connection: AsyncConnection,
        work: Callable[[Transaction], Awaitable[T]],
        idle_seconds: int,
    ) -> T:
        transaction = Transaction(connection, self.audit_keys, self.data_keys)
        if not self.is_sqlite:
            await transaction.execute(_BEGIN_WRITE, {"idle": f"{idle_seconds}s"})
        result = await work(transaction)
        if transaction.failed:
            await connection.rollback()
            raise Unavailable("A statement failed on the way; nothing was changed, try again")
        if transaction.abandoned:
            await connection.rollback()
        else:
            await self._commit(connection)
            self.events_written += transaction.events
        return result

    async def _commit(self, connection: AsyncConnection) -> None:
        unknown = OutcomeUnknown(
            "The answer to the commit was lost: read the state before you repeat the write"
        )
        warnings: list[str] = []
        if not self.is_sqlite:
            raw = await connection.get_raw_connection()
            warnings = raw.info["warnings"]
            warnings.clear()
        try:
            await connection.commit()
        except (exc.SQLAlchemyError, OSError, TimeoutError) as error:
            cause = getattr(error, "orig", error)
            if self.is_sqlite and sqlite_code(cause) in _SQLITE_DEFINITE:
                await connection.rollback()
                raise refusal(cause) from error
            log.error(  # noqa: TRY400 - a traceback would show the statement
                "commit_unanswered", kind=type(cause).__name__, state=sqlstate(cause)
            )
            raise unknown from error
        # A cancelled wait for a synchronous standby is a warning: committed here, maybe only here.
        if warnings:
            log.error("commit_warned", states=warnings)
            raise unknown

    async def _refuse_standby(self, transaction: Transaction) -> None:
        if (await transaction.execute(_IN_RECOVERY)).scalar_one():
            raise Unavailable("The database is a standby; ask again when the primary answers", 5)

    async def refuse_unless_primary(self) -> None:
        """Raise Unavailable when the database cannot be asked, or is a standby."""
        if self.is_sqlite:
            await self.rows(text("SELECT 1 FROM tenant_head LIMIT 1"), {})
        elif (await self.rows(_IN_RECOVERY, {}))[0][0]:
            raise Unavailable("The database is a standby; ask again when the primary answers", 5)
