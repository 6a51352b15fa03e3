"""A tenant's policy rebuilt from its events, in plain Python, and what follows from it.

It shares no code with the engine: no graph, no decision, no statement of its repositories. Tests
compare the tables and the answers with it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import select

from authsvc import audit_chain, models
from authsvc.database import Transaction
from authsvc.records import EMPTY, AuditEvent, Stamp
from encrypted import opener


class StoredRole(NamedTuple):
    """A role without its id."""

    name: str
    description: str
    created_at: datetime


class Bounds(NamedTuple):
    """When a membership is in force: from the first, until just before the second."""

    not_before: datetime | None
    expires_at: datetime | None


class Key(NamedTuple):
    """A client key as events tell it."""

    label: str
    scopes: tuple[str, ...]
    expires_at: datetime | None
    live: bool = True


class UserKey(NamedTuple):
    """An API key as events tell it; live until it is revoked."""

    user: str
    label: str
    expires_at: datetime | None
    live: bool


@dataclass
class Policy:
    """Everything a tenant's events say, by role id as the tables have it."""

    roles: dict[int, StoredRole] = field(default_factory=dict)
    grants: set[tuple[int, str]] = field(default_factory=set)
    edges: set[tuple[int, int]] = field(default_factory=set)
    memberships: dict[tuple[str, int, str], Bounds] = field(default_factory=dict)
    keys: dict[str, Key] = field(default_factory=dict)
    ended: set[str] = field(default_factory=set)
    """Families of tokens."""
    api_keys: dict[str, UserKey] = field(default_factory=dict)
    strict_users: bool = False
    disabled: bool = False
    locked_down: bool = False
    """Every family of tokens that there was has ended."""

    def id_of(self, role: str) -> int:
        """The id of the role that has this name now; KeyError if none has."""
        for role_id, stored in self.roles.items():
            if stored.name == role:
                return role_id
        raise KeyError(role)

    def name_of(self, role_id: int) -> str:
        """The name of a role that exists."""
        return self.roles[role_id].name

    def above(self, role_id: int) -> set[int]:
        """The role and everything it inherits from."""
        reached = {role_id}
        while True:
            more = {parent for child, parent in self.edges if child in reached} - reached
            if not more:
                return reached
            reached |= more

    def below(self, role_id: int) -> set[int]:
        """The role and everything that inherits from it."""
        return {other for other in self.roles if role_id in self.above(other)}

    def held(self, user: str, scope: str | None, now: datetime) -> set[int]:
        """The roles the user holds directly, here and now."""
        return {
            role_id
            for (holder, role_id, bound_to), bounds in self.memberships.items()
            if holder == user
            and bound_to in ("", scope)
            and not (bounds.not_before and now < bounds.not_before)
            and not (bounds.expires_at and now >= bounds.expires_at)
        }

    def effective(self, role_id: int) -> set[str]:
        """The grants of the role and of all it inherits from, wildcards as they are."""
        above = self.above(role_id)
        return {permission for holder, permission in self.grants if holder in above}

    def role_can(self, role_id: int, permission: str) -> bool:
        """Whether a grant of the role, its own or inherited, covers the permission."""
        return any(covers(grant, permission) for grant in self.effective(role_id))

    def user_can(self, user: str, permission: str, scope: str | None, now: datetime) -> bool:
        """Whether the user may."""
        return any(self.role_can(role, permission) for role in self.held(user, scope, now))

    def users(self) -> set[str]:
        """Everyone who holds anything, in force or not."""
        return {user for user, _, _ in self.memberships}


def covers(grant: str, permission: str) -> bool:
    """``a:*`` covers ``a:b``, and neither ``a`` nor ``a:b:c``; anything else covers itself."""
    if grant.endswith(":*"):
        prefix = grant[:-1]
        if permission.startswith(prefix) and ":" not in permission[len(prefix) :]:
            return True
    return grant == permission


class NotEffective(AssertionError):
    """An event that says nothing new, or contradicts what the events before it said."""


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def _bounds(details: dict[str, Any]) -> tuple[str, Bounds]:
    bounds = Bounds(_instant(details["not_before"]), _instant(details["expires_at"]))
    return details["scope"] or "", bounds


def _must(condition: bool, event: dict[str, Any]) -> None:
    if not condition:
        raise NotEffective(f"this event does not follow from those before it: {event}")


