"""API keys: credentials that a tenant gives to its own users."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "api_key",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("id", name_type(64), nullable=False),
        sa.Column("digest", sa.LargeBinary(32), nullable=False),
        sa.Column("user_id", name_type(254), nullable=False),
        sa.Column("label", name_type(512), nullable=False),
        sa.Column("key_prefix", name_type(16), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime()),
        sa.Column("revoked_at", UtcDateTime()),
        sa.Column("last_used_at", UtcDateTime()),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_api_key_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_api_key"),
        sa.UniqueConstraint("digest", name="uq_api_key_digest"),
    )
    op.create_index("ix_api_key_user_id", "api_key", ["tenant_id", "user_id", "created_at", "id"])


def downgrade() -> None:
    op.drop_table("api_key")
