"""Families of refresh tokens: who they belong to, and the digest of the one that can be used."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Row,
    Select,
    and_,
    bindparam,
    delete,
    func,
    insert,
    select,
    update,
)

from authsvc import models
from authsvc.database import Database, Transaction
from authsvc.decision_cache import Credential, Session
from authsvc.records import ClientKey, Stamp

_family = models.token_family
_key = models.client_key


def _sessions(condition: ColumnElement[bool]) -> Select[Any]:
    return (
        select(
            _family.c.id.label("family"),
            _family.c.scopes.label("family_scopes"),
            _family.c.expires_at.label("family_expires_at"),
            _family.c.revoked_at.label("family_revoked_at"),
            _key,
            models.tenant.c.disabled_at,
            models.tenant.c.token_generation,
            models.tenant_head.c.revision,
            models.tenant_head.c.head,
        )
        .join(_key, and_(_key.c.tenant_id == _family.c.tenant_id, _key.c.id == _family.c.key_id))
        .join(models.tenant, models.tenant.c.id == _family.c.tenant_id)
        .join(models.tenant_head, models.tenant_head.c.tenant_id == _family.c.tenant_id)
        .where(condition)
    )


_BY_ID = _sessions(
    and_(_family.c.tenant_id == bindparam("tenant"), _family.c.id == bindparam("family_id"))
)
_BY_HANDLE = _sessions(_family.c.handle == bindparam("handle"))


def _session(row: Row[Any]) -> Session:
    key = ClientKey(
        row.id, row.tenant_id, "", frozenset(row.scopes), row.created_at, row.expires_at,
        row.revoked_at,
    )  # fmt: skip
    return Session(
        family=row.family,
        scopes=frozenset(row.family_scopes),
        expires_at=row.family_expires_at,
        revoked_at=row.family_revoked_at,
        generation=row.token_generation,
        digest=row.digest,
        credential=Credential(key, Stamp(row.revision, row.head), row.disabled_at),
    )


async def find_session(database: Database, tenant_id: UUID, family: str) -> Session | None:
    """A family with its key, without the label, its tenant and the tenant's state, in one
    statement.
    """
    rows = await database.rows(_BY_ID, {"tenant": tenant_id, "family_id": family})
    return _session(rows[0]) if rows else None


async def find_session_by_handle(database: Database, handle: bytes) -> Session | None:
    """As ``find_session``, for the part that all refresh tokens of a family have in common."""
    rows = await database.rows(_BY_HANDLE, {"handle": handle})
    return _session(rows[0]) if rows else None


class TokenFamilies:
    """The families of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def session(self, family: str) -> Session | None:
        """As ``find_session``, seen by this transaction."""
        found = await self._tx.execute(_BY_ID, {"tenant": self._tenant, "family_id": family})
        row = found.one_or_none()
        return _session(row) if row else None

    async def is_current(self, family: str, digest: bytes) -> bool:
        """Whether the family's refresh token with this digest was not spent."""
        found = await self._tx.execute(
            select(_family.c.id).where(
                _family.c.tenant_id == self._tenant,
                _family.c.id == family,
                _family.c.current == digest,
            )
        )
        return found.first() is not None

    async def add(
        self,
        family: str,
        key_id: str,
        *,
        handle: bytes,
        current: bytes,
        scopes: frozenset[str],
        at: datetime,
        expires_at: datetime,
    ) -> None:
        """Store a new family; ``handle`` and ``current`` are digests.

        The tenant's row is held meanwhile: a lockdown comes before it or sees it.
        """
        tenant = models.tenant
        await self._tx.execute(
            select(tenant.c.id).where(tenant.c.id == self._tenant).with_for_update(read=True)
        )
        await self._tx.execute(
            insert(_family),
            {
                "tenant_id": self._tenant, "id": family, "key_id": key_id, "handle": handle,
                "current": current, "scopes": sorted(scopes), "created_at": at,
                "expires_at": expires_at, "revoked_at": None,
            },
        )  # fmt: skip

    async def spend(self, family: str, current: bytes, successor: bytes) -> bool:
        """Put a fresh refresh token in the place of the current one.

        False if that is not the current one any more, or the family was revoked. One statement, so
        that of two that present the same token at the same time only one finds it there.
        """
        spent = await self._tx.execute(
            update(_family)
            .where(
                _family.c.tenant_id == self._tenant,
                _family.c.id == family,
                _family.c.current == current,
                _family.c.revoked_at.is_(None),
            )
            .values(current=successor)
        )
        return spent.rowcount == 1

    async def revoke(self, family: str, at: datetime) -> bool:
        """End a family for good; False if it had ended before, or there is none."""
        revoked = await self._tx.execute(
            update(_family)
            .where(
                _family.c.tenant_id == self._tenant,
                _family.c.id == family,
                _family.c.revoked_at.is_(None),
            )
            .values(revoked_at=at)
        )
        return revoked.rowcount == 1

    async def lock_down(self, at: datetime) -> int:
        """End every family, and have every access token refused; how many families that were."""
        tenant = models.tenant
        # First what new families wait for.
        await self._tx.execute(
            update(tenant)
            .where(tenant.c.id == self._tenant)
            .values(token_generation=tenant.c.token_generation + 1)
        )
        ended = await self._tx.execute(
            update(_family)
            .where(_family.c.tenant_id == self._tenant, _family.c.revoked_at.is_(None))
            .values(revoked_at=at)
        )
        return int(ended.rowcount)

    async def count_live(self, now: datetime) -> int:
        """How many families are in force."""
        found = await self._tx.execute(
            select(func.count())
            .select_from(_family)
            .where(
                _family.c.tenant_id == self._tenant,
                _family.c.revoked_at.is_(None),
                _family.c.expires_at > now,
            )
        )
        return int(found.scalar_one())

    async def forget_ended(self, before: datetime) -> None:
        """Delete what ended before this instant; its tokens have ended with it."""
        await self._tx.execute(
            delete(_family).where(
                _family.c.tenant_id == self._tenant, _family.c.expires_at < before
            )
        )
