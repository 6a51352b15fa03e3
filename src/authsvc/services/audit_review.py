"""A look at the audit trail of every tenant: can it be written, and does its end hold together?"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from authsvc.audit_chain import first_broken
from authsvc.database import Database, Transaction
from authsvc.records import EMPTY, Stamp
from authsvc.repositories.audit import events_since
from authsvc.services.tenants import create_tenant, list_tenants

_EVENTS = 1000


@dataclass(frozen=True, slots=True)
class Review:
    """How much was looked at, and the tenants whose trail does not hold together."""

    tenants: int
    events: int
    broken: Sequence[str]


async def try_to_write(database: Database, now: datetime) -> None:
    """Write audit events as a change does, and roll them back. Raises what a write raises."""

    async def work(tx: Transaction) -> None:
        # Rolled back whatever happens: nothing of it is ever seen.
        tx.abandon()
        name = f"trial-{uuid.uuid4().hex}"
        await create_tenant(tx, name, now, actor="doctor", label="trial")

    await database.write("doctor", work)


async def review(database: Database) -> Review:
    """Verify the last 1000 events of each tenant against its head."""
    async with database.read() as tx:
        found = await list_tenants(tx)
    looked_at, broken = 0, []
    for tenant, revision in found:
        # One event more than is verified: the one that the others follow.
        after = max(0, revision - _EVENTS - 1)
        end, events = await events_since(database, tenant.id, after, 2 * _EVENTS)
        start = EMPTY
        if after:
            first, events = events[:1], events[1:]
            start = first[0].stamp if first else Stamp(after, b"")
        looked_at += len(events)
        if first_broken(tenant.id, start, events, end) is not None:
            broken.append(tenant.name)
    return Review(len(found), looked_at, broken)
