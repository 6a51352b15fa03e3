"""Audit: seals and what is searched beside events, triggers, activity, checkpoints, use."""

from __future__ import annotations

import json
from typing import Any

import sqlalchemy as sa
from alembic import op

from authsvc.audit_triggers import STATEMENTS, UNDO
from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_SEARCHED = ("action", "entity_type", "entity_id", "actor", "ip_address")
_LENGTHS = {"action": 32, "entity_type": 32, "entity_id": 254, "actor": 64, "ip_address": 64}
_SALT_BYTES = 16
_PAGE = 1000


def upgrade() -> None:
    op.add_column("audit_event", sa.Column("mac", sa.LargeBinary(32)))
    for name in _SEARCHED:
        op.add_column("audit_event", sa.Column(name, name_type(_LENGTHS[name])))
    _fill(op.get_bind())
    for index, column in (("entity_id", "entity_id"), ("actor", "actor"), ("at", "at")):
        op.create_index(f"ix_audit_event_{index}", "audit_event", ["tenant_id", column, "seq"])

    op.create_table(
        "audit_anchor",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("mac", sa.LargeBinary(32)),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_audit_anchor_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_audit_anchor"),
    )
    op.create_table(
        "tenant_erasure",
        sa.Column("erased_id", TenantId(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(32), nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("mac", sa.LargeBinary(32)),
        sa.PrimaryKeyConstraint("erased_id", name="pk_tenant_erasure"),
    )
    op.create_table(
        "audit_checkpoint",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("signature", sa.LargeBinary(64), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit_checkpoint"),
    )
    op.create_table(
        "audit_progress",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("signed", sa.BigInteger(), nullable=False),
        sa.Column("watched", sa.BigInteger(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_audit_progress_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_audit_progress"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "alerts_begun",
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_alerts_begun"),
    )
    op.create_table(
        "outgoing",
        sa.Column("id", sa.LargeBinary(16), nullable=False),
        sa.Column("kind", name_type(32), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("claimed_until", UtcDateTime()),
        sa.PrimaryKeyConstraint("id", name="pk_outgoing"),
    )
    op.create_table(
        "activity_event",
        sa.Column("id", sa.LargeBinary(16), nullable=False),
        sa.Column("tenant_id", TenantId()),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("action", name_type(32), nullable=False),
        sa.Column("entity_type", name_type(32), nullable=False),
        sa.Column("entity_id", name_type(254), nullable=False),
        sa.Column("actor", name_type(64)),
        sa.Column("ip_address", name_type(64)),
        sa.Column("user_agent", name_type(256)),
        sa.Column("request_id", name_type(128)),
        sa.Column("success", sa.Boolean(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_activity_event"),
    )
    op.create_index("ix_activity_event_tenant_id", "activity_event", ["tenant_id", "id"])
    op.create_index("ix_activity_event_action", "activity_event", ["action", "id"])
    op.create_table(
        "grant_use",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("role_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("permission", name_type(128), nullable=False),
        sa.Column("used_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_grant_use_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "role_id", "permission", name="pk_grant_use"),
        sqlite_with_rowid=False,
    )
    for statement in STATEMENTS[op.get_bind().dialect.name]:
        op.execute(statement)


def _fill(connection: sa.Connection) -> None:
    """Write beside the events there are what their payloads say."""
    event = sa.table(
        "audit_event",
        sa.column("tenant_id", TenantId()),
        sa.column("seq", sa.BigInteger()),
        sa.column("payload", sa.LargeBinary()),
        *(sa.column(name, sa.String()) for name in _SEARCHED),
    )
    place = sa.tuple_(event.c.tenant_id, event.c.seq)
    page = (
        sa.select(event.c.tenant_id, event.c.seq, event.c.payload)
        .order_by(event.c.tenant_id, event.c.seq)
        .limit(_PAGE)
    )
    fill = (
        event.update()
        .where(event.c.tenant_id == sa.bindparam("of"), event.c.seq == sa.bindparam("number"))
        .values({name: sa.bindparam(f"its_{name}") for name in _SEARCHED})
    )
    last: tuple[Any, int] | None = None
    while True:
        wanted = page
        if last is not None:
            after = sa.tuple_(sa.bindparam("t", last[0], TenantId()), sa.bindparam("s", last[1]))
            wanted = page.where(place > after)
        rows = connection.execute(wanted).all()
        if not rows:
            return
        connection.execute(fill, [_searched(*row) for row in rows])
        last = rows[-1].tenant_id, rows[-1].seq


def _searched(tenant_id: Any, seq: int, payload: bytes) -> dict[str, Any]:
    said = json.loads(bytes(payload)[_SALT_BYTES:])
    return {"of": tenant_id, "number": seq} | {f"its_{name}": said.get(name) for name in _SEARCHED}


def downgrade() -> None:
    dialect = op.get_bind().dialect.name
    for statement in UNDO[dialect]:
        op.execute(statement)
    if dialect == "sqlite":
        # This one is not dropped, so its triggers are.
        for name in ("kept", "not_deleted", "not_replaced"):
            op.execute(f"DROP TRIGGER audit_event_{name}")
    for table in (
        "grant_use", "activity_event", "outgoing", "alerts_begun", "audit_progress",
        "audit_checkpoint",
        "tenant_erasure", "audit_anchor",
    ):  # fmt: skip
        op.drop_table(table)
    for index in ("entity_id", "actor", "at"):
        op.drop_index(f"ix_audit_event_{index}", "audit_event")
    for name in (*reversed(_SEARCHED), "mac"):
        op.drop_column("audit_event", name)
