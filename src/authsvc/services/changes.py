"""The one write path: lock, re-check, effective changes, rows and events, one advance."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from authsvc import audit_chain
from authsvc.change_set import ChangeSet, Rows, Touched
from authsvc.clock import Clock
from authsvc.credentials import fingerprint, new_key_id
from authsvc.database import Transaction
from authsvc.decision_cache import Credential
from authsvc.errors import AuthsvcError, Unauthorized
from authsvc.records import (
    EMPTY,
    SCOPES,
    AuditEvent,
    Caller,
    Change,
    ClientKey,
    Effect,
    Stamp,
    covered,
)
from authsvc.repositories.api_keys import ApiKeys
from authsvc.repositories.audit import Audit
from authsvc.repositories.grants import Grants
from authsvc.repositories.heads import Heads
from authsvc.repositories.keys import Keys
from authsvc.repositories.memberships import Memberships
from authsvc.repositories.roles import Roles
from authsvc.repositories.tenants import Tenants, TenantSettings
from authsvc.repositories.tokens import TokenFamilies
from authsvc.services.authentication import caller_of


class RegisteredMeanwhile(AuthsvcError):
    """Another request made this key's tenant first: authenticate again and repeat the write."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What a list of changes did, and the tenant's state it is answered at."""

    stamp: Stamp
    effects: list[Effect]

    @property
    def applied(self) -> int:
        """How many changes had an effect."""
        return sum(effect.changed for effect in self.effects)


async def apply_changes(
    tx: Transaction,
    caller: Caller,
    changes: Sequence[Change],
    clock: Clock,
    *,
    dry_run: bool = False,
    paths: bool = True,
) -> Outcome:
    """Apply changes for a caller, all or nothing, in order.

    ``clock`` is read under the tenant's lock, so that events are as old as their order says.
    ``paths``: errors name the change (``changes.3.role``); off for a request that is one change.
    Raises NotFound, RoleCycle, UserNotKeyBacked, Unauthorized (the credential ended while the write
    waited) and RegisteredMeanwhile.
    """
    if caller.tenant_id is None:
        stamp, touched, first, now = EMPTY, Touched(), 3, clock()
    else:
        stamp = await lock_tenant(tx, caller.tenant_id)
        now = clock()
        await recheck(tx, caller, stamp, now)
        touched = await touched_by(tx, caller.tenant_id, changes, now)
        first = stamp.revision + 1
    change_set = ChangeSet(touched, first, now)
    effects = [
        change_set.apply(index, change, f"changes.{index}" if paths else None)
        for index, change in enumerate(changes)
    ]
    if dry_run or not change_set.events:
        tx.abandon()
        return Outcome(stamp, effects)

    events = change_set.events
    tenant_id, key_id = caller.tenant_id, caller.key_id
    if tenant_id is None:
        tenant_id, key_id, registered = await register(tx, caller, now)
        events = registered + events
    await write_rows(tx, tenant_id, change_set.rows(), now)
    stamp = await record(tx, tenant_id, stamp, events, origin(caller, key_id), now)
    return Outcome(stamp, effects)


async def lock_tenant(tx: Transaction, tenant_id: UUID) -> Stamp:
    """Take the tenant's lock; raises Unauthorized if the tenant is gone."""
    stamp = await Heads(tx, tenant_id).lock()
    if stamp is None:
        raise Unauthorized(sent=True)
    return stamp


async def recheck(
    tx: Transaction,
    caller: Caller,
    stamp: Stamp,
    now: datetime,
    looked_up: dict[bytes | str, Credential | None] | None = None,
) -> None:
    """Make sure the caller may still write, now that nothing can change meanwhile.

    Nothing needs to be read when the tenant is as it was when the caller was authenticated; only
    the credential's own end may have come since. ``looked_up`` keeps what was read under this
    lock, for further callers with the same credential.
    """
    if caller.expires_at is not None and now >= caller.expires_at:
        raise Unauthorized(sent=True)
    if stamp == caller.stamp:
        return
    known = {} if looked_up is None else looked_up
    credential_id = caller.family or caller.digest
    if credential_id not in known:
        known[credential_id] = await _credential(tx, caller)
    credential = known[credential_id]
    if credential is None:
        raise Unauthorized(sent=True)
    still = caller_of(credential, caller.digest, now)
    if still.tenant_id != caller.tenant_id or covered(caller.scopes, still.scopes) < caller.scopes:
        raise Unauthorized(sent=True)


async def _credential(tx: Transaction, caller: Caller) -> Credential | None:
    """The caller's key as it is now; None if it is gone, or the token it came with was revoked."""
    if caller.family is None or caller.tenant_id is None:
        return await Tenants(tx).credential(caller.digest)
    session = await TokenFamilies(tx, caller.tenant_id).session(caller.family)
    if session is None or session.revoked_at is not None:
        return None
    return session.credential


async def record(
    tx: Transaction,
    tenant_id: UUID,
    stamp: Stamp,
    events: Sequence[dict[str, Any]],
    by: dict[str, Any],
    now: datetime,
) -> Stamp:
    """Chain the events onto the tenant's head and advance it: the end of every change."""
    chained = await append(tx, tenant_id, stamp, [by | event for event in events], now)
    return chained[-1].stamp


