"""Outcomes of requests that mint a credential, sealed, so that they can be repeated."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from authsvc.column_types import TenantId, UtcDateTime, name_type

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "minted",
        sa.Column("tenant_id", TenantId(), nullable=False),
        sa.Column("key_id", name_type(64), nullable=False),
        sa.Column("request_key", sa.LargeBinary(32), nullable=False),
        sa.Column("content", sa.LargeBinary(32), nullable=False),
        sa.Column("sealed", sa.LargeBinary(), nullable=False),
        sa.Column("ended_by_it", sa.Boolean(), nullable=False),
        sa.Column("created_at", UtcDateTime(), nullable=False),
        sa.ForeignKeyConstraint(["tenant_id"], ["tenant.id"], name="fk_minted_tenant"),
        sa.PrimaryKeyConstraint("tenant_id", "key_id", "request_key", name="pk_minted"),
    )
    op.create_index("ix_minted_created_at", "minted", ["tenant_id", "created_at"])


def downgrade() -> None:
    op.drop_table("minted")
