"""What encrypts the names of a tenant, as a transaction has to: by the generation it sees."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Select, and_, bindparam, select

from authsvc import models
from authsvc.column_types import IdList, one_of
from authsvc.database import Database, Transaction
from authsvc.encryption import PLAIN, FieldCipher, KeyMissing, Unreadable

_head = models.tenant_head
_key = models.tenant_key
current_key = and_(_key.c.tenant_id == _head.c.tenant_id, _key.c.generation == _head.c.generation)
"""Joins a tenant's head with its wrapped key, if it has one."""

_CURRENT: Select[Any] = (
    select(_head.c.generation, _key.c.wrapped)
    .outerjoin(_key, current_key)
    .where(_head.c.tenant_id == bindparam("tenant"))
)
_OF_GENERATIONS: Select[Any] = select(_key.c.generation, _key.c.wrapped).where(
    _key.c.tenant_id == bindparam("tenant"),
    one_of(_key.c.generation, bindparam("generations", type_=IdList)),
)
_ALL: Select[Any] = (
    select(_key.c.generation, _key.c.wrapped)
    .where(_key.c.tenant_id == bindparam("tenant"))
    .order_by(_key.c.generation)
)

Ciphers = dict[int, FieldCipher]
"""Generation -> cipher, of one tenant."""


async def cipher_of(tx: Transaction, tenant_id: UUID) -> FieldCipher:
    """The cipher of the tenant's current generation, as this transaction sees it.

    In a write transaction the tenant is locked, or held, before. Raises KeyMissing, Unreadable.
    """
    found = tx.ciphers.get(tenant_id)
    if found is not None:
        return found
    generation = tx.generations.get(tenant_id)
    wrapped = None
    if generation is None:
        row = (await tx.execute(_CURRENT, {"tenant": tenant_id})).one_or_none()
        generation, wrapped = (PLAIN, None) if row is None else (row.generation, row.wrapped)
        tx.generations[tenant_id] = generation
    elif tx.data_keys.known(tenant_id, generation) is None:
        # After the lock and not along with it: what was waited for is only seen now.
        given = {"tenant": tenant_id, "generations": [generation]}
        row = (await tx.execute(_OF_GENERATIONS, given)).one_or_none()
        wrapped = None if row is None else row.wrapped
    made = tx.ciphers[tenant_id] = tx.data_keys.cipher(tenant_id, generation, wrapped)
    return made


async def held_ciphers(tx: Transaction, tenant_ids: Iterable[UUID]) -> dict[UUID, FieldCipher]:
    """As ``cipher_of`` for several tenants that are not locked.

    Those that are gone, or whose key does not open, are left out: the others do not wait for them.
    Their generations stay as they are until the transaction ends, and their writers are not held
    up: what starts another generation changes the tenant's own row too.
    """
    tenant = models.tenant
    found = {}
    for tenant_id in sorted(tenant_ids, key=lambda one: one.bytes):
        locked = await tx.execute(
            select(tenant.c.id).where(tenant.c.id == tenant_id).with_for_update(read=True)
        )
        if locked.first() is not None:
            with suppress(KeyMissing, Unreadable):
                found[tenant_id] = await cipher_of(tx, tenant_id)
    return found


async def ciphers_of(
    tx: Transaction, tenant_id: UUID, generations: Iterable[int | None]
) -> Ciphers:
    """The ciphers of these generations, current or not (None is ``PLAIN``).

    Raises KeyMissing, Unreadable.
    """
    wanted = {generation or PLAIN for generation in generations}
    found, missing = _in_memory(tx, tenant_id, wanted)
    if missing:
        rows = await tx.execute(_OF_GENERATIONS, {"tenant": tenant_id, "generations": missing})
        found |= _unwrapped(tx, tenant_id, missing, rows)
    return found


async def read_ciphers(
    database: Database, tenant_id: UUID, generations: Iterable[int | None]
) -> Ciphers:
    """As ``ciphers_of``, outside of any transaction."""
    wanted = {generation or PLAIN for generation in generations}
    found, missing = _in_memory(database, tenant_id, wanted)
    if missing:
        given = {"tenant": tenant_id, "generations": missing}
        rows = await database.rows(_OF_GENERATIONS, given)
        found |= _unwrapped(database, tenant_id, missing, rows)
    return found


async def every_cipher(tx: Transaction, tenant_id: UUID) -> Ciphers:
    """The ciphers of every generation the tenant ever had, and the plain one."""
    rows = (await tx.execute(_ALL, {"tenant": tenant_id})).all()
    plain = {PLAIN: FieldCipher(tenant_id)}
    return plain | _unwrapped(tx, tenant_id, [row.generation for row in rows], rows)


def _in_memory(
    holder: Transaction | Database, tenant_id: UUID, wanted: Iterable[int]
) -> tuple[Ciphers, list[int]]:
    known = {g: holder.data_keys.known(tenant_id, g) for g in sorted(wanted)}
    found = {g: cipher for g, cipher in known.items() if cipher is not None}
    return found, [g for g in known if g not in found]


def _unwrapped(
    holder: Transaction | Database, tenant_id: UUID, wanted: Iterable[int], rows: Iterable[Any]
) -> Ciphers:
    wrapped = {row.generation: row.wrapped for row in rows}
    return {g: holder.data_keys.cipher(tenant_id, g, wrapped.get(g), current=False) for g in wanted}
