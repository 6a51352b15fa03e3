"""May this user do this: one question, many questions, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

from authsvc import decision
from authsvc.database import Database
from authsvc.decision_cache import Held, KeyBacked, TenantState, all_allowed, allowed
from authsvc.errors import Unavailable
from authsvc.records import Caller, Membership, Stamp
from authsvc.repositories.policy import NOTHING, Policy, read_policy
from authsvc.repositories.policy_statements import Start
from authsvc.role_graph import RoleGraph, RoleSet, covering
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


_NOT_KEY_BACKED = Answer(False, reason="user_not_key_backed")


async def _policy(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question]
) -> Policy:
    if tenant_id is None or not questions:
        return NOTHING
    wanted = {grant for q in questions for grant in covering(q.permission)}
    return await read_policy(database, tenant_id, Start.USERS, {q.user for q in questions}, wanted)


def plain_checks(
    current: CurrentState, caller: Caller, items: Sequence[Any]
) -> tuple[list[bool], Stamp] | None:
    """The answers to questions that come as they were sent, if memory has all about them."""
    state = current.at(caller.tenant_id, caller.stamp)
    answers = None if state is None else all_allowed(state, items)
    return None if answers is None else (answers, caller.stamp)


async def check_now(
    current: CurrentState, caller: Caller, questions: Sequence[Question], now: datetime
) -> tuple[list[bool], Stamp]:
    """The answers in order, from memory where it is true, all at the stamp that is returned."""
    found = await _holdings(current, caller, questions, now)
    if found is None:
        answers, stamp = await check(current.database, caller.tenant_id, questions, now)
        return answers, _not_older(stamp, caller)
    state, graph, held, _refused = found
    if len(questions) == 1:
        q = questions[0]
        return [allowed(held[q.user], graph, q.permission, q.scope, now)], state.stamp
    here = {user: _by_scope(own, graph, now) for user, own in held.items()}
    answers = []
    for q in questions:
        own = here[q.user]
        mask = own.get("", 0) | own.get(q.scope, 0) if q.scope else own.get("", 0)
        answers.append(mask & graph.wanted(q.permission) != 0)
    return answers, state.stamp


async def decide_now(
    current: CurrentState, caller: Caller, q: Question, now: datetime
) -> tuple[Answer, Stamp]:
    """As ``check_now`` for one question, with the one reason that is told unasked: no API key."""
    found = await _holdings(current, caller, [q], now)
    if found is None:
        policy = await _policy(current.database, caller.tenant_id, [q])
        refused, is_allowed = policy.refuses(q.user, now), _allowed(policy, q, now)
        stamp = _not_older(policy.stamp, caller)
    else:
        state, graph, held, those_refused = found
        refused, stamp = q.user in those_refused, state.stamp
        is_allowed = allowed(held[q.user], graph, q.permission, q.scope, now)
    return Answer(is_allowed, reason="user_not_key_backed" if refused else None), stamp


def _by_scope(held: Held, graph: RoleGraph, now: datetime) -> dict[str, int]:
    """What a user has now, as masks by scope, for many questions about the same user."""
    if isinstance(held, RoleSet):
        return {"": graph.mask_of_all(held)}
    masks: dict[str, int] = {}
    for m in held:
        if decision.in_force(m, now):
            masks[m.scope] = masks.get(m.scope, 0) | graph.mask(m.role_id)
    return masks


async def explain_now(
    current: CurrentState, caller: Caller, questions: Sequence[Question], now: datetime
) -> tuple[list[Answer], Stamp]:
    """As ``check_now``, with reasons."""
    found = await _holdings(current, caller, questions, now)
    if found is None:
        reasons, stamp = await explain(current.database, caller.tenant_id, questions, now)
        return reasons, _not_older(stamp, caller)
    state, graph, held, refused = found
    memberships = {user: state.memberships_of(user, own) for user, own in held.items()}
    answers = [
        _NOT_KEY_BACKED if q.user in refused else _explain(memberships[q.user], graph, q, now)
        for q in questions
    ]
    return answers, state.stamp


def _not_older(stamp: Stamp, caller: Caller) -> Stamp:
    """Refuse what a connection to a server that lags behind has told."""
    if stamp.revision < caller.stamp.revision:
        raise Unavailable("The database answered from an earlier state than the primary's")
    return stamp


async def _holdings(
    current: CurrentState, caller: Caller, questions: Sequence[Question], now: datetime
) -> tuple[TenantState, RoleGraph, dict[str, Held], set[str]] | None:
    """What the questions are about, remembered or loaded; None if it has to be read in one go.

    The last are the users who may do nothing for want of an API key: they hold nothing here.
    """
    if caller.tenant_id is None:
        return None
    users = {q.user for q in questions}
    found = await current.holdings(caller.tenant_id, users, caller.stamp)
    if found is None or found[0].graph is None:
        return None
    held: dict[str, Held] = {}
    refused: set[str] = set()
    for user, kept in found[1].items():
        if not isinstance(kept, KeyBacked):
            held[user] = kept
        elif kept.refuses(now):
            held[user] = ()
            refused.add(user)
        else:
            held[user] = kept.held
    return found[0], found[0].graph, held, refused


async def check(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question], now: datetime
) -> tuple[list[bool], Stamp]:
    """As ``check_now``, without any memory: one statement that follows the hierarchy itself."""
    policy = await _policy(database, tenant_id, questions)
    return [_allowed(policy, q, now) for q in questions], policy.stamp


def _allowed(policy: Policy, q: Question, now: datetime) -> bool:
    held = policy.memberships.get(q.user, ())
    return not policy.refuses(q.user, now) and decision.allowed(
        held, policy.graph, q.permission, q.scope, now
    )


async def explain(
    database: Database, tenant_id: UUID | None, questions: Sequence[Question], now: datetime
) -> tuple[list[Answer], Stamp]:
    """As ``check``, with reasons."""
    policy = await _policy(database, tenant_id, questions)
    answers = [
        _NOT_KEY_BACKED
        if policy.refuses(q.user, now)
        else _explain(policy.memberships.get(q.user, ()), policy.graph, q, now)
        for q in questions
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
