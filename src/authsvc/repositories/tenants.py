"""Tenants and their client keys, across tenants: for authentication and the operator's commands."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, Select, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.database import Database, Transaction
from authsvc.decision_cache import Credential
from authsvc.encryption import PLAIN
from authsvc.records import EMPTY, ClientKey, Stamp, Tenant
from authsvc.repositories.tenant_keys import TenantKeys

_BY_DIGEST: Select[Any] = (
    select(
        models.client_key,
        models.tenant.c.disabled_at,
        models.tenant_head.c.revision,
        models.tenant_head.c.head,
    )
    .join(models.tenant, models.tenant.c.id == models.client_key.c.tenant_id)
    .join(models.tenant_head, models.tenant_head.c.tenant_id == models.client_key.c.tenant_id)
    .where(models.client_key.c.digest == bindparam("digest"))
)


def _credential(row: Row[Any]) -> Credential:
    # Who asks with a key is not told its label, which may be encrypted.
    key = ClientKey(
        id=row.id,
        tenant_id=row.tenant_id,
        label="",
        scopes=frozenset(row.scopes),
        created_at=row.created_at,
        expires_at=row.expires_at,
        revoked_at=row.revoked_at,
    )
    return Credential(key, Stamp(row.revision, row.head), row.disabled_at)


async def find_credential(database: Database, digest: bytes) -> Credential | None:
    """The key with this digest, without its label, and its tenant's state, in one statement."""
    rows = await database.rows(_BY_DIGEST, {"digest": digest})
    return _credential(rows[0]) if rows else None


class Tenants:
    """All tenants, inside a transaction."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def credential(self, digest: bytes) -> Credential | None:
        """As ``find_credential``, seen by this transaction."""
        row = (await self._tx.execute(_BY_DIGEST, {"digest": digest})).one_or_none()
        return _credential(row) if row else None

    async def named(self, name: str) -> Tenant | None:
        """The tenant of that name."""
        found = await self._tx.execute(select(models.tenant).where(models.tenant.c.name == name))
        row = found.one_or_none()
        return Tenant(row.id, row.name, row.created_at, row.disabled_at) if row else None

    async def all(self) -> Sequence[tuple[Tenant, int]]:
        """Every tenant with its revision, oldest first."""
        found = await self._tx.execute(
            select(models.tenant, models.tenant_head.c.revision)
            .join(models.tenant_head, models.tenant_head.c.tenant_id == models.tenant.c.id)
            .order_by(models.tenant.c.created_at, models.tenant.c.id)
        )
        return [
            (Tenant(row.id, row.name, row.created_at, row.disabled_at), row.revision)
            for row in found
        ]

    async def generations(self) -> dict[UUID, int]:
        """Every tenant -> the generation of its data key."""
        head = models.tenant_head
        found = await self._tx.execute(select(head.c.tenant_id, head.c.generation))
        return {row.tenant_id: row.generation for row in found}

    async def count_plain(self) -> int:
        """How many tenants have no data key in use."""
        head = models.tenant_head
        found = await self._tx.execute(
            select(func.count()).select_from(head).where(head.c.generation == PLAIN)
        )
        return int(found.scalar_one())

    async def set_disabled(self, tenant_id: UUID, at: datetime | None) -> None:
        """Disable a tenant as of an instant, or enable it."""
        table = models.tenant
        await self._tx.execute(update(table).where(table.c.id == tenant_id).values(disabled_at=at))

    async def erase_some(self, tenant_id: UUID, most: int) -> int:
        """Delete at most so many rows of a tenant, those that refer to others first; how many."""
        for table in reversed(models.metadata.sorted_tables):
            if table is not models.tenant and "tenant_id" not in table.c:
                continue
            own = table.c.id if table is models.tenant else table.c.tenant_id
            key = list(table.primary_key.columns)
            some = select(*key).where(own == tenant_id).limit(most)
            deleted = await self._tx.execute(delete(table).where(tuple_(*key).in_(some)))
            if deleted.rowcount:
                return int(deleted.rowcount)
        return 0

    async def add(self, tenant_id: UUID, name: str, at: datetime) -> bool:
        """Make a tenant in its empty state; False if another one has that name.

        With a data key of its own, where new tenants get one.
        """
        on_conflict = postgresql if self._tx.engine_name == "postgresql" else sqlite
        added = await self._tx.execute(
            on_conflict.insert(models.tenant)
            .values(id=tenant_id, name=name, created_at=at, settings={}, token_generation=0)
            .on_conflict_do_nothing()
        )
        if added.rowcount != 1:
            return False
        await self._tx.execute(
            insert(models.tenant_head).values(
                tenant_id=tenant_id, revision=EMPTY.revision, head=EMPTY.head
            )
        )
        if self._tx.data_keys.for_new:
            keys = TenantKeys(self._tx)
            await keys.set_generation(tenant_id, await keys.begin(tenant_id, at))
        return True


class TenantSettings:
    """What one tenant has chosen for itself."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def strict_users(self) -> bool:
        """Whether users count only as long as they have an API key in force."""
        return bool((await self._all()).get("strict_users", False))

    async def set_strict_users(self, wanted: bool) -> None:
        """Choose anew; what else is stored stays."""
        table = models.tenant
        await self._tx.execute(
            update(table)
            .where(table.c.id == self._tenant)
            .values(settings={**await self._all(), "strict_users": wanted})
        )

    async def _all(self) -> dict[str, Any]:
        found = await self._tx.execute(
            select(models.tenant.c.settings).where(models.tenant.c.id == self._tenant)
        )
        return dict(found.scalar_one_or_none() or {})
