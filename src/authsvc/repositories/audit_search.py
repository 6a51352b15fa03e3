"""The audit trail, searched: policy events by their number, activity by its id, page by page.

What an event says is read off its payload, which its hash vouches for; the columns beside it only
find it. No page is found by counting past those before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from sqlalchemy import Boolean, Row, Select, and_, bindparam, func, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from authsvc import models
from authsvc.audit_chain import read_payload
from authsvc.audit_entries import Entry, Selection
from authsvc.database import Transaction
from authsvc.repositories.audit import event_of
from authsvc.time_ids import first_id_of

_event = models.audit_event
_activity = models.activity_event
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
_APART = timedelta(hours=1)
"""How far the time in an id may be from the time of what it is about."""


class _one_in_many(FunctionElement[bool]):
    """``column = value``, of which SQLite is told that it holds for few rows.

    Without statistics it takes an index over two columns for hardly better than the walk along a
    tenant's whole trail.
    """

    type = Boolean()
    inherit_cache = True
    name = "one_in_many"

    def self_group(self, against: Any = None) -> Any:
        """As it is: SQLAlchemy would add ``= 1``, which keeps SQLite off its indexes."""
        return self


@compiles(_one_in_many)
def _equal(element: _one_in_many, compiler: Any, **kw: Any) -> str:
    column, value = element.clauses
    return f"{compiler.process(column, **kw)} = {compiler.process(value, **kw)}"


@compiles(_one_in_many, "sqlite")
def _equal_sqlite(element: _one_in_many, compiler: Any, **kw: Any) -> str:
    return f"likelihood({_equal(element, compiler, **kw)}, 0.0001)"


# The sum keeps PostgreSQL from looking for the least number in order of number, which is a walk
# along the whole trail: the index over times has numbers in it too.
_NUMBERS: Select[Any] = select(func.min(_event.c.seq + 0), func.max(_event.c.seq + 0)).where(
    _event.c.tenant_id == bindparam("tenant")
)
_TENANTS: Select[Any] = (
    select(models.tenant.c.id, models.tenant.c.name, models.tenant_head.c.revision, _event.c.at)
    .join(models.tenant_head, models.tenant_head.c.tenant_id == models.tenant.c.id)
    .outerjoin(
        _event,
        and_(
            _event.c.tenant_id == models.tenant_head.c.tenant_id,
            _event.c.seq == models.tenant_head.c.revision,
        ),
    )
    .order_by(models.tenant.c.created_at, models.tenant.c.id)
)


@dataclass(frozen=True, slots=True)
class Trail:
    """A tenant's trail as a whole: up to which number it goes and when its newest event was."""

    tenant_id: UUID
    name: str
    revision: int
    newest: datetime | None


class AuditSearch:
    """The trail of one tenant."""

    def __init__(self, transaction: Transaction, tenant_id: UUID) -> None:
        self._tx = transaction
        self._tenant = tenant_id

    async def numbers(self, since: datetime | None, until: datetime | None) -> tuple[int, int]:
        """The least and the greatest number of the events in a time; (0, 0) if there are none.

        Costs a walk along the index over that time, no more. Numbers follow the order of changes
        and times follow the clocks, so neither alone tells where the other begins.
        """
        statement = _NUMBERS
        if since is not None:
            statement = statement.where(_event.c.at >= since)
        if until is not None:
            statement = statement.where(_event.c.at < until)
        row: Any = (await self._tx.execute(statement, {"tenant": self._tenant})).one()
        return (row[0] or 0, row[1] or 0)

    async def policy(
        self, wanted: Selection, after: int | None, low: int, high: int, most: int
    ) -> list[Entry]:
        """At most ``most`` events that follow number ``after`` in the order wanted.

        ``low`` and ``high`` are the first and the last number to look at (0: no bound).
        """
        if wanted.outcome == "failure":
            return []
        seq = _event.c.seq
        statement = select(_event).where(_event.c.tenant_id == self._tenant)
        for column, sought in (
            (_event.c.entity_id, wanted.entity_id),
            (_event.c.actor, wanted.actor),
        ):
            if sought is not None:
                rare = _one_in_many(column, bindparam(None, sought, type_=column.type))
                statement = statement.where(rare)
        for column, value in (
            (_event.c.action, wanted.action),
            (_event.c.entity_type, wanted.entity_type),
            (_event.c.ip_address, wanted.ip),
        ):
            if value is not None:
                statement = statement.where(column == value)
        if wanted.since is not None:
            statement = statement.where(_event.c.at >= wanted.since)
        if wanted.until is not None:
            statement = statement.where(_event.c.at < wanted.until)
        if low:
            statement = statement.where(seq >= low)
        if high:
            statement = statement.where(seq <= high)
        if after is not None:
            statement = statement.where(seq > after if wanted.oldest_first else seq < after)
        order = seq.asc() if wanted.oldest_first else seq.desc()
        found = await self._tx.execute(statement.order_by(order).limit(most))
        return [_policy_entry(row) for row in found]

    async def activity(
        self, wanted: Selection, after: bytes | None, before: bytes | None, most: int
    ) -> list[Entry]:
        """At most ``most`` entries that follow the id ``after``, with ids less than ``before``."""
        own = _activity.c.tenant_id == self._tenant
        return await _activity_entries(self._tx, own, wanted, after, before, most)