def apply_event(policy: Policy, seq: int, at: datetime, event: dict[str, Any]) -> None:
    """Let one event happen. Raises NotEffective."""
    action, kind, name = event["action"], event["entity_type"], event["entity_id"]
    details = event["details"]
    match action, kind:
        case "create", "tenant":
            _must(seq == 1, event)
        case "update", "tenant":
            known = {"disabled", "lockdown", "review", "audit_key", "encryption"}
            _must(bool(known & details.keys()), event)
            if "disabled" in details:
                _must(details["disabled"] != policy.disabled, event)
                policy.disabled = details["disabled"]
            if "lockdown" in details:
                policy.locked_down = True
        case (("create" | "update"), "key"):
            _must((name in policy.keys) == (action == "update"), event)
            policy.keys[name] = Key(
                details["label"], tuple(details["scopes"]), _instant(details["expires_at"])
            )
        case "delete", "key":
            _must(policy.keys[name].live, event)
            policy.keys[name] = policy.keys[name]._replace(live=False)
        case "update", "settings":
            _must(details["before"] == {"strict_users": policy.strict_users}, event)
            _must(details["strict_users"] != policy.strict_users, event)
            policy.strict_users = details["strict_users"]
        case "create", "api_key":
            _must(name not in policy.api_keys, event)
            policy.api_keys[name] = UserKey(
                details["user"], details["label"], _instant(details["expires_at"]), True
            )
        case "delete", "api_key":
            _must(policy.api_keys[name].live, event)
            policy.api_keys[name] = policy.api_keys[name]._replace(live=False)
        case "create", "role":
            _must(all(stored.name != name for stored in policy.roles.values()), event)
            policy.roles[seq] = StoredRole(name, details["description"], at)
        case "update", "role":
            role_id = policy.id_of(name)
            stored = policy.roles[role_id]
            _must(stored.description == details["before"]["description"], event)
            _must(stored.description != details["description"], event)
            policy.roles[role_id] = stored._replace(description=details["description"])
        case "delete", "role":
            role_id = policy.id_of(name)
            _must(policy.roles.pop(role_id).description == details["description"], event)
            policy.grants = {g for g in policy.grants if g[0] != role_id}
            policy.edges = {e for e in policy.edges if role_id not in e}
            policy.memberships = {k: m for k, m in policy.memberships.items() if k[1] != role_id}
        case "grant", "permission":
            grant = (policy.id_of(details["role"]), name)
            _must(grant not in policy.grants, event)
            policy.grants.add(grant)
        case "revoke", "permission":
            grant = (policy.id_of(details["role"]), name)
            _must(grant in policy.grants, event)
            policy.grants.remove(grant)
        case "add", "role_parent":
            edge = (policy.id_of(name), policy.id_of(details["parent"]))
            _must(edge not in policy.edges and edge[0] not in policy.above(edge[1]), event)
            policy.edges.add(edge)
        case "remove", "role_parent":
            edge = (policy.id_of(name), policy.id_of(details["parent"]))
            _must(edge in policy.edges, event)
            policy.edges.remove(edge)
        case "add", "membership":
            scope, bounds = _bounds(details)
            key = (name, policy.id_of(details["role"]), scope)
            _must(policy.memberships.get(key) != bounds, event)
            before = details.get("before")
            _must((key in policy.memberships) == (before is not None), event)
            if before is not None:
                _must(_bounds(before) == (scope, policy.memberships[key]), event)
            policy.memberships[key] = bounds
        case "remove", "membership":
            _remove_membership(policy, policy.id_of(details["role"]), event)
        case "delete", "user":
            going = {k: m for k, m in policy.memberships.items() if k[0] == name}
            told = {
                (name, policy.id_of(row["role"]), _bounds(row)[0]): _bounds(row)[1]
                for row in details["before"]
            }
            ended = set(details["api_keys_revoked"])
            _must(bool(going or ended) and going == told, event)
            _must(details["memberships_removed"] == len(going), event)
            live = {k for k, key in policy.api_keys.items() if key.user == name and key.live}
            _must(ended == live, event)
            for key_id in ended:
                policy.api_keys[key_id] = policy.api_keys[key_id]._replace(live=False)
            for key in going:
                del policy.memberships[key]
        case (("revoke" | "reuse_detected"), "token"):
            _must(name not in policy.ended and details["key_id"] in policy.keys, event)
            policy.ended.add(name)
        case _:
            raise NotEffective(f"an event of an unknown kind: {event}")


def _remove_membership(policy: Policy, role_id: int, event: dict[str, Any]) -> None:
    user, scope = event["entity_id"], event["details"]["scope"]
    going = {
        key: bounds
        for key, bounds in policy.memberships.items()
        if key[:2] == (user, role_id) and scope in (None, key[2])
    }
    told = [_bounds(row) for row in event["details"]["before"]]
    _must(bool(going) and dict(told) == {key[2]: b for key, b in going.items()}, event)
    _must(len(told) == len(going), event)
    for key in going:
        del policy.memberships[key]


