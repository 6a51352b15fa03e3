"""The schema: bringing it to head, and telling whether it is there."""

from __future__ import annotations

import re
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import Connection, inspect, text

from authsvc.database import Database
from authsvc.database_refusals import refusals
from authsvc.errors import Busy, SchemaError, SettingsError

# "authsvc migrations" in ASCII: two migrations of one database wait for each other.
_ADVISORY_LOCK = 0x6175746873766D67

_ATTEMPTS = 15
"""Each waits for as long as a lock is waited for at all."""

_RUNTIME_RIGHTS = "SELECT, INSERT, UPDATE, DELETE"
_WITHOUT = {
    "audit_event": "UPDATE, DELETE",
    "audit_checkpoint": "UPDATE, DELETE",
    "audit_anchor": "INSERT, UPDATE, DELETE",
    "tenant_erasure": "INSERT, UPDATE, DELETE",
}
"""What the service does not need of them: the trail is added to, and only its owner takes away."""


def _scripts() -> Path:
    """Inside the installed package, or at the top of the source tree."""
    packaged = Path(__file__).parent / "migrations"
    return packaged if packaged.is_dir() else Path(__file__).parents[2] / "alembic"


def alembic_config(connection: Connection | None = None) -> Config:
    """Alembic's configuration, bound to a connection."""
    config = Config()
    config.set_main_option("script_location", str(_scripts()).replace("%", "%%"))
    if connection is not None:
        config.attributes["connection"] = connection
    return config


def head_revision() -> str:
    """The schema this code needs."""
    head = ScriptDirectory.from_config(alembic_config()).get_current_head()
    if head is None:
        raise SchemaError("This installation has no migrations: install it again")
    return head


def _current(connection: Connection) -> str | None:
    return MigrationContext.configure(connection).get_current_revision()


def _known(revision: str) -> bool:
    script = ScriptDirectory.from_config(alembic_config())
    return any(known.revision == revision for known in script.walk_revisions())


async def require_head(database: Database) -> None:
    """Raise SchemaError, saying the command, unless the schema is the one this code needs."""
    async with database.reader.connect() as connection:
        current = await connection.run_sync(_current)
    _refuse_newer(database, current)
    if current != head_revision():
        state = "is empty" if current is None else f"has the older schema {current}"
        raise SchemaError(f"The {database.label} {state}: run 'authsvc migrate' first")


def _refuse_newer(database: Database, current: str | None) -> None:
    if current is not None and not _known(current):
        raise SchemaError(
            f"The {database.label} has the schema {current}, which this version does not know:"
            " it was migrated by a newer authsvc; start that version"
        )


async def migrate(database: Database) -> tuple[str | None, str]:
    """Bring the schema to head; the revisions before and after.

    One transaction: a migration that fails or is killed leaves the schema as it was.
    Raises SchemaError when the database is newer than this code.
    """

    def upgrade(connection: Connection) -> str | None:
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
        before = _current(connection)
        _refuse_newer(database, before)
        if before != head_revision():
            command.upgrade(alembic_config(connection), "head")
        return before

    attempts = 0
    while True:
        try:
            with refusals():
                async with database.writer.begin() as connection:
                    return await connection.run_sync(upgrade), head_revision()
        except Busy:
            # Another migration of the same SQLite file: it takes as long as it takes.
            attempts += 1
            if attempts == _ATTEMPTS:
                raise


async def grant_to(database: Database, role: str) -> None:
    """Give a PostgreSQL role what the service needs at run time, now and for later tables.

    The security guide's grants on every table of the schema, and the same as default privileges
    (a grant on "all tables" covers only those that exist). Of the audit trail it may only read and
    add: pruning and erasing are the owner's. Raises SettingsError.
    """
    if database.is_sqlite:
        raise SettingsError("--grant-to is for PostgreSQL: a SQLite file has no roles")
    if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_$-]{0,62}", role):
        raise SettingsError(f"--grant-to: {role!r} is not a role name")

    def grant(connection: Connection) -> None:
        quote = connection.dialect.identifier_preparer.quote_identifier
        schema = quote(inspect(connection).default_schema_name or "public")
        name, database_name = quote(role), quote(str(connection.engine.url.database))
        known = connection.execute(
            text("SELECT 1 FROM pg_roles WHERE rolname = :role"), {"role": role}
        ).scalar()
        if not known:
            raise SettingsError(f"--grant-to: the role {role} does not exist; CREATE ROLE it first")
        for statement in (
            f"GRANT CONNECT ON DATABASE {database_name} TO {name}",
            f"GRANT USAGE ON SCHEMA {schema} TO {name}",
            f"GRANT {_RUNTIME_RIGHTS} ON ALL TABLES IN SCHEMA {schema} TO {name}",
            f"ALTER DEFAULT PRIVILEGES IN SCHEMA {schema}"
            f" GRANT {_RUNTIME_RIGHTS} ON TABLES TO {name}",
            *(f"REVOKE {some} ON {schema}.{table} FROM {name}" for table, some in _WITHOUT.items()),
        ):
            connection.exec_driver_sql(statement)

    with refusals():
        async with database.writer.begin() as connection:
            await connection.run_sync(grant)
