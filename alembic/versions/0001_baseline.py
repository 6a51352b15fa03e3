"""The first schema: tenants, client keys, roles, grants, memberships, policy events."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "tenant",
        sa.Column("id", TenantId(), nullable=False),
        sa.Column("name", name_type(254), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("disabled_at", UtcDateTime()),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("token_generation", sa.BigInteger(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_tenant"),
        sa.UniqueConstraint("name", name="uq_tenant_name"),
    )
    op.create_table(
        "tenant_head",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("revision", sa.BigInteger(), nullable=False),
        sa.Column("head", sa.LargeBinary(32), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_tenant_head_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", name="pk_tenant_head"),
        postgresql_with={"fillfactor": 50},
        sqlite_with_rowid=False,
    )
    op.create_table(
        "client_key",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("id", name_type(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("label", name_type(512), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("last_used_at", UtcDateTime()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_client_key_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_client_key"),
        sa.UniqueConstraint("digest", name="uq_client_key_digest"),
    )
    op.create_table(
        "role",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("name", name_type(64), nullable=False),
        sa.Column("description", name_type(512), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_role_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_role"),
    )
    op.create_index("uq_role_tenant_id_name", "role", ["tenant_id", "name"], unique=True)
    op.create_table(
        "role_parent",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("role_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("parent_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["role.tenant_id", "role.id"], name="fk_role_parent_role"
        ),
        sa.ForeignKeyConstraint(
            ["tenant_id", "parent_id"], ["role.tenant_id", "role.id"], name="fk_role_parent_parent"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "role_id", "parent_id", name="pk_role_parent"),
        sqlite_with_rowid=False,
    )
    op.create_index("ix_role_parent_parent", "role_parent", ["tenant_id", "parent_id", "role_id"])
    op.create_table(
        "role_permission",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("role_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("permission", name_type(128), nullable=False),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["role.tenant_id", "role.id"], name="fk_role_permission_role"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "role_id", "permission", name="pk_role_permission"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_role_permission_permission", "role_permission", ["tenant_id", "permission", "role_id"]
    )
    op.create_table(
        "membership",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("user_id", name_type(254), nullable=False),
        sa.Column("role_id", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("scope", name_type(254), nullable=False),
        sa.Column("not_before", UtcDateTime()),
        sa.Column("expires_at", UtcDateTime()),
        sa.ForeignKeyConstraint(
            ["tenant_id", "role_id"], ["role.tenant_id", "role.id"], name="fk_membership_role"
        ),
        sa.PrimaryKeyConstraint("tenant_id", "user_id", "role_id", "scope", name="pk_membership"),
        sqlite_with_rowid=False,
    )
    op.create_index(
        "ix_membership_role", "membership", ["tenant_id", "role_id", "user_id", "scope"]
    )
    op.create_table(
        "audit_event",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("seq", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", UtcDateTime(), nullable=False),
        sa.Column("payload_hash", sa.LargeBinary(32), nullable=False),
        sa.Column("hash", sa.LargeBinary(32), nullable=False),
        sa.Column("payload", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_audit_event_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "seq", name="pk_audit_event"),
        sqlite_with_rowid=False,
    )


def downgrade() -> None:
    for table in (
        "audit_event",
        "membership",
        "role_permission",
        "role_parent",
        "role",
        "client_key",
        "tenant_head",
        "tenant",
    ):
        op.drop_table(table)
