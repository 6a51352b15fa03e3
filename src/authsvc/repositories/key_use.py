"""When keys were last used, across tenants."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy import Table, Update, bindparam, or_, update

from authsvc import models
from authsvc.column_types import UtcDateTime
from authsvc.database import Transaction

Use = tuple[UUID, str, datetime]
"""A tenant, one of its keys, and when it was used."""


def _statement(table: Table) -> Update:
    return (
        update(table)
        .where(
            table.c.tenant_id == bindparam("tenant", type_=models.tenant.c.id.type),
            table.c.id == bindparam("key_id"),
            or_(
                table.c.last_used_at.is_(None),
                table.c.last_used_at <= bindparam("not_since", type_=UtcDateTime),
            ),
        )
        .values(last_used_at=bindparam("at", type_=UtcDateTime))
    )


_CLIENT_KEYS = _statement(models.client_key)
_API_KEYS = _statement(models.api_key)


class KeyUses:
    """The instants of last use, of client keys and of API keys."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def write_client_keys(self, uses: Iterable[Use], seldom: timedelta) -> None:
        """Store when client keys were used, unless that was stored less than ``seldom`` earlier."""
        await self._write(_CLIENT_KEYS, uses, seldom)

    async def write_api_keys(self, uses: Iterable[Use], seldom: timedelta) -> None:
        """As ``write_client_keys``, for API keys."""
        await self._write(_API_KEYS, uses, seldom)

    async def _write(self, statement: Update, uses: Iterable[Use], seldom: timedelta) -> None:
        # In the order of keys: two processes that write the same ones never wait for each other
        # in a circle.
        rows = [
            {"tenant": tenant_id, "key_id": key_id, "at": at, "not_since": at - seldom}
            for tenant_id, key_id, at in sorted(uses)
        ]
        if rows:
            await self._tx.execute(statement, rows)
