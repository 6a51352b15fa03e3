"""The tables. Every policy table leads its key with ``tenant_id``, and so do its foreign keys.

Role ids are the revision of the event that created the role: unique per tenant without a
sequence, and never used again. Names are compared as bytes on both engines.
"""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    LargeBinary,
    MetaData,
    Table,
)

from authsvc import audit_triggers
from authsvc.column_types import TenantId, UtcDateTime, encrypted_type, name_type

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(table_name)s_%(column_0_N_name)s",
        "uq": "uq_%(table_name)s_%(column_0_N_name)s",
        "fk": "fk_%(table_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)

tenant = Table(
    "tenant",
    metadata,
    Column("id", TenantId, primary_key=True),
    Column("name", name_type(254), nullable=False, unique=True),
    Column("created_at", UtcDateTime, nullable=False),
    Column("disabled_at", UtcDateTime),
    Column("settings", JSON, nullable=False),
    Column("token_generation", BigInteger, nullable=False),
)

# One narrow row per tenant, rewritten by every change: half of each page is left free so that the
# new version of the row finds room beside the old one. ``generation`` is that of the data key that
# the tenant's rows are encrypted under, 0 where they are not.
tenant_head = Table(
    "tenant_head",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("head", LargeBinary(32), nullable=False),
    Column("generation", BigInteger, nullable=False, server_default="0"),
    postgresql_with={"fillfactor": 50},
    sqlite_with_rowid=False,
)

# The master keys that something is, or was, wrapped under; an id is the check value of a key.
master_key = Table(
    "master_key",
    metadata,
    Column("id", name_type(64), primary_key=True),
    Column("registered_at", UtcDateTime, nullable=False),
)

