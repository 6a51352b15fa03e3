"""What happened without changing anything: written in batches, deleted when it is old."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy import delete, insert, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.records import Happening
from authsvc.time_ids import first_id_of, new_time_id

_event = models.activity_event
_INSERT = insert(_event)


class ActivityEvents:
    """The activity of all tenants, and of none."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def add(self, happenings: Sequence[Happening]) -> None:
        """Write these, in one statement."""
        await self._tx.execute(
            _INSERT,
            [
                {
                    "id": new_time_id(one.at),
                    "tenant_id": one.tenant_id,
                    "at": one.at,
                    "action": one.action,
                    "entity_type": one.entity_type,
                    "entity_id": one.entity_id,
                    "actor": one.actor,
                    "ip_address": one.address,
                    "user_agent": one.user_agent,
                    "request_id": one.request_id,
                    "success": one.success,
                    "details": one.details,
                }
                for one in happenings
            ],
        )

    async def delete_before(self, instant: datetime, most: int) -> int:
        """Delete at most so many that are older; how many."""
        old = select(_event.c.id).where(_event.c.id < first_id_of(instant)).limit(most)
        gone = await self._tx.execute(delete(_event).where(_event.c.id.in_(old)))
        return int(gone.rowcount)