async def append(
    tx: Transaction,
    tenant_id: UUID,
    stamp: Stamp,
    payloads: Sequence[dict[str, Any]],
    now: datetime,
) -> list[AuditEvent]:
    """As ``record``, for events that each say by whom they are; returns them as they are stored."""
    chained = audit_chain.extend(tenant_id, stamp, now, payloads, tx.audit_keys)
    await Audit(tx, tenant_id).append(chained, payloads)
    await Heads(tx, tenant_id).advance(chained[-1].stamp)
    return chained


def origin(caller: Caller, key_id: str | None) -> dict[str, Any]:
    """Who did it and from where, as every event of a request says it."""
    return {
        "actor": key_id,
        "request_id": caller.request_id,
        "ip_address": caller.address,
        "user_agent": caller.user_agent,
    }


async def register(
    tx: Transaction, caller: Caller, now: datetime
) -> tuple[UUID, str, list[dict[str, Any]]]:
    """Make the tenant of a key that was not known; its id, the key's id and the two events."""
    tenant_id, key_id = uuid.uuid4(), new_key_id()
    key = ClientKey(key_id, tenant_id, "", frozenset(SCOPES), now, None, None)
    made = await Tenants(tx).add(tenant_id, str(tenant_id), now)
    if not made or not await Keys(tx, tenant_id).add(key, caller.digest):
        raise RegisteredMeanwhile("This key was registered a moment ago; repeat the request")
    return tenant_id, key_id, registration_events(str(tenant_id), key, caller.digest)


def registration_events(name: str, key: ClientKey, digest: bytes) -> list[dict[str, Any]]:
    """The first two events of every tenant: itself and its first key."""
    return [
        {"action": "create", "entity_type": "tenant", "entity_id": name, "details": {}},
        key_event("create", key, digest),
    ]


def key_event(action: str, key: ClientKey, digest: bytes | None = None) -> dict[str, Any]:
    """An event about a client key, which never contains the key or its digest.

    That of a key just made holds the fingerprint of its digest.
    """
    details: dict[str, Any] = {
        "label": key.label,
        "scopes": sorted(key.scopes),
        "expires_at": key.expires_at.isoformat() if key.expires_at else None,
    }
    if digest is not None:
        details["fingerprint"] = fingerprint(digest)
    return {"action": action, "entity_type": "key", "entity_id": key.id, "details": details}


async def touched_by(
    tx: Transaction, tenant_id: UUID, changes: Sequence[Change], now: datetime
) -> Touched:
    """The stored state these changes can touch, in a handful of statements however many."""
    roles_repository = Roles(tx, tenant_id)
    names = {change.role for change in changes} | {change.parent for change in changes}
    names.discard("")
    ops = {change.op for change in changes}
    touched = Touched(roles=await roles_repository.named(names) if names else {})
    ids = [role.id for role in touched.roles.values()]
    permissions = {c.permission for c in changes if c.op in ("grant", "revoke")}
    if permissions and ids:
        touched.grants = await Grants(tx, tenant_id).among(ids, permissions)
    memberships = Memberships(tx, tenant_id)
    leaving = {c.user for c in changes if c.op == "remove_user"}
    moving = {c.user for c in changes if c.op in ("add_member", "remove_member")} - leaving
    if leaving:
        touched.memberships += await memberships.of_users(leaving)
        touched.names = await roles_repository.names({m.role_id for m in touched.memberships})
        touched.api_keys = await ApiKeys(tx, tenant_id).unrevoked(leaving)
    if moving and ids:
        touched.memberships += await memberships.of_users_in(moving, ids)
    adding = {c.user for c in changes if c.op == "add_member"}
    if adding and await TenantSettings(tx, tenant_id).strict_users():
        touched.key_backed = await ApiKeys(tx, tenant_id).backed(adding, now)
    if "add_parent" in ops:
        touched.edges = set(await roles_repository.edges())
        ends = {end for edge in touched.edges for end in edge}
        touched.names = {**touched.names, **await roles_repository.names(ends)}
    elif "remove_parent" in ops and ids:
        touched.edges = set(await roles_repository.edges_touching(ids))
    return touched


async def write_rows(tx: Transaction, tenant_id: UUID, rows: Rows, now: datetime) -> None:
    """Write the difference that a list of changes makes."""
    roles = Roles(tx, tenant_id)
    grants = Grants(tx, tenant_id)
    memberships = Memberships(tx, tenant_id)
    # Removals first: a role may be removed and made again, with another id, in one list.
    if rows.roles_removed:
        await roles.remove(rows.roles_removed)
    if rows.roles_added:
        await roles.add(rows.roles_added)
    if rows.descriptions:
        await roles.describe(rows.descriptions)
    if rows.edges_removed:
        await roles.remove_edges(rows.edges_removed)
    if rows.edges_added:
        await roles.add_edges(rows.edges_added)
    if rows.grants_removed:
        await grants.remove(rows.grants_removed)
    if rows.grants_added:
        await grants.add(rows.grants_added)
    if rows.memberships_removed:
        await memberships.remove(rows.memberships_removed)
    if rows.memberships_rebound:
        await memberships.rebound(rows.memberships_rebound)
    if rows.memberships_added:
        await memberships.add(rows.memberships_added)
    if rows.api_keys_revoked:
        await ApiKeys(tx, tenant_id).revoke(rows.api_keys_revoked, now)
