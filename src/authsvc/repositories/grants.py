"""Permissions granted to roles."""

from __future__ import annotations

from collections.abc import Iterable
from uuid import UUID

from sqlalchemy import bindparam, delete, insert, select

from authsvc import models
from authsvc.column_types import MANY_PAIRS, IdList, TextList, also_one_of, one_of
from authsvc.database import Transaction
from authsvc.encryption import GRANT
from authsvc.repositories.field_ciphers import cipher_of

_grant = models.role_permission

_OF_ROLES = select(_grant.c.role_id, _grant.c.permission).where(
    _grant.c.tenant_id == bindparam("tenant"),
    one_of(_grant.c.role_id, bindparam("roles", type_=IdList)),
)
_permissions = bindparam("permissions", type_=TextList)
_AMONG = _OF_ROLES.where(one_of(_grant.c.permission, _permissions))
_AMONG_MANY = _OF_ROLES.where(also_one_of(_grant.c.permission, _permissions))
_OF_ROLE = select(_grant.c.permission).where(
    _grant.c.tenant_id == bindparam("tenant"),
    _grant.c.role_id == bindparam("role"),
)


class Grants:
    """The grants of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def among(
        self, role_ids: Iterable[int], permissions: Iterable[str]
    ) -> set[tuple[int, str]]:
        """The stored grants with one of these roles and one of these permissions."""
        roles, names = sorted(role_ids), sorted(permissions)
        cipher = await cipher_of(self._tx, self._tenant)
        stored = dict(zip(cipher.seal_all(GRANT, names), names, strict=True))
        found = await self._tx.execute(
            _AMONG if len(roles) * len(names) <= MANY_PAIRS else _AMONG_MANY,
            {"tenant": self._tenant, "roles": roles, "permissions": list(stored)},
        )
        return {(row.role_id, stored[row.permission]) for row in found}

    async def of_role(self, role_id: int) -> list[str]:
        """What is granted to the role itself, in byte order."""
        found = await self._tx.execute(_OF_ROLE, {"tenant": self._tenant, "role": role_id})
        cipher = await cipher_of(self._tx, self._tenant)
        return sorted(cipher.open(GRANT, row.permission) for row in found)

    async def add(self, grants: Iterable[tuple[int, str]]) -> None:
        """Insert (role id, permission) grants."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            insert(_grant),
            [
                {
                    "tenant_id": self._tenant,
                    "role_id": role,
                    "permission": cipher.seal(GRANT, permission),
                }
                for role, permission in grants
            ],
        )

    async def remove(self, grants: Iterable[tuple[int, str]]) -> None:
        """Delete (role id, permission) grants."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            delete(_grant).where(
                _grant.c.tenant_id == bindparam("tenant"),
                _grant.c.role_id == bindparam("role"),
                _grant.c.permission == bindparam("name"),
            ),
            [
                {"tenant": self._tenant, "role": role, "name": cipher.seal(GRANT, name)}
                for role, name in grants
            ],
        )
