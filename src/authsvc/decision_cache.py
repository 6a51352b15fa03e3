"""What is remembered of tenants: the inputs of decisions, never answers. Pure.

A ``TenantState`` is true exactly at its stamp. It moves forward by the audit events that follow
the stamp, which say which users and roles to forget; where they cannot, everything goes. Memory
is bounded in bytes by two generations: what is used moves into the fresh one, and when that is
full the aged one is dropped and the fresh one ages. docs/caching.md has the reasons.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from authsvc import decision
from authsvc.audit_chain import first_broken, read_payload
from authsvc.records import ApiKey, AuditEvent, ClientKey, Membership, Stamp
from authsvc.role_graph import RoleGraph, RoleNode, RoleSet

MOST_DIRTY = 200
"""With more roles to load anew than this, the whole graph is."""
MOST_EVENTS = 1000
"""Further behind than this, a tenant is forgotten as a whole."""

# Rough sizes in bytes, measured with many users; what counts is that they are not too small.
_USER_BYTES = 170
_MEMBERSHIP_BYTES = 200
_ROLE_BYTES = 600
_GRANT_BYTES = 130
_TENANT_BYTES = 4000

_ENDED = datetime.min.replace(tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Credential:
    """A stored client key, the state of its tenant, and the instant the tenant was disabled."""

    key: ClientKey
    stamp: Stamp
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class Session:
    """A family of tokens: the client key it was given to, as stored, and what bounds it.

    ``digest`` is the key's, ``generation`` the tenant's, ``scopes`` what was asked for.
    """

    family: str
    scopes: frozenset[str]
    expires_at: datetime
    revoked_at: datetime | None
    generation: int
    digest: bytes
    credential: Credential


Held = RoleSet | tuple[Membership, ...]
"""What a user holds: a shared role set, or memberships of which some are bound."""


@dataclass(frozen=True, slots=True)
class KeyBacked:
    """What a user of a tenant with strict users holds, until the last of its API keys ends.

    ``end`` is None for never; it is the beginning of time for a user without a key.
    """

    held: Held
    end: datetime | None

    def refuses(self, now: datetime) -> bool:
        """Whether the user may do nothing, for want of an API key."""
        return self.end is not None and now >= self.end


Kept = Held | KeyBacked
"""What is remembered of a user: with strict users always ``KeyBacked``, else never."""


class TenantState:
    """What is known of one tenant at its stamp.

    ``graph`` is the whole role graph but for the roles named in ``dirty``, or None before it was
    loaded. ``known_at`` is the number of gate reads that had started when the stamp was learnt.
    """

    __slots__ = (
        "aged", "api_keys", "credentials", "dirty", "fresh", "generation", "graph", "known_at",
        "role_sets", "sessions", "stamp",
    )  # fmt: skip

    def __init__(self, stamp: Stamp, known_at: int) -> None:
        self.stamp = stamp
        self.known_at = known_at
        self.forget()
        self.generation = -1

    def forget(self) -> None:
        """Forget everything but the stamp."""
        self.graph: RoleGraph | None = None
        self.dirty: set[str] = set()
        self.fresh: dict[str, Kept] = {}
        self.aged: dict[str, Kept] = {}
        self.role_sets: dict[tuple[int, ...], RoleSet] = {}
        self.credentials: dict[bytes, Credential] = {}
        self.sessions: dict[str, Session] = {}
        self.api_keys: dict[bytes, ApiKey] = {}

    @property
    def complete(self) -> bool:
        """Whether the role graph can be decided with."""
        return self.graph is not None and not self.dirty

    def follow(
        self, tenant_id: UUID, events: Sequence[AuditEvent], to: Stamp, known_at: int
    ) -> None:
        """Move to another stamp by the events between the two; what they touch is forgotten.

        Everything is forgotten unless the events lead from this stamp to that one exactly.
        """
        between = to.revision - self.stamp.revision
        if not 0 < between <= MOST_EVENTS or first_broken(tenant_id, self.stamp, events, to):
            self.forget()
        else:
            for event in events:
                self._touch(read_payload(event))
        self.stamp = to
        self.known_at = known_at

    def _touch(self, payload: dict[str, Any]) -> None:
        kind, name = payload["entity_type"], payload["entity_id"]
        if kind == "membership":
            self._forget_user(name)
        elif kind == "user":
            self._forget_user(name)
            self.api_keys.clear()
        elif kind == "api_key":
            # The user too: with strict users, whether it may do anything hangs on its keys.
            self._forget_user(payload["details"]["user"])
            self.api_keys.clear()
        elif kind in ("role", "role_parent"):
            self._reload(name)
        elif kind == "permission":
            self._reload(payload["details"]["role"])
        elif kind == "key":
            self.credentials.clear()
            self.sessions.clear()
        elif kind == "token":
            self.sessions.pop(name, None)
        else:
            self.forget()

    def _forget_user(self, user: str) -> None:
        self.fresh.pop(user, None)
        self.aged.pop(user, None)

    def _reload(self, role: str) -> None:
        """Note that a role is to be loaded anew; too many of them, and the graph is."""
        if self.graph is None:
            return
        self.dirty.add(role)
        if len(self.dirty) > MOST_DIRTY:
            self.graph = None
            self.dirty = set()

    def install_roles(self, nodes: Iterable[RoleNode], *, whole: bool) -> None:
        """Take in the whole role graph, or what the dirty roles have become (perhaps nothing)."""
        if whole or self.graph is None:
            self.graph = RoleGraph(nodes)
        else:
            kept = [node for node in self.graph.nodes.values() if node.name not in self.dirty]
            self.graph = RoleGraph([*kept, *nodes])
        self.dirty = set()

    def held_by(self, memberships: Sequence[Membership]) -> Held:
        """The form in which a user's memberships are kept."""
        if any(m.scope or m.not_before or m.expires_at for m in memberships):
            return tuple(memberships)
        role_ids = tuple(sorted(m.role_id for m in memberships))
        shared = self.role_sets.get(role_ids)
        if shared is None:
            shared = self.role_sets[role_ids] = RoleSet(role_ids)
        return shared

    def memberships_of(self, user: str, held: Held) -> list[Membership]:
        """What the user holds, as memberships of roles that still exist."""
        if isinstance(held, RoleSet):
            held = tuple(Membership(user, i, "", None, None) for i in held.role_ids)
        graph = self.graph or RoleGraph()
        return [m for m in held if m.role_id in graph.nodes]


