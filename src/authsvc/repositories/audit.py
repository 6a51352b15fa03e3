"""The tenant's chain of policy events: appended to, read in order, never changed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import Row, and_, bindparam, exc, insert, select

from authsvc import models
from authsvc.database import Database, Transaction
from authsvc.errors import Unavailable
from authsvc.records import EMPTY, AuditEvent, Stamp

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
    return stamp, [event_of(row) for row in rows if row.seq is not None]


def event_of(row: Row[Any]) -> AuditEvent:
    """A row of ``audit_event`` as a record."""
    return AuditEvent(row.seq, row.at, row.payload_hash, row.hash, row.payload, row.mac)


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
        try:
            await self._tx.execute(
                _INSERT,
                [
                    {
                        "tenant_id": self._tenant,
                        "seq": event.seq,
                        "at": event.at,
                        "payload_hash": event.payload_hash,
                        "hash": event.hash,
                        "payload": event.payload,
                        "mac": event.mac,
                        "action": said["action"],
                        "entity_type": said["entity_type"],
                        "entity_id": said["entity_id"],
                        "actor": said.get("actor"),
                        "ip_address": said.get("ip_address"),
                    }
                    for event, said in zip(events, payloads, strict=True)
                ],
            )
        except exc.IntegrityError as error:
            raise Unavailable(
                "The audit trail does not take the record of this change; nothing was changed."
                " Run 'authsvc audit verify' to see what it is like",
                retry_after=30,
            ) from error

    async def after(self, seq: int, most: int) -> list[AuditEvent]:
        """At most ``most`` events that follow number ``seq``, in order."""
        found = await self._tx.execute(_AFTER, {"tenant": self._tenant, "after": seq, "most": most})
        return [event_of(row) for row in found]
