"""Tenants as the operator makes them, and the key that the settings provide."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from authsvc.credentials import digest_of, new_client_key, new_key_id
from authsvc.database import Transaction
from authsvc.errors import Conflict, SettingsError
from authsvc.records import EMPTY, SCOPES, ClientKey, Tenant
from authsvc.repositories.keys import Keys
from authsvc.repositories.tenants import Tenants
from authsvc.services.authentication import is_alive
from authsvc.services.changes import key_event, lock_tenant, record, registration_events

DEFAULT_TENANT = "default"
PROVISIONED = "AUTH_CLIENT_KEY"
"""Label of the keys that came from the settings."""
_OVERLAP = timedelta(days=1)
_LENT = "selftest"


@dataclass(frozen=True, slots=True)
class NewTenant:
    """A tenant just made; ``key`` is shown once and stored nowhere."""

    id: UUID
    name: str
    key_id: str
    key: str = field(repr=False)


def _by(actor: str) -> dict[str, Any]:
    return {"actor": actor, "request_id": None, "ip_address": None, "user_agent": None}


def _new_key(tenant_id: UUID, label: str, now: datetime) -> ClientKey:
    return ClientKey(new_key_id(), tenant_id, label, frozenset(SCOPES), now, None, None)


async def create_tenant(
    tx: Transaction,
    name: str,
    now: datetime,
    *,
    actor: str,
    key: str | None = None,
    label: str = "",
) -> NewTenant:
    """Make a tenant with one client key that may do everything. Raises Conflict for a name taken.

    ``actor`` is who the audit trail names; ``key`` a client key to use instead of a fresh one.
    """
    tenant_id = uuid.uuid4()
    if not await Tenants(tx).add(tenant_id, name, now):
        raise Conflict(f"There is a tenant called '{name}' already: choose another name")
    secret = key or new_client_key()
    stored = _new_key(tenant_id, label, now)
    digest = digest_of(secret)
    if not await Keys(tx, tenant_id).add(stored, digest):
        raise Conflict("This client key is in use already: make another one")
    events = registration_events(name, stored, digest)
    await record(tx, tenant_id, EMPTY, events, _by(actor), now)
    return NewTenant(tenant_id, name, stored.id, secret)


async def lend_key(tx: Transaction, name: str, now: datetime, life: timedelta) -> NewTenant:
    """A key that may do everything and ends by itself, in a tenant of that name, made if need be.

    For tests of a running service: what they leave behind opens nothing.
    """
    tenant = await Tenants(tx).named(name)
    tenant_id = uuid.uuid4() if tenant is None else tenant.id
    secret = new_client_key()
    digest = digest_of(secret)
    stored = replace(_new_key(tenant_id, _LENT, now), expires_at=now + life)
    if tenant is None:
        if not await Tenants(tx).add(tenant_id, name, now):
            raise Conflict(f"The tenant '{name}' was made by another at the same time: try again")
        stamp, events = EMPTY, registration_events(name, stored, digest)
    else:
        stamp = await lock_tenant(tx, tenant_id)
        events = [key_event("create", stored, digest)]
    if not await Keys(tx, tenant_id).add(stored, digest):
        raise Conflict("This client key is in use already: try again")
    await record(tx, tenant_id, stamp, events, _by(_LENT), now)
    return NewTenant(tenant_id, name, stored.id, secret)


async def end_lent_key(tx: Transaction, lent: NewTenant, now: datetime) -> None:
    """End a key that ``lend_key`` made."""
    stamp = await lock_tenant(tx, lent.id)
    keys = Keys(tx, lent.id)
    await keys.revoke(lent.key_id, now)
    ended = [
        replace(key, revoked_at=now) for key in await keys.labelled(_LENT) if key.id == lent.key_id
    ]
    await record(tx, lent.id, stamp, [key_event("delete", key) for key in ended], _by(_LENT), now)


async def list_tenants(tx: Transaction) -> Sequence[tuple[Tenant, int]]:
    """Every tenant with its revision, oldest first."""
    return await Tenants(tx).all()


async def provision_key(tx: Transaction, key: str, now: datetime) -> None:
    """Make sure that the key of the settings is a key of the tenant ``default``.

    A key not seen before is added, and the ones provided earlier end a day later, so that the
    setting can be changed replica by replica. Raises SettingsError for a key that has ended or
    belongs to another tenant.
    """
    digest = digest_of(key)
    tenant = await Tenants(tx).named(DEFAULT_TENANT)
    if tenant is None:
        if await Tenants(tx).credential(digest) is not None:
            raise _refused("belongs to another tenant")
        try:
            await create_tenant(
                tx, DEFAULT_TENANT, now, actor="settings", key=key, label=PROVISIONED
            )
        except Conflict:
            # Another replica, started at the same time, was first.
            tenant = await Tenants(tx).named(DEFAULT_TENANT)
            if tenant is None:
                raise
        else:
            return
    stamp = await lock_tenant(tx, tenant.id)
    known = await Tenants(tx).credential(digest)
    keys = Keys(tx, tenant.id)
    events: list[dict[str, Any]] = []
    if known is None:
        added = _new_key(tenant.id, PROVISIONED, now)
        if not await keys.add(added, digest):
            raise _refused("belongs to another tenant")
        events.append(key_event("create", added, digest))
        current = added.id
    else:
        if known.key.tenant_id != tenant.id:
            raise _refused("belongs to another tenant")
        if not is_alive(known, now):
            raise _refused("was revoked or has expired")
        current = known.key.id
    for older in await keys.labelled(PROVISIONED):
        if older.id == current:
            if older.expires_at is not None:
                await keys.set_end(current, None)
                events.append(key_event("update", replace(older, expires_at=None)))
        elif older.revoked_at is None and older.expires_at is None:
            await keys.set_end(older.id, now + _OVERLAP)
            events.append(key_event("update", replace(older, expires_at=now + _OVERLAP)))
    if events:
        await record(tx, tenant.id, stamp, events, _by("settings"), now)
    else:
        tx.abandon()


def _refused(reason: str) -> SettingsError:
    return SettingsError(
        f"AUTH_CLIENT_KEY {reason}: make a new one with"
        " python -c 'import uuid; print(uuid.uuid4())'"
    )
