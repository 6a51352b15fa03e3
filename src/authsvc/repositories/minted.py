"""A tenant's sealed outcomes, for requests that are repeated."""

from __future__ import annotations

from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.records import Minted


class MintedOutcomes:
    """What one client key of a tenant minted with an ``Idempotency-Key``."""

    def __init__(self, transaction: Transaction, tenant_id: UUID, key_id: str) -> None:
        self._tx = transaction
        self._tenant = tenant_id
        self._key_id = key_id

    async def find(self, request_key: bytes) -> Minted | None:
        """The outcome of the request with this digest of its ``Idempotency-Key``."""
        table = models.minted
        found = await self._tx.execute(
            select(table).where(
                table.c.tenant_id == self._tenant,
                table.c.key_id == self._key_id,
                table.c.request_key == request_key,
            )
        )
        row = found.one_or_none()
        return Minted(row.content, row.sealed, row.ended_by_it, row.created_at) if row else None

    async def add(self, request_key: bytes, outcome: Minted) -> None:
        """Keep an outcome."""
        await self._tx.execute(
            insert(models.minted).values(
                tenant_id=self._tenant,
                key_id=self._key_id,
                request_key=request_key,
                content=outcome.content,
                sealed=outcome.sealed,
                ended_by_it=outcome.ended_by_it,
                created_at=outcome.created_at,
            )
        )

    async def forget_until(self, moment: datetime) -> None:
        """Remove the tenant's outcomes that are as old as that, whichever key's they are."""
        table = models.minted
        await self._tx.execute(
            delete(table).where(table.c.tenant_id == self._tenant, table.c.created_at <= moment)
        )
