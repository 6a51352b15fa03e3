"""Which grants let checks through: noted in memory, worked out and written once an hour.

A check only notes who was allowed what; which grants that rests on is found out later, off its
path. A process that is stopped writes what it has; one that is killed loses up to an hour of it.
That may make a grant look unused for longer than it is, and nothing else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from uuid import UUID

from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import AuthsvcError, Unavailable
from authsvc.repositories.grant_use import GrantUses
from authsvc.repositories.roles import Roles
from authsvc.services.checks import Question, explain

EVERY_SECONDS = 3600.0
MOST_NOTED = 100_000
"""Different allowed questions that are noted between two writings; with more, it writes early."""
_TOGETHER = 200
_ANSWERS = tuple[str, str, str | None]


class GrantUse:
    """The allowed questions that one process has seen and not worked out yet."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._noted: dict[UUID, set[_ANSWERS]] = {}
        self._count = 0
        self._wake = asyncio.Event()
        self._writer: asyncio.Task[None] | None = None
        self.problem: str | None = None
        self.skipped = 0

    def note(self, tenant_id: UUID, user: str, permission: str, scope: str | None = None) -> None:
        """Note that a check was allowed."""
        noted = self._noted.get(tenant_id)
        if noted is None:
            noted = self._noted[tenant_id] = set()
        answer = (user, permission, scope)
        if answer in noted:
            return
        if self._count >= MOST_NOTED:
            self.skipped += 1
            return
        noted.add(answer)
        self._count += 1
        if self._count >= MOST_NOTED:
            self._wake.set()

    def note_all(self, tenant_id: UUID, answers: Iterable[_ANSWERS]) -> None:
        """Note many that were allowed: user, permission, scope."""
        for user, permission, scope in set(answers) - self._noted.get(tenant_id, set()):
            self.note(tenant_id, user, permission, scope)

    def start(self) -> None:
        """Write from now on once an hour, until ``stop``."""
        self._writer = asyncio.get_running_loop().create_task(self._write_on())

    async def stop(self) -> None:
        """Write what is left and end."""
        if self._writer is not None:
            self._writer.cancel()
            await asyncio.gather(self._writer, return_exceptions=True)
            self._writer = None
            await self._try()

    async def flush(self) -> None:
        """Work out and write what is noted. Raises Unavailable; the rest stays noted."""
        refused: Unavailable | None = None
        for tenant_id in list(self._noted):
            try:
                await self._flush_tenant(tenant_id)
            except Unavailable as error:
                # Perhaps only this one's key does not open: the others do not wait for it.
                refused = error
        if refused is not None:
            raise refused

    async def _flush_tenant(self, tenant_id: UUID) -> None:
        noted = self._noted[tenant_id]
        while noted:
            some = list(islice(noted, _TOGETHER))
            await self._write(tenant_id, some)
            noted.difference_update(some)
            self._count -= len(some)
            await asyncio.sleep(0)
        if self._noted.get(tenant_id) == set():
            del self._noted[tenant_id]

    async def _write(self, tenant_id: UUID, some: Iterable[_ANSWERS]) -> None:
        now = self._clock()
        questions = [Question(*answer) for answer in some]
        answers, _stamp = await explain(self._database, tenant_id, questions, now)
        used = {(ground.role, ground.permission) for one in answers for ground in one.grounds}
        if used:
            await self._database.write("grant use", lambda tx: _store(tx, tenant_id, used, now))

    async def _write_on(self) -> None:
        while True:
            self._wake.clear()
            try:
                async with asyncio.timeout(EVERY_SECONDS):
                    await self._wake.wait()
            except TimeoutError:
                pass
            await self._try()

    async def _try(self) -> None:
        try:
            await self.flush()
            self.problem = None
        except AuthsvcError as error:
            # Nothing else depends on it: left for the next time.
            self.problem = f"the use of grants is not recorded: {error.message}"


async def _store(
    tx: Transaction, tenant_id: UUID, used: set[tuple[str, str]], now: datetime
) -> None:
    roles = await Roles(tx, tenant_id).named({role for role, _ in used})
    grants = {(roles[role].id, permission) for role, permission in used if role in roles}
    await GrantUses(tx, tenant_id).write(grants, now)
