"""May this user do this? A pure function of memberships, roles, permission, scope and time."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from itertools import islice
from typing import Literal

from authsvc.records import Membership
from authsvc.role_graph import RoleGraph

Reason = Literal[
    "no_such_user",
    "no_role_grants_it",
    "membership_not_started",
    "membership_expired",
    "out_of_scope",
    "user_not_key_backed",
]
"""Why an answer is negative; a closed set."""


GROUNDS_MAX = 50
"""How many reasons for one positive answer are told."""


@dataclass(frozen=True, slots=True)
class Ground:
    """One reason for a positive answer.

    ``role`` holds the grant ``permission``; ``via`` leads from the role the user holds (bound to
    ``scope``, None for everywhere) to it.
    """

    role: str
    via: tuple[str, ...]
    permission: str
    scope: str | None


def in_force(membership: Membership, now: datetime) -> bool:
    """Whether the membership's bounds include this instant."""
    start, end = membership.not_before, membership.expires_at
    return (start is None or start <= now) and (end is None or now < end)


def in_scope(membership: Membership, scope: str | None) -> bool:
    """Whether the membership counts for a question asked with this scope (None: without one)."""
    return not membership.scope or membership.scope == scope


def counts(m: Membership, scope: str | None, now: datetime) -> bool:
    """Whether a membership counts here and now."""
    return in_scope(m, scope) and in_force(m, now)


def held(memberships: Iterable[Membership], scope: str | None, now: datetime) -> list[Membership]:
    """The memberships that count here and now."""
    return [m for m in memberships if counts(m, scope, now)]


def allowed(
    memberships: Iterable[Membership],
    graph: RoleGraph,
    permission: str,
    scope: str | None,
    now: datetime,
) -> bool:
    """Whether any membership in force and in scope leads to a grant that covers."""
    wanted = graph.wanted(permission)
    return any(
        graph.mask(m.role_id) & wanted
        for m in memberships
        if in_scope(m, scope) and in_force(m, now)
    )


def grounds(
    memberships: Iterable[Membership],
    graph: RoleGraph,
    permission: str,
    scope: str | None,
    now: datetime,
) -> list[Ground]:
    """The reasons for a positive answer, nearest first; empty exactly when ``allowed`` is false.

    At most ``GROUNDS_MAX`` of them: a long hierarchy could have as many as it has ways.
    """
    found = (
        Ground(
            role=graph.nodes[granting].name,
            via=graph.path(came_from, granting),
            permission=grant,
            scope=m.scope or None,
        )
        for m in held(memberships, scope, now)
        for came_from in (graph.reach(m.role_id),)
        for granting, grant in graph.granting(came_from, permission)
    )
    return list(islice(found, GROUNDS_MAX))


def denial(
    memberships: Iterable[Membership],
    graph: RoleGraph,
    permission: str,
    scope: str | None,
    now: datetime,
) -> Reason:
    """Why a negative answer is negative.

    Of several reasons the nearest to *allow* is told: a membership that is in force elsewhere,
    then one that has yet to start, then one that has ended.
    """
    held_ever = list(memberships)
    if not held_ever:
        return "no_such_user"
    wanted = graph.wanted(permission)
    granting = [m for m in held_ever if graph.mask(m.role_id) & wanted]
    if any(in_force(m, now) for m in granting):
        return "out_of_scope"
    here = [m for m in granting if in_scope(m, scope)] or granting
    if any(m.not_before is not None and now < m.not_before for m in here):
        return "membership_not_started"
    return "membership_expired" if here else "no_role_grants_it"
