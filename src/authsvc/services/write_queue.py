"""Single writes of one tenant that wait at the same time, written in one transaction.

A commit takes as long for one change as for sixty, and a tenant's writers have to wait for each
other anyway. So whoever comes while a transaction is under way is in the next one, together with
all others who came. Each write keeps an answer, an event and a revision of its own, and fails
alone where it is to blame; only what is wrong with the database meets all of them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any
from uuid import UUID

from authsvc.change_set import ChangeSet
from authsvc.clock import Clock
from authsvc.database import QUEUE_SECONDS, Database, Transaction
from authsvc.decision_cache import Credential
from authsvc.errors import AuthsvcError, Busy
from authsvc.records import AuditEvent, Caller, Change, Effect, Stamp
from authsvc.services.changes import (
    Outcome,
    append,
    lock_tenant,
    origin,
    recheck,
    touched_by,
    write_rows,
)
from authsvc.services.current_state import CurrentState

_MOST_TOGETHER = 64


@dataclass(slots=True, eq=False)
class Wanted:
    """One change, and whoever waits for its outcome."""

    caller: Caller
    change: Change
    answer: asyncio.Future[Outcome]
    since: float


@dataclass(slots=True)
class Written:
    """What came of writes that were written together; ``events`` lead away from ``before``."""

    before: Stamp
    events: list[AuditEvent]
    outcomes: list[Outcome | AuthsvcError] = field(default_factory=list)


class WriteQueue:
    """The single writes of all tenants of one process."""

    def __init__(self, database: Database, clock: Clock, current: CurrentState) -> None:
        self._database = database
        self._clock = clock
        self._current = current
        self._waiting: dict[UUID, list[Wanted]] = {}
        self._writers: set[asyncio.Task[None]] = set()

    async def apply(self, tenant_id: UUID, caller: Caller, change: Change) -> Outcome:
        """Apply one change for a caller of this tenant, committed on return.

        A request that goes away before its turn leaves nothing; later, its write is whole.
        Raises what ``apply_changes`` and ``Database.write`` raise.
        """
        loop = asyncio.get_running_loop()
        wanted = Wanted(caller, change, loop.create_future(), loop.time())
        waiting = self._waiting.get(tenant_id)
        if waiting is not None:
            waiting.append(wanted)
        else:
            self._waiting[tenant_id] = [wanted]
            writer = loop.create_task(self._write_all(tenant_id))
            self._writers.add(writer)
            writer.add_done_callback(self._writers.discard)
        return await wanted.answer

    async def _write_all(self, tenant_id: UUID) -> None:
        """Write until nobody waits."""
        waiting = self._waiting[tenant_id]
        try:
            while waiting:
                await self._write(tenant_id, waiting)
        finally:
            del self._waiting[tenant_id]

    async def _write(self, tenant_id: UUID, waiting: list[Wanted]) -> None:
        """One transaction with those who wait by the time it has the tenant's lock."""
        group: list[Wanted] = []

        def take() -> list[Wanted]:
            group.extend(_next(waiting))
            return group

        try:
            written = await self._database.write(
                tenant_id, lambda tx: write_together(tx, tenant_id, take, self._clock)
            )
        except AuthsvcError as error:
            for wanted in group or _next(waiting):
                _refuse(wanted, error)
        except Exception as error:
            # A bug, or data the database does not take: whose it is shows one by one.
            if len(group) > 1:
                for wanted in group:
                    await self._write(tenant_id, [wanted])
            else:
                for wanted in group or _next(waiting):
                    _refuse(wanted, error)
        else:
            if written.events:
                self._current.committed(tenant_id, written.before, written.events)
            for wanted, outcome in zip(group, written.outcomes, strict=True):
                if isinstance(outcome, AuthsvcError):
                    _refuse(wanted, outcome)
                elif not wanted.answer.done():
                    wanted.answer.set_result(outcome)


def _next(waiting: list[Wanted]) -> list[Wanted]:
    """Take those whose turn it is off the list; who has waited too long is told so."""
    group = [wanted for wanted in waiting[:_MOST_TOGETHER] if not wanted.answer.done()]
    del waiting[:_MOST_TOGETHER]
    oldest = asyncio.get_running_loop().time() - QUEUE_SECONDS
    for wanted in group:
        if wanted.since < oldest:
            message = "Too many writes are waiting; nothing was changed, try again"
            _refuse(wanted, Busy(message))
    return [wanted for wanted in group if not wanted.answer.done()]


def _refuse(wanted: Wanted, error: Exception) -> None:
    if not wanted.answer.done():
        wanted.answer.set_exception(error)


async def write_together(
    tx: Transaction, tenant_id: UUID, take: Callable[[], Sequence[Wanted]], clock: Clock
) -> Written:
    """Apply single changes one after the other in one transaction, as ``apply_changes`` would.

    ``take`` is called once the tenant is locked, since others come while that is waited for. A
    change that is refused (its caller's credential has ended, its role does not exist) takes
    nothing from the others.
    """
    before = await lock_tenant(tx, tenant_id)
    now = clock()
    group = take()
    refused: dict[Wanted, AuthsvcError] = {}
    # Most of a group come with the same key: it is looked up once for all of them.
    credentials: dict[bytes | str, Credential | None] = {}
    for wanted in group:
        try:
            await recheck(tx, wanted.caller, before, now, credentials)
        except AuthsvcError as error:
            refused[wanted] = error
    admitted = [wanted.change for wanted in group if wanted not in refused]
    touched = await touched_by(tx, tenant_id, admitted, now)
    change_set = ChangeSet(touched, before.revision + 1, now)
    payloads: list[dict[str, Any]] = []
    effects: dict[Wanted, tuple[Effect, int]] = {}
    for wanted in group:
        if wanted in refused:
            continue
        try:
            # A single change is refused before it has touched anything.
            effect = change_set.apply(0, wanted.change)
        except AuthsvcError as error:
            refused[wanted] = error
            continue
        by = origin(wanted.caller, wanted.caller.key_id)
        payloads += [by | event for event in change_set.events[len(payloads) :]]
        effects[wanted] = (effect, len(payloads))

    events: list[AuditEvent] = []
    if payloads:
        await write_rows(tx, tenant_id, change_set.rows(), now)
        events = await append(tx, tenant_id, before, payloads, now)
    else:
        tx.abandon()
    stamps = [before, *(event.stamp for event in events)]
    written = Written(before, events)
    for wanted in group:
        if wanted in refused:
            written.outcomes.append(refused[wanted])
        else:
            effect, reached = effects[wanted]
            written.outcomes.append(Outcome(stamps[reached], [effect]))
    return written
