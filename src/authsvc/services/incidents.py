"""What an operator does when a credential was in the wrong hands: look, lock down, undo.

Undoing is defined by what would have been: the tenant's events are replayed once as they were and
once without the hostile ones, and the difference is what is to be changed. So later good changes
stay, and a change that a good one has overtaken is left alone.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any
from uuid import UUID

from authsvc.change_set import ChangeSet
from authsvc.clock import Clock
from authsvc.database import Transaction
from authsvc.errors import Conflict, NotFound
from authsvc.records import Change, Tenant
from authsvc.replay import Bounds, DoesNotFollow, State
from authsvc.repositories.api_keys import ApiKeys
from authsvc.repositories.audit import said_by
from authsvc.repositories.keys import Keys
from authsvc.repositories.tenants import Tenants, TenantSettings
from authsvc.repositories.tokens import TokenFamilies
from authsvc.services.api_keys import api_key_event
from authsvc.services.changes import lock_tenant, record, touched_by, write_rows
from authsvc.services.keys import end_key
from authsvc.services.replay_review import events_of

_BY: dict[str, Any] = {
    "actor": "command",
    "request_id": None,
    "ip_address": None,
    "user_agent": None,
}


@dataclass(frozen=True, slots=True)
class Window:
    """Whose doing is hostile: a client key's, and that of keys it made, between two instants."""

    actor: str
    since: datetime
    until: datetime | None = None

    def holds(self, at: datetime) -> bool:
        """Whether an instant is within."""
        return at >= self.since and (self.until is None or at <= self.until)


@dataclass(slots=True)
class Plan:
    """What happened, and what undoes it.

    ``hostile`` are event numbers; ``skipped`` says which good events rested on hostile ones and
    would not have happened; ``lost`` what cannot be brought back.
    """

    tenant_id: UUID
    actors: list[str] = field(default_factory=list)
    hostile: list[int] = field(default_factory=list)
    changes: list[Change] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)
    api_keys: list[str] = field(default_factory=list)
    strict_users: bool | None = None
    skipped: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    actual: State = field(default_factory=State, repr=False)
    without: State = field(default_factory=State, repr=False)

    @property
    def size(self) -> int:
        """How many changes undo it."""
        own = len(self.changes) + len(self.keys) + len(self.api_keys)
        return own + (self.strict_users is not None)

    def same_as(self, other: Plan) -> bool:
        """Whether both would change the same."""
        return (self.hostile, self.changes, self.keys, self.api_keys, self.strict_users) == (
            other.hostile, other.changes, other.keys, other.api_keys, other.strict_users,
        )  # fmt: skip


async def plan(tx: Transaction, name: str, window: Window, archive: Path | None = None) -> Plan:
    """What undoes an incident in a tenant. Raises NotFound, DamagedError, Unreadable."""
    tenant = await _named(tx, name)
    made = Plan(tenant.id)
    actors = {window.actor}
    async for event in events_of(tx, tenant.id, archive):
        said = said_by(event)
        try:
            made.actual.apply(event.seq, event.at, said)
        except DoesNotFollow as error:
            raise Conflict(f"{error}: run 'authsvc verify' first") from None
        if said["actor"] in actors and window.holds(event.at):
            made.hostile.append(event.seq)
            if (said["action"], said["entity_type"]) == ("create", "key"):
                actors.add(said["entity_id"])
            continue
        try:
            made.without.apply(event.seq, event.at, said)
        except DoesNotFollow:
            what = f"{said['action']} {said['entity_type']} '{said['entity_id']}'"
            made.skipped.append(f"event {event.seq} ({what}) rests on what is undone")
    made.actors = sorted(actors)
    made.changes = list(_changes(made.actual, made.without))
    made.keys = sorted(
        key for key, told in made.actual.keys.items() if told.live and key not in made.without.keys
    )
    made.api_keys = sorted(
        key
        for key, told in made.actual.api_keys.items()
        if told.live and key not in made.without.api_keys
    )
    if made.actual.strict_users != made.without.strict_users:
        made.strict_users = made.without.strict_users
    made.lost = list(_lost(made))
    return made


