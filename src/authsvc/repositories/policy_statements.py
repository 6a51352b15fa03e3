"""The statements that read a policy: unions of parts, each row with a word for its kind.

One statement starts from some roles and follows the hierarchy from there, so its cost depends on
what is asked about and not on the size of the tenant. Being one statement, it sees one state.
"""

from __future__ import annotations

from enum import Enum
from functools import cache
from typing import Any

from sqlalchemy import (
    BigInteger,
    ColumnElement,
    LargeBinary,
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
from authsvc.repositories.field_ciphers import current_key


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


class Load(Enum):
    """Which roles are read along with the memberships of some users."""

    NONE = "no role"
    NAMED = "the roles with these names"
    ALL = "every role of the tenant"


_tenant = bindparam("tenant", type_=models.tenant.c.id.type)
_names = bindparam("names", type_=TextList)
_key_names = bindparam("key_names", type_=TextList)
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
    """The tenant's state and settings, with the generation of its data key and the key itself."""
    head, tenant, key = models.tenant_head, models.tenant, models.tenant_key
    return (
        _tagged(
            "head",
            id=head.c.revision,
            head=head.c.head,
            text=cast(tenant.c.settings, Text),
            other_id=head.c.generation,
            scope=key.c.wrapped,
        )
        .select_from(head)
        .join(tenant, tenant.c.id == head.c.tenant_id)
        .outerjoin(key, current_key)
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
            key.c.tenant_id == _tenant,
            one_of(key.c.user_id, _key_names),
            key.c.revoked_at.is_(None),
        )
        .group_by(key.c.user_id)
    )


@cache
def statement(start: Start, wanted: Wanted) -> CompoundSelect[Any]:
    """What is read from ``names`` on (and ``key_names``: the same users in their keys)."""
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


@cache
def load_statement(roles: Load) -> CompoundSelect[Any]:
    """What is remembered of the users ``names`` (``key_names``), with some roles."""
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
