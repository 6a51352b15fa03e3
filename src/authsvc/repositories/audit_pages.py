"""A tenant's events in order, page by page, with what is searched beside them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, select

from authsvc import models
from authsvc.database import Transaction
from authsvc.records import AuditEvent
from authsvc.repositories.audit import event_of, subject_of
from authsvc.repositories.field_ciphers import ciphers_of

_event = models.audit_event
SEARCHED = ("action", "entity_type", "entity_id", "actor", "ip_address")
"""The columns that repeat what the payload says."""
_PAGE = 1000
_NEXT = (
    select(_event)
    .where(
        _event.c.tenant_id == bindparam("tenant"),
        _event.c.seq > bindparam("after"),
        _event.c.seq <= bindparam("until"),
    )
    .order_by(_event.c.seq)
    .limit(_PAGE)
)
_ALL = 2**62


class Stored(NamedTuple):
    """One event as its row has it; ``searched`` in the order of ``SEARCHED``."""

    event: AuditEvent
    searched: tuple[str | None, ...]


async def pages(
    tx: Transaction, tenant_id: UUID, after: int, until: int = _ALL
) -> AsyncIterator[list[Stored]]:
    """The events that follow number ``after``, at most 1000 at a time."""
    while True:
        given = {"tenant": tenant_id, "after": after, "until": until}
        rows = (await tx.execute(_NEXT, given)).all()
        ciphers = await ciphers_of(tx, tenant_id, {row.generation for row in rows})
        page = [
            Stored(
                event_of(row, ciphers),
                (
                    row.action,
                    row.entity_type,
                    subject_of(row, ciphers),
                    row.actor,
                    row.ip_address,
                ),
            )
            for row in rows
        ]
        if page:
            yield page
        if len(page) < _PAGE:
            return
        after = page[-1].event.seq


async def last_before(tx: Transaction, tenant_id: UUID, instant: object) -> int | None:
    """The number of the newest event of all those older than an instant that come first.

    An event that is older than its predecessor (the clocks of two machines) ends the run.
    """
    mine = _event.c.tenant_id == tenant_id
    younger = await tx.execute(select(func.min(_event.c.seq)).where(mine, _event.c.at >= instant))
    first = younger.scalar_one()
    older = select(func.max(_event.c.seq)).where(mine)
    if first is not None:
        older = older.where(_event.c.seq < first)
    found = (await tx.execute(older)).scalar_one()
    return None if found is None else int(found)
