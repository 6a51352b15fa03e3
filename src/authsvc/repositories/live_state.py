"""Every row of a tenant that its audit trail tells of, for comparing the two."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Row, Table, select

from authsvc import models
from authsvc.credentials import fingerprint
from authsvc.database import Transaction
from authsvc.encryption import (
    CLIENT_KEY_LABEL,
    DESCRIPTION,
    GRANT,
    KEY_LABEL,
    KEY_USER,
    MEMBER,
    Field,
    Unreadable,
)
from authsvc.replay import ApiKeyTold, Bounds, KeyTold, RoleTold
from authsvc.repositories.field_ciphers import cipher_of


class Family(NamedTuple):
    """A family of tokens as its row has it."""

    id: str
    created_at: Any
    revoked: bool


class Owner(NamedTuple):
    """The tenant's own row."""

    strict_users: bool
    disabled: bool
    token_generation: int


class LiveState:
    """The rows of one tenant, as one read transaction sees them.

    A value that does not open is told as it is stored, and so no event tells of it.
    """

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def _rows(self, table: Table) -> AsyncIterator[Row[Any]]:
        own = table.c.id if table is models.tenant else table.c.tenant_id
        for row in await self._tx.execute(select(table).where(own == self._tenant)):
            yield row

    async def _opener(self) -> Callable[[Field, str], str]:
        cipher = await cipher_of(self._tx, self._tenant)

        def opened(place: Field, stored: str) -> str:
            try:
                return cipher.open(place, stored)
            except Unreadable:
                return f"(does not open: {stored[:40]})"

        return opened

    async def roles(self) -> dict[str, RoleTold]:
        """Roles by name."""
        opened = await self._opener()
        return {
            row.name: RoleTold(row.id, opened(DESCRIPTION, row.description), row.created_at)
            async for row in self._rows(models.role)
        }

    async def grants(self) -> list[tuple[int, str]]:
        """Role id and permission."""
        opened = await self._opener()
        return [
            (row.role_id, opened(GRANT, row.permission))
            async for row in self._rows(models.role_permission)
        ]

    async def parents(self) -> list[tuple[int, int]]:
        """Role id and the id of its parent."""
        return [(row.role_id, row.parent_id) async for row in self._rows(models.role_parent)]

    async def memberships(self) -> Iterator[tuple[str, int, str, Bounds]]:
        """User, role id, scope and bounds."""
        table, opened = models.membership, await self._opener()
        rows = await self._tx.execute(select(table).where(table.c.tenant_id == self._tenant))
        return (
            (
                opened(MEMBER, row.user_id),
                row.role_id,
                row.scope,
                Bounds(row.not_before, row.expires_at),
            )
            for row in rows
        )

    async def keys(self) -> dict[str, KeyTold]:
        """Client keys by id."""
        opened = await self._opener()
        return {
            row.id: KeyTold(
                opened(CLIENT_KEY_LABEL, row.label),
                tuple(sorted(row.scopes)),
                row.expires_at,
                fingerprint(row.digest),
                row.revoked_at is None,
            )
            async for row in self._rows(models.client_key)
        }

    async def api_keys(self) -> dict[str, ApiKeyTold]:
        """API keys by id."""
        opened = await self._opener()
        return {
            row.id: ApiKeyTold(
                opened(KEY_USER, row.user_id),
                opened(KEY_LABEL, row.label),
                row.expires_at,
                fingerprint(row.digest),
                row.revoked_at is None,
            )
            async for row in self._rows(models.api_key)
        }

    async def families(self) -> list[Family]:
        """Families of tokens that are not forgotten."""
        return [
            Family(row.id, row.created_at, row.revoked_at is not None)
            async for row in self._rows(models.token_family)
        ]

    async def owner(self) -> Owner | None:
        """The tenant's row, None if there is none."""
        async for row in self._rows(models.tenant):
            return Owner(
                bool((row.settings or {}).get("strict_users")),
                row.disabled_at is not None,
                row.token_generation,
            )
        return None
