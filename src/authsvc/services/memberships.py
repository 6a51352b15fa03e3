"""Questions about users and the roles they are in."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cache
from typing import NamedTuple
from uuid import UUID

from authsvc import decision
from authsvc.database import Transaction
from authsvc.records import EMPTY, Listing, Membership, Page, Stamp
from authsvc.repositories.heads import Heads
from authsvc.repositories.memberships import Memberships
from authsvc.repositories.policy import NOTHING, Policies, Policy
from authsvc.repositories.policy_statements import Start
from authsvc.repositories.roles import Roles
from authsvc.role_graph import RoleGraph, covering
from authsvc.services.listing import Position, list_page
from authsvc.services.roles import list_names

Pair = tuple[str, str]
"""A user and the name of a role."""


@dataclass(frozen=True, slots=True)
class Stored:
    """A membership as it was written, with its role's name."""

    membership: Membership
    role: str


class Holder(NamedTuple):
    """A user and the roles held directly."""

    user: str
    roles: frozenset[int]


class Questions:
    """Questions about one tenant's users, asked at one instant in one transaction.

    ``scope``: memberships bound to it count too; None leaves only those that hold everywhere.
    """

    def __init__(
        self, tx: Transaction, tenant_id: UUID | None, scope: str | None, now: datetime
    ) -> None:
        self._tx = tx
        self._tenant = tenant_id
        self._scope = scope
        self._now = now

    async def _of_user(self, user: str) -> tuple[list[Membership], Policy]:
        """What the user holds here and now, with the roles that leads to."""
        if self._tenant is None:
            return [], NOTHING
        policy = await Policies(self._tx, self._tenant).read(Start.USERS, [user])
        return self._counting(policy.memberships.get(user, ())), policy

    def _counting(self, memberships: Sequence[Membership]) -> list[Membership]:
        return decision.held(memberships, self._scope, self._now)

    async def is_member(self, user: str, role: str) -> tuple[bool, decision.Reason | None, Stamp]:
        """Whether the user holds the role, directly or through a role that inherits it.

        With it the one reason that is told unasked: no API key.
        """
        held, policy = await self._of_user(user)
        if policy.refuses(user, self._now):
            return False, "user_not_key_backed", policy.stamp
        node = policy.graph.named(role)
        is_in = node is not None and any(node.id in policy.graph.reach(m.role_id) for m in held)
        return is_in, None, policy.stamp

    async def user_permissions(self, user: str, page: Page) -> Listing[str]:
        """Every grant that reaches the user, each once, sorted; wildcards as they are."""
        held, policy = await self._of_user(user)
        direct = {m.role_id for m in held}
        names = {name for role_id in direct for name in policy.graph.effective(role_id)}
        question = ["user_permissions", user, self._scope or ""]
        return await list_names(question, page, sorted(names), policy.stamp)

    async def user_roles(self, user: str, page: Page) -> Listing[Pair]:
        """The roles the user holds directly, then those these inherit from; each once."""
        held, policy = await self._of_user(user)
        direct = sorted({m.role_id for m in held})
        inherited = sorted({r for d in direct for r in policy.graph.reach(d)} - set(direct))
        order = [(0, r) for r in direct] + [(1, r) for r in inherited]

        async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Pair]]:
            return [
                (place, (user, policy.graph.nodes[place[1]].name))
                for place in order
                if place > position
            ][:most]

        question = ["user_roles", user, self._scope or ""]
        return await list_page(question, page, (0, 0), policy.stamp, fetch)

    async def user_rows(self, user: str, page: Page) -> Listing[Stored]:
        """The user's memberships as stored, in force or not."""

        async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Stored]]:
            if self._tenant is None:
                return []
            after = (int(position[0]), str(position[1]))
            rows = await Memberships(self._tx, self._tenant).of_user_page(user, after, most)
            names = await Roles(self._tx, self._tenant).names({m.role_id for m in rows})
            return [((m.role_id, m.scope), Stored(m, names[m.role_id])) for m in rows]

        return await list_page(
            ["user_roles", user, "direct"], page, (0, ""), await self._stamp(), fetch
        )

    async def role_rows(self, role: str, page: Page) -> Listing[Stored]:
        """The role's memberships as stored, in force or not."""

        async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Stored]]:
            if self._tenant is None:
                return []
            found = (await Roles(self._tx, self._tenant).named([role])).get(role)
            if found is None:
                return []
            after = (str(position[0]), str(position[1]))
            rows = await Memberships(self._tx, self._tenant).of_role_page(found.id, after, most)
            return [((place, m.scope), Stored(m, role)) for place, m in rows]

        return await list_page(
            ["members", role, "direct"], page, ("", ""), await self._stamp(), fetch
        )

    async def members(self, role: str, page: Page) -> Listing[Pair]:
        """The users in the role or in a role that inherits it, each once, with the role asked.

        In the order of users, which no change of a membership can upset between two pages.
        """
        policy = await self._read(Start.ROLES_DOWN, [role])

        async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Pair]]:
            pairs: list[tuple[Position, Pair]] = []
            async for holders in self._holders(policy.graph, str(position[0]), most):
                pairs += [
                    ((place,), (holder.user, role))
                    for place, holder in holders.items()
                    if place > str(position[0])
                ]
                if len(pairs) >= most:
                    break
            return pairs[:most]

        question = ["members", role, self._scope or ""]
        return await list_page(question, page, ("",), policy.stamp, fetch)

    async def which_users_can(self, permission: str, page: Page) -> Listing[Pair]:
        """Who holds the permission, and through which roles.

        For each user the roles held directly, followed by those they inherit the permission from;
        each pair once, in the order of users.
        """
        policy = await self._read(Start.GRANTS_DOWN, covering(permission))
        graph = policy.graph

        async def fetch(position: Position, most: int) -> Sequence[tuple[Position, Pair]]:
            pairs: list[tuple[Position, Pair]] = []
            async for holders in self._holders(graph, str(position[0]), most):
                pairs += [
                    ((place, kind, role_id), (holder.user, name))
                    for place, holder in holders.items()
                    for kind, role_id, name in told(holder.roles)
                    if (place, kind, role_id) > position
                ]
                if len(pairs) >= most:
                    break
            return pairs[:most]

        @cache
        def told(direct: frozenset[int]) -> list[tuple[int, int, str]]:
            reached = {r for d in direct for r in graph.reach(d)}
            places = [(0, r) for r in sorted(direct)] + [(1, r) for r in sorted(reached - direct)]
            return [(kind, r, graph.nodes[r].name) for kind, r in places]

        question = ["which_users_can", permission, self._scope or ""]
        return await list_page(question, page, ("", 0, 0), policy.stamp, fetch)

    async def _holders(
        self, graph: RoleGraph, from_place: str, most: int
    ) -> AsyncIterator[dict[str, Holder]]:
        """Users from a place on who hold any of the graph's roles directly, by their places.

        Reads in chunks, the first of about ``most`` users, so that a page costs what it shows.
        """
        if self._tenant is None or not graph.nodes:
            return
        memberships = Memberships(self._tx, self._tenant)
        # One more to see whether more follow, one that the page before may have ended with.
        chunk = most + 2
        while True:
            rows = await memberships.holders(
                graph.nodes, from_place, chunk, self._scope or "", self._now
            )
            more = len(rows) == chunk
            # Of the last user there may be more: that one opens the next chunk.
            last = rows[-1].place if more else None
            holders: dict[str, Holder] = {}
            for place, m in rows:
                if place != last and decision.counts(m, self._scope, self._now):
                    known = holders.get(place)
                    roles = frozenset((m.role_id,))
                    holders[place] = Holder(m.user, known.roles | roles if known else roles)
            yield holders
            if last is None:
                return
            from_place = last
            chunk *= 2

    async def _read(self, start: Start, names: Sequence[str]) -> Policy:
        if self._tenant is None:
            return NOTHING
        return await Policies(self._tx, self._tenant).read(start, names, ())

    async def _stamp(self) -> Stamp:
        return await Heads(self._tx, self._tenant).current() if self._tenant else EMPTY
