"""May this user do this: one question, many questions, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from authsvc import decision
from authsvc.database import Database
from authsvc.decision_cache import Held, TenantState, allowed
from authsvc.records import Caller, Membership, Stamp
from authsvc.repositories.policy import NOTHING, Policy, Start, read_policy
from authsvc.role_graph import RoleGraph, covering
from authsvc.services.current_state import CurrentState


@dataclass(frozen=True, slots=True)
class Question:
    """One check: ``scope`` None asks for what holds everywhere."""

    user: str
    permission: str
    scope: str | None = None


@dataclass(frozen=True, slots=True)
class Answer:
    """A decision with its reasons: ``grounds`` when it is positive, ``reason`` when not."""

    allowed: bool
    grounds: Sequence[decision.Ground] = ()
    reason: decision.Reason | None = None


async def _policy(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question]
) -> Policy:
    if tenant_id is None or not questions:
        return NOTHING
    wanted = {grant for q in questions for grant in covering(q.permission)}
    return await read_policy(database, tenant_id, Start.USERS, {q.user for q in questions}, wanted)


async def check_now(
    current: CurrentState, caller: Caller, questions: Sequence[Question], now: datetime
) -> tuple[list[bool], Stamp]:
    """The answers in order, from memory where it is true, all at the stamp that is returned."""
    found = await _holdings(current, caller, questions)
    if found is None:
        return await check(current.database, caller.tenant_id, questions, now)
    state, graph, held = found
    answers = [allowed(held[q.user], graph, q.permission, q.scope, now) for q in questions]
    return answers, state.stamp


async def explain_now(
    current: CurrentState, caller: Caller, questions: Sequence[Question], now: datetime
) -> tuple[list[Answer], Stamp]:
    """As ``check_now``, with reasons."""
    found = await _holdings(current, caller, questions)
    if found is None:
        return await explain(current.database, caller.tenant_id, questions, now)
    state, graph, held = found
    memberships = {user: state.memberships_of(user, own) for user, own in held.items()}
    return [_explain(memberships[q.user], graph, q, now) for q in questions], state.stamp


async def _holdings(
    current: CurrentState, caller: Caller, questions: Sequence[Question]
) -> tuple[TenantState, RoleGraph, dict[str, Held]] | None:
    """What the questions are about, remembered or loaded; None if it has to be read in one go."""
    if caller.tenant_id is None:
        return None
    users = {q.user for q in questions}
    found = await current.holdings(caller.tenant_id, users, caller.stamp)
    if found is None or found[0].graph is None:
        return None
    return found[0], found[0].graph, found[1]


async def check(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question], now: datetime
) -> tuple[list[bool], Stamp]:
    """As ``check_now``, without any memory: one statement that follows the hierarchy itself."""
    policy = await _policy(database, tenant_id, questions)
    answers = [
        decision.allowed(
            policy.memberships.get(q.user, ()), policy.graph, q.permission, q.scope, now
        )
        for q in questions
    ]
    return answers, policy.stamp


async def explain(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question], now: datetime
) -> tuple[list[Answer], Stamp]:
    """As ``check``, with reasons."""
    policy = await _policy(database, tenant_id, questions)
    answers = [
        _explain(policy.memberships.get(q.user, ()), policy.graph, q, now) for q in questions
    ]
    return answers, policy.stamp


def _explain(
    memberships: Sequence[Membership], graph: RoleGraph, q: Question, now: datetime
) -> Answer:
    found = decision.grounds(memberships, graph, q.permission, q.scope, now)
    if found:
        return Answer(True, grounds=found)
    reason = decision.denial(memberships, graph, q.permission, q.scope, now)
    return Answer(False, reason=reason)
