"""How Alembic reaches the database: through a connection handed in, or a scratch one of its own.

``authsvc migrate`` hands in the connection of the configured database. Called by hand
(``alembic revision --autogenerate``, ``alembic check``) there is none, and a SQLite database in
memory, migrated to head, stands in: what is compared is the code with its own migrations.
"""

from __future__ import annotations

from alembic import command, context
from sqlalchemy import Connection, create_engine

from authsvc.models import metadata


def run(connection: Connection) -> None:
    """Run what Alembic was asked for on this connection."""
    context.configure(
        connection=connection, target_metadata=metadata, render_as_batch=False, compare_type=True
    )
    with context.begin_transaction():
        context.run_migrations()


given = context.config.attributes.get("connection")
if given is not None:
    run(given)
else:
    with create_engine("sqlite://").connect() as scratch:
        context.config.attributes["connection"] = scratch
        command.upgrade(context.config, "head")
        run(scratch)
