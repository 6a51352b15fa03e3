"""What the PostgreSQL role that is used here may do, and how it got in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import text

from authsvc.database import Transaction

_RIGHTS = text(
    "SELECT rolname, rolsuper, rolcreaterole, rolcreatedb,"
    " has_database_privilege(current_database(), 'CREATE') AS makes_schemas,"
    " coalesce(has_schema_privilege(current_schema(), 'CREATE'), false) AS makes_tables,"
    " EXISTS (SELECT FROM pg_class WHERE relkind IN ('r', 'p')"
    " AND relnamespace = current_schema()::regnamespace"
    " AND pg_has_role(current_user, relowner, 'USAGE')) AS owns_tables,"
    " (has_table_privilege('audit_event', 'UPDATE') OR has_table_privilege('audit_event', 'DELETE')"
    " OR has_table_privilege('audit_anchor', 'INSERT')) AS changes_the_trail,"
    " current_setting('password_encryption') AS encryption,"
    " current_setting('server_version_num')::int AS version,"
    " coalesce((SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()), false) AS encrypted"
    " FROM pg_roles WHERE rolname = current_user"
)
# The method and the name that came with it; NULL where nothing was asked for ("trust").
_METHOD = text("SELECT split_part(system_user, ':', 1)")


@dataclass(frozen=True, slots=True)
class ServerRights:
    """``excess`` are rights beyond reading and writing rows; ``method`` is how the role got in:
    a word of pg_hba.conf, "trust", or "" where the server (before 16) does not tell.
    """

    role: str
    excess: Sequence[str]
    method: str
    encryption: str
    encrypted: bool


async def server_rights(transaction: Transaction) -> ServerRights:
    """The rights of the role of this connection, as the server sees them. The schema is at head."""
    row = (await transaction.execute(_RIGHTS)).one()
    excess = {
        "is a superuser": row.rolsuper,
        "makes roles": row.rolcreaterole,
        "makes databases": row.rolcreatedb,
        "makes schemas": row.makes_schemas,
        "makes tables": row.makes_tables,
        "owns the tables": row.owns_tables,
        "may change the audit trail": row.changes_the_trail,
    }
    method = ""
    if row.version >= 160000:
        method = (await transaction.execute(_METHOD)).scalar() or "trust"
    return ServerRights(
        row.rolname,
        [words for words, given in excess.items() if given],
        method,
        row.encryption,
        row.encrypted,
    )
