"""Data keys as they are stored: wrapped, each under a master key that is registered here."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, delete, func, insert, select, tuple_, update
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.database import Database, Transaction
from authsvc.encryption import PLAIN, FieldCipher, new_data_key

_key = models.tenant_key
_master = models.master_key
_head = models.tenant_head
_NOBODY = UUID(int=0)
_FIRST = -1


@dataclass(frozen=True, slots=True)
class WrappedKey:
    """A data key under the master key that its row names (which only its opening proves)."""

    tenant_id: UUID
    generation: int
    wrapped: str = field(repr=False)
    master_key: str


class TenantKeys:
    """The data keys of all tenants."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def begin(self, tenant_id: UUID, now: datetime) -> FieldCipher:
        """Make a data key of a new generation; it becomes the tenant's with ``set_generation``.

        A generation is the second of its making, or one more than the one before it: never one
        that was used before, even after an older state was restored.
        """
        data_keys = self._tx.data_keys
        found = await self._tx.execute(
            select(func.max(_key.c.generation)).where(_key.c.tenant_id == tenant_id)
        )
        generation = max(int(now.timestamp()), (found.scalar_one() or PLAIN) + 1)
        data_key = new_data_key()
        wrapped, master = data_keys.master.wrap(tenant_id, generation, data_key)
        await self._register(master, now)
        await self._tx.execute(
            insert(_key).values(
                tenant_id=tenant_id,
                generation=generation,
                wrapped=wrapped,
                master_key=master,
                created_at=now,
            )
        )
        return FieldCipher(tenant_id, generation, data_key)

    async def set_generation(self, tenant_id: UUID, cipher: FieldCipher) -> None:
        """Make a cipher's generation the tenant's current one, for this transaction too."""
        await self._tx.execute(
            update(_head).where(_head.c.tenant_id == tenant_id).values(generation=cipher.generation)
        )
        self._tx.generations[tenant_id] = cipher.generation
        self._tx.ciphers[tenant_id] = cipher

    async def hold(self, tenant_id: UUID) -> None:
        """Wait until nobody writes events of a locked tenant beside its lock, and keep it so."""
        tenant = models.tenant
        await self._tx.execute(
            select(tenant.c.id).where(tenant.c.id == tenant_id).with_for_update(key_share=True)
        )

    async def page(self, after: WrappedKey | None, most: int) -> list[WrappedKey]:
        """At most so many keys of all there are, in the order of tenants and generations."""
        tenant_id = _NOBODY if after is None else after.tenant_id
        generation = _FIRST if after is None else after.generation
        place = tuple_(_key.c.tenant_id, _key.c.generation)
        start = tuple_(bindparam("t", tenant_id, _key.c.tenant_id.type), bindparam("g", generation))
        found = await self._tx.execute(
            select(_key)
            .where(place > start)
            .order_by(_key.c.tenant_id, _key.c.generation)
            .limit(most)
        )
        return [_record(row) for row in found]

    async def find(self, tenant_id: UUID, generation: int) -> WrappedKey | None:
        """One key as it is stored now."""
        found = await self._tx.execute(
            select(_key).where(_key.c.tenant_id == tenant_id, _key.c.generation == generation)
        )
        row = found.one_or_none()
        return None if row is None else _record(row)

    async def rewrap(self, seen: WrappedKey, now: datetime) -> bool:
        """Put a key under the master key that wraps now, if it still is what was seen.

        False if it is not: somebody else rewrapped it, or its tenant was erased. Raises KeyMissing,
        Unreadable.
        """
        master = self._tx.data_keys.master
        data_key = master.unwrap(seen.tenant_id, seen.generation, seen.wrapped)
        wrapped, name = master.wrap(seen.tenant_id, seen.generation, data_key)
        await self._register(name, now)
        changed = await self._tx.execute(
            update(_key)
            .where(
                _key.c.tenant_id == seen.tenant_id,
                _key.c.generation == seen.generation,
                _key.c.wrapped == seen.wrapped,
            )
            .values(wrapped=wrapped, master_key=name)
        )
        return changed.rowcount == 1

    async def _register(self, name: str, now: datetime) -> None:
        """Have a master key on the register, and keep it there until this transaction ends."""
        on_conflict = postgresql if self._tx.engine_name == "postgresql" else sqlite
        adding = (
            on_conflict.insert(_master).values(id=name, registered_at=now).on_conflict_do_nothing()
        )
        kept = (
            select(_master.c.id)
            .where(_master.c.id == name)
            .with_for_update(read=True, key_share=True)
        )
        while True:
            await self._tx.execute(adding)
            # It was there, and has just been taken off.
            if (await self._tx.execute(kept)).first() is not None:
                return

    async def forget_unused(self, keep: str) -> list[str]:
        """Take master keys that nothing is under off the register, but for one; their ids."""
        others = select(_master.c.id).where(_master.c.id != keep).order_by(_master.c.id)
        # What is being wrapped under them right now is seen after this.
        await self._tx.execute(others.with_for_update())
        used = select(_key.c.master_key)
        unused = select(_master.c.id).where(_master.c.id.not_in(used), _master.c.id != keep)
        names = sorted((await self._tx.execute(unused)).scalars())
        for name in names:
            await self._tx.execute(delete(_master).where(_master.c.id == name))
        return names

    async def counts(self) -> dict[str, int]:
        """Registered master key -> how many data keys are under it, oldest first."""
        found = await self._tx.execute(
            select(_master.c.id, func.count(_key.c.tenant_id))
            .outerjoin(_key, _key.c.master_key == _master.c.id)
            .group_by(_master.c.id, _master.c.registered_at)
            .order_by(_master.c.registered_at, _master.c.id)
        )
        return {str(name): int(count) for name, count in map(tuple, found)}


def _record(row: Row[Any]) -> WrappedKey:
    return WrappedKey(row.tenant_id, row.generation, row.wrapped, row.master_key)


async def registered_master_keys(database: Database) -> Sequence[str]:
    """The ids of the master keys that something is under."""
    return [row.id for row in await database.rows(select(_master.c.id), {})]
