"""The one row of a tenant that every change locks and advances."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sqlalchemy import Select, bindparam, select, update

from authsvc import models
from authsvc.database import Transaction
from authsvc.records import EMPTY, Stamp

_head = models.tenant_head
_CURRENT: Select[Any] = select(_head.c.revision, _head.c.head, _head.c.generation).where(
    _head.c.tenant_id == bindparam("tenant")
)
# NO KEY: rows that reference the tenant can still be inserted by others meanwhile. SQLite ignores
# the clause; its transaction holds the file's write lock already.
_LOCK = _CURRENT.with_for_update(key_share=True)


class Heads:
    """The head of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def lock(self) -> Stamp | None:
        """The tenant's state, which no other transaction can move until this one ends.

        A statement of its own: what it waited for is only seen by the statements after it.
        """
        return await self._read(_LOCK)

    async def current(self) -> Stamp:
        """The tenant's state as this transaction sees it; ``EMPTY`` if there is no such tenant."""
        return await self._read(_CURRENT) or EMPTY

    async def _read(self, statement: Select[Any]) -> Stamp | None:
        row = (await self._tx.execute(statement, {"tenant": self._tenant})).one_or_none()
        if row is None:
            return None
        if self._tx.generations.get(self._tenant) != row.generation:
            self._tx.generations[self._tenant] = row.generation
            self._tx.ciphers.pop(self._tenant, None)
        return Stamp(row.revision, row.head)

    async def advance(self, to: Stamp) -> None:
        """Make ``to`` the tenant's state: the last statement of every change."""
        await self._tx.execute(
            update(_head)
            .where(_head.c.tenant_id == bindparam("tenant"))
            .values(revision=bindparam("to_revision"), head=bindparam("to_head")),
            {"tenant": self._tenant, "to_revision": to.revision, "to_head": to.head},
        )
