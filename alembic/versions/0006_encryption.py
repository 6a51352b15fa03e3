"""Encryption of names: data keys, master keys, and room for what is encrypted."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

# (table, column, characters as it is, characters encrypted)
_WIDER = (
    ("membership", "user_id", 254, 400),
    ("api_key", "user_id", 254, 400),
    ("api_key", "label", 512, 2800),
    ("client_key", "label", 512, 2800),
    ("role_permission", "permission", 128, 240),
    ("grant_use", "permission", 128, 240),
    ("role", "description", 512, 2800),
    ("audit_event", "entity_id", 254, 400),
    ("activity_event", "entity_id", 254, 400),
)


def upgrade() -> None:
    op.create_table(
        "master_key",
        sa.Column("id", name_type(64), nullable=False),
        sa.Column("registered_at", UtcDateTime(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_master_key"),
    )
    op.create_table(
        "tenant_key",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("generation", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("wrapped", name_type(512), nullable=False),
        sa.Column("master_key", name_type(64), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tenant_key_tenant"),
        sa.ForeignKeyConstraint(["master_key"], ["master_key.id"], name="fk_tenant_key_master_key"),
        sa.PrimaryKeyConstraint("tenant_id", "generation", name="pk_tenant_key"),
    )
    op.create_index("ix_tenant_key_master_key", "tenant_key", ["master_key"])
    op.add_column(
        "tenant_head",
        sa.Column("generation", sa.BigInteger(), nullable=False, server_default="0"),
    )
    op.add_column("audit_event", sa.Column("generation", sa.BigInteger()))
    op.add_column("activity_event", sa.Column("generation", sa.BigInteger()))
    op.add_column("outgoing", sa.Column("tenant_id", TenantId()))
    op.add_column("outgoing", sa.Column("generation", sa.BigInteger()))
    # SQLite keeps to no length.
    if op.get_bind().dialect.name == "postgresql":
        for table, column, _before, after in _WIDER:
            op.alter_column(table, column, type_=sa.String(after, collation="C"))


def downgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        for table, column, before, _after in _WIDER:
            op.alter_column(table, column, type_=sa.String(before, collation="C"))
    op.drop_column("outgoing", "generation")
    op.drop_column("outgoing", "tenant_id")
    op.drop_column("activity_event", "generation")
    op.drop_column("audit_event", "generation")
    op.drop_column("tenant_head", "generation")
    op.drop_index("ix_tenant_key_master_key", "tenant_key")
    op.drop_table("tenant_key")
    op.drop_table("master_key")
