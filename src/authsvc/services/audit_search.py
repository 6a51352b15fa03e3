"""Questions about the audit trail: pages of it, all of it, and across tenants for the operator."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from authsvc.audit_entries import Entry, Selection
from authsvc.cursor import decode_cursor, encode_cursor
from authsvc.database import Database, Transaction
from authsvc.errors import InputError
from authsvc.records import EMPTY, Listing
from authsvc.repositories.audit_search import AuditSearch, WholeTrail
from authsvc.repositories.heads import Heads
from authsvc.time_ids import SIZE, first_id_of

PAGE_MAX = 1000
"""The most entries one answer lists."""
EXPORT_PAGE = 500
"""So many entries of an export are in memory at a time."""

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_NOTHING_THERE = 2, 1


@dataclass(frozen=True, slots=True)
class Walk:
    """A way through one stream of one tenant (None: through all activity), and how far it is.

    ``wanted`` has its time reckoned. ``low`` and ``high`` bound the numbers of policy events
    (0: no bound), ``before`` the ids of activity.
    """

    tenant_id: UUID | None
    wanted: Selection
    low: int = 0
    high: int = 0
    before: bytes | None = None
    after: int | bytes | None = None

    def further(self, entry: Entry) -> Walk:
        """The same way, from behind an entry of it."""
        return replace(self, after=entry.place)


async def begin(tx: Transaction, tenant_id: UUID | None, wanted: Selection, now: datetime) -> Walk:
    """The way through what is selected, as of now."""
    wanted = wanted.at(now)
    if wanted.stream == "activity" or tenant_id is None:
        return Walk(tenant_id, wanted)
    low = high = 0
    # The events of one entity are few; those of a time are found by number.
    if wanted.entity_id is None and (wanted.since is not None or wanted.until is not None):
        low, high = await AuditSearch(tx, tenant_id).numbers(wanted.since, wanted.until)
        if not low:
            low, high = _NOTHING_THERE
        elif wanted.until is None or wanted.until > now:
            high = 0
    return Walk(tenant_id, wanted, low, high)


async def some(tx: Transaction, walk: Walk, most: int) -> list[Entry]:
    """The next entries on the way."""
    if walk.high and walk.low > walk.high:
        return []
    if walk.wanted.stream == "activity":
        after = walk.after if isinstance(walk.after, bytes) else None
        whose = WholeTrail(tx) if walk.tenant_id is None else AuditSearch(tx, walk.tenant_id)
        return await whose.activity(walk.wanted, after, walk.before, most)
    if walk.tenant_id is None:
        return []
    number = walk.after if isinstance(walk.after, int) else None
    trail = AuditSearch(tx, walk.tenant_id)
    return await trail.policy(walk.wanted, number, walk.low, walk.high, most)


async def page(
    tx: Transaction,
    tenant_id: UUID | None,
    wanted: Selection,
    limit: int,
    cursor: str | None,
    now: datetime,
) -> Listing[Entry]:
    """One page for a tenant (None: of one that nothing was ever written to).

    What ``hours`` means is settled by the first page; the cursor carries it on. Raises InputError.
    """
    walk = _from_cursor(tenant_id, wanted, cursor)
    if tenant_id is None:
        wanted.at(now)
        return Listing([], EMPTY)
    stamp = await Heads(tx, tenant_id).current()
    if walk is None:
        walk = await begin(tx, tenant_id, wanted, now)
    found = await some(tx, walk, limit + 1)
    if len(found) <= limit:
        return Listing(found, stamp)
    return Listing(found[:limit], stamp, _to_cursor(wanted, walk.further(found[limit - 1])))


def _to_cursor(wanted: Selection, walk: Walk) -> str:
    since = walk.wanted.since if wanted.hours is not None else None
    micros = 0 if since is None else max(0, (since - _EPOCH) // _MICROSECOND)
    if isinstance(walk.after, bytes):
        return encode_cursor(wanted.identity, (walk.after.hex(), micros))
    return encode_cursor(wanted.identity, (walk.after or 0, walk.low, walk.high, micros))


def _from_cursor(tenant_id: UUID | None, wanted: Selection, cursor: str | None) -> Walk | None:
    if cursor is None:
        return None
    activity = wanted.stream == "activity"
    start: tuple[int | str, ...] = ("", 0) if activity else (0, 0, 0, 0)
    parts = decode_cursor(wanted.identity, cursor, start)
    try:
        since = _EPOCH + int(parts[-1]) * _MICROSECOND
        place = bytes.fromhex(str(parts[0])) if activity else b""
    except (ValueError, OverflowError):
        raise _not_ours() from None
    if activity and len(place) != SIZE:
        raise _not_ours()
    if wanted.hours is not None:
        wanted = replace(wanted, hours=None, since=since)
    if activity:
        return Walk(tenant_id, wanted, after=place)
    number, low, high = (int(part) for part in parts[:3])
    return Walk(tenant_id, wanted, low, high, after=number)


def _not_ours() -> InputError:
    return InputError.of(
        "cursor", "not a cursor of this list: take it unchanged from 'next' of the page before"
    )


async def pages(
    database: Database,
    tenant_id: UUID | None,
    wanted: Selection,
    now: datetime,
    most: int = EXPORT_PAGE,
) -> AsyncGenerator[Sequence[Entry], None]:
    """All that is selected as of now, in pages, each read in a transaction of its own.

    Whoever takes their time between two pages holds nothing. What is written meanwhile is not
    part of it. ``tenant_id`` None is all activity. Raises InputError.
    """
    walk: Walk | None = None
    while True:
        async with database.read() as tx:
            if walk is None:
                walk = await _ended(tx, await begin(tx, tenant_id, wanted, now), now)
            found = await some(tx, walk, most)
        if found:
            yield found
        if len(found) < most:
            return
        walk = walk.further(found[-1])


async def _ended(tx: Transaction, walk: Walk, now: datetime) -> Walk:
    """The way with an end, though entries are being added."""
    if walk.wanted.stream == "activity":
        # Of this instant too; ids that are made later sort behind.
        before = first_id_of(now + _MICROSECOND)
        return replace(walk, before=before)
    if walk.tenant_id is None:
        return walk
    newest = (await Heads(tx, walk.tenant_id).current()).revision
    high = min(walk.high or newest, newest)
    return replace(walk, high=high)
