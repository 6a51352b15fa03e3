"""What is gone from the audit trail by right: pruned events and erased tenants."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from sqlalchemy import delete, insert, select, text, tuple_

from authsvc import models
from authsvc.audit_chain import AuditKeys
from authsvc.database import Transaction
from authsvc.errors import StartError
from authsvc.records import Stamp

_anchor = models.audit_anchor
_erasure = models.tenant_erasure


@dataclass(frozen=True, slots=True)
class Anchor:
    """The newest event of a tenant that was pruned, which those that are left follow.

    The seal covers tenant, number and hash.
    """

    tenant_id: UUID
    stamp: Stamp
    at: datetime
    mac: bytes | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Erasure:
    """A tenant that was erased, and the state it had then. The seal covers all three."""

    tenant_id: UUID
    stamp: Stamp
    at: datetime
    mac: bytes | None = field(default=None, repr=False)


def seal_of(keys: AuditKeys, purpose: bytes, tenant_id: UUID, stamp: Stamp) -> bytes | None:
    """The seal of an anchor (``b"anchor"``) or of an erasure (``b"erasure"``)."""
    return keys.seal(_sealed_text(tenant_id, stamp), purpose)


def is_sealed(keys: AuditKeys, purpose: bytes, record: Anchor | Erasure) -> bool:
    """Whether the seal of an anchor or an erasure is right under any of the keys."""
    return keys.sealed(_sealed_text(record.tenant_id, record.stamp), record.mac, purpose)


def _sealed_text(tenant_id: UUID, stamp: Stamp) -> bytes:
    return tenant_id.bytes + stamp.revision.to_bytes(8, "big") + stamp.head


_MAY_TAKE = text(
    "SELECT has_table_privilege('audit_anchor', 'INSERT')"
    " AND has_table_privilege('tenant_erasure', 'INSERT')"
    " AND has_table_privilege('audit_event', 'DELETE')"
)


class Retention:
    """Anchors and erasures; changing them takes the rights of the tables' owner."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def require_owner(self) -> None:
        """Raise StartError, saying what to do, where this role may not take events away."""
        if self._tx.engine_name == "sqlite":
            return
        if not (await self._tx.execute(_MAY_TAKE)).scalar_one():
            raise StartError(
                "The service's role may add to the audit trail and take nothing away: run this"
                " command with the owner of the tables in AUTH_POSTGRESQL_URL"
            )

    async def anchor(self, tenant_id: UUID) -> Anchor | None:
        """Up to where a tenant's events are gone, None if all are there."""
        found = await self._tx.execute(select(_anchor).where(_anchor.c.tenant_id == tenant_id))
        row = found.one_or_none()
        return None if row is None else Anchor(tenant_id, Stamp(row.seq, row.hash), row.at, row.mac)

    async def set_anchor(self, tenant_id: UUID, stamp: Stamp, now: datetime) -> None:
        """Let the events up to this one go."""
        await self._tx.execute(delete(_anchor).where(_anchor.c.tenant_id == tenant_id))
        mac = seal_of(self._tx.audit_keys, b"anchor", tenant_id, stamp)
        await self._tx.execute(
            insert(_anchor).values(
                tenant_id=tenant_id, seq=stamp.revision, hash=stamp.head, at=now, mac=mac
            )
        )

    async def delete_some(self, tenant_id: UUID, most: int) -> int:
        """Delete at most so many events that the anchor lets go; how many."""
        event = models.audit_event
        some = (
            select(event.c.tenant_id, event.c.seq)
            .join(_anchor, _anchor.c.tenant_id == event.c.tenant_id)
            .where(event.c.tenant_id == tenant_id, event.c.seq <= _anchor.c.seq)
            .order_by(event.c.seq)
            .limit(most)
        )
        gone = await self._tx.execute(
            delete(event).where(tuple_(event.c.tenant_id, event.c.seq).in_(some))
        )
        return int(gone.rowcount)

    async def erasures(self) -> Sequence[Erasure]:
        """Every erasure there was."""
        found = await self._tx.execute(select(_erasure).order_by(_erasure.c.at))
        return [
            Erasure(row.erased_id, Stamp(row.revision, row.head), row.at, row.mac) for row in found
        ]

    async def record_erasure(self, tenant_id: UUID, stamp: Stamp, now: datetime) -> None:
        """Say that a tenant is being erased, unless it has been said."""
        known = await self._tx.execute(
            select(_erasure.c.erased_id).where(_erasure.c.erased_id == tenant_id)
        )
        if known.one_or_none() is not None:
            return
        mac = seal_of(self._tx.audit_keys, b"erasure", tenant_id, stamp)
        await self._tx.execute(
            insert(_erasure).values(
                erased_id=tenant_id, revision=stamp.revision, head=stamp.head, at=now, mac=mac
            )
        )
