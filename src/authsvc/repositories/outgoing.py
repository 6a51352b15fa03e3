"""What is to be sent to the webhook: put down with what it is about, gone once it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from sqlalchemy import Row, delete, func, insert, or_, select, update

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

    async def oldest(self) -> Message | None:
        """The one that waits longest."""
        found = await self._tx.execute(select(_outgoing).order_by(_outgoing.c.id).limit(1))
        row = found.one_or_none()
        return None if row is None else _message(row)

    async def claim(self, now: datetime, until: datetime, most: int) -> list[Message]:
        """At most so many messages that nobody is sending, oldest first; ours until an instant."""
        free = or_(_outgoing.c.claimed_until.is_(None), _outgoing.c.claimed_until <= now)
        found = await self._tx.execute(
            select(_outgoing).where(free).order_by(_outgoing.c.id).limit(most)
        )
        messages = [_message(row) for row in found]
        await self._set_claimed([message.id for message in messages], until)
        return messages

    async def release(self, message_ids: Sequence[bytes]) -> None:
        """Let others send these."""
        await self._set_claimed(message_ids, None)

    async def _set_claimed(self, message_ids: Sequence[bytes], until: datetime | None) -> None:
        if message_ids:
            await self._tx.execute(
                update(_outgoing).where(_outgoing.c.id.in_(message_ids)).values(claimed_until=until)
            )

    async def remove(self, message_id: bytes) -> None:
        """Forget a message that was taken."""
        await self._tx.execute(delete(_outgoing).where(_outgoing.c.id == message_id))

    async def count(self) -> int:
        """How many wait."""
        found = await self._tx.execute(select(func.count()).select_from(_outgoing))
        return int(found.scalar_one())


def _message(row: Row[Any]) -> Message:
    return Message(row.id, row.kind, row.body, row.created_at)