def _lost(made: Plan) -> Iterable[str]:
    """A credential that has ended is never in force again: another one has to be given out."""
    for key, told in sorted(made.without.keys.items()):
        if told.live and not made.actual.keys[key].live:
            yield f"client key {key} was ended and stays so: issue another one"
    for key, api_key in sorted(made.without.api_keys.items()):
        if api_key.live and not made.actual.api_keys[key].live:
            yield f"API key {key} of '{api_key.user}' was ended and stays so: make another one"


def _changes(actual: State, wanted: State) -> Iterable[Change]:
    """What leads from one state to the other, in an order in which every step is possible."""
    for role in sorted(actual.roles.keys() - wanted.roles.keys()):
        yield Change("remove_role", role=role)
    for role, told in sorted(wanted.roles.items()):
        known = actual.roles.get(role)
        if known is None or known.description != told.description:
            yield Change("add_role", role=role, description=told.description)
    left = actual.roles.keys() & wanted.roles.keys()
    for role in sorted(left):
        for parent in sorted(_of(actual.parents, role) - _of(wanted.parents, role)):
            # A parent that goes takes this along.
            if parent in left:
                yield Change("remove_parent", role=role, parent=parent)
        for permission in sorted(_of(actual.grants, role) - _of(wanted.grants, role)):
            yield Change("revoke", role=role, permission=permission)
    before = _memberships(actual)
    after = _memberships(wanted)
    for user, role, scope in sorted(before.keys() - after.keys()):
        if role in left:
            yield Change("remove_member", user=user, role=role, scope=scope)
    for role in sorted(wanted.roles):
        known_parents = _of(actual.parents, role) if role in left else set()
        for parent in sorted(_of(wanted.parents, role) - known_parents):
            yield Change("add_parent", role=role, parent=parent)
        known_grants = _of(actual.grants, role) if role in left else set()
        for permission in sorted(_of(wanted.grants, role) - known_grants):
            yield Change("grant", role=role, permission=permission)
    for place, bounds in sorted(after.items()):
        if before.get(place) != bounds:
            user, role, scope = place
            yield Change(
                "add_member",
                user=user,
                role=role,
                scope=scope or None,
                not_before=bounds.not_before,
                expires_at=bounds.expires_at,
            )


def _of(sets: dict[str, set[str]], role: str) -> set[str]:
    return sets.get(role, set())


def _memberships(state: State) -> dict[tuple[str, str, str], Bounds]:
    return {(user, role, scope): bounds for user, role, scope, bounds in state.memberships()}


async def revert(
    tx: Transaction, name: str, window: Window, seen: Plan, clock: Clock, archive: Path | None
) -> int:
    """Do what was seen in a plan; how many events that were.

    Raises Conflict if something has changed since, so that something else would be done, and what
    ``apply_changes`` raises.
    """
    tenant = await _named(tx, name)
    stamp = await lock_tenant(tx, tenant.id)
    now_planned = await plan(tx, name, window, archive)
    if not now_planned.same_as(seen):
        raise Conflict("The tenant has changed since this was shown: look at it again")
    now = clock()
    changes = now_planned.changes
    events: list[dict[str, Any]] = []
    if changes:
        touched = await touched_by(tx, tenant.id, changes, now)
        change_set = ChangeSet(touched, stamp.revision + 1, now)
        for index, change in enumerate(changes):
            change_set.apply(index, change, f"changes.{index}")
        await write_rows(tx, tenant.id, change_set.rows(), now)
        events += change_set.events
    for key_id in now_planned.keys:
        ended = await end_key(tx, tenant.id, key_id, now, even_last=True)
        events += [] if ended is None else [ended]
    users = {key_id: told.user for key_id, told in now_planned.actual.api_keys.items()}
    for key_id in now_planned.api_keys:
        events += await _end_api_key(tx, tenant.id, users[key_id], key_id, now)
    if now_planned.strict_users is not None:
        settings = TenantSettings(tx, tenant.id)
        before = await settings.strict_users()
        await settings.set_strict_users(now_planned.strict_users)
        details = {"strict_users": now_planned.strict_users, "before": {"strict_users": before}}
        events.append(_event("update", "settings", "settings", details))
    if not events:
        tx.abandon()
        return 0
    reverts = {"actor": window.actor, "since": window.since.isoformat()}
    for event in events:
        event["details"] = event["details"] | {"reverts": reverts}
    await record(tx, tenant.id, stamp, events, _BY, now)
    return len(events)


