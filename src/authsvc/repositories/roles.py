"""Roles and the hierarchy between them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import BindParameter, Row, bindparam, delete, insert, or_, select, update

from authsvc import models
from authsvc.column_types import IdList, TextList, one_of
from authsvc.database import Transaction
from authsvc.encryption import DESCRIPTION, FieldCipher
from authsvc.records import Role
from authsvc.repositories.field_ciphers import cipher_of

_role = models.role
_edge = models.role_parent

_BY_NAMES = select(_role).where(
    _role.c.tenant_id == bindparam("tenant"),
    one_of(_role.c.name, bindparam("names", type_=TextList)),
)
_BY_IDS = select(_role.c.id, _role.c.name).where(
    _role.c.tenant_id == bindparam("tenant"),
    one_of(_role.c.id, bindparam("ids", type_=IdList)),
)
_PAGE = (
    select(_role)
    .where(_role.c.tenant_id == bindparam("tenant"), _role.c.id > bindparam("after"))
    .order_by(_role.c.id)
    .limit(bindparam("most"))
)
_TOUCHING = select(_edge.c.role_id, _edge.c.parent_id).where(
    _edge.c.tenant_id == bindparam("tenant"),
    or_(
        one_of(_edge.c.role_id, bindparam("ids", type_=IdList)),
        one_of(_edge.c.parent_id, bindparam("ids", type_=IdList)),
    ),
)
_EDGES = select(_edge.c.role_id, _edge.c.parent_id).where(_edge.c.tenant_id == bindparam("tenant"))


def _record(row: Row[Any], cipher: FieldCipher) -> Role:
    return Role(row.id, row.name, cipher.open(DESCRIPTION, row.description), row.created_at)


class Roles:
    """The roles of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def named(self, names: Iterable[str]) -> dict[str, Role]:
        """The roles with these names, by name."""
        found = await self._tx.execute(_BY_NAMES, {"tenant": self._tenant, "names": sorted(names)})
        cipher = await cipher_of(self._tx, self._tenant)
        return {row.name: _record(row, cipher) for row in found}

    async def names(self, ids: Iterable[int]) -> dict[int, str]:
        """The names of these roles, by id."""
        found = await self._tx.execute(_BY_IDS, {"tenant": self._tenant, "ids": sorted(ids)})
        return {row.id: row.name for row in found}

    async def page(self, after: int, most: int) -> list[Role]:
        """Roles in the order of their making, from the one after id ``after``."""
        found = await self._tx.execute(
            _PAGE, {"tenant": self._tenant, "after": after, "most": most}
        )
        cipher = await cipher_of(self._tx, self._tenant)
        return [_record(row, cipher) for row in found]

    async def edges(self) -> list[tuple[int, int]]:
        """The whole hierarchy as (role id, parent id)."""
        found = await self._tx.execute(_EDGES, {"tenant": self._tenant})
        return [(row.role_id, row.parent_id) for row in found]

    async def edges_touching(self, ids: Iterable[int]) -> list[tuple[int, int]]:
        """The edges that begin or end at one of these roles."""
        found = await self._tx.execute(_TOUCHING, {"tenant": self._tenant, "ids": sorted(ids)})
        return [(row.role_id, row.parent_id) for row in found]

    async def add(self, roles: Sequence[Role]) -> None:
        """Insert roles."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            insert(_role),
            [
                {
                    "tenant_id": self._tenant,
                    "id": role.id,
                    "name": role.name,
                    "description": cipher.seal(DESCRIPTION, role.description),
                    "created_at": role.created_at,
                }
                for role in roles
            ],
        )

    async def describe(self, descriptions: Sequence[tuple[int, str]]) -> None:
        """Set the descriptions of roles, as (role id, description)."""
        cipher = await cipher_of(self._tx, self._tenant)
        statement = (
            update(_role)
            .where(_role.c.tenant_id == bindparam("tenant"), _role.c.id == bindparam("role"))
            .values(description=bindparam("text"))
        )
        await self._tx.execute(
            statement,
            [
                {"tenant": self._tenant, "role": i, "text": cipher.seal(DESCRIPTION, text)}
                for i, text in descriptions
            ],
        )

    async def remove(self, ids: Sequence[int]) -> None:
        """Delete roles with everything that hangs on them: members, grants, edges."""
        parameters = {"tenant": self._tenant, "ids": sorted(ids)}
        listed = bindparam("ids", type_=IdList)
        tenant: BindParameter[UUID] = bindparam("tenant")
        for table, column in (
            (models.membership, models.membership.c.role_id),
            (models.role_permission, models.role_permission.c.role_id),
            (_edge, _edge.c.role_id),
            (_edge, _edge.c.parent_id),
            (_role, _role.c.id),
        ):
            await self._tx.execute(
                delete(table).where(table.c.tenant_id == tenant, one_of(column, listed)),
                parameters,
            )

    async def add_edges(self, edges: Iterable[tuple[int, int]]) -> None:
        """Insert (role id, parent id) edges."""
        await self._tx.execute(
            insert(_edge),
            [
                {"tenant_id": self._tenant, "role_id": role, "parent_id": parent}
                for role, parent in edges
            ],
        )

    async def remove_edges(self, edges: Iterable[tuple[int, int]]) -> None:
        """Delete (role id, parent id) edges."""
        await self._tx.execute(
            delete(_edge).where(
                _edge.c.tenant_id == bindparam("tenant"),
                _edge.c.role_id == bindparam("role"),
                _edge.c.parent_id == bindparam("parent"),
            ),
            [{"tenant": self._tenant, "role": role, "parent": parent} for role, parent in edges],
        )
