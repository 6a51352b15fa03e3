"""Delivery of what waits for the webhook: oldest first, at least once, by one process at a time."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Protocol

import structlog

from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import AuthsvcError
from authsvc.repositories.outgoing import Message, Outgoing
from authsvc.repositories.single_flight import first_here
from authsvc.webhook import NotSent, Webhook

log = structlog.get_logger("authsvc.webhook")

GIVEN_UP_AFTER = timedelta(hours=24)
LATE = timedelta(minutes=10)
"""A message that waits longer is told by ``/health/ready``."""
_LOOKS_EVERY = 2.0
_LONGEST_PAUSE = 300.0
_MOST_AT_ONCE = 5
_CLAIM = timedelta(minutes=2)
"""Longer than the sending of so many takes."""


class Receiver(Protocol):
    """What takes a message."""

    def send(self, message_id: str, timestamp: int, body: bytes) -> None:
        """Deliver, or raise NotSent."""


class Deliveries:
    """Sends what waits as long as the service runs. ``sent`` and ``failed`` count attempts."""

    def __init__(self, database: Database, webhook: Webhook | Receiver, clock: Clock) -> None:
        self._database = database
        self._webhook = webhook
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._oldest: Message | None = None
        self._reason = ""
        self.sent = 0
        self.failed = 0
        self.waiting = 0

    @property
    def problem(self) -> str | None:
        """What is not as it should be, in a sentence for the operator; None if all is well."""
        if self._oldest is None or self._clock() - self._oldest.created_at < LATE:
            return None
        return f"the webhook does not take messages: {self._reason}"

    def start(self) -> None:
        """Send from now on until ``stop``."""
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def stop(self) -> None:
        """Stop; what waits is sent by the next process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def round(self) -> bool:
        """Send what waits; whether all of it was taken. Raises Unavailable."""
        while messages := await self._claim():
            for number, message in enumerate(messages):
                if not await self._deliver(message):
                    await self._release(messages[number:])
                    return False
        return True

    async def _release(self, messages: Sequence[Message]) -> None:
        left = [message.id for message in messages]
        await self._database.write("deliveries", lambda tx: Outgoing(tx).release(left))

    async def _claim(self) -> list[Message]:
        """Messages that nobody else sends meanwhile; if this process dies, somebody will."""

        async def claim(tx: Transaction) -> list[Message]:
            outgoing = Outgoing(tx)
            if not await first_here(tx, "deliveries"):
                tx.abandon()
                return []
            self.waiting = await outgoing.count()
            self._oldest = await outgoing.oldest() if self.waiting else None
            if not self.waiting:
                tx.abandon()
                return []
            now = self._clock()
            return await outgoing.claim(now, now + _CLAIM, _MOST_AT_ONCE)

        return await self._database.write("deliveries", claim)

    async def _deliver(self, message: Message) -> bool:
        message_id, now = message.id.hex(), self._clock()
        try:
            # A receiver that is slow keeps a thread busy and nothing else.
            await asyncio.to_thread(
                self._webhook.send, message_id, int(now.timestamp()), message.body
            )
        except NotSent as error:
            self.failed += 1
            if str(error) != self._reason:
                log.warning("webhook_failed", reason=str(error), kind=message.kind)
            self._reason = str(error)
            if now - message.created_at < GIVEN_UP_AFTER:
                return False
            log.error("webhook_given_up", kind=message.kind, id=message_id)  # noqa: TRY400
        else:
            self.sent += 1
            self._reason = ""
        await self._database.write("deliveries", lambda tx: Outgoing(tx).remove(message.id))
        self.waiting = max(0, self.waiting - 1)
        return True

    async def _go_on(self) -> None:
        pause = _LOOKS_EVERY
        while True:
            await asyncio.sleep(pause)
            try:
                done = await self.round()
            except AuthsvcError:
                done = False
            pause = _LOOKS_EVERY if done else min(2 * pause, _LONGEST_PAUSE)
