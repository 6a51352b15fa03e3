"""How Alembic reaches the database: through a connection handed in, or a scratch one of its own.

``authsvc migrate`` hands in the connection of the configured database. Called by hand
(``alembic revision --autogenerate``, ``alembic check``) there is none, and a SQLite database in
memory, migrated to head, stands in: what is compared is the code with its own migrations.
"""

from __future__ import annotations

from alembic import context
from alembic.migration import MigrationContext
from alembic.operations import Operations
from sqlalchemy import Connection, create_engine

from authsvc.models import metadata


def run(connection: Connection) -> None:
    """Run what Alembic was asked for on this connection."""
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=False, compare_type=True
    )
    with context.begin_transaction():
        context.run_migrations()


def migrate_scratch(connection: Connection) -> None:
    """Every migration in order. Not ``command.upgrade``: this file is running inside a command."""
    migration = MigrationContext.configure(connection)
    with Operations.context(migration):
        for script in reversed(list(context.script.walk_revisions())):
            script.module.upgrade()
    migration.stamp(context.script, "head")


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with create_engine("sqlite://").connect() as scratch:
        migrate_scratch(scratch)
        run(scratch)
