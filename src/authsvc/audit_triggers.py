"""What the database itself refuses to do to the audit trail, whoever asks.

Events, checkpoints and erasures are written once. Events may only go below their tenant's
retention anchor, or with a tenant whose erasure is on record. Whoever owns the tables can take
the triggers away: what they did then is for the chain to tell.

Migration 0005 makes these; a change to them is a further migration.
"""

from __future__ import annotations

from sqlalchemy import Connection, MetaData, Table, event

REFUSAL = "the audit trail is only added to"
_WRITTEN_ONCE = ("audit_event", "audit_checkpoint", "tenant_erasure")

_GONE = (
    "NOT EXISTS (SELECT 1 FROM audit_anchor a"
    " WHERE a.tenant_id = OLD.tenant_id AND a.seq >= OLD.seq)"
    " AND NOT EXISTS (SELECT 1 FROM tenant_erasure e WHERE e.erased_id = OLD.tenant_id)"
)


def _sqlite() -> list[str]:
    refuse = f"BEGIN SELECT RAISE(ABORT, '{REFUSAL}'); END"
    made = []
    for table in _WRITTEN_ONCE:
        made.append(f"CREATE TRIGGER {table}_kept BEFORE UPDATE ON {table} {refuse}")
        when = f" WHEN {_GONE}" if table == "audit_event" else ""
        made.append(f"CREATE TRIGGER {table}_not_deleted BEFORE DELETE ON {table}{when} {refuse}")
    # INSERT OR REPLACE deletes what it replaces without asking any DELETE trigger.
    same = "SELECT 1 FROM audit_event e WHERE e.tenant_id = NEW.tenant_id AND e.seq = NEW.seq"
    made.append(
        "CREATE TRIGGER audit_event_not_replaced BEFORE INSERT ON audit_event"
        f" WHEN EXISTS ({same}) {refuse}"
    )
    return made


def _postgresql() -> list[str]:
    refuse = f"BEGIN RAISE EXCEPTION '{REFUSAL}'; END"
    made = [
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql SET search_path FROM"
        f" CURRENT AS $$ {refuse} $$",
        "CREATE FUNCTION audit_refuse_unless_gone() RETURNS trigger LANGUAGE plpgsql SET"
        " search_path FROM CURRENT AS"
        f" $$ BEGIN IF {_GONE} THEN RAISE EXCEPTION '{REFUSAL}'; END IF; RETURN OLD; END $$",
    ]
    for table in _WRITTEN_ONCE:
        for name, moment, level, function in (
            ("kept", "UPDATE", "ROW", "audit_refuse"),
            (
                "not_deleted",
                "DELETE",
                "ROW",
                "audit_refuse_unless_gone" if table == "audit_event" else "audit_refuse",
            ),
            ("not_truncated", "TRUNCATE", "STATEMENT", "audit_refuse"),
        ):
            made.append(
                f"CREATE TRIGGER {table}_{name} BEFORE {moment} ON {table}"
                f" FOR EACH {level} EXECUTE FUNCTION {function}()"
            )
    return made


STATEMENTS: dict[str, list[str]] = {"sqlite": _sqlite(), "postgresql": _postgresql()}
"""Dialect -> what makes the triggers, once the tables are there."""

UNDO: dict[str, list[str]] = {
    # On SQLite they go with their tables.
    "sqlite": [],
    "postgresql": [
        "DROP FUNCTION IF EXISTS audit_refuse() CASCADE",
        "DROP FUNCTION IF EXISTS audit_refuse_unless_gone() CASCADE",
    ],
}


def made_with(metadata: MetaData) -> None:
    """Have the triggers made along with the tables of this metadata."""

    def make(_target: MetaData | Table, connection: Connection, **_options: object) -> None:
        for statement in STATEMENTS[connection.dialect.name]:
            connection.exec_driver_sql(statement)

    event.listen(metadata, "after_create", make)
