"""Checkpoints, made while the service runs: signed, stored, and carried out of the database.

Once a minute, or after 1000 events of this process, whoever comes first lists the heads that have
changed. A place that cannot be written to never holds up a change of policy: what it lacks is
added later, and until then said.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from authsvc.audit_chain import canonical
from authsvc.checkpoint_file import CheckpointFile
from authsvc.checkpoints import Checkpoint, said, signed
from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.errors import AuthsvcError, DamagedError, StartError, Unavailable
from authsvc.repositories import checkpoints as repository
from authsvc.repositories.outgoing import Outgoing
from authsvc.repositories.single_flight import first_here

log = structlog.get_logger("authsvc.checkpoints")

EVERY = timedelta(seconds=60)
EVENTS = 1000
_LOOK_BACK = timedelta(hours=1)
_MOST_HEADS = 10_000
_PAGE = 500
_COMPARED_EVERY = timedelta(hours=1)


async def make_checkpoint(
    database: Database,
    key: Ed25519PrivateKey,
    clock: Clock,
    *,
    send: bool = False,
    even_empty: bool = False,
) -> Checkpoint | None:
    """Sign the heads that have changed since the last checkpoint; None if nothing is to be signed.

    ``send``: have it sent to the webhook. ``even_empty``: sign also that nothing has changed.
    With more heads than one checkpoint holds several are made; the last is returned.
    """
    made = None
    while True:
        empty = even_empty and made is None
        newer = await database.write(
            "checkpoint",
            lambda tx, empty=empty: _make(tx, key, clock, send=send, even_empty=empty),  # type: ignore[misc]
        )
        if newer is None:
            return made
        made = newer
        if len(said(made.body).heads) < _MOST_HEADS:
            return made


async def _make(
    tx: Transaction, key: Ed25519PrivateKey, clock: Clock, *, send: bool, even_empty: bool
) -> Checkpoint | None:
    if not await first_here(tx, "checkpoint"):
        tx.abandon()
        return None
    stored = repository.Checkpoints(tx)
    before = await stored.last()
    heads = await stored.unsigned_heads(_MOST_HEADS)
    # Longer back than the last one, because what is put down late is dated before its commit.
    since = None if before is None else before.at - _LOOK_BACK
    anchors, erased = await stored.gone_since(since)
    if before is not None:
        known = said(before.body)
        told = anchors.items() <= known.anchors.items() and erased.items() <= known.erased.items()
        if not heads and told and not even_empty:
            tx.abandon()
            return None
    elif not heads and not even_empty:
        tx.abandon()
        return None
    now = clock()
    made = signed(key, before, now, heads, anchors, erased)
    await stored.add(made)
    if heads:
        await stored.set_signed(heads)
    if send:
        body = {
            "type": "checkpoint",
            "checkpoint": made.body.decode(),
            "signature": made.signature.hex(),
        }
        await Outgoing(tx).put("checkpoint", canonical(body), now)
    return made


async def stored_checkpoints(tx: Transaction, after: int = 0) -> AsyncIterator[Checkpoint]:
    """The checkpoints of the database after a number, in order."""
    stored = repository.Checkpoints(tx)
    while page := await stored.after(after, _PAGE):
        for checkpoint in page:
            yield checkpoint
        after = page[-1].number


async def refuse_older_state(database: Database, file: CheckpointFile) -> None:
    """Compare the database with the newest checkpoint of a file outside it.

    Raises DamagedError if the database holds an older or another state: a copy was restored, or
    the end of a trail was cut.
    """
    last = file.last()
    if last is None:
        return
    told = said(last.body)
    async with database.read() as tx:
        stored = repository.Checkpoints(tx)
        _, erased = await stored.gone_since(None)
        wanted = [tenant for tenant in told.heads if tenant not in erased]
        holding = await stored.hashes(wanted, told.heads)
    lost = sorted(str(tenant) for tenant in wanted if tenant not in holding)
    if lost:
        raise DamagedError(
            f"The database does not hold what checkpoint {last.number} of {file.path} says about"
            f" {len(lost)} tenants, first {lost[0]}: an older copy was restored, or the end of the"
            " audit trail was cut. 'authsvc audit verify' tells more. If you restored a backup on"
            " purpose, move that file away and keep it"
        )


class CheckpointMaker:
    """Makes checkpoints as long as the service runs, and carries them to the file."""

    def __init__(
        self,
        database: Database,
        key: Ed25519PrivateKey,
        clock: Clock,
        *,
        file: CheckpointFile | None = None,
        send: bool = False,
    ) -> None:
        """``send``: put them down for the webhook as well."""
        self._database = database
        self._key = key
        self._clock = clock
        self._file = file
        self._send = send
        self._carried = 0
        self._task: asyncio.Task[None] | None = None
        self._stopped: str | None = None
        self._lost: str | None = None
        self.made = 0

    @property
    def problem(self) -> str | None:
        """What is not as it should be, in a sentence for the operator; None if all is well."""
        return self._lost or self._stopped

    def start(self) -> None:
        """Work from now on until ``stop``."""
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def stop(self) -> None:
        """Make the last one and end."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None
            await self.round()

    async def round(self) -> None:
        """Make a checkpoint if there is anything to sign, and carry out what is not outside yet."""
        try:
            if await make_checkpoint(self._database, self._key, self._clock, send=self._send):
                self.made += 1
            await self._carry()
            self._tell(None)
        except (AuthsvcError, OSError) as error:
            reason = error.message if isinstance(error, AuthsvcError) else error.strerror
            self._tell(f"checkpoints are not carried out of the database: {reason}")

    async def _carry(self) -> None:
        if self._file is None:
            return
        async with self._database.read() as tx:
            found = [checkpoint async for checkpoint in stored_checkpoints(tx, self._carried)]
        if found:
            await asyncio.to_thread(self._file.add, found)
            self._carried = found[-1].number

    def _tell(self, problem: str | None) -> None:
        if problem is not None and problem != self._stopped:
            log.error("checkpoints_stopped", reason=problem)
        self._stopped = problem

    async def _go_on(self) -> None:
        loop = asyncio.get_running_loop()
        events, compared = self._database.events_written, loop.time()
        while True:
            await self.round()
            now = loop.time()
            if self._file is not None and now - compared > _COMPARED_EVERY.total_seconds():
                compared = now
                await self._compare(self._file)
            since = loop.time()
            while loop.time() - since < EVERY.total_seconds():
                await asyncio.sleep(1)
                if self._database.events_written - events >= EVENTS:
                    break
            events = self._database.events_written

    async def _compare(self, file: CheckpointFile) -> None:
        try:
            await refuse_older_state(self._database, file)
        except (DamagedError, StartError) as error:
            self._lost = error.message
            log.error("checkpoint_not_held", reason=error.message)  # noqa: TRY400 - all is said
        except Unavailable:
            return
        else:
            self._lost = None
