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

from sqlalchemy import Boolean, ColumnElement, Select, and_, bindparam, func, or_, select, true
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement

from authsvc import models
from authsvc.audit_entries import Entry, Selection
from authsvc.database import Transaction
from authsvc.encryption import ACTIVITY_SUBJECT, EVENT_SUBJECT, Field
from authsvc.records import AuditEvent
from authsvc.repositories.activity import Told, told
from authsvc.repositories.audit import events_of, said_by
from authsvc.repositories.field_ciphers import every_cipher
from authsvc.time_ids import first_id_of

_event = models.audit_event
_activity = models.activity_event
_EARLIEST = datetime(1970, 1, 2, tzinfo=UTC)
_LATEST = datetime(9000, 1, 1, tzinfo=UTC)
_LOOKED_AT = 1000
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


def _rare(column: ColumnElement[Any], value: str) -> ColumnElement[bool]:
    return _one_in_many(column, bindparam(None, value, type_=column.type))


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
        if wanted.entity_id is not None:
            forms = await self._forms(EVENT_SUBJECT, wanted.entity_id)
            statement = statement.where(or_(*(_rare(_event.c.entity_id, form) for form in forms)))
        if wanted.actor is not None:
            statement = statement.where(_rare(_event.c.actor, wanted.actor))
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
        events = await events_of(self._tx, self._tenant, found)
        return [_policy_entry(self._tenant, event) for event in events]

    async def _forms(self, place: Field, name: str) -> list[str]:
        """A name in every form it may be stored in: events keep the one they were written in."""
        ciphers = await every_cipher(self._tx, self._tenant)
        return [cipher.seal(place, name) for cipher in ciphers.values()]

    async def activity(
        self, wanted: Selection, after: bytes | None, before: bytes | None, most: int
    ) -> list[Entry]:
        """At most ``most`` entries that follow the id ``after``, with ids less than ``before``."""
        conditions = [_activity.c.tenant_id == self._tenant]
        if wanted.entity_id is not None:
            forms = await self._forms(ACTIVITY_SUBJECT, wanted.entity_id)
            conditions.append(_activity.c.entity_id.in_(forms))
        found = await _activity_entries(self._tx, conditions, wanted, after, before, most)
        return [_activity_entry(one) for one in found]


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
        if wanted.entity_id is None:
            found = await _activity_entries(self._tx, [], wanted, after, before, most)
            return [_activity_entry(one) for one in found]
        # Under which of all keys it may be stored is not known: what is encrypted is looked at.
        maybe = (_activity.c.entity_id == wanted.entity_id) | _activity.c.generation.is_not(None)
        entries: list[Entry] = []
        while True:
            found = await _activity_entries(self._tx, [maybe], wanted, after, before, _LOOKED_AT)
            fitting = [one for one in found if one.entity_id == wanted.entity_id]
            entries += [_activity_entry(one) for one in fitting[: most - len(entries)]]
            if len(entries) == most or len(found) < _LOOKED_AT:
                return entries
            after = bytes(found[-1].row.id)


async def _activity_entries(
    tx: Transaction,
    conditions: Sequence[ColumnElement[bool]],
    wanted: Selection,
    after: bytes | None,
    before: bytes | None,
    most: int,
) -> list[Told]:
    """What is wanted, but for its ``entity_id``, which ``conditions`` are about."""
    place = _activity.c.id
    statement = select(_activity).where(true(), *conditions)
    for column, value in (
        (_activity.c.action, wanted.action),
        (_activity.c.entity_type, wanted.entity_type),
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
    return await told(tx, found)


def _policy_entry(tenant_id: UUID, event: AuditEvent) -> Entry:
    said = said_by(event)
    return Entry(
        stream="policy",
        tenant_id=tenant_id,
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


def _activity_entry(one: Told) -> Entry:
    row = one.row
    return Entry(
        stream="activity",
        tenant_id=row.tenant_id,
        place=bytes(row.id),
        at=row.at,
        action=row.action,
        entity_type=row.entity_type,
        entity_id=one.entity_id,
        details=one.details,
        actor=row.actor,
        ip_address=row.ip_address,
        user_agent=row.user_agent,
        request_id=row.request_id,
        success=row.success,
    )
