"""What a decision needs, in one statement: the tenant's state, memberships, roles, edges, grants.

Names go in and come out as people know them; the statement sees them as they are stored.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    Row,
)

from authsvc.database import Database, Transaction
from authsvc.encryption import GRANT, KEY_USER, MEMBER, FieldCipher
from authsvc.errors import Busy
from authsvc.records import EMPTY, Membership, Stamp
from authsvc.repositories.field_ciphers import cipher_of
from authsvc.repositories.policy_statements import Load, Start, Wanted, load_statement, statement
from authsvc.role_graph import RoleGraph, RoleNode


@dataclass(frozen=True, slots=True)
class Policy:
    """The part of a tenant's policy that a question is about, at one state.

    ``memberships`` has an entry for each user that holds anything, ``key_ends`` one for each who
    has an API key that was not revoked: when the last of them ends, or None for never (both only
    when read from users). ``strict_users``: users without a key in force may do nothing.
    """

    stamp: Stamp
    memberships: Mapping[str, Sequence[Membership]]
    graph: RoleGraph
    strict_users: bool = False
    key_ends: Mapping[str, datetime | None] = field(default_factory=dict)

    def refuses(self, user: str, now: datetime) -> bool:
        """Whether this user may do nothing, for want of an API key."""
        return self.strict_users and not has_key(self.key_ends, user, now)


def has_key(key_ends: Mapping[str, datetime | None], user: str, now: datetime) -> bool:
    """Whether a user's last API key has yet to end."""
    end = key_ends.get(user, now)
    return end is None or now < end


NOTHING = Policy(EMPTY, {}, RoleGraph())
"""The policy of a tenant nothing was ever written to."""

_MANY_USERS = 200
_FEW_GRANTS = 8


async def load_policy(
    database: Database,
    tenant_id: UUID,
    users: Iterable[str],
    roles: Load,
    role_names: Iterable[str] = (),
) -> Policy:
    """What is to be remembered, in one statement: these users' memberships, and these roles."""
    wanted = _Wanted(users=sorted(users))
    parameters: dict[str, Any] = {"tenant": tenant_id}
    if roles is Load.NAMED:
        parameters["wanted"] = sorted(role_names)
    large = roles is not Load.NONE or len(wanted.users) > _MANY_USERS

    async def read(given: Mapping[str, Any]) -> Sequence[Row[Any]]:
        return await database.rows(load_statement(roles), {**parameters, **given}, large=large)

    return await _read(database, tenant_id, wanted, read)


@dataclass(frozen=True, slots=True)
class _Wanted:
    """The names that a policy is looked for by, as people know them.

    ``from_grants``: the grants that it starts from, None where it starts from others.
    """

    users: Sequence[str] = ()
    from_grants: Sequence[str] | None = None
    grants: Sequence[str] | None = None

    def stored(self, cipher: FieldCipher) -> _Stored:
        """The same names as they are stored under a key, by what the statements call them."""
        users = cipher.seal_all(MEMBER, self.users)
        parameters: dict[str, Any] = {"names": users}
        parameters["key_names"] = cipher.seal_all(KEY_USER, self.users)
        grants: list[str] = []
        if self.from_grants is not None:
            parameters["names"] = cipher.seal_all(GRANT, self.from_grants)
        if self.grants is not None:
            grants = parameters["wanted"] = cipher.seal_all(GRANT, self.grants)
        if cipher.is_plain:
            return _Stored(cipher, parameters)
        return _Stored(
            cipher,
            parameters,
            dict(zip(users, self.users, strict=True)),
            dict(zip(parameters["key_names"], self.users, strict=True)),
            dict(zip(grants, self.grants or (), strict=True)),
        )


@dataclass(frozen=True, slots=True)
class _Stored:
    """Names as they are stored under one key, and the way back."""

    cipher: FieldCipher
    parameters: Mapping[str, Any]
    users: Mapping[str, str] = field(default_factory=dict)
    key_users: Mapping[str, str] = field(default_factory=dict)
    grants: dict[str, str] = field(default_factory=dict)

    def grant(self, stored: str) -> str:
        """The name of a stored grant, opened once for all roles that have it."""
        name = self.grants.get(stored)
        if name is None:
            name = self.grants[stored] = self.cipher.open(GRANT, stored)
        return name


_ATTEMPTS = 4


