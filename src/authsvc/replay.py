"""A tenant's state as its audit events tell it, one event after the other. Pure.

What the tables hold must be this, and nothing else: `authsvc verify` compares the two. Without
some of the events it is what would have been: `authsvc incident revert` makes that so.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any, NamedTuple


class Bounds(NamedTuple):
    """When a membership is in force: from the first instant, until just before the second."""

    not_before: datetime | None
    expires_at: datetime | None

    def include(self, now: datetime) -> bool:
        """Whether this instant is within."""
        after = self.not_before is None or now >= self.not_before
        return after and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class RoleTold:
    """A role: its id is the number of the event that made it."""

    id: int
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class KeyTold:
    """A client key; ``fingerprint`` None where the event that made it had none."""

    label: str
    scopes: tuple[str, ...]
    expires_at: datetime | None
    fingerprint: str | None
    live: bool = True


@dataclass(frozen=True, slots=True)
class ApiKeyTold:
    """A key of one of the tenant's users."""

    user: str
    label: str
    expires_at: datetime | None
    fingerprint: str | None
    live: bool = True


class DoesNotFollow(Exception):
    """An event that cannot have happened after those before it."""


Members = dict[str, dict[str, dict[str, Bounds]]]
"""User -> role -> scope -> bounds."""


@dataclass(slots=True)
class State:
    """Everything events tell of a tenant, by the names they use."""

    roles: dict[str, RoleTold] = field(default_factory=dict)
    grants: dict[str, set[str]] = field(default_factory=dict)
    parents: dict[str, set[str]] = field(default_factory=dict)
    members: Members = field(default_factory=dict)
    keys: dict[str, KeyTold] = field(default_factory=dict)
    api_keys: dict[str, ApiKeyTold] = field(default_factory=dict)
    ended_families: set[str] = field(default_factory=set)
    strict_users: bool = False
    disabled: bool = False
    locked_down_at: datetime | None = None
    lockdowns: int = 0
    _users_in: dict[str, set[str]] = field(default_factory=dict)

    def apply(self, seq: int, at: datetime, event: Mapping[str, Any]) -> None:
        """Let one event happen. Raises DoesNotFollow, and changes nothing then."""
        kind, name, details = event["entity_type"], event["entity_id"], event["details"]
        act = getattr(self, f"_{event['action']}_{kind}", None)
        if act is None:
            raise DoesNotFollow(f"event {seq} is of a kind that is not known")
        try:
            act(seq, at, name, details)
        except (KeyError, TypeError, ValueError) as error:
            raise DoesNotFollow(f"event {seq} does not follow from those before it") from error

    # --- Roles ---

    def _create_role(self, seq: int, at: datetime, name: str, details: Any) -> None:
        _must(name not in self.roles)
        self.roles[name] = RoleTold(seq, details["description"], at)

    def _update_role(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        self.roles[name] = replace(self.roles[name], description=details["description"])

    def _delete_role(self, _seq: int, _at: datetime, name: str, _details: Any) -> None:
        del self.roles[name]
        self.grants.pop(name, None)
        self.parents.pop(name, None)
        for parents in self.parents.values():
            parents.discard(name)
        for user in self._users_in.pop(name, ()):
            del self.members[user][name]
            if not self.members[user]:
                del self.members[user]

    def _grant_permission(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        role = self._known(details["role"])
        grants = self.grants.setdefault(role, set())
        _must(name not in grants)
        grants.add(name)

    def _revoke_permission(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        self.grants[self._known(details["role"])].remove(name)

    def _add_role_parent(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        parent = self._known(details["parent"])
        parents = self.parents.setdefault(self._known(name), set())
        _must(parent not in parents and name not in self.above(parent))
        parents.add(parent)

    def _remove_role_parent(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        self.parents[name].remove(details["parent"])

    def _known(self, role: str) -> str:
        _must(role in self.roles)
        return role

    def above(self, role: str) -> set[str]:
        """The role and everything that it inherits from."""
        reached, queue = {role}, [role]
        for step in queue:
            for parent in self.parents.get(step, ()):
                if parent not in reached:
                    reached.add(parent)
                    queue.append(parent)
        return reached

    # --- Memberships ---

    def _add_membership(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        role = self._known(details["role"])
        scope, bounds = read_bounds(details)
        self.members.setdefault(name, {}).setdefault(role, {})[scope] = bounds
        self._users_in.setdefault(role, set()).add(name)

    def _remove_membership(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        role, scope = details["role"], details["scope"]
        held = self.members[name][role]
        _must(scope is None or scope in held)
        for one in list(held) if scope is None else [scope]:
            del held[one]
        if not held:
            self._leave(name, role)

    def _leave(self, user: str, role: str) -> None:
        del self.members[user][role]
        self._users_in[role].discard(user)
        if not self.members[user]:
            del self.members[user]

    def _delete_user(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        keys = details.get("api_keys_revoked", ())
        _must(name in self.members or bool(keys))
        for role in list(self.members.get(name, ())):
            self._leave(name, role)
        for key_id in keys:
            self.api_keys[key_id] = replace(self.api_keys[key_id], live=False)

    # --- Credentials ---

    def _create_key(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        _must(name not in self.keys)
        self.keys[name] = _key(details, details.get("fingerprint"))

    def _update_key(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        self.keys[name] = _key(details, self.keys[name].fingerprint)

    def _delete_key(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        known = self.keys[name]
        # What ends a key may have renamed it in the same breath.
        self.keys[name] = replace(_key(details, known.fingerprint), live=False)

    def _create_api_key(self, _seq: int, _at: datetime, name: str, details: Any) -> None:
        _must(name not in self.api_keys)
        self.api_keys[name] = ApiKeyTold(
            details["user"],
            details["label"],
            _instant(details["expires_at"]),
            details.get("fingerprint"),
        )

    def _delete_api_key(self, _seq: int, _at: datetime, name: str, _details: Any) -> None:
        self.api_keys[name] = replace(self.api_keys[name], live=False)

    def _revoke_token(self, _seq: int, _at: datetime, name: str, _details: Any) -> None:
        self.ended_families.add(name)

    _reuse_detected_token = _revoke_token

    # --- The tenant ---

    def _create_tenant(self, seq: int, _at: datetime, _name: str, _details: Any) -> None:
        _must(seq == 1)

    def _update_tenant(self, _seq: int, at: datetime, _name: str, details: Any) -> None:
        if "disabled" in details:
            self.disabled = details["disabled"]
        if "lockdown" in details:
            self.locked_down_at, self.lockdowns = at, self.lockdowns + 1

    def _update_settings(self, _seq: int, _at: datetime, _name: str, details: Any) -> None:
        self.strict_users = details["strict_users"]

    # --- What follows ---

    def memberships(self) -> Iterator[tuple[str, str, str, Bounds]]:
        """User, role, scope and bounds of every membership."""
        for user, by_role in self.members.items():
            for role, by_scope in by_role.items():
                for scope, bounds in by_scope.items():
                    yield user, role, scope, bounds

    def effective(self, user: str, now: datetime) -> set[tuple[str, str]]:
        """What a user may at an instant: pairs of permission, as granted, and scope ('': all)."""
        found: set[tuple[str, str]] = set()
        for role, by_scope in self.members.get(user, {}).items():
            scopes = [scope for scope, bounds in by_scope.items() if bounds.include(now)]
            if scopes:
                for above in self.above(role):
                    for permission in self.grants.get(above, ()):
                        found.update((permission, scope) for scope in scopes)
        # What holds everywhere holds in each scope.
        return {(p, scope) for p, scope in found if not scope or (p, "") not in found}


def _must(condition: bool) -> None:
    if not condition:
        raise ValueError


def _instant(text: str | None) -> datetime | None:
    return datetime.fromisoformat(text) if text else None


def read_bounds(details: Mapping[str, Any]) -> tuple[str, Bounds]:
    """The scope ('': everywhere) and the bounds that an event tells of a membership."""
    bounds = Bounds(_instant(details["not_before"]), _instant(details["expires_at"]))
    return details["scope"] or "", bounds


def _key(details: Mapping[str, Any], fingerprint: str | None) -> KeyTold:
    return KeyTold(
        details["label"], tuple(details["scopes"]), _instant(details["expires_at"]), fingerprint
    )
