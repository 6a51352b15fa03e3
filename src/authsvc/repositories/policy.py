"""What a decision needs, in one statement: the tenant's state, memberships, roles, edges, grants.

The statement starts from some roles and follows the hierarchy from there, so its cost depends on
what is asked about and not on the size of the tenant. Being one statement, it sees one state.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import Enum
from functools import cache
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
    Row,
    Select,
    String,
    Text,
    bindparam,
    cast,
    func,
    literal,
    null,
    select,
    union_all,
)
from sqlalchemy.sql.selectable import CompoundSelect

from authsvc import models
from authsvc.column_types import TextList, UtcDateTime, also_one_of, one_of
from authsvc.database import Database, Transaction
from authsvc.records import EMPTY, Membership, Stamp
from authsvc.role_graph import RoleGraph, RoleNode


class Start(Enum):
    """Which roles a policy is read from, and in which direction."""

    USERS = "the roles these users hold, and what they inherit"
    ROLES = "the roles with these names, and what they inherit"
    ROLES_DOWN = "the roles with these names, and what inherits from them"
    GRANTS_DOWN = "the roles with one of these grants, and what inherits from them"


class Wanted(Enum):
    """Which grants of the roles are read."""

    ALL = "every grant"
    FEW = "a few, each of which is looked for in every role"
    MANY = "those of a list that every grant is compared with"


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

_tenant = bindparam("tenant", type_=models.tenant.c.id.type)
_names = bindparam("names", type_=TextList)
_wanted = bindparam("wanted", type_=TextList)


def _tagged(kind: str, **columns: Any) -> Select[Any]:
    """One part of the union; what a part does not have is NULL of the right type.

    Only the NULLs are cast: on SQLite a cast to DATETIME keeps no more of an instant than its year.
    """
    blank: dict[str, ColumnElement[Any]] = {
        "text": cast(null(), Text),
        "id": cast(null(), BigInteger),
        "other_id": cast(null(), BigInteger),
        "scope": cast(null(), Text),
        "not_before": cast(null(), UtcDateTime),
        "expires_at": cast(null(), UtcDateTime),
        "head": cast(null(), LargeBinary),
    }
    parts = blank | columns
    labelled: list[Any] = [value.label(name) for name, value in parts.items()]
    return select(literal(kind, String).label("kind"), *labelled)


def _head_part() -> Select[Any]:
    head, tenant = models.tenant_head, models.tenant
    return (
        _tagged("head", id=head.c.revision, head=head.c.head, text=cast(tenant.c.settings, Text))
        .join(tenant, tenant.c.id == head.c.tenant_id)
        .where(head.c.tenant_id == _tenant)
    )


def _members_part() -> Select[Any]:
    member = models.membership
    return _tagged(
        "member",
        text=member.c.user_id,
        id=member.c.role_id,
        scope=member.c.scope,
        not_before=member.c.not_before,
        expires_at=member.c.expires_at,
    ).where(member.c.tenant_id == _tenant, one_of(member.c.user_id, _names))


def _keys_part() -> Select[Any]:
    """For each user the last end of a key, and how many keys have none."""
    key = models.api_key
    return (
        _tagged(
            "key",
            text=key.c.user_id,
            id=func.count() - func.count(key.c.expires_at),
            expires_at=func.max(key.c.expires_at),
        )
        .where(
            key.c.tenant_id == _tenant, one_of(key.c.user_id, _names), key.c.revoked_at.is_(None)
        )
        .group_by(key.c.user_id)
    )


@cache
def _statement(start: Start, wanted: Wanted) -> CompoundSelect[Any]:
    role, edge, grant, member = (
        models.role,
        models.role_parent,
        models.role_permission,
        models.membership,
    )
    if start is Start.USERS:
        roots = select(member.c.role_id.label("id")).where(
            member.c.tenant_id == _tenant, one_of(member.c.user_id, _names)
        )
    elif start is Start.GRANTS_DOWN:
        roots = select(grant.c.role_id.label("id")).where(
            grant.c.tenant_id == _tenant, one_of(grant.c.permission, _names)
        )
    else:
        roots = select(role.c.id.label("id")).where(
            role.c.tenant_id == _tenant, one_of(role.c.name, _names)
        )
    reached = roots.cte("reached", recursive=True)
    down = start in (Start.ROLES_DOWN, Start.GRANTS_DOWN)
    near, far = (edge.c.parent_id, edge.c.role_id) if down else (edge.c.role_id, edge.c.parent_id)
    reached = reached.union(
        select(far).join(reached, near == reached.c.id).where(edge.c.tenant_id == _tenant)
    )

    grants = (
        _tagged("grant", id=grant.c.role_id, text=grant.c.permission)
        .join(reached, grant.c.role_id == reached.c.id)
        .where(grant.c.tenant_id == _tenant)
    )
    if wanted is Wanted.FEW:
        grants = grants.where(one_of(grant.c.permission, _wanted))
    elif wanted is Wanted.MANY:
        grants = grants.where(also_one_of(grant.c.permission, _wanted))
    parts = [
        _head_part(),
        _tagged("role", id=role.c.id, text=role.c.name)
        .join(reached, role.c.id == reached.c.id)
        .where(role.c.tenant_id == _tenant),
        _tagged("edge", id=edge.c.role_id, other_id=edge.c.parent_id)
        .join(reached, edge.c.role_id == reached.c.id)
        .where(edge.c.tenant_id == _tenant),
        grants,
    ]
    if start is Start.USERS:
        parts += [_members_part(), _keys_part()]
    return union_all(*parts)


class Load(Enum):
    """Which roles are read along with the memberships of some users."""

    NONE = "no role"
    NAMED = "the roles with these names"
    ALL = "every role of the tenant"


@cache
def _load_statement(roles: Load) -> CompoundSelect[Any]:
    role, edge, grant = models.role, models.role_parent, models.role_permission
    parts = [_head_part(), _members_part(), _keys_part()]
    if roles is not Load.NONE:
        part_roles = _tagged("role", id=role.c.id, text=role.c.name).where(
            role.c.tenant_id == _tenant
        )
        part_edges = _tagged("edge", id=edge.c.role_id, other_id=edge.c.parent_id).where(
            edge.c.tenant_id == _tenant
        )
        part_grants = _tagged("grant", id=grant.c.role_id, text=grant.c.permission).where(
            grant.c.tenant_id == _tenant
        )
        if roles is Load.NAMED:
            chosen = one_of(role.c.name, _wanted)
            ids = select(role.c.id).where(role.c.tenant_id == _tenant, chosen)
            part_roles = part_roles.where(chosen)
            part_edges = part_edges.where(edge.c.role_id.in_(ids))
            part_grants = part_grants.where(grant.c.role_id.in_(ids))
        parts += [part_roles, part_edges, part_grants]
    return union_all(*parts)


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
    names = sorted(users)
    parameters: dict[str, Any] = {"tenant": tenant_id, "names": names}
    if roles is Load.NAMED:
        parameters["wanted"] = sorted(role_names)
    large = roles is not Load.NONE or len(names) > _MANY_USERS
    return _assemble(await database.rows(_load_statement(roles), parameters, large=large))


def _assemble(rows: Iterable[Row[Any]]) -> Policy:
    stamp = EMPTY
    names: dict[int, str] = {}
    parents: dict[int, list[int]] = {}
    grants: dict[int, list[str]] = {}
    memberships: dict[str, list[Membership]] = {}
    key_ends: dict[str, datetime | None] = {}
    strict_users = False
    for row in rows:
        kind, text, role_id, other_id, scope, not_before, expires_at, head = tuple(row)
        if kind == "grant":
            grants.setdefault(role_id, []).append(text)
        elif kind == "member":
            memberships.setdefault(text, []).append(
                Membership(text, role_id, scope, not_before, expires_at)
            )
        elif kind == "role":
            names[role_id] = text
        elif kind == "edge":
            parents.setdefault(role_id, []).append(other_id)
        elif kind == "key":
            key_ends[text] = None if role_id else expires_at
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


def _parameters(
    tenant_id: UUID, names: Iterable[str], grants: Iterable[str] | None
) -> dict[str, Any]:
    parameters: dict[str, Any] = {"tenant": tenant_id, "names": sorted(set(names))}
    if grants is not None:
        parameters["wanted"] = sorted(set(grants))
    return parameters


def _wanting(parameters: Mapping[str, Any]) -> Wanted:
    names = parameters.get("wanted")
    if names is None:
        return Wanted.ALL
    return Wanted.FEW if len(names) <= _FEW_GRANTS else Wanted.MANY


async def read_policy(
    database: Database,
    tenant_id: UUID,
    start: Start,
    names: Iterable[str],
    grants: Iterable[str] | None = None,
) -> Policy:
    """Read outside of any transaction. ``grants``: which to read, None for all of them."""
    parameters = _parameters(tenant_id, names, grants)
    statement = _statement(start, _wanting(parameters))
    large = len(parameters["names"]) > _MANY_USERS
    return _assemble(await database.rows(statement, parameters, large=large))


class Policies:
    """As ``read_policy``, seen by a transaction."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def read(
        self, start: Start, names: Iterable[str], grants: Iterable[str] | None = None
    ) -> Policy:
        """The policy from these names on; ``grants`` as in ``read_policy``."""
        parameters = _parameters(self._tenant, names, grants)
        found = await self._tx.execute(_statement(start, _wanting(parameters)), parameters)
        return _assemble(found)
