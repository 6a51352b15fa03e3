"""What the operator does to tenants and their client keys, by name and without a credential."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import Conflict, NotFound
from authsvc.records import ClientKey, Stamp, Tenant
from authsvc.repositories.heads import Heads
from authsvc.repositories.keys import Keys
from authsvc.repositories.retention import Retention
from authsvc.repositories.tenants import Tenants
from authsvc.services.changes import lock_tenant, record
from authsvc.services.keys import Mint, add_key, end_key, no_such_key, rotate_key

_BY = {"actor": "command", "request_id": None, "ip_address": None, "user_agent": None}
_MOST_AT_ONCE = 5_000


@dataclass(frozen=True, slots=True)
class Issued:
    """A client key just made; ``old_end`` is when the one it replaces ends."""

    key: ClientKey
    secret: str = field(repr=False)
    old_end: datetime | None = None


async def set_disabled(tx: Transaction, name: str, clock: Clock, *, disabled: bool) -> bool:
    """Disable or enable a tenant; False if it was so already. Raises NotFound.

    A change of its revision, so that every process knows with the next request.
    """
    tenant, stamp = await _locked(tx, name)
    if (tenant.disabled_at is not None) == disabled:
        tx.abandon()
        return False
    now = clock()
    await Tenants(tx).set_disabled(tenant.id, now if disabled else None)
    event = {
        "action": "update",
        "entity_type": "tenant",
        "entity_id": name,
        "details": {"disabled": disabled},
    }
    await record(tx, tenant.id, stamp, [event], _BY, now)
    return True


async def erase_tenant(database: Database, name: str, clock: Clock) -> int:
    """Disable a tenant and delete all there is of it; the number of rows.

    Raises NotFound, and StartError where only the owner of the tables may.

    In portions, so that no transaction grows with the tenant; interrupted, it can be repeated.
    That it was erased, and the state it had, stays on record.
    """
    async with database.read() as tx:
        tenant = await _named(tx, name)
        await Retention(tx).require_owner()
    if tenant.disabled_at is None:
        await database.write(name, lambda tx: set_disabled(tx, name, clock, disabled=True))

    async def put_on_record(tx: Transaction) -> None:
        stamp = await Heads(tx, tenant.id).lock()
        # Without a head an earlier run got that far; it has put it on record.
        if stamp is not None:
            await Retention(tx).record_erasure(tenant.id, stamp, clock())

    await database.write(name, put_on_record)
    rows = 0
    while True:
        some = await database.write(
            name, lambda tx: Tenants(tx).erase_some(tenant.id, _MOST_AT_ONCE)
        )
        if not some:
            return rows
        rows += some


async def list_keys(tx: Transaction, name: str) -> list[ClientKey]:
    """Every client key of a tenant, ended ones too, oldest first. Raises NotFound."""
    return await Keys(tx, (await _named(tx, name)).id).all()


async def issue_key(
    tx: Transaction,
    name: str,
    label: str,
    scopes: Sequence[str],
    lifetime: timedelta | None,
    clock: Clock,
) -> Issued:
    """Make a further client key of a tenant. Raises NotFound, InputError."""
    tenant, stamp = await _locked(tx, name)
    now = clock()
    work = add_key(label, scopes, None if lifetime is None else now + lifetime, Issued)
    return await _minted(tx, tenant, stamp, work, "", now)


async def rotate(
    tx: Transaction, name: str, key_id: str, overlap: timedelta, clock: Clock
) -> Issued:
    """Replace a key by a fresh one with its label and scopes. Raises NotFound, Conflict."""
    tenant, stamp = await _locked(tx, name)
    now = clock()
    key = next((key for key in await Keys(tx, tenant.id).all() if key.id == key_id), None)
    if key is None:
        raise no_such_key()
    if key.revoked_at is not None or (key.expires_at is not None and key.expires_at <= now):
        raise Conflict("This key has ended: issue another one")
    return await _minted(tx, tenant, stamp, rotate_key(overlap, Issued), key_id, now)


async def revoke(tx: Transaction, name: str, key_id: str, clock: Clock, *, even_last: bool) -> bool:
    """End a key at once and for good; False if it had been revoked before.

    Raises NotFound, and Conflict for the last key that can administer the tenant, unless
    ``even_last``.
    """
    tenant, stamp = await _locked(tx, name)
    now = clock()
    ended = await end_key(tx, tenant.id, key_id, now, even_last=even_last)
    if ended is None:
        tx.abandon()
        return False
    await record(tx, tenant.id, stamp, [ended], _BY, now)
    return True


async def _minted(
    tx: Transaction, tenant: Tenant, stamp: Stamp, work: Mint, key_id: str, now: datetime
) -> Issued:
    events, issued = await work(tx, tenant.id, key_id, now)
    await record(tx, tenant.id, stamp, events, _BY, now)
    made: Issued = issued
    return made


async def _named(tx: Transaction, name: str) -> Tenant:
    tenant = await Tenants(tx).named(name)
    if tenant is None:
        raise NotFound("tenant_not_found", f"There is no tenant called '{name}'")
    return tenant


async def _locked(tx: Transaction, name: str) -> tuple[Tenant, Stamp]:
    """The tenant as it is once it is locked."""
    stamp = await lock_tenant(tx, (await _named(tx, name)).id)
    return await _named(tx, name), stamp
