"""A tenant's client keys: digests, never keys."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, select, update
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.database import Transaction
from authsvc.encryption import CLIENT_KEY_LABEL, FieldCipher
from authsvc.records import ClientKey
from authsvc.repositories.field_ciphers import cipher_of


def _key(row: Row[Any], cipher: FieldCipher) -> ClientKey:
    return ClientKey(
        row.id,
        row.tenant_id,
        cipher.open(CLIENT_KEY_LABEL, row.label),
        frozenset(row.scopes),
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.last_used_at,
    )


class Keys:
    """The client keys of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def _cipher(self) -> FieldCipher:
        return await cipher_of(self._tx, self._tenant)

    async def _stored(self, label: str) -> str:
        return (await self._cipher()).seal(CLIENT_KEY_LABEL, label)

    async def add(self, key: ClientKey, digest: bytes) -> bool:
        """Store a key; False if its digest was ever seen before, in any tenant."""
        on_conflict = postgresql if self._tx.engine_name == "postgresql" else sqlite
        added = await self._tx.execute(
            on_conflict.insert(models.client_key)
            .values(
                tenant_id=self._tenant,
                id=key.id,
                digest=digest,
                label=await self._stored(key.label),
                scopes=sorted(key.scopes),
                created_at=key.created_at,
                expires_at=key.expires_at,
                revoked_at=key.revoked_at,
            )
            .on_conflict_do_nothing(index_elements=["digest"])
        )
        return added.rowcount == 1

    async def labelled(self, label: str) -> list[ClientKey]:
        """The keys that carry this label, oldest first."""
        table = models.client_key
        found = await self._tx.execute(
            select(table)
            .where(table.c.tenant_id == self._tenant, table.c.label == await self._stored(label))
            .order_by(table.c.created_at, table.c.id)
        )
        cipher = await self._cipher()
        return [_key(row, cipher) for row in found]

    async def all(self) -> list[ClientKey]:
        """Every key there ever was, oldest first."""
        table = models.client_key
        found = await self._tx.execute(
            select(table)
            .where(table.c.tenant_id == self._tenant)
            .order_by(table.c.created_at, table.c.id)
        )
        cipher = await self._cipher()
        return [_key(row, cipher) for row in found]

    async def label(self, key_id: str, label: str) -> None:
        """Give a key another label."""
        table = models.client_key
        await self._tx.execute(
            update(table)
            .where(table.c.tenant_id == self._tenant, table.c.id == key_id)
            .values(label=await self._stored(label))
        )

    async def set_end(self, key_id: str, expires_at: datetime | None) -> None:
        """Let a key end at an instant, or never."""
        table = models.client_key
        await self._tx.execute(
            update(table)
            .where(table.c.tenant_id == self._tenant, table.c.id == key_id)
            .values(expires_at=expires_at)
        )

    async def revoke(self, key_id: str, at: datetime) -> None:
        """End a key for good; its row stays, so that its digest is never accepted again."""
        table = models.client_key
        await self._tx.execute(
            update(table)
            .where(table.c.tenant_id == self._tenant, table.c.id == key_id)
            .values(revoked_at=at)
        )
