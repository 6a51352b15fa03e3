"""The API keys of a tenant's users: digests, never keys."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, func, insert, or_, select, update

from authsvc import models
from authsvc.column_types import TextList, UtcDateTime, one_of
from authsvc.database import Database, Transaction
from authsvc.encryption import KEY_LABEL, KEY_USER, FieldCipher
from authsvc.records import EMPTY, ApiKey, Stamp
from authsvc.repositories.field_ciphers import cipher_of, current_key

_key = models.api_key
_tenant = _key.c.tenant_id == bindparam("tenant")
_of_user = and_(_tenant, _key.c.user_id == bindparam("user"))
_columns = (
    _key.c.id,
    _key.c.user_id,
    _key.c.label,
    _key.c.key_prefix,
    _key.c.created_at,
    _key.c.expires_at,
    _key.c.revoked_at,
    _key.c.last_used_at,
)
_BY_DIGEST = (
    select(
        models.tenant_head.c.revision,
        models.tenant_head.c.head,
        models.tenant_head.c.generation,
        models.tenant_key.c.wrapped,
        *_columns,
    )
    .select_from(models.tenant_head)
    .outerjoin(models.tenant_key, current_key)
    .outerjoin(
        _key,
        and_(
            _key.c.tenant_id == models.tenant_head.c.tenant_id,
            _key.c.digest == bindparam("digest"),
        ),
    )
    .where(models.tenant_head.c.tenant_id == bindparam("tenant"))
)
_PAGE = (
    select(*_columns)
    .where(
        _of_user,
        or_(
            _key.c.created_at > bindparam("after_at", type_=UtcDateTime),
            and_(
                _key.c.created_at == bindparam("after_at", type_=UtcDateTime),
                _key.c.id > bindparam("after_id"),
            ),
        ),
    )
    .order_by(_key.c.created_at, _key.c.id)
    .limit(bindparam("most"))
)
_FIND = select(*_columns).where(_of_user, _key.c.id == bindparam("key_id"))
_active = and_(
    _key.c.revoked_at.is_(None),
    or_(_key.c.expires_at.is_(None), _key.c.expires_at > bindparam("now", type_=UtcDateTime)),
)
_COUNT_ACTIVE = select(func.count()).select_from(_key).where(_of_user, _active)
_BACKED = (
    select(_key.c.user_id)
    .where(_tenant, one_of(_key.c.user_id, bindparam("users", type_=TextList)), _active)
    .distinct()
)
_UNREVOKED = select(_key.c.user_id, _key.c.id).where(
    _tenant,
    one_of(_key.c.user_id, bindparam("users", type_=TextList)),
    _key.c.revoked_at.is_(None),
)
_REVOKE = (
    update(_key)
    .where(_tenant, _key.c.id == bindparam("key_id"))
    .values(revoked_at=bindparam("at", type_=UtcDateTime))
)


def _record(row: Row[Any], cipher: FieldCipher) -> ApiKey:
    return ApiKey(
        row.id,
        cipher.open(KEY_USER, row.user_id),
        cipher.open(KEY_LABEL, row.label),
        row.key_prefix,
        row.created_at,
        row.expires_at,
        row.revoked_at,
        row.last_used_at,
    )


async def find_api_key(
    database: Database, tenant_id: UUID, digest: bytes
) -> tuple[ApiKey | None, Stamp]:
    """The tenant's key with this digest, if it has one, and its state, in one statement."""
    rows = await database.rows(_BY_DIGEST, {"tenant": tenant_id, "digest": digest})
    if not rows:
        return None, EMPTY
    stamp = Stamp(rows[0].revision, rows[0].head)
    row = rows[0]
    if row.id is None:
        return None, stamp
    cipher = database.data_keys.cipher(tenant_id, row.generation, row.wrapped)
    return _record(row, cipher), stamp


class ApiKeys:
    """The API keys of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def _cipher(self) -> FieldCipher:
        return await cipher_of(self._tx, self._tenant)

    async def _of(self, user: str) -> dict[str, Any]:
        """What the statements about one user are given."""
        return {"tenant": self._tenant, "user": (await self._cipher()).seal(KEY_USER, user)}

    async def _of_all(self, users: Iterable[str]) -> tuple[dict[str, Any], dict[str, str]]:
        """What the statements about several users are given, and the way back to the names."""
        names = sorted(users)
        stored = (await self._cipher()).seal_all(KEY_USER, names)
        return {"tenant": self._tenant, "users": stored}, dict(zip(stored, names, strict=True))

    async def add(self, key: ApiKey, digest: bytes) -> None:
        """Store a key just made."""
        cipher = await self._cipher()
        await self._tx.execute(
            insert(_key).values(
                tenant_id=self._tenant,
                id=key.id,
                digest=digest,
                user_id=cipher.seal(KEY_USER, key.user),
                label=cipher.seal(KEY_LABEL, key.label),
                key_prefix=key.prefix,
                created_at=key.created_at,
                expires_at=key.expires_at,
            )
        )

    async def count_active(self, user: str, now: datetime) -> int:
        """How many of the user's keys are accepted at this instant."""
        given = await self._of(user) | {"now": now}
        return int((await self._tx.execute(_COUNT_ACTIVE, given)).scalar_one())

    async def page(self, user: str, after: tuple[datetime, str], most: int) -> list[ApiKey]:
        """The user's keys, ended ones too, oldest first, from the one after (made at, id)."""
        found = await self._tx.execute(
            _PAGE,
            await self._of(user) | {"after_at": after[0], "after_id": after[1], "most": most},
        )
        cipher = await self._cipher()
        return [_record(row, cipher) for row in found]

    async def find(self, user: str, key_id: str) -> ApiKey | None:
        """The user's key of that id."""
        given = await self._of(user) | {"key_id": key_id}
        row = (await self._tx.execute(_FIND, given)).one_or_none()
        return _record(row, await self._cipher()) if row else None

    async def backed(self, users: Iterable[str], now: datetime) -> set[str]:
        """Those of these users who have a key that is accepted at this instant."""
        given, names = await self._of_all(users)
        found = await self._tx.execute(_BACKED, given | {"now": now})
        return {names[row.user_id] for row in found}

    async def unrevoked(self, users: Iterable[str]) -> list[tuple[str, str]]:
        """(user, key id) of every key of these users that was not revoked, expired or not."""
        given, names = await self._of_all(users)
        found = await self._tx.execute(_UNREVOKED, given)
        return [(names[row.user_id], row.id) for row in found]

    async def revoke(self, key_ids: Iterable[str], at: datetime) -> None:
        """End keys for good; their rows stay."""
        await self._tx.execute(
            _REVOKE, [{"tenant": self._tenant, "key_id": key_id, "at": at} for key_id in key_ids]
        )
