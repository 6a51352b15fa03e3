"""Tenants' states as of now: remembered, made sure of by the gate, loaded where missing."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from datetime import datetime, timedelta
from uuid import UUID
from weakref import WeakValueDictionary

from authsvc.database import Database
from authsvc.decision_cache import (
    MOST_EVENTS,
    Credential,
    DecisionCache,
    Kept,
    Session,
    TenantState,
)
from authsvc.errors import Busy, Unavailable
from authsvc.records import ApiKey, AuditEvent, Stamp
from authsvc.repositories.api_keys import find_api_key
from authsvc.repositories.audit import events_since
from authsvc.repositories.policy import load_policy
from authsvc.repositories.policy_statements import Load
from authsvc.repositories.tenants import find_credential
from authsvc.repositories.tokens import find_session
from authsvc.revision_gate import Gate

MOST_BACK = timedelta(seconds=60)
"""How far the clock may go back before tokens are no longer judged by it."""
_NOBODY = UUID(int=0)
_ATTEMPTS = 20
_LOADS = 4


class CurrentState:
    """The one place where what is remembered meets what is true.

    A request first learns its tenant's stamp from the gate, by a read that started after the
    request came; from then on it answers from a state at that stamp or a later one.
    """

    def __init__(self, database: Database, gate: Gate, cache: DecisionCache) -> None:
        self.database = database
        self._gate = gate
        self._cache = cache
        self._loading: WeakValueDictionary[UUID, asyncio.Lock] = WeakValueDictionary()
        self._latest: datetime | None = None

    async def credential(self, digest: bytes) -> tuple[Credential | None, datetime | None]:
        """The key with this digest, as it is now, and the gate's instant where it was asked.

        That there is none is never remembered.
        """
        tenant_id = self._cache.owner(digest)
        if tenant_id is not None:
            state, now = await self.state(tenant_id)
            known = state.credentials.get(digest)
            if known is not None:
                return Credential(known.key, state.stamp, known.disabled_at), now
        found = await find_credential(self.database, digest)
        if found is not None:
            tenant_id = found.key.tenant_id
            state, now = await self.state(tenant_id)
            if found.stamp.revision < state.stamp.revision:
                # Read before a write, or from a server that lags behind: what came of the key
                # since is only known by looking again.
                found = await find_credential(self.database, digest)
                if found is None or found.stamp.revision < state.stamp.revision:
                    raise Unavailable
            # Only what is as new as the state may be remembered with it.
            if state.stamp == found.stamp:
                self._cache.install_credential(state, digest, found)
            return found, now
        return None, None

    async def session(self, tenant_id: UUID, family: str) -> tuple[Session | None, Stamp, datetime]:
        """A family of tokens as it is now, the tenant's state and the gate's instant.

        That there is none is never remembered: making one is no change of policy.
        """
        state, now = await self.state(tenant_id)
        known = state.sessions.get(family)
        if known is not None:
            return known, state.stamp, now
        found = await find_session(self.database, tenant_id, family)
        if found is not None and found.credential.stamp.revision < state.stamp.revision:
            # From a server that lags behind, as with a key.
            found = await find_session(self.database, tenant_id, family)
            if found is None or found.credential.stamp.revision < state.stamp.revision:
                raise Unavailable
        if found is None:
            return None, state.stamp, now
        if state.stamp == found.credential.stamp:
            self._cache.install_session(state, found)
        return found, found.credential.stamp, now

    async def api_key(self, tenant_id: UUID, digest: bytes) -> tuple[ApiKey | None, Stamp]:
        """A tenant's API key as it is now, and the tenant's stamp.

        That there is none is never remembered.
        """
        state, _now = await self.state(tenant_id)
        known = state.api_keys.get(digest)
        if known is not None:
            return known, state.stamp
        found, stamp = await find_api_key(self.database, tenant_id, digest)
        if stamp.revision < state.stamp.revision:
            # From a server that lags behind, as with a client key.
            found, stamp = await find_api_key(self.database, tenant_id, digest)
            if stamp.revision < state.stamp.revision:
                raise Unavailable
        if found is not None and state.stamp == stamp:
            self._cache.install_api_key(state, digest, found)
        return found, stamp

    def clock_went_back(self, now: datetime) -> bool:
        """Whether an instant is much earlier than one that was seen: nothing can be said to have
        ended by such a clock.
        """
        latest = self._latest
        if latest is None or now > latest:
            self._latest = now
            return False
        return latest - now > MOST_BACK

    async def now(self) -> datetime:
        """The instant by which the next request would be judged. Raises Unavailable."""
        return (await self._gate.current(_NOBODY)).at

    async def glance(self, digest: bytes) -> tuple[TenantState, Credential, datetime] | None:
        """The state and the key behind a digest, if memory holds both as they are now."""
        tenant_id = self._cache.owner(digest)
        if tenant_id is None:
            return None
        now = await self._gate.current(tenant_id)
        self.clock_went_back(now.at)
        state = self._cache.state(tenant_id)
        if state is None or state.stamp != now.stamp:
            return None
        known = state.credentials.get(digest)
        return None if known is None else (state, known, now.at)

    async def glance_at_session(
        self, tenant_id: UUID, family: str
    ) -> tuple[TenantState, Session, datetime] | None:
        """As ``glance``, for a family of tokens; None too when the clock went back."""
        now = await self._gate.current(tenant_id)
        state = self._cache.state(tenant_id)
        if self.clock_went_back(now.at) or state is None or state.stamp != now.stamp:
            return None
        known = state.sessions.get(family)
        return None if known is None else (state, known, now.at)

    def at(self, tenant_id: UUID | None, stamp: Stamp) -> TenantState | None:
        """The state remembered of a tenant, if it is the one with this stamp."""
        state = None if tenant_id is None else self._cache.state(tenant_id)
        return state if state is not None and state.stamp == stamp else None

    def remembered(self, state: TenantState, user: str) -> Kept | None:
        """What a user holds in a state, if it is remembered."""
        return self._cache.held(state, user)

    async def state(self, tenant_id: UUID) -> tuple[TenantState, datetime]:
        """The tenant's state now, and the instant the gate read it."""
        for _ in range(_ATTEMPTS):
            now = await self._gate.current(tenant_id)
            self.clock_went_back(now.at)
            state = self._cache.state(tenant_id)
            if state is None:
                state = self._cache.begin(tenant_id, now.stamp, now.read)
            if state.stamp == now.stamp or await self._follow(
                tenant_id, state, now.stamp, now.read
            ):
                return state, now.at
            # On SQLite the same read is told for the rest of this turn of the loop.
            await asyncio.sleep(0)
        raise Busy("This tenant is changing too fast to be read; ask again")

    def committed(self, tenant_id: UUID, before: Stamp, events: Sequence[AuditEvent]) -> None:
        """Bring memory along with what this process has just committed.

        Only spares the next request to read the events: what is true, the gate tells.
        """
        state = self._cache.state(tenant_id)
        if state is not None and state.stamp == before:
            state.follow(tenant_id, events, events[-1].stamp, self._gate.reads)

    async def _follow(self, tenant_id: UUID, state: TenantState, found: Stamp, read: int) -> bool:
        """Bring a state to what a read found, or to something later; False: ask the gate again.

        A read that found an earlier revision may merely have begun before the state was learnt.
        If it began after that, the tenant went back (a restored database, a promoted standby that
        lost its tail), and nothing that was learnt before is true.
        """
        if found.revision <= state.stamp.revision:
            if found.revision < state.stamp.revision and read <= state.known_at:
                return False
            state.forget()
            state.stamp, state.known_at = found, read
            return True
        start = state.stamp
        if found.revision - start.revision > MOST_EVENTS:
            state.follow(tenant_id, (), found, self._gate.reads)
            return True
        to, events = await events_since(self.database, tenant_id, start.revision, MOST_EVENTS)
        if state.stamp != start:
            # Another request moved it meanwhile: whether that is enough, the gate must say.
            return state.stamp == found
        if to.revision < found.revision:
            return False
        state.follow(tenant_id, events, to, self._gate.reads)
        return True

    async def holdings(
        self, tenant_id: UUID, users: Collection[str], since: Stamp
    ) -> tuple[TenantState, dict[str, Kept]] | None:
        """A complete state and what these users hold in it, all at ``state.stamp``.

        ``since`` is a stamp that this request has had from the gate already: a state that is
        still there needs no second question. Between this and the next ``await`` nothing of the
        state can move. None when the tenant changes faster than it can be loaded.
        """
        state = self._cache.state(tenant_id)
        for _ in range(_LOADS):
            if state is None or state.stamp != since:
                state, _at = await self.state(tenant_id)
            held = self._remembered(state, users)
            if not state.complete or len(held) != len(users):
                missing = [user for user in users if user not in held]
                since = await self._load(tenant_id, state, missing)
                held = self._remembered(state, users)
            if state.complete and len(held) == len(users):
                return state, held
        return None

    def _remembered(self, state: TenantState, users: Iterable[str]) -> dict[str, Kept]:
        held = ((user, self._cache.held(state, user)) for user in users)
        return {user: found for user, found in held if found is not None}

    async def _load(self, tenant_id: UUID, state: TenantState, users: Collection[str]) -> Stamp:
        """Load what is missing and install it, if it is of the state's own stamp by then.

        Roles are loaded by one request at a time, so that a tenant's graph is not read as often as
        there are requests waiting for it. Returns the stamp that was loaded.
        """
        if state.complete:
            return await self._load_with(tenant_id, state, users)
        lock = self._loading.get(tenant_id)
        if lock is None:
            lock = self._loading[tenant_id] = asyncio.Lock()
        async with lock:
            return await self._load_with(tenant_id, state, users)

    async def _load_with(
        self, tenant_id: UUID, state: TenantState, users: Collection[str]
    ) -> Stamp:
        roles = Load.ALL if state.graph is None else Load.NAMED if state.dirty else Load.NONE
        dirty = frozenset(state.dirty)
        loaded = await load_policy(self.database, tenant_id, users, roles, dirty)
        if loaded.stamp.revision > state.stamp.revision:
            await self._follow(tenant_id, state, loaded.stamp, self._gate.reads)
        if loaded.stamp != state.stamp:
            return loaded.stamp
        # The state may have come to this stamp after the load began, with other roles to reload,
        # or with none left at all.
        named = roles is Load.NAMED and state.graph is not None and state.dirty <= dirty
        if roles is Load.ALL or named:
            self._cache.install_roles(state, loaded.graph.nodes.values(), whole=roles is Load.ALL)
        key_ends = loaded.key_ends if loaded.strict_users else None
        for user in users:
            held = loaded.memberships.get(user, ())
            self._cache.install_user(state, user, held, key_ends)
        return loaded.stamp
