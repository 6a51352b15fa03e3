"""A list of wanted changes against the state they meet: effects, events, rows. Pure.

Changes are applied one after the other to an overlay of the stored state; what is written in the
end is the difference between the two, while every effective change keeps an event of its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from authsvc.errors import NotFound, RoleCycle, UserNotKeyBacked
from authsvc.records import Change, Effect, Membership, Role


@dataclass(slots=True)
class Touched:
    """The stored state that a list of changes can touch.

    ``edges`` is the whole hierarchy when a parent is to be added (a cycle may close anywhere),
    ``names`` the names of every role in it. ``api_keys`` are the (user, key id) pairs that go with
    users who are removed. ``key_backed``, in a tenant with strict users, are those of the users to
    be added who have an API key in force; None where it does not matter.
    """

    roles: dict[str, Role] = field(default_factory=dict)
    grants: set[tuple[int, str]] = field(default_factory=set)
    memberships: list[Membership] = field(default_factory=list)
    edges: set[tuple[int, int]] = field(default_factory=set)
    names: Mapping[int, str] = field(default_factory=dict)
    api_keys: list[tuple[str, str]] = field(default_factory=list)
    key_backed: set[str] | None = None


@dataclass(slots=True)
class Rows:
    """What has to be written, in this order."""

    roles_removed: list[int]
    roles_added: list[Role]
    descriptions: list[tuple[int, str]]
    edges_removed: set[tuple[int, int]]
    edges_added: set[tuple[int, int]]
    grants_removed: set[tuple[int, str]]
    grants_added: set[tuple[int, str]]
    memberships_removed: list[Membership]
    memberships_rebound: list[Membership]
    memberships_added: list[Membership]
    api_keys_revoked: list[str]


def _iso(at: datetime | None) -> str | None:
    return at.isoformat() if at else None


class ChangeSet:
    """Applies changes in order; ``next_seq`` is the number the next event will have."""

    def __init__(self, touched: Touched, next_seq: int, now: datetime) -> None:
        self._stored = touched
        self._next_seq = next_seq
        self._now = now
        self.events: list[dict[str, Any]] = []
        self._roles = dict(touched.roles)
        self._names = dict(touched.names) | {role.id: role.name for role in touched.roles.values()}
        self._gone: set[int] = set()
        self._grants = set(touched.grants)
        self._edges = set(touched.edges)
        self._parents: dict[int, set[int]] = {}
        for child, parent in touched.edges:
            self._parents.setdefault(child, set()).add(parent)
        self._api_keys: dict[str, list[str]] = {}
        for user, key_id in touched.api_keys:
            self._api_keys.setdefault(user, []).append(key_id)
        self._keys_revoked: list[str] = []
        self._key_backed = None if touched.key_backed is None else set(touched.key_backed)
        # By user, role and scope: each change looks only at what it is about.
        self._members: dict[str, dict[int, dict[str, Membership]]] = {}
        for m in touched.memberships:
            self._rows_of(m.user, m.role_id)[m.scope] = m

    def apply(self, index: int, change: Change, path: str | None = None) -> Effect:
        """Apply one change; ``path`` is where it stands in the request, for errors.

        Raises NotFound (a role that does not exist), RoleCycle, UserNotKeyBacked.
        """
        changed, more = getattr(self, f"_{change.op}")(change, path)
        return Effect(index, change.op, changed, **more)

    def _rows_of(self, user: str, role_id: int) -> dict[str, Membership]:
        return self._members.setdefault(user, {}).setdefault(role_id, {})

    def _event(
        self, action: str, entity_type: str, entity_id: str, details: dict[str, Any]
    ) -> None:
        self.events.append(
            {
                "action": action,
                "entity_type": entity_type,
                "entity_id": entity_id,
                "details": details,
            }
        )
        self._next_seq += 1

    def _role(self, name: str, path: str | None, field_name: str = "role") -> Role:
        role = self._roles.get(name)
        if role is None:
            place = f"{path}.{field_name}" if path else None
            raise NotFound("role_not_found", f"Role '{name}' does not exist", place)
        return role

    def _add_role(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        role = self._roles.get(change.role)
        if role is None:
            text = change.description or ""
            # The id is the number of the event written next: unique and never used again.
            role = Role(self._next_seq, change.role, text, self._now)
            self._event("create", "role", change.role, {"description": text})
        elif change.description is not None and change.description != role.description:
            before, text = role.description, change.description
            role = Role(role.id, role.name, text, role.created_at)
            details = {"description": text, "before": {"description": before}}
            self._event("update", "role", change.role, details)
            self._roles[change.role] = role
            return True, {"updated": True, "description": text}
        else:
            return False, {"description": role.description}
        self._roles[change.role] = role
        self._names[role.id] = role.name
        return True, {"description": role.description}

    def _remove_role(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        role = self._roles.pop(change.role, None)
        if role is None:
            return False, {}
        self._gone.add(role.id)
        self._event("delete", "role", change.role, {"description": role.description})
        return True, {}

    def _grant(self, change: Change, path: str | None) -> tuple[bool, dict[str, Any]]:
        grant = (self._role(change.role, path).id, change.permission)
        if grant in self._grants:
            return False, {}
        self._grants.add(grant)
        self._event("grant", "permission", change.permission, {"role": change.role})
        return True, {}

    def _revoke(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        role = self._roles.get(change.role)
        if role is None or (role.id, change.permission) not in self._grants:
            return False, {}
        self._grants.remove((role.id, change.permission))
        self._event("revoke", "permission", change.permission, {"role": change.role})
        return True, {}

    def _add_member(self, change: Change, path: str | None) -> tuple[bool, dict[str, Any]]:
        role = self._role(change.role, path)
        if self._key_backed is not None and change.user not in self._key_backed:
            raise UserNotKeyBacked(
                f"User '{change.user}' has no API key in force, which this tenant requires of its"
                " users: make one first",
                f"{path}.user" if path else None,
            )
        rows = self._rows_of(change.user, role.id)
        wanted = Membership(
            change.user, role.id, change.scope or "", change.not_before, change.expires_at
        )
        stored = rows.get(wanted.scope)
        if stored == wanted:
            return False, {}
        rows[wanted.scope] = wanted
        details: dict[str, Any] = {"role": change.role} | _bounds(wanted)
        if stored is not None:
            details["before"] = _bounds(stored)
        self._event("add", "membership", change.user, details)
        return True, {"updated": stored is not None}

    def _remove_member(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        role = self._roles.get(change.role)
        rows = self._members.get(change.user, {}).get(role.id, {}) if role else {}
        scopes = list(rows) if change.scope is None else [change.scope]
        going = [rows.pop(scope) for scope in scopes if scope in rows]
        if not going:
            return False, {}
        before = [_bounds(m) for m in going]
        details = {"role": change.role, "scope": change.scope, "before": before}
        self._event("remove", "membership", change.user, details)
        return True, {"count": len(going)}

    def _remove_user(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        by_role = self._members.pop(change.user, {})
        going = [
            m
            for role_id, rows in sorted(by_role.items())
            if role_id not in self._gone
            for _, m in sorted(rows.items())
        ]
        keys = sorted(self._api_keys.pop(change.user, []))
        if not going and not keys:
            return False, {}
        self._keys_revoked += keys
        if self._key_backed is not None:
            self._key_backed.discard(change.user)
        before = [{"role": self._names[m.role_id]} | _bounds(m) for m in going]
        details = {
            "memberships_removed": len(going),
            "before": before,
            "api_keys_revoked": keys,
        }
        self._event("delete", "user", change.user, details)
        return True, {"count": len(going), "keys": len(keys)}

    def _add_parent(self, change: Change, path: str | None) -> tuple[bool, dict[str, Any]]:
        role, parent = self._role(change.role, path), self._role(change.parent, path, "parent")
        if (role.id, parent.id) in self._edges:
            return False, {}
        way = self._way(parent.id, role.id)
        if way is not None:
            names = " -> ".join([role.name, *(self._names[step] for step in way)])
            raise RoleCycle(
                f"A role cannot inherit from itself: {names}", f"{path}.parent" if path else None
            )
        self._edges.add((role.id, parent.id))
        self._parents.setdefault(role.id, set()).add(parent.id)
        self._event("add", "role_parent", change.role, {"parent": change.parent})
        return True, {}

    def _remove_parent(self, change: Change, _path: str | None) -> tuple[bool, dict[str, Any]]:
        role, parent = self._roles.get(change.role), self._roles.get(change.parent)
        if role is None or parent is None or (role.id, parent.id) not in self._edges:
            return False, {}
        self._edges.remove((role.id, parent.id))
        self._parents[role.id].discard(parent.id)
        self._event("remove", "role_parent", change.role, {"parent": change.parent})
        return True, {}

    def _way(self, start: int, goal: int) -> list[int] | None:
        """The roles on a shortest way up from ``start`` to ``goal``, None if there is none."""
        came_from: dict[int, int | None] = {start: None}
        queue = [start]
        for step in queue:
            if step == goal:
                way: list[int] = []
                at: int | None = goal
                while at is not None:
                    way.append(at)
                    at = came_from[at]
                return way[::-1]
            for parent in self._parents.get(step, ()):
                if parent not in came_from and parent not in self._gone:
                    came_from[parent] = step
                    queue.append(parent)
        return None

    def rows(self) -> Rows:
        """The difference to the stored state. What hangs on a removed role goes with it."""
        stored, gone = self._stored, self._gone
        stored_ids = {role.id for role in stored.roles.values()}

        def alive(pairs: Iterable[tuple[int, Any]]) -> set[tuple[int, Any]]:
            return {pair for pair in pairs if pair[0] not in gone and pair[1] not in gone}

        before = {
            (m.user, m.role_id, m.scope): m for m in stored.memberships if m.role_id not in gone
        }
        after = {
            (m.user, m.role_id, m.scope): m
            for by_role in self._members.values()
            for rows in by_role.values()
            for m in rows.values()
            if m.role_id not in gone
        }
        described = {role.id: role.description for role in stored.roles.values()}
        return Rows(
            roles_removed=sorted(gone & stored_ids),
            roles_added=[role for role in self._roles.values() if role.id not in stored_ids],
            descriptions=[
                (role.id, role.description)
                for role in self._roles.values()
                if role.id in stored_ids and role.description != described[role.id]
            ],
            edges_removed=alive(stored.edges - self._edges),
            edges_added=alive(self._edges - stored.edges),
            grants_removed=alive(stored.grants - self._grants),
            grants_added=alive(self._grants - stored.grants),
            memberships_removed=[m for key, m in before.items() if key not in after],
            memberships_rebound=[
                m for key, m in after.items() if key in before and before[key] != m
            ],
            memberships_added=[m for key, m in after.items() if key not in before],
            api_keys_revoked=sorted(self._keys_revoked),
        )


def _bounds(m: Membership) -> dict[str, Any]:
    return {
        "scope": m.scope or None,
        "not_before": _iso(m.not_before),
        "expires_at": _iso(m.expires_at),
    }
