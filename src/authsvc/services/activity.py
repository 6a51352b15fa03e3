"""Activity events: what happened without changing anything, written beside the requests.

They are put into a queue and written every 100 ms, or 500 together. A process that is stopped
writes what is left; one that is killed loses what it had not written: at most 100 ms of it while
the database answers, at most the queue of 10 000 while it does not. A full queue never holds up a
request: what does not fit is counted, said by ``/health/ready``, and recorded as soon as there is
room.

Failed authentication is counted by address, reason and ten seconds, so that a flood of it writes
a few rows.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import structlog

from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import Unavailable
from authsvc.records import Caller, Happening
from authsvc.repositories.activity import ActivityEvents

log = structlog.get_logger("authsvc.activity")

EVERY_SECONDS = 0.1
MOST_TOGETHER = 500
MOST_WAITING = 10_000
WINDOW_SECONDS = 10
MOST_WINDOWS = 5_000
"""Different addresses and reasons that are told apart within one window; the rest is one row."""
_LONGEST_PAUSE = 5.0
_OTHERS = "others"


@dataclass(frozen=True, slots=True)
class _Failures:
    """Whose failures count together."""

    window: int
    address: str
    reason: str
    tenant_id: UUID | None
    key_id: str | None


class Activity:
    """The activity that one process has seen and not written yet.

    ``recorded`` and ``dropped`` count events, ``failures`` counts failed authentication by reason.
    """

    def __init__(
        self, database: Database, clock: Clock, *, enabled: bool, checks: str = "off"
    ) -> None:
        """``checks``: which of them are recorded, ``off``, ``deny`` or ``all``."""
        self._database = database
        self._clock = clock
        self._enabled = enabled
        self._waiting: list[Happening] = []
        self._windows: dict[_Failures, int] = {}
        self._unsaid = 0
        self._full = False
        self._wake = asyncio.Event()
        self._flushing = asyncio.Lock()
        self._writer: asyncio.Task[None] | None = None
        self.records_denied = enabled and checks in ("deny", "all")
        self.records_allowed = enabled and checks == "all"
        self.recorded = 0
        self.dropped = 0
        self.failures: Counter[str] = Counter()

    @property
    def reduced(self) -> str | None:
        """Why not everything is recorded; None if it is."""
        return (
            "Activity events are dropped: the database does not take them" if self._full else None
        )

    def note(
        self,
        action: str,
        entity_type: str,
        entity_id: str,
        by: Caller,
        at: datetime,
        details: dict[str, Any],
        *,
        success: bool = True,
    ) -> None:
        """Have something recorded that a caller did."""
        if self._enabled:
            self._put(
                Happening(
                    at,
                    by.tenant_id,
                    action,
                    entity_type,
                    entity_id,
                    by.key_id,
                    by.address,
                    by.user_agent,
                    by.request_id,
                    success,
                    details,
                )
            )

    def check(
        self, by: Caller, at: datetime, user: str, permission: str, scope: str | None, allowed: bool
    ) -> None:
        """Have a check recorded, if checks of its outcome are."""
        if self.records_allowed if allowed else self.records_denied:
            details = {"user": user} if scope is None else {"user": user, "scope": scope}
            self.note("check", "permission", permission, by, at, details, success=allowed)

    def failed(self, reason: str, address: str, of: tuple[UUID, str] | None, at: datetime) -> None:
        """Count a credential that was refused. ``address`` is what counts as one; ``of`` the tenant
        and the key it belongs to, where that is known.
        """
        self.failures[reason] += 1
        if not self._enabled:
            return
        window = int(at.timestamp()) // WINDOW_SECONDS
        tenant_id, key_id = of or (None, None)
        place = _Failures(window, address, reason, tenant_id, key_id)
        if place not in self._windows and len(self._windows) >= MOST_WINDOWS:
            place = _Failures(window, _OTHERS, _OTHERS, None, None)
        self._windows[place] = self._windows.get(place, 0) + 1

    def _put(self, happening: Happening) -> None:
        if len(self._waiting) >= MOST_WAITING:
            self.dropped += 1
            self._unsaid += 1
            if not self._full:
                self._full = True
                log.error("activity_dropped", waiting=len(self._waiting))
            return
        self._waiting.append(happening)
        if len(self._waiting) >= MOST_TOGETHER:
            self._wake.set()

    def start(self) -> None:
        """Write from now on until ``stop``."""
        if self._enabled:
            self._writer = asyncio.get_running_loop().create_task(self._write_on())

    async def stop(self) -> None:
        """Write what is left, as far as the database takes it, and end."""
        if self._writer is None:
            return
        async with self._flushing:
            # Not while it writes: what was committed would be written again.
            self._writer.cancel()
        await asyncio.gather(self._writer, return_exceptions=True)
        self._writer = None
        self._close_windows(everything=True)
        try:
            await self.flush()
        except Unavailable:
            log.exception("activity_lost", events=len(self._waiting))

    async def flush(self) -> None:
        """Write what waits. Raises Unavailable; what was not written waits on."""
        async with self._flushing:
            while self._waiting:
                some = self._waiting[:MOST_TOGETHER]

                async def work(tx: Transaction, some: list[Happening] = some) -> None:
                    await ActivityEvents(tx).add(some)

                await self._database.write("activity", work)
                del self._waiting[: len(some)]
                self.recorded += len(some)
                self._say_what_was_dropped()

    def _say_what_was_dropped(self) -> None:
        if self._unsaid and len(self._waiting) < MOST_WAITING:
            count, self._unsaid, self._full = self._unsaid, 0, False
            self._put(_nobodys("drop", "activity", "queue", self._clock(), {"count": count}))

    def _close_windows(self, *, everything: bool = False) -> None:
        """Make one event of every window of failures that is over."""
        if not self._windows:
            return
        current = int(self._clock().timestamp()) // WINDOW_SECONDS
        for place in [p for p in self._windows if everything or p.window < current]:
            count = self._windows.pop(place)
            at = datetime.fromtimestamp(place.window * WINDOW_SECONDS, UTC)
            details = {"count": count, "reason": place.reason, "seconds": WINDOW_SECONDS}
            name, key_id = place.key_id or place.reason, place.key_id
            self._put(
                replace(
                    _nobodys("auth_failure", "credential", name, at, details),
                    tenant_id=place.tenant_id,
                    actor=key_id,
                    address=place.address,
                )
            )

    async def _write_on(self) -> None:
        pause = EVERY_SECONDS
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(pause):
                    await self._wake.wait()
            except TimeoutError:
                pass
            self._close_windows()
            try:
                await self.flush()
                pause = EVERY_SECONDS
            except Unavailable:
                # Wait longer each time: the database has other things to recover from.
                pause = min(2 * pause, _LONGEST_PAUSE)
                await asyncio.sleep(pause)


def _nobodys(
    action: str, entity_type: str, entity_id: str, at: datetime, details: dict[str, Any]
) -> Happening:
    return Happening(
        at, None, action, entity_type, entity_id, None, None, None, None, False, details
    )