def allowed(
    held: Held, graph: RoleGraph, permission: str, scope: str | None, now: datetime
) -> bool:
    """The decision about what a user holds; equal to ``decision.allowed`` by construction."""
    if isinstance(held, RoleSet):
        return graph.mask_of_all(held) & graph.wanted(permission) != 0
    return decision.allowed(held, graph, permission, scope, now)


def all_allowed(state: TenantState, items: Sequence[Any]) -> list[bool] | None:
    """As ``allowed``, for items with a ``user`` and a ``permission`` that come as they were sent.

    None if anything about them is not remembered, or is not a name (what is remembered are names),
    or hangs on an API key, which is no key of ``together``.
    """
    if state.graph is None or state.dirty:
        return None
    users: dict[Any, Any] = state.fresh
    together, wants = state.graph.together, state.graph.wants
    try:
        return [together[users[item["user"]]] & wants[item["permission"]] != 0 for item in items]
    except (KeyError, TypeError):
        return None


class DecisionCache:
    """All tenants' states, bounded in bytes."""

    def __init__(self, megabytes: int) -> None:
        self._half = megabytes * 1024 * 1024 // 2
        self._tenants: dict[UUID, TenantState] = {}
        self._generation = 0
        self._fresh_bytes = 0
        self._owners: dict[bytes, UUID] = {}

    def state(self, tenant_id: UUID) -> TenantState | None:
        """What is remembered of a tenant, at whatever stamp."""
        state = self._tenants.get(tenant_id)
        if state is not None and state.generation != self._generation:
            self._keep(state)
        return state

    def begin(self, tenant_id: UUID, stamp: Stamp, known_at: int) -> TenantState:
        """An empty state for a tenant nothing is remembered of."""
        state = self._tenants[tenant_id] = TenantState(stamp, known_at)
        self._keep(state)
        return state

    def drop(self, tenant_id: UUID) -> None:
        """Forget a tenant."""
        self._tenants.pop(tenant_id, None)

    def held(self, state: TenantState, user: str) -> Kept | None:
        """What a user holds, if it is remembered; using it keeps it."""
        found = state.fresh.get(user)
        if found is None and (found := state.aged.pop(user, None)) is not None:
            self._put(state, user, found)
        return found

    def install_user(
        self,
        state: TenantState,
        user: str,
        memberships: Sequence[Membership],
        key_ends: Mapping[str, datetime | None] | None = None,
    ) -> None:
        """Remember what a user holds at the state's stamp (perhaps nothing).

        ``key_ends``: with strict users, when each user's last API key ends.
        """
        held = state.held_by(memberships)
        if key_ends is None:
            self._put(state, user, held)
        else:
            self._put(state, user, KeyBacked(held, key_ends.get(user, _ENDED)))

    def install_roles(self, state: TenantState, nodes: Iterable[RoleNode], *, whole: bool) -> None:
        """As ``TenantState.install_roles``, counted."""
        state.install_roles(nodes, whole=whole)
        if whole:
            self._grow(self._graph_bytes(state))

    def owner(self, digest: bytes) -> UUID | None:
        """Whose key this was when it was last seen; the tenant's state says whether it still is."""
        return self._owners.get(digest)

    def install_credential(self, state: TenantState, digest: bytes, credential: Credential) -> None:
        """Remember a key at the state's stamp."""
        state.credentials[digest] = credential
        self._owners[digest] = credential.key.tenant_id
        self._grow(_USER_BYTES + _MEMBERSHIP_BYTES)

    def install_session(self, state: TenantState, session: Session) -> None:
        """Remember a family of tokens at the state's stamp."""
        state.sessions[session.family] = session
        self._grow(_USER_BYTES + _MEMBERSHIP_BYTES)

    def install_api_key(self, state: TenantState, digest: bytes, key: ApiKey) -> None:
        """Remember a user's API key at the state's stamp."""
        state.api_keys[digest] = key
        self._grow(_USER_BYTES + _MEMBERSHIP_BYTES)

    def _put(self, state: TenantState, user: str, kept: Kept) -> None:
        state.fresh[user] = kept
        held = kept.held if isinstance(kept, KeyBacked) else kept
        own = _MEMBERSHIP_BYTES * len(held) if isinstance(held, tuple) else 0
        self._grow(_USER_BYTES + len(user) + own)

    def _keep(self, state: TenantState) -> None:
        state.generation = self._generation
        self._grow(_TENANT_BYTES + self._graph_bytes(state))

    def _grow(self, size: int) -> None:
        self._fresh_bytes += size
        if self._fresh_bytes > self._half:
            self._age()

    def _age(self) -> None:
        """Drop what was not used since the last time, and start a new generation."""
        self._generation += 1
        self._fresh_bytes = 0
        kept: dict[UUID, TenantState] = {}
        for tenant_id, state in self._tenants.items():
            if state.generation == self._generation - 1:
                state.aged, state.fresh = state.fresh, {}
                state.role_sets, state.sessions, state.api_keys = {}, {}, {}
                kept[tenant_id] = state
        self._tenants = kept
        self._owners = {
            digest: tenant_id for tenant_id, state in kept.items() for digest in state.credentials
        }

    def _graph_bytes(self, state: TenantState) -> int:
        """What a role graph counts for: at most a quarter of a generation.

        A graph that is larger than that is needed whole for every check of its tenant; counted in
        full it would drive out all others, and itself, with each of them.
        """
        if state.graph is None:
            return 0
        nodes = state.graph.nodes
        grants = sum(len(node.grants) for node in nodes.values())
        return min(_ROLE_BYTES * len(nodes) + _GRANT_BYTES * grants, self._half // 4)
