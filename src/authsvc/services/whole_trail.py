"""The audit trails of all tenants together, for the operator: the newest, all, and what comes."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from authsvc.audit_entries import STREAMS, Entry, Selection, Stream, shown
from authsvc.credentials import digest_of, parse_client_key
from authsvc.database import Database, Transaction
from authsvc.errors import InputError, LimitRequired, NotFound, Problem
from authsvc.repositories.audit_search import Trail, WholeTrail
from authsvc.services.audit_search import begin, pages, some
from authsvc.time_ids import first_id_of

COMPLETE_MAX = 100_000
"""The most entries that are answered to a question without a limit."""
_APART = timedelta(hours=1)
"""How far the clocks of one installation may be from each other."""
_LATE = timedelta(seconds=60)
"""How long after its time an activity entry may still turn up."""
_AT_ONCE = 1000


@dataclass(frozen=True, slots=True)
class Whose:
    """One tenant's trail, by name or by one of its client keys; without either all there are."""

    name: str | None = None
    key: str | None = field(default=None, repr=False)

    @property
    def is_one(self) -> bool:
        """Whether one tenant is named."""
        return self.name is not None or self.key is not None


async def find(
    database: Database,
    wanted: Selection,
    streams: Sequence[Stream],
    whose: Whose,
    limit: int | None,
    now: datetime,
) -> tuple[list[dict[str, Any]], bool]:
    """The first ``limit`` entries of the selection, as the operator is shown them; whether more
    there are.

    Tenants and streams are put together in order of time. Without a limit the answer is complete
    or refused. Raises NotFound, InputError, LimitRequired.
    """
    most = COMPLETE_MAX if limit is None else limit
    async with database.read() as tx:
        trails = await _trails(tx, whose)
        found: list[Entry] = []
        if "policy" in streams and wanted.outcome != "failure":
            found = await _policy(tx, trails, replace(wanted, stream="policy"), most + 1, now)
        if "activity" in streams:
            tenant_id = trails[0].tenant_id if whose.is_one else None
            walk = await begin(tx, tenant_id, replace(wanted, stream="activity"), now)
            found = _first(found + await some(tx, walk, most + 1), wanted, most + 1)
    more = len(found) > most
    if more and limit is None:
        sentence = (
            f"more than {COMPLETE_MAX} entries match: ask for a shorter time, or say with a limit"
            " how many you want"
        )
        raise LimitRequired(f"limit: {sentence}", [Problem("limit", sentence)])
    names = {trail.tenant_id: trail.name for trail in trails}
    return [told(entry, names) for entry in found[:most]], more


def told(entry: Entry, names: dict[UUID, str]) -> dict[str, Any]:
    """An entry as the operator is shown it. A tenant that is gone is told by its id."""
    tenant_id = entry.tenant_id
    tenant = None if tenant_id is None else names.get(tenant_id, str(tenant_id))
    return {"tenant": tenant, "stream": entry.stream} | shown(entry)


async def _trails(tx: Transaction, whose: Whose) -> Sequence[Trail]:
    trails = await WholeTrail(tx).tenants()
    if whose.name is not None:
        kept = [trail for trail in trails if trail.name == whose.name]
        if not kept:
            raise NotFound(
                "tenant_not_found",
                f"Tenant '{whose.name}' does not exist: 'authsvc tenants list' shows those there"
                " are",
            )
        return kept
    if whose.key is not None:
        key = parse_client_key(whose.key)
        if key is None:
            raise InputError.of("client_key", "is not a version-4 UUID")
        tenant_id = await WholeTrail(tx).tenant_of_key(digest_of(key))
        kept = [trail for trail in trails if trail.tenant_id == tenant_id]
        if not kept:
            raise NotFound("tenant_not_found", "No tenant has or had this client key")
        return kept
    return trails


async def _policy(
    tx: Transaction, trails: Sequence[Trail], wanted: Selection, most: int, now: datetime
) -> list[Entry]:
    """The first ``most`` policy events of several tenants."""
    since = wanted.at(now).since
    known = [(trail, trail.newest or now) for trail in trails]
    if since is not None:
        known = [(trail, newest) for trail, newest in known if newest >= since - _APART]
    found: list[Entry] = []
    # The most recently changed first: behind them nothing new is left to be found.
    for trail, newest in sorted(known, key=lambda one: one[1], reverse=True):
        if not wanted.oldest_first and len(found) == most and newest < found[-1].at - _APART:
            break
        walk = await begin(tx, trail.tenant_id, wanted, now)
        found += await some(tx, walk, most)
        if len(found) >= most:
            found = _first(found, wanted, most)
    return _first(found, wanted, most)


