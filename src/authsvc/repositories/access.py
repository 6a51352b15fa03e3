"""What a review of access looks at: all grants, memberships and credentials of a tenant."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import Row, Select, func, select, text

from authsvc import models
from authsvc.database import Transaction
from authsvc.encryption import CLIENT_KEY_LABEL, GRANT, KEY_USER, MEMBER
from authsvc.records import Membership
from authsvc.repositories.activity import Told, told
from authsvc.repositories.audit import events_of, said_by
from authsvc.repositories.field_ciphers import cipher_of

_activity = models.activity_event


class Credential(NamedTuple):
    """A key in force: ``kind`` is ``client key`` or ``API key``."""

    kind: str
    id: str
    owner: str
    admin: bool
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None


class Access:
    """The access that one tenant gives, as one read transaction sees it."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def roles(self) -> dict[int, str]:
        """Names by id."""
        role = models.role
        found = await self._tx.execute(
            select(role.c.id, role.c.name).where(role.c.tenant_id == self._tenant)
        )
        return {row.id: row.name for row in found}

    async def grants(self) -> list[tuple[int, str]]:
        """Role id and permission."""
        grant = models.role_permission
        found = await self._tx.execute(
            select(grant.c.role_id, grant.c.permission).where(grant.c.tenant_id == self._tenant)
        )
        cipher = await cipher_of(self._tx, self._tenant)
        return [(row.role_id, cipher.open(GRANT, row.permission)) for row in found]

    async def parents(self) -> set[int]:
        """The roles that another one inherits from."""
        edge = models.role_parent
        found = await self._tx.execute(
            select(edge.c.parent_id).where(edge.c.tenant_id == self._tenant)
        )
        return {row.parent_id for row in found}

    async def memberships(self) -> list[Membership]:
        """All there are, in the order of users, roles and scopes."""
        member = models.membership
        cipher = await cipher_of(self._tx, self._tenant)
        rows = await self._tx.execute(
            select(
                member.c.user_id,
                member.c.role_id,
                member.c.scope,
                member.c.not_before,
                member.c.expires_at,
            ).where(member.c.tenant_id == self._tenant)
        )
        found = [
            Membership(
                cipher.open(MEMBER, row.user_id),
                row.role_id,
                row.scope,
                row.not_before,
                row.expires_at,
            )
            for row in rows
        ]
        return sorted(found, key=lambda m: (m.user, m.role_id, m.scope))

    async def granted_at(self) -> dict[tuple[str, str], datetime]:
        """Role and permission -> when that was granted last, as far as events are here."""
        event = models.audit_event
        rows = await self._tx.execute(
            select(event)
            .where(event.c.tenant_id == self._tenant, event.c.action == "grant")
            .order_by(event.c.seq)
        )
        found = {}
        for one in await events_of(self._tx, self._tenant, rows):
            said = said_by(one)
            found[said["details"]["role"], said["entity_id"]] = one.at
        return found

    async def credentials(self, now: datetime) -> list[Credential]:
        """Client keys and API keys in force, oldest first."""
        cipher = await cipher_of(self._tx, self._tenant)
        found = [
            Credential(
                "client key", row.id, cipher.open(CLIENT_KEY_LABEL, row.label),
                "admin" in row.scopes, row.created_at, row.expires_at, row.last_used_at,
            )
            async for row in self._live(models.client_key, now)
        ]  # fmt: skip
        found += [
            Credential(
                "API key", row.id, cipher.open(KEY_USER, row.user_id), False, row.created_at,
                row.expires_at, row.last_used_at,
            )
            async for row in self._live(models.api_key, now)
        ]  # fmt: skip
        return sorted(found, key=lambda key: (key.kind != "client key", key.created_at, key.id))

    async def _live(self, table: Any, now: datetime) -> AsyncIterator[Row[Any]]:
        wanted: Select[Any] = select(table).where(
            table.c.tenant_id == self._tenant, table.c.revoked_at.is_(None)
        )
        for row in await self._tx.execute(wanted):
            if row.expires_at is None or now < row.expires_at:
                yield row


class Happened(NamedTuple):
    """One policy event in a report."""

    action: str
    entity_type: str
    actor: str | None


async def changes_between(
    tx: Transaction, tenant_id: UUID, since: datetime, until: datetime
) -> list[Happened]:
    """A tenant's policy events of a time."""
    event = models.audit_event
    found = await tx.execute(
        select(event.c.action, event.c.entity_type, event.c.actor).where(
            event.c.tenant_id == tenant_id, event.c.at >= since, event.c.at < until
        )
    )
    return [Happened(row.action, row.entity_type, row.actor) for row in found]


async def actors_before(tx: Transaction, tenant_id: UUID, instant: datetime) -> set[str | None]:
    """Everybody who had changed anything of a tenant by an instant."""
    event = models.audit_event
    found = await tx.execute(
        select(event.c.actor).where(event.c.tenant_id == tenant_id, event.c.at < instant).distinct()
    )
    return {row.actor for row in found}


async def activity_between(
    tx: Transaction, tenant_id: UUID | None, since: datetime, until: datetime
) -> list[Told]:
    """The activity of a time: of a tenant (with what nobody is to blame for), or of all."""
    wanted = select(_activity).where(_activity.c.at >= since, _activity.c.at < until)
    if tenant_id is not None:
        wanted = wanted.where(
            (_activity.c.tenant_id == tenant_id) | _activity.c.tenant_id.is_(None)
        )
    return await told(tx, await tx.execute(wanted.order_by(_activity.c.id)))


async def database_bytes(tx: Transaction) -> int:
    """How large the database is."""
    if tx.engine_name == "postgresql":
        found = await tx.execute(text("SELECT pg_database_size(current_database())"))
    else:
        found = await tx.execute(
            text("SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()")
        )
    return int(found.scalar_one())


async def last_checkpoint_at(tx: Transaction) -> datetime | None:
    """When the newest checkpoint was signed."""
    found = await tx.execute(select(func.max(models.audit_checkpoint.c.at)))
    at: datetime | None = found.scalar_one()
    return at
