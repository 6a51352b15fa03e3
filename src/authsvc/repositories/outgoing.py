"""What is to be sent to the webhook: put down with what it is about, gone once it was taken."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, delete, func, insert, or_, select, update

from authsvc import models
from authsvc.audit_chain import canonical
from authsvc.database import Transaction
from authsvc.encryption import MESSAGE, Unreadable
from authsvc.repositories.field_ciphers import ciphers_of, held_ciphers
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

    async def put(
        self, kind: str, body: bytes, now: datetime, tenant_id: UUID | None = None
    ) -> None:
        """Have a message sent once this transaction is committed; ``tenant_id``: who it names."""
        row: dict[str, Any] = {"body": body, "generation": None}
        if tenant_id is not None:
            cipher = (await held_ciphers(self._tx, [tenant_id])).get(tenant_id)
            if cipher is None:
                row = {"body": _without_content(kind), "generation": None}
            elif not cipher.is_plain:
                sealed = cipher.seal_bytes(MESSAGE, body)
                row = {"body": sealed, "generation": cipher.generation}
        await self._tx.execute(
            insert(_outgoing).values(
                id=new_time_id(now), kind=kind, created_at=now, tenant_id=tenant_id, **row
            )
        )

    async def oldest(self) -> Message | None:
        """The one that waits longest."""
        found = await self._tx.execute(select(_outgoing).order_by(_outgoing.c.id).limit(1))
        row = found.one_or_none()
        return None if row is None else await self._message(row)

    async def claim(self, now: datetime, until: datetime, most: int) -> list[Message]:
        """At most so many messages that nobody is sending, oldest first; ours until an instant."""
        free = or_(_outgoing.c.claimed_until.is_(None), _outgoing.c.claimed_until <= now)
        found = await self._tx.execute(
            select(_outgoing).where(free).order_by(_outgoing.c.id).limit(most)
        )
        messages = [await self._message(row) for row in found.all()]
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

    async def _message(self, row: Row[Any]) -> Message:
        body = row.body
        if row.generation is not None:
            try:
                ciphers = await ciphers_of(self._tx, row.tenant_id, [row.generation])
                body = ciphers[row.generation].open_bytes(MESSAGE, body)
            except Unreadable:
                # Told without its content, so that those behind it do not wait for it.
                body = _without_content(row.kind)
        return Message(row.id, row.kind, body, row.created_at)


def _without_content(kind: str) -> bytes:
    return canonical({"type": kind, "details": "does not open"})
