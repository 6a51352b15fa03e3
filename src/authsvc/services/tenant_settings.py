"""What a tenant has chosen for itself: so far, whether its users have to be backed by API keys."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from authsvc.clock import Clock
from authsvc.database import Transaction
from authsvc.records import EMPTY, Caller, Stamp
from authsvc.repositories.heads import Heads
from authsvc.repositories.tenants import TenantSettings
from authsvc.services.changes import lock_tenant, origin, recheck, record, register


async def read_strict_users(tx: Transaction, tenant_id: UUID | None) -> tuple[bool, Stamp]:
    """Whether users count only as long as they have an API key in force."""
    if tenant_id is None:
        return False, EMPTY
    stamp = await Heads(tx, tenant_id).current()
    return await TenantSettings(tx, tenant_id).strict_users(), stamp


async def choose_strict_users(tx: Transaction, caller: Caller, wanted: bool, clock: Clock) -> Stamp:
    """Choose whether users have to be backed by API keys: a change like any other.

    Raises Unauthorized, RegisteredMeanwhile.
    """
    events: list[dict[str, Any]] = []
    tenant_id, key_id = caller.tenant_id, caller.key_id
    if tenant_id is None:
        if not wanted:
            tx.abandon()
            return EMPTY
        stamp, now = EMPTY, clock()
        tenant_id, key_id, events = await register(tx, caller, now)
    else:
        stamp = await lock_tenant(tx, tenant_id)
        now = clock()
        await recheck(tx, caller, stamp, now)
    settings = TenantSettings(tx, tenant_id)
    before = await settings.strict_users()
    if before == wanted:
        tx.abandon()
        return stamp
    await settings.set_strict_users(wanted)
    chosen = {
        "action": "update",
        "entity_type": "settings",
        "entity_id": "settings",
        "details": {"strict_users": wanted, "before": {"strict_users": before}},
    }
    return await record(tx, tenant_id, stamp, [*events, chosen], origin(caller, key_id), now)
