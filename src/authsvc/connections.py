"""The ways to the database that the settings name. Nothing is connected until it is asked."""

from __future__ import annotations

import asyncpg

from authsvc.clock import Clock, system_clock
from authsvc.database import Database
from authsvc.encryption import DataKeys
from authsvc.errors import SettingsError
from authsvc.revision_gate import DEADLINE_SECONDS, Gate, PostgresGate, SqliteGate
from authsvc.settings import Settings, SqliteFile


def open_database(settings: Settings, *, beside_server: bool = False) -> Database:
    """The database of the settings; nothing is connected yet.

    ``beside_server``: for commands, which leave the checkpoints of a SQLite file to the server.
    """
    target = settings.database
    if isinstance(target, SqliteFile):
        database = Database.sqlite(target.path, beside_server=beside_server)
    else:
        database = Database.postgresql(
            target.url,
            target.connect_args,
            pool_size=settings.postgresql_pool_size,
            pgbouncer=settings.postgresql_pgbouncer,
        )
    database.audit_keys = settings.audit.keys
    database.data_keys = DataKeys(settings.master_keys, for_new=settings.enable_encryption)
    return database


def open_gate(settings: Settings, clock: Clock) -> Gate:
    """What tells the tenants' revisions, over a connection of its own that is made when asked.

    PostgreSQL tells the time along with them; another clock than the system's overrules it.
    """
    target = settings.gate
    if target is None:
        if not isinstance(settings.database, SqliteFile):
            raise SettingsError("AUTH_POSTGRESQL_GATE_URL: there is no server to ask")
        return SqliteGate(settings.database.path, clock)

    async def connect() -> asyncpg.Connection:
        options = {"timeout": DEADLINE_SECONDS, **target.driver_kwargs()}
        if len(target.hosts) > 1:
            options.setdefault("target_session_attrs", "primary")
        return await asyncpg.connect(**options, statement_cache_size=16)

    return PostgresGate(connect, None if clock is system_clock else clock)
