"""The tenant's chain of policy events: appended to, read in order, never changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, exc, insert, select

from authsvc import models
from authsvc.audit_chain import read_payload
from authsvc.database import Database, Transaction
from authsvc.encryption import EVENT_PAYLOAD, EVENT_SUBJECT, PLAIN, FieldCipher, Unreadable
from authsvc.errors import Unavailable
from authsvc.records import EMPTY, AuditEvent, Stamp
from authsvc.repositories.field_ciphers import Ciphers, cipher_of, ciphers_of, read_ciphers

_event = models.audit_event
_INSERT = insert(_event)
_AFTER = (
    select(_event)
    .where(_event.c.tenant_id == bindparam("tenant"), _event.c.seq > bindparam("after"))
    .order_by(_event.c.seq)
    .limit(bindparam("most"))
)


_SINCE = (
    select(models.tenant_head.c.revision, models.tenant_head.c.head, _event)
    .outerjoin(
        _event,
        and_(
            _event.c.tenant_id == models.tenant_head.c.tenant_id,
            _event.c.seq > bindparam("after"),
            _event.c.seq <= bindparam("until"),
        ),
    )
    .where(models.tenant_head.c.tenant_id == bindparam("tenant"))
    .order_by(_event.c.seq)
)


async def events_since(
    database: Database, tenant_id: UUID, revision: int, most: int
) -> tuple[Stamp, list[AuditEvent]]:
    """The tenant's state and at most ``most`` events after a revision, in one statement."""
    rows = await database.rows(
        _SINCE, {"tenant": tenant_id, "after": revision, "until": revision + most}
    )
    if not rows:
        return EMPTY, []
    stamp = Stamp(rows[0].revision, rows[0].head)
    found = [row for row in rows if row.seq is not None]
    ciphers = await read_ciphers(database, tenant_id, {row.generation for row in found})
    return stamp, [event_of(row, ciphers) for row in found]


async def events_of(tx: Transaction, tenant_id: UUID, rows: Iterable[Row[Any]]) -> list[AuditEvent]:
    """Rows of a tenant's ``audit_event`` as records. Raises KeyMissing."""
    found = list(rows)
    ciphers = await ciphers_of(tx, tenant_id, {row.generation for row in found})
    return [event_of(row, ciphers) for row in found]


def event_of(row: Row[Any], ciphers: Ciphers) -> AuditEvent:
    """A row of ``audit_event`` as a record.

    A payload that does not open stays as it is stored: its hash tells that it was not written so.
    """
    cipher = ciphers[row.generation or PLAIN]
    payload = row.payload
    with suppress(Unreadable):
        payload = cipher.open_bytes(EVENT_PAYLOAD, payload)
    return AuditEvent(row.seq, row.at, row.payload_hash, row.hash, payload, row.mac)


def said_by(event: AuditEvent) -> dict[str, Any]:
    """What an event says. Raises Unreadable where it was changed so that it says nothing."""
    try:
        return read_payload(event)
    except ValueError:
        raise Unreadable(f"Event {event.seq} of the audit trail") from None


def subject_of(row: Row[Any], ciphers: Ciphers) -> str | None:
    """What a row is found by; as it is stored where that does not open."""
    cipher, stored = ciphers[row.generation or PLAIN], row.entity_id
    try:
        return None if stored is None else cipher.open(EVENT_SUBJECT, stored)
    except Unreadable:
        return str(stored)


def _row(
    tenant_id: UUID, cipher: FieldCipher, event: AuditEvent, said: dict[str, Any]
) -> dict[str, Any]:
    return {
        "tenant_id": tenant_id,
        "seq": event.seq,
        "at": event.at,
        "payload_hash": event.payload_hash,
        "hash": event.hash,
        "payload": cipher.seal_bytes(EVENT_PAYLOAD, event.payload),
        "mac": event.mac,
        "action": said["action"],
        "entity_type": said["entity_type"],
        "entity_id": cipher.seal(EVENT_SUBJECT, said["entity_id"]),
        "actor": said.get("actor"),
        "ip_address": said.get("ip_address"),
        "generation": None if cipher.is_plain else cipher.generation,
    }


class Audit:
    """The policy events of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def append(
        self, events: Sequence[AuditEvent], payloads: Sequence[dict[str, Any]]
    ) -> None:
        """Write events that follow the tenant's head; ``payloads`` is what they say.

        Raises Unavailable when the database refuses them: what is not recorded does not happen.
        """
        self._tx.events += len(events)
        cipher = await cipher_of(self._tx, self._tenant)
        pairs = zip(events, payloads, strict=True)
        rows = [_row(self._tenant, cipher, event, said) for event, said in pairs]
        try:
            await self._tx.execute(_INSERT, rows)
        except exc.IntegrityError as error:
            raise Unavailable(
                "The audit trail does not take the record of this change; nothing was changed."
                " Run 'authsvc audit verify' to see what it is like",
                retry_after=30,
            ) from error

    async def after(self, seq: int, most: int) -> list[AuditEvent]:
        """At most ``most`` events that follow number ``seq``, in order."""
        found = await self._tx.execute(_AFTER, {"tenant": self._tenant, "after": seq, "most": most})
        return await events_of(self._tx, self._tenant, found)
