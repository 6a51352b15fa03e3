"""A review of access: what nobody needs, and a list to be signed off by a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import NamedTuple

from authsvc.clock import Clock
from authsvc.database import Transaction
from authsvc.errors import NotFound
from authsvc.records import Tenant
from authsvc.repositories.access import Access, Credential
from authsvc.repositories.grant_use import GrantUses, recorded_since
from authsvc.repositories.tenants import Tenants
from authsvc.services.changes import lock_tenant, record

SECTIONS = {
    "unused grant": "Grants that no check has needed",
    "empty role": "Roles that nobody holds and nothing inherits from",
    "many roles": "Users in many roles",
    "dormant key": "Keys that have not been used",
    "endless key": "Keys that never end",
    "membership": "Who is in which role",
}
"""What a review lists, in order."""
_BY = {"actor": "command", "request_id": None, "ip_address": None, "user_agent": None}


class Item(NamedTuple):
    """One line of a review."""

    section: str
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Review:
    """A review of one tenant; ``recorded_since`` is since when the use of grants is on record."""

    tenant: str
    made_at: datetime
    recorded_since: datetime | None
    items: list[Item]

    def of(self, section: str) -> list[Item]:
        """The items of one section."""
        return [item for item in self.items if item.section == section]


async def review(
    tx: Transaction, name: str, now: datetime, *, unused_days: int = 90, many_roles: int = 5
) -> Review:
    """Review a tenant, in one read transaction. Raises NotFound."""
    tenant = await _named(tx, name)
    access = Access(tx, tenant.id)
    roles, memberships = await access.roles(), await access.memberships()
    old = now - timedelta(days=unused_days)
    items: list[Item] = []

    uses, granted = await GrantUses(tx, tenant.id).all(), await access.granted_at()
    for role_id, permission in sorted(await access.grants(), key=lambda g: (roles[g[0]], g[1])):
        role, used = roles[role_id], uses.get((role_id, permission))
        # What was pruned is older than anything that is here.
        at = granted.get((role, permission))
        if (at is None or at < old) and (used is None or used < old):
            last = "never used" if used is None else f"last used {_day(used)}"
            since = "long ago" if at is None else _day(at)
            detail = f"granted {since}, {last}"
            items.append(Item("unused grant", f"{role} -> {permission}", detail))

    held = Counter(roles[m.role_id] for m in memberships)
    inherited = {roles[role_id] for role_id in await access.parents()}
    items += [
        Item("empty role", role, "nobody holds it")
        for role in sorted(roles.values())
        if role not in held and role not in inherited
    ]
    by_user: dict[str, set[str]] = {}
    for m in memberships:
        by_user.setdefault(m.user, set()).add(roles[m.role_id])
    items += [
        Item("many roles", user, f"{len(names)} roles: {', '.join(sorted(names))}")
        for user, names in sorted(by_user.items())
        if len(names) > many_roles
    ]
    items += _keys(await access.credentials(now), old)
    items += [
        Item("membership", m.user, _membership(roles[m.role_id], m.scope, m.expires_at))
        for m in memberships
    ]
    return Review(name, now, await recorded_since(tx), items)


def _keys(credentials: list[Credential], old: datetime) -> Iterable[Item]:
    for key in credentials:
        if key.created_at < old and (key.last_used_at is None or key.last_used_at < old):
            used = (
                "never used" if key.last_used_at is None else f"last used {_day(key.last_used_at)}"
            )
            yield Item("dormant key", _key(key), f"made {_day(key.created_at)}, {used}")
    for key in credentials:
        if key.expires_at is None:
            yield Item("endless key", _key(key), f"made {_day(key.created_at)}")


def _key(key: Credential) -> str:
    admin = ", may administer" if key.admin else ""
    owner = f" ({key.owner})" if key.owner else ""
    return f"{key.kind} {key.id}{owner}{admin}"


def _membership(role: str, scope: str, end: datetime | None) -> str:
    where = f" in {scope}" if scope else ""
    return f"{role}{where}" + (f" until {_day(end)}" if end else "")


def _day(at: datetime) -> str:
    return at.date().isoformat()


async def sign_off(
    tx: Transaction, name: str, reviewer: str, sha256: str, made_at: str, items: int, clock: Clock
) -> int:
    """Record in the tenant's audit trail that a list was reviewed; the event's number.

    ``sha256`` is the digest of the list's file, in hexadecimal. Raises NotFound.
    """
    tenant = await _named(tx, name)
    stamp = await lock_tenant(tx, tenant.id)
    said = {"reviewer": reviewer, "sha256": sha256, "made_at": made_at, "items": items}
    event = {
        "action": "update",
        "entity_type": "tenant",
        "entity_id": name,
        "details": {"review": said},
    }
    return (await record(tx, tenant.id, stamp, [event], _BY, clock())).revision


async def _named(tx: Transaction, name: str) -> Tenant:
    tenant = await Tenants(tx).named(name)
    if tenant is None:
        raise NotFound("tenant_not_found", f"There is no tenant called '{name}'")
    return tenant