# Data keys, wrapped. Those of earlier generations stay, for events that were written under them.
tenant_key = Table(
    "tenant_key",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("generation", BigInteger, primary_key=True, autoincrement=False),
    Column("wrapped", name_type(512), nullable=False),
    Column("master_key", name_type(64), ForeignKey("master_key.id"), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_tenant_key_master_key", "master_key"),
)

client_key = Table(
    "client_key",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("id", name_type(64), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("label", encrypted_type(512, 2800), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
)

minted = Table(
    "minted",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("key_id", name_type(64), primary_key=True),
    Column("request_key", LargeBinary(32), primary_key=True),
    Column("content", LargeBinary(32), nullable=False),
    Column("sealed", LargeBinary, nullable=False),
    Column("ended_by_it", Boolean, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("ix_minted_created_at", "tenant_id", "created_at"),
)

token_family = Table(
    "token_family",
    metadata,
    Column("tenant_id", TenantId, primary_key=True),
    Column("id", name_type(64), primary_key=True),
    Column("key_id", name_type(64), nullable=False),
    Column("handle", LargeBinary(32), nullable=False, unique=True),
    Column("current", LargeBinary(32), nullable=False),
    Column("scopes", JSON, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime, nullable=False),
    Column("revoked_at", UtcDateTime),
    ForeignKeyConstraint(["tenant_id", "key_id"], ["client_key.tenant_id", "client_key.id"]),
    Index("ix_token_family_key_id", "tenant_id", "key_id"),
    Index("ix_token_family_expires_at", "tenant_id", "expires_at"),
)

api_key = Table(
    "api_key",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("id", name_type(64), primary_key=True),
    Column("digest", LargeBinary(32), nullable=False, unique=True),
    Column("user_id", encrypted_type(254, 400), nullable=False),
    Column("label", encrypted_type(512, 2800), nullable=False),
    Column("key_prefix", name_type(16), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("expires_at", UtcDateTime),
    Column("revoked_at", UtcDateTime),
    Column("last_used_at", UtcDateTime),
    Index("ix_api_key_user_id", "tenant_id", "user_id", "created_at", "id"),
)

role = Table(
    "role",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("name", name_type(64), nullable=False),
    Column("description", encrypted_type(512, 2800), nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Index("uq_role_tenant_id_name", "tenant_id", "name", unique=True),
)

role_parent = Table(
    "role_parent",
    metadata,
    Column("tenant_id", TenantId, primary_key=True),
    Column("role_id", BigInteger, primary_key=True, autoincrement=False),
    Column("parent_id", BigInteger, primary_key=True, autoincrement=False),
    ForeignKeyConstraint(
        ["tenant_id", "role_id"], ["role.tenant_id", "role.id"], name="fk_role_parent_role"
    ),
    ForeignKeyConstraint(
        ["tenant_id", "parent_id"], ["role.tenant_id", "role.id"], name="fk_role_parent_parent"
    ),
    Index("ix_role_parent_parent", "tenant_id", "parent_id", "role_id"),
    sqlite_with_rowid=False,
)

role_permission = Table(
    "role_permission",
    metadata,
    Column("tenant_id", TenantId, primary_key=True),
    Column("role_id", BigInteger, primary_key=True, autoincrement=False),
    Column("permission", encrypted_type(128, 240), primary_key=True),
    ForeignKeyConstraint(["tenant_id", "role_id"], ["role.tenant_id", "role.id"]),
    Index("ix_role_permission_permission", "tenant_id", "permission", "role_id"),
    sqlite_with_rowid=False,
)

membership = Table(
    "membership",
    metadata,
    Column("tenant_id", TenantId, primary_key=True),
    Column("user_id", encrypted_type(254, 400), primary_key=True),
    Column("role_id", BigInteger, primary_key=True, autoincrement=False),
    Column("scope", name_type(254), primary_key=True),
    Column("not_before", UtcDateTime),
    Column("expires_at", UtcDateTime),
    ForeignKeyConstraint(["tenant_id", "role_id"], ["role.tenant_id", "role.id"]),
    Index("ix_membership_role", "tenant_id", "role_id", "user_id", "scope"),
    sqlite_with_rowid=False,
)

# What events are looked for by stands beside them, as their payloads have it. ``mac`` is null where
# no audit key was set. ``generation`` is that of the data key that payload and ``entity_id`` are
# encrypted under, null where they are not.
audit_event = Table(
    "audit_event",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("payload_hash", LargeBinary(32), nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("payload", LargeBinary, nullable=False),
    Column("mac", LargeBinary(32)),
    Column("action", name_type(32)),
    Column("entity_type", name_type(32)),
    Column("entity_id", encrypted_type(254, 400)),
    Column("actor", name_type(64)),
    Column("ip_address", name_type(64)),
    Column("generation", BigInteger),
    Index("ix_audit_event_entity_id", "tenant_id", "entity_id", "seq"),
    Index("ix_audit_event_actor", "tenant_id", "actor", "seq"),
    Index("ix_audit_event_at", "tenant_id", "at", "seq"),
    sqlite_with_rowid=False,
)

# Up to which event a tenant's trail was taken out and kept elsewhere.
audit_anchor = Table(
    "audit_anchor",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("seq", BigInteger, nullable=False),
    Column("hash", LargeBinary(32), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("mac", LargeBinary(32)),
)

# The tenants that were erased, and the state they were in. Outlives them.
tenant_erasure = Table(
    "tenant_erasure",
    metadata,
    Column("erased_id", TenantId, primary_key=True),
    Column("revision", BigInteger, nullable=False),
    Column("head", LargeBinary(32), nullable=False),
    Column("at", UtcDateTime, nullable=False),
    Column("mac", LargeBinary(32)),
)

audit_checkpoint = Table(
    "audit_checkpoint",
    metadata,
    Column("number", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("signature", LargeBinary(64), nullable=False),
)

# How far the trail of each tenant has been signed, and looked at for alerts.
audit_progress = Table(
    "audit_progress",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("signed", BigInteger, nullable=False),
    Column("watched", BigInteger, nullable=False),
    sqlite_with_rowid=False,
)

# That alerts were switched on, and when: what was there before is history.
alerts_begun = Table(
    "alerts_begun",
    metadata,
    Column("id", BigInteger, primary_key=True, autoincrement=False),
    Column("at", UtcDateTime, nullable=False),
)

# What is to be sent to the webhook and has not been taken yet; ids sort by time. ``generation`` as
# with events, of the tenant that the message names.
outgoing = Table(
    "outgoing",
    metadata,
    Column("id", LargeBinary(16), primary_key=True),
    Column("kind", name_type(32), nullable=False),
    Column("body", LargeBinary, nullable=False),
    Column("created_at", UtcDateTime, nullable=False),
    Column("claimed_until", UtcDateTime),
    Column("tenant_id", TenantId),
    Column("generation", BigInteger),
)

# What happened without changing anything; ids sort by time. A tenant's rows may outlive a moment
# of its erasure, so they do not refer to it.
activity_event = Table(
    "activity_event",
    metadata,
    Column("id", LargeBinary(16), primary_key=True),
    Column("tenant_id", TenantId),
    Column("at", UtcDateTime, nullable=False),
    Column("action", name_type(32), nullable=False),
    Column("entity_type", name_type(32), nullable=False),
    Column("entity_id", encrypted_type(254, 400), nullable=False),
    Column("actor", name_type(64)),
    Column("ip_address", name_type(64)),
    Column("user_agent", name_type(256)),
    Column("request_id", name_type(128)),
    Column("success", Boolean, nullable=False),
    Column("details", JSON, nullable=False),
    Column("generation", BigInteger),
    Index("ix_activity_event_tenant_id", "tenant_id", "id"),
    Index("ix_activity_event_action", "action", "id"),
)

# When a grant last let a check through. Not policy: it may be lost, and no answer depends on it.
grant_use = Table(
    "grant_use",
    metadata,
    Column("tenant_id", TenantId, ForeignKey("tenant.id"), primary_key=True),
    Column("role_id", BigInteger, primary_key=True, autoincrement=False),
    Column("permission", encrypted_type(128, 240), primary_key=True),
    Column("used_at", UtcDateTime, nullable=False),
    sqlite_with_rowid=False,
)

audit_triggers.made_with(metadata)
