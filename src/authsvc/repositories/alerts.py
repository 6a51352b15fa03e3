"""What alerts are judged by, and what of it has been looked at."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, NamedTuple
from uuid import UUID

from sqlalchemy import bindparam, func, insert, literal, select
from sqlalchemy.dialects import postgresql, sqlite

from authsvc import models
from authsvc.alerting import Seen
from authsvc.database import Transaction
from authsvc.repositories.audit import events_of, said_by
from authsvc.time_ids import first_id_of

_head = models.tenant_head
_progress = models.audit_progress
_event = models.audit_event
_activity = models.activity_event
_begun = models.alerts_begun
_GIVING = ("grant", "add")


class Behind(NamedTuple):
    """A tenant with events that have not been looked at."""

    tenant_id: UUID
    name: str
    watched: int
    revision: int


class AlertSources:
    """The events of all tenants, and how far they have been looked at."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def begin(self, now: datetime) -> bool:
        """Take what is there as history, once; False if that has been done."""
        if (await self._tx.execute(select(_begun.c.id))).first() is not None:
            return False
        await self._tx.execute(insert(_begun).values(id=1, at=now))
        adding = self._on_conflict().from_select(
            ["tenant_id", "signed", "watched"],
            # SQLite takes ON CONFLICT after a SELECT for a join unless there is a WHERE.
            select(_head.c.tenant_id, literal(0), _head.c.revision).where(_head.c.revision >= 0),
        )
        await self._tx.execute(
            adding.on_conflict_do_update(
                index_elements=["tenant_id"], set_={"watched": adding.excluded.watched}
            )
        )
        return True

    def _on_conflict(self) -> Any:
        engine = postgresql if self._tx.engine_name == "postgresql" else sqlite
        return engine.insert(_progress)

    async def behind(self, most: int, but: Iterable[UUID]) -> list[Behind]:
        """At most so many tenants that have events to be looked at, except for some."""
        watched = func.coalesce(_progress.c.watched, 0)
        tenant = models.tenant
        found = await self._tx.execute(
            select(_head.c.tenant_id, tenant.c.name, watched.label("watched"), _head.c.revision)
            .join(tenant, tenant.c.id == _head.c.tenant_id)
            .outerjoin(_progress, _progress.c.tenant_id == _head.c.tenant_id)
            .where(_head.c.revision > watched, _head.c.tenant_id.not_in(list(but)))
            .limit(most)
        )
        return [Behind(row.tenant_id, row.name, row.watched, row.revision) for row in found]

    async def set_watched(self, tenant_id: UUID, seq: int) -> None:
        """Remember that a tenant's events up to this one have been looked at."""
        adding = self._on_conflict().values(
            tenant_id=bindparam("tenant", type_=_progress.c.tenant_id.type),
            signed=0,
            watched=bindparam("seq"),
        )
        await self._tx.execute(
            adding.on_conflict_do_update(
                index_elements=["tenant_id"], set_={"watched": adding.excluded.watched}
            ),
            {"tenant": tenant_id, "seq": seq},
        )

    async def events(self, tenant_id: UUID, after: int, most: int) -> list[Seen]:
        """A tenant's events that follow a number."""
        rows = await self._tx.execute(
            select(_event)
            .where(_event.c.tenant_id == tenant_id, _event.c.seq > after)
            .order_by(_event.c.seq)
            .limit(most)
        )
        return await self._seen(tenant_id, rows)

    async def giving_before(self, tenant_id: UUID, seq: int, since: datetime) -> list[Seen]:
        """The events from an instant until before a number that gave somebody something."""
        rows = await self._tx.execute(
            select(_event)
            .where(
                _event.c.tenant_id == tenant_id,
                _event.c.at >= since,
                _event.c.seq < seq,
                _event.c.action.in_(_GIVING),
            )
            .order_by(_event.c.seq)
        )
        return await self._seen(tenant_id, rows)

    async def _seen(self, tenant_id: UUID, rows: Iterable[Any]) -> list[Seen]:
        events = await events_of(self._tx, tenant_id, rows)
        return [Seen(event.seq, event.at, said_by(event)) for event in events]

    async def known_before(
        self, tenant_id: UUID, seq: int, actors: Iterable[str | None]
    ) -> set[str | None]:
        """Those of these actors that did something before an event."""
        known: set[str | None] = set()
        for actor in actors:
            found = await self._tx.execute(
                select(_event.c.seq)
                .where(_event.c.tenant_id == tenant_id, _event.c.actor == actor, _event.c.seq < seq)
                .limit(1)
            )
            if found.first() is not None:
                known.add(actor)
        return known

    async def failures(self, since: datetime) -> dict[str, int]:
        """Address -> how often its authentication failed since an instant."""
        rows = await self._tx.execute(
            select(_activity.c.ip_address, _activity.c.details).where(
                _activity.c.action == "auth_failure", _activity.c.id >= first_id_of(since)
            )
        )
        counts: dict[str, int] = {}
        for row in rows:
            counts[row.ip_address] = counts.get(row.ip_address, 0) + int(row.details["count"])
        return counts

    async def alerted(self, rule: str, addresses: Sequence[str], since: datetime) -> set[str]:
        """Those of these addresses that an alert was about since an instant."""
        rows = await self._tx.execute(
            select(_activity.c.ip_address).where(
                _activity.c.action == "alert",
                _activity.c.id >= first_id_of(since),
                _activity.c.entity_id == rule,
                _activity.c.ip_address.in_(addresses),
            )
        )
        return {row.ip_address for row in rows}
