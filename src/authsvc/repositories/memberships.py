"""Users in roles."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    and_,
    bindparam,
    delete,
    func,
    insert,
    or_,
    select,
    update,
)

from authsvc import models
from authsvc.column_types import MANY_PAIRS, IdList, TextList, UtcDateTime, also_one_of, one_of
from authsvc.database import Transaction
from authsvc.encryption import MEMBER, FieldCipher
from authsvc.errors import CursorExpired
from authsvc.records import Membership
from authsvc.repositories.field_ciphers import cipher_of

_member = models.membership
_tenant = _member.c.tenant_id == bindparam("tenant")
_same_row = and_(
    _tenant,
    _member.c.user_id == bindparam("user"),
    _member.c.role_id == bindparam("role"),
    _member.c.scope == bindparam("in_scope"),
)
_users = one_of(_member.c.user_id, bindparam("users", type_=TextList))
_roles = one_of(_member.c.role_id, bindparam("roles", type_=IdList))
_now = bindparam("now", type_=UtcDateTime)
_now_in_scope: ColumnElement[bool] = and_(
    _member.c.scope.in_(("", bindparam("in_scope"))),
    or_(_member.c.not_before.is_(None), _member.c.not_before <= _now),
    or_(_member.c.expires_at.is_(None), _member.c.expires_at > _now),
)
_from_user: BindParameter[str] = bindparam("from_user")

_row = select(
    _member.c.user_id,
    _member.c.role_id,
    _member.c.scope,
    _member.c.not_before,
    _member.c.expires_at,
)
_OF_USERS = _row.where(_tenant, _users)
_OF_USERS_IN_ROLES = _row.where(_tenant, _users, _roles)
_OF_USERS_IN_MANY_ROLES = _row.where(
    _tenant, _users, also_one_of(_member.c.role_id, bindparam("roles", type_=IdList))
)
_OF_USER_PAGE = (
    _row.where(
        _tenant,
        _member.c.user_id == bindparam("user"),
        or_(
            _member.c.role_id > bindparam("after_role"),
            and_(
                _member.c.role_id == bindparam("after_role"),
                _member.c.scope > bindparam("after_scope"),
            ),
        ),
    )
    .order_by(_member.c.role_id, _member.c.scope)
    .limit(bindparam("most"))
)
_holders = (
    _row.where(_tenant, _member.c.user_id >= _from_user, _now_in_scope)
    .order_by(_member.c.user_id)
    .limit(bindparam("most"))
)
_HOLDERS = _holders.where(_roles)
_HOLDERS_OF_ONE = _holders.where(_member.c.role_id == bindparam("role"))
# SQLite knows no statistics and would always collect and sort everybody in these roles. Written so
# that the roles' index cannot be used, it walks through the users in order until the page is full.
_HOLDERS_IN_ORDER = _holders.where(also_one_of(_member.c.role_id, bindparam("roles", type_=IdList)))
_FEW = 5_000
_SOME = select(_member.c.user_id).where(_tenant, _roles).limit(_FEW + 1).subquery()
_COUNT_SOME = select(func.count()).select_from(_SOME)
_OF_ROLE_PAGE = (
    _row.where(
        _tenant,
        _member.c.role_id == bindparam("role"),
        or_(
            _member.c.user_id > _from_user,
            and_(
                _member.c.user_id == _from_user,
                _member.c.scope > bindparam("after_scope"),
            ),
        ),
    )
    .order_by(_member.c.user_id, _member.c.scope)
    .limit(bindparam("most"))
)
_COUNT = select(func.count(_member.c.user_id.distinct())).where(
    _tenant, _member.c.role_id == bindparam("role")
)


class Placed(NamedTuple):
    """A membership and its place in the order of users: the name as it is stored."""

    place: str
    membership: Membership


class Memberships:
    """The memberships of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def _placed(self, statement: Any, **parameters: Any) -> list[Placed]:
        rows: Iterable[Any] = await self._tx.execute(
            statement, {"tenant": self._tenant, **parameters}
        )
        cipher = await cipher_of(self._tx, self._tenant)
        if cipher.is_plain:
            return [Placed(row[0], Membership(*row)) for row in rows]
        # One user's rows come together.
        names: dict[str, str] = {}
        placed = []
        for stored, *rest in rows:
            user = names.get(stored)
            if user is None:
                user = names[stored] = cipher.open(MEMBER, stored)
            placed.append(Placed(stored, Membership(user, *rest)))
        return placed

    async def _records(self, statement: Any, **parameters: Any) -> list[Membership]:
        return [one.membership for one in await self._placed(statement, **parameters)]

    async def _stored(self, users: Iterable[str]) -> list[str]:
        return (await cipher_of(self._tx, self._tenant)).seal_all(MEMBER, sorted(users))

    async def of_users(self, users: Iterable[str]) -> list[Membership]:
        """Everything these users hold, in force or not."""
        return await self._records(_OF_USERS, users=await self._stored(users))

    async def of_users_in(self, users: Iterable[str], role_ids: Iterable[int]) -> list[Membership]:
        """What these users hold of these roles, in force or not."""
        names, roles = await self._stored(users), sorted(role_ids)
        few = len(names) * len(roles) <= MANY_PAIRS
        statement = _OF_USERS_IN_ROLES if few else _OF_USERS_IN_MANY_ROLES
        return await self._records(statement, users=names, roles=roles)

    async def of_user_page(self, user: str, after: tuple[int, str], most: int) -> list[Membership]:
        """A user's stored rows in the order (role id, scope), from the one after ``after``."""
        (stored,) = await self._stored([user])
        return await self._records(
            _OF_USER_PAGE, user=stored, after_role=after[0], after_scope=after[1], most=most
        )

    async def of_role_page(self, role_id: int, after: tuple[str, str], most: int) -> list[Placed]:
        """A role's stored rows in the order (place, scope), from the one after ``after``.

        Raises CursorExpired for a place under another key.
        """
        await self._require_current(after[0])
        return await self._placed(
            _OF_ROLE_PAGE, role=role_id, from_user=after[0], after_scope=after[1], most=most
        )

    async def holders(
        self, role_ids: Iterable[int], from_place: str, most: int, scope: str, now: datetime
    ) -> list[Placed]:
        """What users from a place on hold of these roles now, in the order of places.

        Memberships without a scope count, and those bound to ``scope``. At most ``most`` of them,
        so that the last user's may not be complete. Raises CursorExpired for a place under another
        key.
        """
        await self._require_current(from_place)
        roles = sorted(role_ids)
        asked = {"from_user": from_place, "most": most, "in_scope": scope, "now": now}
        if len(roles) == 1:
            return await self._placed(_HOLDERS_OF_ONE, role=roles[0], **asked)
        statement = _HOLDERS
        if self._tx.engine_name == "sqlite":
            given = {"tenant": self._tenant, "roles": roles}
            if (await self._tx.execute(_COUNT_SOME, given)).scalar_one() > _FEW:
                statement = _HOLDERS_IN_ORDER
        return await self._placed(statement, roles=roles, **asked)

    async def _require_current(self, place: str) -> None:
        if place and not (await cipher_of(self._tx, self._tenant)).holds(place):
            raise CursorExpired.of(
                "cursor", "the names of this tenant were encrypted anew: begin at the first page"
            )

    async def count(self, role_id: int) -> int:
        """How many users hold the role directly, in force or not."""
        found = await self._tx.execute(_COUNT, {"tenant": self._tenant, "role": role_id})
        return int(found.scalar_one())

    async def add(self, memberships: Sequence[Membership]) -> None:
        """Insert memberships."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            insert(_member),
            [
                {
                    "tenant_id": self._tenant,
                    "user_id": cipher.seal(MEMBER, m.user),
                    "role_id": m.role_id,
                    "scope": m.scope,
                    "not_before": m.not_before,
                    "expires_at": m.expires_at,
                }
                for m in memberships
            ],
        )

    async def rebound(self, memberships: Sequence[Membership]) -> None:
        """Give stored memberships other bounds."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            update(_member)
            .where(_same_row)
            .values(not_before=bindparam("start"), expires_at=bindparam("end")),
            [
                self._key(m, cipher) | {"start": m.not_before, "end": m.expires_at}
                for m in memberships
            ],
        )

    async def remove(self, memberships: Iterable[Membership]) -> None:
        """Delete memberships."""
        cipher = await cipher_of(self._tx, self._tenant)
        await self._tx.execute(
            delete(_member).where(_same_row), [self._key(m, cipher) for m in memberships]
        )

    def _key(self, m: Membership, cipher: FieldCipher) -> dict[str, Any]:
        return {
            "tenant": self._tenant,
            "user": cipher.seal(MEMBER, m.user),
            "role": m.role_id,
            "in_scope": m.scope,
        }
