"""Signed checkpoints, and which heads they are still to be about."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy import Row, bindparam, func, insert, or_, select
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.checkpoints import Checkpoint
from authsvc.database import Transaction
from authsvc.records import Stamp

_checkpoint = models.audit_checkpoint
_head = models.tenant_head
_progress = models.audit_progress


class Checkpoints:
    """The checkpoints of the installation, by number."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def last(self) -> Checkpoint | None:
        """The newest one."""
        found = await self._tx.execute(
            select(_checkpoint).order_by(_checkpoint.c.number.desc()).limit(1)
        )
        row = found.one_or_none()
        return None if row is None else _record(row)

    async def after(self, number: int, most: int) -> list[Checkpoint]:
        """At most so many that follow a number, in order."""
        found = await self._tx.execute(
            select(_checkpoint)
            .where(_checkpoint.c.number > number)
            .order_by(_checkpoint.c.number)
            .limit(most)
        )
        return [_record(row) for row in found]

    async def add(self, checkpoint: Checkpoint) -> None:
        """Store the next one."""
        await self._tx.execute(
            insert(_checkpoint).values(
                number=checkpoint.number,
                at=checkpoint.at,
                body=checkpoint.body,
                signature=checkpoint.signature,
            )
        )

    async def unsigned_heads(self, most: int) -> dict[UUID, Stamp]:
        """At most so many tenants that have changed since a checkpoint last named them."""
        found = await self._tx.execute(
            select(_head.c.tenant_id, _head.c.revision, _head.c.head)
            .outerjoin(_progress, _progress.c.tenant_id == _head.c.tenant_id)
            .where(
                _head.c.revision > 0,
                or_(_progress.c.signed.is_(None), _progress.c.signed != _head.c.revision),
            )
            .limit(most)
        )
        return {row.tenant_id: Stamp(row.revision, row.head) for row in found}

    async def set_signed(self, heads: dict[UUID, Stamp]) -> None:
        """Remember that these heads stand in a checkpoint."""
        on_conflict = postgresql if self._tx.engine_name == "postgresql" else sqlite
        adding = on_conflict.insert(_progress).values(
            tenant_id=bindparam("tenant", type_=_progress.c.tenant_id.type),
            signed=bindparam("revision"),
            watched=0,
        )
        await self._tx.execute(
            adding.on_conflict_do_update(
                index_elements=["tenant_id"], set_={"signed": adding.excluded.signed}
            ),
            [{"tenant": tenant, "revision": stamp.revision} for tenant, stamp in heads.items()],
        )

    async def gone_since(self, at: datetime | None) -> tuple[dict[UUID, Stamp], dict[UUID, Stamp]]:
        """The anchors and the erasures put down since an instant (None: ever)."""
        anchor, erasure = models.audit_anchor, models.tenant_erasure
        anchors = select(anchor.c.tenant_id, anchor.c.seq, anchor.c.hash)
        erased = select(erasure.c.erased_id, erasure.c.revision, erasure.c.head)
        if at is not None:
            anchors, erased = anchors.where(anchor.c.at >= at), erased.where(erasure.c.at >= at)
        return (
            {row.tenant_id: Stamp(row.seq, row.hash) for row in await self._tx.execute(anchors)},
            {
                row.erased_id: Stamp(row.revision, row.head)
                for row in await self._tx.execute(erased)
            },
        )

    async def count(self) -> int:
        """How many there are."""
        found = await self._tx.execute(select(func.count()).select_from(_checkpoint))
        return int(found.scalar_one())

    async def hashes(self, tenant_ids: Sequence[UUID], states: dict[UUID, Stamp]) -> set[UUID]:
        """Those of these tenants whose trail holds the given state: the event, or the anchor."""
        event, anchor = models.audit_event, models.audit_anchor
        holding = set()
        for tenant_id in tenant_ids:
            stamp = states[tenant_id]
            found = await self._tx.execute(
                select(event.c.hash).where(
                    event.c.tenant_id == tenant_id, event.c.seq == stamp.revision
                )
            )
            kept = await self._tx.execute(
                select(anchor.c.seq, anchor.c.hash).where(anchor.c.tenant_id == tenant_id)
            )
            past = kept.one_or_none()
            pruned = past is not None and (
                past.seq > stamp.revision or (past.seq, past.hash) == tuple(stamp)
            )
            if pruned or found.scalar_one_or_none() == stamp.head:
                holding.add(tenant_id)
        return holding


def _record(row: Row[Any]) -> Checkpoint:
    return Checkpoint(row.number, row.at, row.body, row.signature)
