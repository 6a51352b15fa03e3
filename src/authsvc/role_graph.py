"""Roles, what they inherit and what they grant. Pure.

A graph holds the part of a tenant's roles that was loaded; an edge to a role outside of it leads
nowhere. It is acyclic: the write path refuses cycles.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class RoleNode:
    """One role: the ids of the roles it inherits from, and what is granted to it directly."""

    id: int
    name: str
    parents: tuple[int, ...]
    grants: frozenset[str]


def covering(permission: str) -> tuple[str, ...]:
    """The grants any of which covers a permission: its own name and one wildcard.

    ``invoice:*`` covers exactly one last segment: ``invoice:read``, neither ``invoice`` nor
    ``invoice:line:read``.
    """
    prefix, colon, _ = permission.rpartition(":")
    return (permission, f"{prefix}:*") if colon else (permission,)


_MASK_BYTES = 16 * 1024 * 1024
"""How many bytes of masks a graph remembers before it begins anew."""


class RoleSet:
    """The roles of all users who hold just these, everywhere and always: shared between them."""

    __slots__ = ("role_ids",)

    def __init__(self, role_ids: tuple[int, ...]) -> None:
        self.role_ids = role_ids


class RoleGraph:
    """The loaded roles of one tenant, by id.

    Decisions compare *masks*: whole numbers in which each name that is granted to any role of
    this graph has a bit of its own. Masks of two graphs do not compare. ``wants`` and
    ``together`` are what ``wanted`` and ``mask_of_all`` remember.
    """

    def __init__(self, nodes: Iterable[RoleNode] = ()) -> None:
        self.nodes: dict[int, RoleNode] = {node.id: node for node in nodes}
        granted = dict.fromkeys(grant for node in self.nodes.values() for grant in node.grants)
        self._bits: dict[str, int] = {grant: bit for bit, grant in enumerate(granted)}
        self.wants: dict[str, int] = {}
        self.together: dict[RoleSet, int] = {}
        self._masks: dict[int, int] = {}
        self._remembered = 0

    def named(self, name: str) -> RoleNode | None:
        """The role of that name, if it was loaded."""
        return next((node for node in self.nodes.values() if node.name == name), None)

    def reach(self, start: int) -> Mapping[int, int]:
        """The role itself and everything it inherits from, nearest first.

        Maps each reached role to the one it was first reached from (the start to itself).
        """
        if start not in self.nodes:
            return {}
        came_from = {start: start}
        queue = [start]
        for role_id in queue:
            for parent in self.nodes[role_id].parents:
                if parent in self.nodes and parent not in came_from:
                    came_from[parent] = role_id
                    queue.append(parent)
        return came_from

    def path(self, came_from: Mapping[int, int], goal: int) -> tuple[str, ...]:
        """The names on a shortest way to a reached role, from where ``reach`` began."""
        names = [self.nodes[goal].name]
        while goal != came_from[goal]:
            goal = came_from[goal]
            names.append(self.nodes[goal].name)
        return tuple(reversed(names))

    def effective(self, role_id: int) -> frozenset[str]:
        """Every grant the role has, its own and inherited."""
        return frozenset().union(*(self.nodes[reached].grants for reached in self.reach(role_id)))

    def wanted(self, permission: str) -> int:
        """The mask of the grants that cover a permission; 0 if no role of the graph has one."""
        known = self.wants.get(permission)
        if known is None:
            bits = {self._bits.get(grant) for grant in covering(permission)}
            known = sum(1 << bit for bit in bits if bit is not None)
            # Questions about what nobody has are without number.
            if known:
                self._count(known)
                self.wants[permission] = known
        return known

    def mask(self, role_id: int) -> int:
        """Every grant the role has, its own and inherited, as a mask."""
        known = self._masks.get(role_id)
        if known is None:
            made = bytearray(len(self._bits) // 8 + 1)
            for reached in self.reach(role_id):
                for grant in self.nodes[reached].grants:
                    bit = self._bits[grant]
                    made[bit >> 3] |= 1 << (bit & 7)
            known = int.from_bytes(made, "little")
            self._count(known)
            self._masks[role_id] = known
        return known

    def mask_of_all(self, roles: RoleSet) -> int:
        """What the roles of the set have together, as a mask."""
        known = self.together.get(roles)
        if known is None:
            known = 0
            for role_id in roles.role_ids:
                known |= self.mask(role_id)
            self._count(known)
            self.together[roles] = known
        return known

    def _count(self, mask: int) -> None:
        """Make room for a mask that is about to be remembered."""
        self._remembered += (mask.bit_length() >> 3) + 100
        if self._remembered > _MASK_BYTES:
            for memory in (self.wants, self.together, self._masks):
                memory.clear()
            self._remembered = 0

    def granting(self, came_from: Mapping[int, int], permission: str) -> Iterator[tuple[int, str]]:
        """(role id, grant) for each role of a ``reach`` with a direct grant that covers."""
        wanted = covering(permission)
        for reached in came_from:
            for grant in wanted:
                if grant in self.nodes[reached].grants:
                    yield reached, grant
