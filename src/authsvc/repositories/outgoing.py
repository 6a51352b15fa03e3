"""What is to be sent to the webhook: put down with what it is about, gone once it was taken."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import delete, func, insert, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.time_ids import new_time_id

_outgoing = models.outgoing


@dataclass(frozen=True, slots=True)
class Message:
    """One message: ``kind`` is ``alert`` or ``checkpoint``, ``body`` JSON."""

    id: bytes
    kind: str
    body: bytes
    created_at: datetime


class Outgoing:
    """The messages that wait, oldest first."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def put(self, kind: str, body: bytes, now: datetime) -> None:
        """Have a message sent once this transaction is committed."""
        await self._tx.execute(
            insert(_outgoing).values(id=new_time_id(now), kind=kind, body=body, created_at=now)
        )

    async def oldest(self, most: int) -> list[Message]:
        """At most so many messages."""
        found = await self._tx.execute(select(_outgoing).order_by(_outgoing.c.id).limit(most))
        return [Message(row.id, row.kind, row.body, row.created_at) for row in found]

    async def remove(self, message_id: bytes) -> None:
        """Forget a message that was taken."""
        await self._tx.execute(delete(_outgoing).where(_outgoing.c.id == message_id))

    async def count(self) -> int:
        """How many wait."""
        found = await self._tx.execute(select(func.count()).select_from(_outgoing))
        return int(found.scalar_one())