async def _end_api_key(
    tx: Transaction, tenant_id: UUID, user: str, key_id: str, now: datetime
) -> list[dict[str, Any]]:
    repository = ApiKeys(tx, tenant_id)
    key = await repository.find(user, key_id)
    if key is None or key.revoked_at is not None:
        return []
    await repository.revoke([key_id], now)
    return [api_key_event("delete", key)]


def _event(
    action: str, entity_type: str, entity_id: str, details: dict[str, Any]
) -> dict[str, Any]:
    return {
        "action": action,
        "entity_type": entity_type,
        "entity_id": entity_id,
        "details": details,
    }


@dataclass(frozen=True, slots=True)
class Affected:
    """A user who can do other things than without the incident: pairs of permission and scope."""

    user: str
    gained: list[tuple[str, str]]
    lost: list[tuple[str, str]]


def affected(seen: Plan, now: datetime) -> list[Affected]:
    """The users whose permissions are not what they would be without the hostile events."""
    found = []
    for user in sorted(seen.actual.members.keys() | seen.without.members.keys()):
        is_now, would_be = seen.actual.effective(user, now), seen.without.effective(user, now)
        if is_now != would_be:
            found.append(Affected(user, sorted(is_now - would_be), sorted(would_be - is_now)))
    return found


@dataclass(frozen=True, slots=True)
class Lockdown:
    """What a lockdown ends, or would end: families of tokens and client keys in force."""

    name: str
    families: int
    keys: int


async def preview_lockdown(tx: Transaction, name: str, now: datetime) -> Lockdown:
    """What is in force in a tenant. Raises NotFound."""
    tenant = await _named(tx, name)
    families = await TokenFamilies(tx, tenant.id).count_live(now)
    return Lockdown(name, families, len(await _live_keys(tx, tenant.id, now)))


async def lock_down(
    tx: Transaction, name: str, reason: str, clock: Clock, *, keys: bool, disable: bool
) -> Lockdown:
    """End every token of a tenant at once, on every process; with ``keys`` its client keys too.

    ``disable``: refuse every request of it as well. Raises NotFound.
    """
    tenant = await _named(tx, name)
    stamp = await lock_tenant(tx, tenant.id)
    now = clock()
    families = await TokenFamilies(tx, tenant.id).lock_down(now)
    details: dict[str, Any] = {"lockdown": reason, "families": families}
    if disable and (await _named(tx, name)).disabled_at is None:
        await Tenants(tx).set_disabled(tenant.id, now)
        details["disabled"] = True
    events = [_event("update", "tenant", name, details)]
    live = await _live_keys(tx, tenant.id, now) if keys else []
    for key_id in live:
        ended = await end_key(tx, tenant.id, key_id, now, even_last=True)
        events += [] if ended is None else [ended]
    await record(tx, tenant.id, stamp, events, _BY, now)
    return Lockdown(name, families, len(live))


async def _live_keys(tx: Transaction, tenant_id: UUID, now: datetime) -> list[str]:
    return [
        key.id
        for key in await Keys(tx, tenant_id).all()
        if key.revoked_at is None and (key.expires_at is None or now < key.expires_at)
    ]


async def _named(tx: Transaction, name: str) -> Tenant:
    tenant = await Tenants(tx).named(name)
    if tenant is None:
        raise NotFound("tenant_not_found", f"There is no tenant called '{name}'")
    return tenant