class WholeTrail:
    """The trails of all tenants, for the operator alone."""

    def __init__(self, transaction: Transaction) -> None:
        self._tx = transaction

    async def tenants(self) -> Sequence[Trail]:
        """Every tenant, oldest first."""
        found = await self._tx.execute(_TENANTS)
        return [Trail(row.id, row.name, row.revision, row.at) for row in found]

    async def tenant_of_key(self, digest: bytes) -> UUID | None:
        """Whose client key this was, whether it is still in force or not."""
        key = models.client_key
        found = await self._tx.execute(select(key.c.tenant_id).where(key.c.digest == digest))
        tenant_id: UUID | None = found.scalar_one_or_none()
        return tenant_id

    async def activity(
        self, wanted: Selection, after: bytes | None, before: bytes | None, most: int
    ) -> list[Entry]:
        """As of one tenant, but of all of them, and what no tenant can be blamed for."""
        return await _activity_entries(self._tx, true(), wanted, after, before, most)


async def _activity_entries(
    tx: Transaction,
    whose: Any,
    wanted: Selection,
    after: bytes | None,
    before: bytes | None,
    most: int,
) -> list[Entry]:
    place = _activity.c.id
    statement = select(_activity).where(whose)
    for column, value in (
        (_activity.c.action, wanted.action),
        (_activity.c.entity_type, wanted.entity_type),
        (_activity.c.entity_id, wanted.entity_id),
        (_activity.c.actor, wanted.actor),
        (_activity.c.ip_address, wanted.ip),
    ):
        if value is not None:
            statement = statement.where(column == value)
    if wanted.outcome is not None:
        statement = statement.where(_activity.c.success.is_(wanted.outcome == "success"))
    # The ids find the neighbourhood, the times decide.
    if wanted.since is not None:
        least = first_id_of(max(wanted.since, _EARLIEST) - _APART)
        statement = statement.where(_activity.c.at >= wanted.since, place >= least)
    if wanted.until is not None:
        end = first_id_of(min(max(wanted.until, _EARLIEST), _LATEST) + _APART)
        statement = statement.where(_activity.c.at < wanted.until, place < end)
    if after is not None:
        statement = statement.where(place > after if wanted.oldest_first else place < after)
    if before is not None:
        statement = statement.where(place < before)
    order = place.asc() if wanted.oldest_first else place.desc()
    found = await tx.execute(statement.order_by(order).limit(most))
    return [_activity_entry(row) for row in found]


def _policy_entry(row: Row[Any]) -> Entry:
    event = event_of(row)
    said = read_payload(event)
    return Entry(
        stream="policy",
        tenant_id=row.tenant_id,
        place=event.seq,
        at=event.at,
        action=said["action"],
        entity_type=said["entity_type"],
        entity_id=said["entity_id"],
        details=said["details"],
        actor=said["actor"],
        ip_address=said["ip_address"],
        user_agent=said["user_agent"],
        request_id=said["request_id"],
        seq=event.seq,
        hash=event.hash,
    )


def _activity_entry(row: Row[Any]) -> Entry:
    return Entry(
        stream="activity",
        tenant_id=row.tenant_id,
        place=bytes(row.id),
        at=row.at,
        action=row.action,
        entity_type=row.entity_type,
        entity_id=row.entity_id,
        details=row.details,
        actor=row.actor,
        ip_address=row.ip_address,
        user_agent=row.user_agent,
        request_id=row.request_id,
        success=row.success,
    )
