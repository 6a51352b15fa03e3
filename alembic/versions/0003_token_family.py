"""Families of refresh tokens: one for each token that a client key asked for."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "token_family",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("id", name_type(64), nullable=False),
        sa.Column("key_id", name_type(64), nullable=False),
        sa.Column("handle", sa.LargeBinary(32), nullable=False),
        sa.Column("current", sa.LargeBinary(32), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.Column("expires_at", UtcDateTime(), nullable=False),
        sa.Column("revoked_at", UtcDateTime()),
        sa.ForeignKeyConstraint(
            ["tenant_id", "key_id"],
            ["client_key.tenant_id", "client_key.id"],
            name="fk_token_family_client_key",
        ),
        sa.PrimaryKeyConstraint("tenant_id", "id", name="pk_token_family"),
        sa.UniqueConstraint("handle", name="uq_token_family_handle"),
    )
    op.create_index("ix_token_family_key_id", "token_family", ["tenant_id", "key_id"])
    op.create_index("ix_token_family_expires_at", "token_family", ["tenant_id", "expires_at"])


def downgrade() -> None:
    op.drop_table("token_family")
