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


_MOST_REMEMBERED = 2_000_000
"""How many names a graph's effective sets may hold together before they are made each time."""


class RoleGraph:
    """The loaded roles of one tenant, by id."""

    def __init__(self, nodes: Iterable[RoleNode] = ()) -> None:
        self.nodes: dict[int, RoleNode] = {node.id: node for node in nodes}
        self._effective: dict[int, frozenset[str]] = {}
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
        known = self._effective.get(role_id)
        if known is None:
            reached = self.reach(role_id)
            known = frozenset().union(*(self.nodes[r].grants for r in reached))
            # Deep hierarchies have sets that grow with the square of their roles.
            self._remembered += len(known)
            if self._remembered <= _MOST_REMEMBERED:
                self._effective[role_id] = known
        return known

    def granting(self, came_from: Mapping[int, int], permission: str) -> Iterator[tuple[int, str]]:
        """(role id, grant) for each role of a ``reach`` with a direct grant that covers."""
        wanted = covering(permission)
        for reached in came_from:
            for grant in wanted:
                if grant in self.nodes[reached].grants:
                    yield reached, grant
