"""May this user do this: single checks and many in one request."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from pydantic import ValidationError

from authsvc.api.check_answer import check_body
from authsvc.api.dependencies import (
    CheckCaller,
    ScopeQuery,
    Service,
    ServiceDep,
    admit,
)
from authsvc.api.documented import BODIES, documented
from authsvc.api.envelope import Envelope, answer
from authsvc.api.field_problems import input_error
from authsvc.api.route import contract_route
from authsvc.records import Caller, Stamp
from authsvc.schemas import answers
from authsvc.schemas.checks import CheckBody, Checks, PlainChecks, why_schema
from authsvc.schemas.names import PermissionName, UserName
from authsvc.services.checks import (
    Answer,
    Question,
    check_now,
    decide_now,
    explain_now,
    plain_checks,
)

JSON = "application/json"

router = APIRouter(prefix="/api", route_class=contract_route(admit))


def _why(found: Answer) -> dict[str, Any]:
    if not found.allowed:
        return {"has_permission": False, "why": {"denied_because": found.reason}}
    allowed_by = [
        {
            "role": ground.role,
            "via": list(ground.via),
            "permission": ground.permission,
            "scope": ground.scope,
        }
        for ground in found.grounds
    ]
    return {"has_permission": True, "why": {"allowed_by": allowed_by}}


def _record(
    service: Service,
    caller: Caller,
    now: datetime,
    questions: Sequence[Question],
    answers: Sequence[bool],
) -> None:
    """Have checks recorded, where checks are, and the use of grants noted."""
    activity, tenant_id = service.activity, caller.tenant_id
    for q, allowed in zip(questions, answers, strict=True):
        if allowed and tenant_id is not None:
            service.grants.note(tenant_id, q.user, q.permission, q.scope)
        if activity.records_denied:
            activity.check(caller, now, q.user, q.permission, q.scope, allowed)


async def _single(
    service: Service, caller: Caller, question: Question, *, with_why: bool
) -> Response:
    # One clock for all replicas, where the database has told its own.
    now = caller.at or service.clock()
    if with_why:
        explained, stamp = await explain_now(service.current, caller, [question], now)
        found, data = explained[0], _why(explained[0])
        _record(service, caller, now, [question], [found.allowed])
    else:
        found, stamp = await decide_now(service.current, caller, question, now)
        _record(service, caller, now, [question], [found.allowed])
        if found.reason is None:
            return Response(check_body(found.allowed, stamp.revision, now), media_type=JSON)
        data = {"has_permission": found.allowed}
    if found.reason == "user_not_key_backed":
        data["reason"] = found.reason
    return answer(data, "Answered", stamp.revision, now)


@router.get(
    "/has_permission/{user}/{permission}",
    tags=["Checks"],
    summary="May this user do this?",
    response_model=Envelope[answers.HasPermission | answers.HasPermissionWhy],
    responses=documented("Answered", {"has_permission": True}),
)
async def has_permission(
    user: UserName,
    permission: PermissionName,
    service: ServiceDep,
    caller: CheckCaller,
    scope: ScopeQuery = None,
    explain: Annotated[bool, Query(description="Add `why` to the answer")] = False,
) -> Response:
    """The question the service exists for. True if any role the user is in now has the
    permission, by its own grant, a wildcard or inheritance. Memberships bound to a scope count
    only when that `scope` is asked for. An unknown user, role or permission is simply `false`.
    """
    question = Question(user, permission, scope)
    return await _single(service, caller, question, with_why=explain)


@router.get(
    "/workflow/user/{user}/can_run/{workflow}",
    tags=["Workflows"],
    summary="May this user run this workflow?",
    response_model=Envelope[answers.HasPermission],
    responses=documented("Answered", {"has_permission": True}),
)
async def can_run(
    user: UserName,
    workflow: PermissionName,
    service: ServiceDep,
    caller: CheckCaller,
    scope: ScopeQuery = None,
) -> Response:
    """Whether the user has the permission that is named like the workflow."""
    question = Question(user, workflow, scope)
    return await _single(service, caller, question, with_why=False)


@router.post(
    "/check",
    tags=["Checks"],
    summary="Many checks in one request",
    response_model=Envelope[answers.CheckResults],
    responses=documented(
        "Answered", {"results": [True, False], "allowed": 1, "denied": 1}, *BODIES
    ),
    openapi_extra={"x-example-of-why": why_schema()},
)
async def check_many(
    request: Request, body: Checks, service: ServiceDep, _caller: CheckCaller
) -> Response:
    """Up to 10 000 checks, answered in order and all from one revision. With `explain` each
    result is an object with `why`. The short form asks many permissions of one user and answers
    an object by permission. Names travel in the body here, and stay out of URLs and access logs.
    """
    # The body may have taken long to arrive: what counts is the credential's state after it.
    caller = await service.authenticated(request)
    now = caller.at or service.clock()
    if isinstance(body, PlainChecks):
        if not service.activity.records_denied:
            known = plain_checks(service.current, caller, body.checks or [])
            if known is not None:
                if caller.tenant_id is not None:
                    plain: Sequence[Any] = body.checks or []
                    asked = zip(plain, known[0], strict=True)
                    used = ((i["user"], i["permission"], i.get("scope")) for i, ok in asked if ok)
                    service.grants.note_all(caller.tenant_id, used)
                return _results(*known, now)
        body = _validated(body)
    if body.checks is not None:
        questions = [Question(item.user, item.permission, item.scope) for item in body.checks]
    else:
        names = body.permissions or []
        questions = [Question(body.user or "", name, body.scope) for name in names]

    if body.explain:
        explained, stamp = await explain_now(service.current, caller, questions, now)
        allowed = [found.allowed for found in explained]
        results: list[Any] = [_why(found) for found in explained]
    else:
        allowed, stamp = await check_now(service.current, caller, questions, now)
        results = allowed
    _record(service, caller, now, questions, allowed)
    if body.checks is None:
        by_name = zip((q.permission for q in questions), results, strict=True)
        return answer({"results": dict(by_name)}, "Answered", stamp.revision, now)
    return _results(allowed, stamp, now, results)


def _validated(body: PlainChecks) -> CheckBody:
    try:
        return body.validated()
    except ValidationError as error:
        raise input_error(error.errors(), {"checks": body.checks}) from None


def _results(
    allowed: Sequence[bool], stamp: Stamp, now: datetime, results: Sequence[Any] | None = None
) -> Response:
    """The answer to a list of checks; ``results`` if they are more than yes and no."""
    count = sum(allowed)
    data = {
        "results": allowed if results is None else results,
        "allowed": count,
        "denied": len(allowed) - count,
    }
    return answer(data, "Answered", stamp.revision, now)
