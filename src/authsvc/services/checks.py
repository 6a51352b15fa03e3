"""May this user do this: one question, many questions, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from authsvc import decision
from authsvc.database import Database
from authsvc.records import Stamp
from authsvc.repositories.policy import NOTHING, Policy, Start, read_policy
from authsvc.role_graph import covering


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


async def check(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question], now: datetime
) -> tuple[list[bool], Stamp]:
    """The answers in order, all from the one state that is returned with them."""
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
    return [_explain(policy, q, now) for q in questions], policy.stamp


def _explain(policy: Policy, q: Question, now: datetime) -> Answer:
    memberships = policy.memberships.get(q.user, ())
    found = decision.grounds(memberships, policy.graph, q.permission, q.scope, now)
    if found:
        return Answer(True, grounds=found)
    reason = decision.denial(memberships, policy.graph, q.permission, q.scope, now)
    return Answer(False, reason=reason)