def _first(entries: list[Entry], wanted: Selection, most: int) -> list[Entry]:
    def order(entry: Entry) -> tuple[datetime, str, int, bytes]:
        number = entry.seq or 0
        return entry.at, str(entry.tenant_id), number, b"" if number else bytes(entry.place)

    return sorted(entries, key=order, reverse=not wanted.oldest_first)[:most]


async def everything(
    database: Database, wanted: Selection, streams: Sequence[Stream], whose: Whose, now: datetime
) -> AsyncGenerator[Sequence[dict[str, Any]], None]:
    """All that is selected as of now, in pages: tenant by tenant, then the activity.

    Whoever takes their time between two pages holds nothing. Raises NotFound, InputError.
    """
    async with database.read() as tx:
        trails = await _trails(tx, whose)
    names = {trail.tenant_id: trail.name for trail in trails}
    wanted.at(now)
    if "policy" in streams:
        for trail in trails:
            policy = replace(wanted, stream="policy")
            async for some_entries in pages(database, trail.tenant_id, policy, now):
                yield [told(entry, names) for entry in some_entries]
    if "activity" in streams:
        tenant_id = trails[0].tenant_id if whose.is_one else None
        activity = replace(wanted, stream="activity")
        async for some_entries in pages(database, tenant_id, activity, now):
            yield [told(entry, names) for entry in some_entries]


class Follower:
    """What is added to the trails from when it is made, asked for again and again."""

    def __init__(
        self, database: Database, wanted: Selection, streams: Sequence[Stream], whose: Whose
    ) -> None:
        self._database = database
        self._wanted = replace(wanted, oldest_first=True)
        self._streams: Sequence[Stream] = tuple(one for one in STREAMS if one in streams)
        self._whose = whose
        self._numbers: dict[UUID, int] | None = None
        self._ids: dict[bytes, datetime] = {}
        self._asked: datetime | None = None

    async def more(self, now: datetime) -> list[dict[str, Any]]:
        """What has been added since the last call, in order of time; the first call tells nothing.

        Raises NotFound, InputError, Unavailable; after Unavailable nothing is lost.
        """
        async with self._database.read() as tx:
            trails = await _trails(tx, self._whose)
            numbers = {trail.tenant_id: trail.revision for trail in trails}
            first = self._numbers is None
            added = [] if first else await self._policy(tx, numbers, now)
            fresh = await self._activity(tx, trails, now)
        self._numbers = (self._numbers or {}) | numbers
        self._asked = now
        kept = {place: at for place, at in self._ids.items() if at >= now - 2 * _LATE}
        self._ids = kept | {bytes(entry.place): now for entry in fresh}
        if first:
            return []
        names = {trail.tenant_id: trail.name for trail in trails}
        together = sorted(added + fresh, key=lambda entry: entry.at)
        return [told(entry, names) for entry in together]

    async def _policy(
        self, tx: Transaction, numbers: dict[UUID, int], now: datetime
    ) -> list[Entry]:
        if "policy" not in self._streams:
            return []
        seen, added = self._numbers or {}, []
        for tenant_id, number in numbers.items():
            after = seen.get(tenant_id, 0)
            if number > after:
                walk = await begin(tx, tenant_id, replace(self._wanted, stream="policy"), now)
                walk = replace(walk, after=after, high=number)
                while found := await some(tx, walk, _AT_ONCE):
                    added += found
                    walk = walk.further(found[-1])
        return added

    async def _activity(
        self, tx: Transaction, trails: Sequence[Trail], now: datetime
    ) -> list[Entry]:
        """Entries that were not there before; what other processes write late is among them."""
        if "activity" not in self._streams:
            return []
        tenant_id = trails[0].tenant_id if self._whose.is_one else None
        walk = await begin(tx, tenant_id, replace(self._wanted, stream="activity"), now)
        walk = replace(walk, after=first_id_of((self._asked or now) - _LATE))
        fresh: list[Entry] = []
        while found := await some(tx, walk, _AT_ONCE):
            fresh += [entry for entry in found if bytes(entry.place) not in self._ids]
            walk = walk.further(found[-1])
        return fresh