def replayed(events: Iterable[AuditEvent]) -> Policy:
    """The policy that a tenant's events lead to, from the first one on."""
    policy = Policy()
    for event in events:
        apply_event(policy, event.seq, event.at, audit_chain.read_payload(event))
    return policy


async def stored_events(tx: Transaction, tenant_id: UUID) -> list[AuditEvent]:
    """All of a tenant's events as the table has them."""
    table = models.audit_event
    rows = await tx.execute(
        select(table).where(table.c.tenant_id == tenant_id).order_by(table.c.seq)
    )
    opened = (await opener(tx, tenant_id)).data
    return [
        AuditEvent(
            r.seq,
            r.at,
            r.payload_hash,
            r.hash,
            opened("audit_event.payload", r.payload, r.generation),
        )
        for r in rows
    ]


async def stored_stamp(tx: Transaction, tenant_id: UUID) -> Stamp:
    """The tenant's revision and head as the table has them."""
    table = models.tenant_head
    found = await tx.execute(select(table).where(table.c.tenant_id == tenant_id))
    row = found.one_or_none()
    return Stamp(row.revision, row.head) if row else EMPTY


async def stored_policy(tx: Transaction, tenant_id: UUID) -> Policy:
    """The policy as the tables have it."""
    policy = Policy()
    opened = (await opener(tx, tenant_id)).text
    role, grant, edge = models.role, models.role_permission, models.role_parent
    member, key = models.membership, models.client_key
    for row in await tx.execute(select(role).where(role.c.tenant_id == tenant_id)):
        description = opened("role.description", row.description)
        policy.roles[row.id] = StoredRole(row.name, description, row.created_at)
    for row in await tx.execute(select(grant).where(grant.c.tenant_id == tenant_id)):
        policy.grants.add((row.role_id, opened("role_permission.permission", row.permission)))
    for row in await tx.execute(select(edge).where(edge.c.tenant_id == tenant_id)):
        policy.edges.add((row.role_id, row.parent_id))
    for row in await tx.execute(select(member).where(member.c.tenant_id == tenant_id)):
        place = (opened("membership.user_id", row.user_id), row.role_id, row.scope)
        policy.memberships[place] = Bounds(row.not_before, row.expires_at)
    for row in await tx.execute(select(key).where(key.c.tenant_id == tenant_id)):
        label = opened("client_key.label", row.label)
        live = row.revoked_at is None
        policy.keys[row.id] = Key(label, tuple(row.scopes), row.expires_at, live)
    family = models.token_family
    for row in await tx.execute(select(family).where(family.c.tenant_id == tenant_id)):
        if row.revoked_at is not None:
            policy.ended.add(row.id)
    tenant = models.tenant
    for row in await tx.execute(select(tenant).where(tenant.c.id == tenant_id)):
        policy.strict_users = bool(row.settings.get("strict_users"))
        policy.disabled = row.disabled_at is not None
    api_key = models.api_key
    for row in await tx.execute(select(api_key).where(api_key.c.tenant_id == tenant_id)):
        live = row.revoked_at is None
        policy.api_keys[row.id] = UserKey(
            opened("api_key.user_id", row.user_id),
            opened("api_key.label", row.label),
            row.expires_at,
            live,
        )
    return policy


async def violations(tx: Transaction, tenant_id: UUID) -> list[str]:
    """What is wrong with a tenant at rest; an empty list if nothing is.

    The chain leads from nothing to the head without gap or fork, every event has an effect, and
    the tables are what the events lead to.
    """
    events = await stored_events(tx, tenant_id)
    stamp = await stored_stamp(tx, tenant_id)
    wrong: list[str] = []
    if [event.seq for event in events] != list(range(1, stamp.revision + 1)):
        wrong.append(f"the head is at {stamp.revision}, the events are not 1 to that")
    broken = audit_chain.first_broken(tenant_id, EMPTY, events, stamp)
    if broken is not None:
        wrong.append(f"the chain breaks at event {broken}")
    try:
        expected = replayed(events)
    except (NotEffective, KeyError) as error:
        return [*wrong, f"the events do not follow from each other: {error!r}"]
    stored = await stored_policy(tx, tenant_id)
    wrong.extend(
        f"{part} in the tables are not what the events lead to"
        for part in (
            "roles",
            "grants",
            "edges",
            "memberships",
            "keys",
            "api_keys",
            "strict_users",
            "disabled",
        )
        if getattr(stored, part) != getattr(expected, part)
    )
    # A family that would have ended by itself is forgotten.
    if not stored.ended <= expected.ended and not expected.locked_down:
        wrong.append("families of tokens have ended that no event tells of")
    return wrong
