"""What travels between the layers: frozen, typed, free of rows and of HTTP."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

Item = TypeVar("Item")

GENESIS = bytes(32)
"""The head of a tenant that has no audit event yet."""

SCOPES = ("check", "read", "write", "audit", "admin")
"""What a credential can be allowed to do; ``COVERED_BY`` says what implies what."""

COVERED_BY: dict[str, frozenset[str]] = {
    "check": frozenset({"check", "read", "write", "admin"}),
    "read": frozenset({"read", "write", "admin"}),
    "write": frozenset({"write", "admin"}),
    "audit": frozenset({"audit", "admin"}),
    "admin": frozenset({"admin"}),
}
"""Scope asked for -> the scopes any of which grants it."""


def covered(scopes: Iterable[str], by: Iterable[str]) -> frozenset[str]:
    """Those of these scopes that a credential with the others has."""
    having = frozenset(by)
    return frozenset(scope for scope in scopes if not COVERED_BY[scope].isdisjoint(having))


class Stamp(NamedTuple):
    """One state of one tenant: its policy counter and the hash of its newest audit event.

    Equal numbers with different heads are different states (a failover that lost a tail, a
    restored copy).
    """

    revision: int
    head: bytes


EMPTY = Stamp(0, GENESIS)
"""The state of a tenant nothing was ever written to."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Who is asking, as found at one state of the tenant.

    ``tenant_id`` is None for a well-formed key that open registration has not seen write yet;
    ``digest`` is the SHA-256 of the presented key. ``stamp`` is the tenant state the credential
    was read at, ``expires_at`` the credential's own end, ``at`` the instant of that
    read by the database's clock (None: not asked). The last three describe the request, for
    the audit trail.
    """

    tenant_id: UUID | None
    key_id: str | None
    digest: bytes = field(repr=False)
    scopes: frozenset[str]
    stamp: Stamp
    expires_at: datetime | None = None
    at: datetime | None = None
    family: str | None = None
    request_id: str | None = None
    address: str | None = None
    user_agent: str | None = None


@dataclass(frozen=True, slots=True)
class Tenant:
    """A client application."""

    id: UUID
    name: str
    created_at: datetime
    disabled_at: datetime | None


@dataclass(frozen=True, slots=True)
class ClientKey:
    """A tenant's credential; the key itself is known to its holder alone."""

    id: str
    tenant_id: UUID
    label: str
    scopes: frozenset[str]
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class ApiKey:
    """A credential of one of the tenant's own users; the key itself is known to its holder alone.

    ``prefix`` is the beginning of the key, by which people tell keys apart.
    """

    id: str
    user: str
    label: str
    prefix: str
    created_at: datetime
    expires_at: datetime | None
    revoked_at: datetime | None
    last_used_at: datetime | None = None

    def is_active(self, now: datetime) -> bool:
        """Whether the key is accepted at this instant."""
        return self.revoked_at is None and (self.expires_at is None or now < self.expires_at)


@dataclass(frozen=True, slots=True)
class Minted:
    """The stored outcome of a request that minted something; ``sealed`` holds its answer.

    ``content`` is the digest of what was asked for; ``ended_by_it``: it ended its own caller's key.
    """

    content: bytes
    sealed: bytes = field(repr=False)
    ended_by_it: bool
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Role:
    """A role as stored. ``id`` is the revision of the event that created it: never reused."""

    id: int
    name: str
    description: str
    created_at: datetime


@dataclass(frozen=True, slots=True)
class Membership:
    """A user in a role; '' as scope means everywhere, absent bounds mean none.

    In force from ``not_before`` (inclusive) until ``expires_at`` (exclusive).
    """

    user: str
    role_id: int
    scope: str
    not_before: datetime | None
    expires_at: datetime | None


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """One policy change, as chained. ``payload`` is 16 random bytes and canonical JSON; ``mac`` is
    the seal of the hash, None where no audit key was set.
    """

    seq: int
    at: datetime
    payload_hash: bytes
    hash: bytes
    payload: bytes = field(repr=False)
    mac: bytes | None = field(default=None, repr=False)

    @property
    def stamp(self) -> Stamp:
        """The state of the tenant once this event is its newest."""
        return Stamp(self.seq, self.hash)


@dataclass(frozen=True, slots=True)
class Happening:
    """Something that happened without changing anything. ``tenant_id`` None: nobody is to blame."""

    at: datetime
    tenant_id: UUID | None
    action: str
    entity_type: str
    entity_id: str
    actor: str | None
    address: str | None
    user_agent: str | None
    request_id: str | None
    success: bool
    details: dict[str, Any]


Op = Literal[
    "add_role",
    "remove_role",
    "grant",
    "revoke",
    "add_member",
    "remove_member",
    "add_parent",
    "remove_parent",
    "remove_user",
]


@dataclass(frozen=True, slots=True)
class Change:
    """One wanted change of policy, its names already validated.

    Which fields are used depends on ``op``. ``description`` None leaves it as it is; ``scope``
    None means everywhere when adding and *every* scope when removing.
    """

    op: Op
    role: str = ""
    permission: str = ""
    parent: str = ""
    user: str = ""
    description: str | None = None
    scope: str | None = None
    not_before: datetime | None = None
    expires_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Effect:
    """What became of one change of a list.

    ``changed`` tells whether anything was (or would be) written; ``created`` and ``updated``
    refine it for roles and memberships; ``count`` is the number of memberships that went, ``keys``
    that of API keys.
    """

    index: int
    op: Op
    changed: bool
    updated: bool = False
    count: int = 0
    keys: int = 0
    description: str = ""


@dataclass(frozen=True, slots=True)
class Page:
    """What a list is asked for: at most ``limit`` items after ``cursor``.

    Without a limit the list is complete or refused (``LIST_MAX`` items).
    """

    limit: int | None = None
    cursor: str | None = None


LIST_MAX = 10_000
"""The most items one answer lists."""


@dataclass(frozen=True, slots=True)
class Listing(Generic[Item]):
    """A list, or a page of one: ``next`` is the cursor of the page that follows, if any does."""

    items: list[Item]
    stamp: Stamp
    next: str | None = None