async def _read(
    database: Database,
    tenant_id: UUID,
    wanted: _Wanted,
    read: Callable[[Mapping[str, Any]], Awaitable[Sequence[Row[Any]]]],
) -> Policy:
    """Read by names as they are stored under the key that is current at that same moment.

    Which one that is, the rows themselves say; where it was another one, the names are encrypted
    under it and it is read again.
    """
    cipher = database.data_keys.latest(tenant_id)
    for _ in range(_ATTEMPTS):
        stored = wanted.stored(cipher)
        rows = await read(stored.parameters)
        generation, wrapped = _generation(rows)
        if generation is None or generation == cipher.generation:
            return _assemble(rows, stored)
        cipher = database.data_keys.cipher(tenant_id, generation, wrapped)
    raise _encrypted_anew()


def _encrypted_anew() -> Busy:
    return Busy("The names of this tenant are being encrypted anew; ask again")


def _generation(rows: Sequence[Row[Any]]) -> tuple[int | None, str | None]:
    """The generation that rows are of, and its wrapped key; None where there is no tenant."""
    for row in rows:
        if row[0] == "head":
            return row.other_id, row.scope
    return None, None


def _assemble(rows: Iterable[Row[Any]], stored: _Stored) -> Policy:
    stamp = EMPTY
    plain = stored.cipher.is_plain
    names: dict[int, str] = {}
    parents: dict[int, list[int]] = {}
    grants: dict[int, list[str]] = {}
    memberships: dict[str, list[Membership]] = {}
    key_ends: dict[str, datetime | None] = {}
    strict_users = False
    for row in rows:
        kind, text, role_id, other_id, scope, not_before, expires_at, head = tuple(row)
        if kind == "grant":
            grants.setdefault(role_id, []).append(stored.grant(text))
        elif kind == "member":
            user = text if plain else stored.users[text]
            memberships.setdefault(user, []).append(
                Membership(user, role_id, scope, not_before, expires_at)
            )
        elif kind == "role":
            names[role_id] = text
        elif kind == "edge":
            parents.setdefault(role_id, []).append(other_id)
        elif kind == "key":
            key_ends[text if plain else stored.key_users[text]] = None if role_id else expires_at
        else:
            stamp = Stamp(role_id, head)
            strict_users = bool(json.loads(text).get("strict_users", False))
    graph = RoleGraph(
        RoleNode(
            role_id,
            name,
            tuple(sorted(parents.get(role_id, ()))),
            frozenset(grants.get(role_id, ())),
        )
        for role_id, name in sorted(names.items())
    )
    return Policy(stamp, memberships, graph, strict_users, key_ends)


def _asked(start: Start, names: Iterable[str], grants: Iterable[str] | None) -> _Wanted:
    listed = sorted(set(names))
    return _Wanted(
        users=listed if start is Start.USERS else (),
        from_grants=listed if start is Start.GRANTS_DOWN else None,
        grants=None if grants is None else sorted(set(grants)),
    )


def _parameters(
    tenant_id: UUID, start: Start, names: Iterable[str], stored: Mapping[str, Any]
) -> dict[str, Any]:
    """``names`` are stored as they are where they are names of roles."""
    parameters = {"tenant": tenant_id, **stored}
    if start in (Start.ROLES, Start.ROLES_DOWN):
        parameters["names"] = sorted(set(names))
    if start is not Start.USERS:
        del parameters["key_names"]
    return parameters


def _wanting(grants: Sequence[str] | None) -> Wanted:
    if grants is None:
        return Wanted.ALL
    return Wanted.FEW if len(grants) <= _FEW_GRANTS else Wanted.MANY


async def read_policy(
    database: Database,
    tenant_id: UUID,
    start: Start,
    names: Collection[str],
    grants: Iterable[str] | None = None,
) -> Policy:
    """Read outside of any transaction. ``grants``: which to read, None for all of them."""
    wanted = _asked(start, names, grants)
    asked = statement(start, _wanting(wanted.grants))
    large = len(names) > _MANY_USERS

    async def read(given: Mapping[str, Any]) -> Sequence[Row[Any]]:
        parameters = _parameters(tenant_id, start, names, given)
        return await database.rows(asked, parameters, large=large)

    return await _read(database, tenant_id, wanted, read)


class Policies:
    """As ``read_policy``, seen by a transaction."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def read(
        self, start: Start, names: Collection[str], grants: Iterable[str] | None = None
    ) -> Policy:
        """The policy from these names on; ``grants`` as in ``read_policy``."""
        wanted = _asked(start, names, grants)
        stored = wanted.stored(await cipher_of(self._tx, self._tenant))
        found = await self._tx.execute(
            statement(start, _wanting(wanted.grants)),
            _parameters(self._tenant, start, names, stored.parameters),
        )
        rows = found.all()
        if _generation(rows)[0] not in (None, stored.cipher.generation):
            raise _encrypted_anew()
        return _assemble(rows, stored)
