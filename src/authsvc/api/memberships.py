"""Users in roles, and the questions about them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Query, Request, Response

from authsvc.api.dependencies import (
    CheckCaller,
    DirectQuery,
    PageDep,
    ReadCaller,
    ScopeQuery,
    ServiceDep,
    WriteCaller,
    admit,
)
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import (
    Envelope,
    EnvelopeWithResult,
    ListEnvelopeWithResult,
    answer,
    timestamp,
)
from authsvc.api.route import contract_route
from authsvc.records import Change, Listing
from authsvc.schemas import answers
from authsvc.schemas.changes import MembershipBody
from authsvc.schemas.names import PermissionName, RoleName, ScopeName, UserName
from authsvc.services.memberships import Questions, Stored

router = APIRouter(prefix="/api", route_class=contract_route(admit))

_MEMBER = {"user": "alice", "role": "admin"}


@router.post(
    "/membership/{user}/{role}",
    tags=["Memberships"],
    summary="Put a user into a role",
    response_model=EnvelopeWithResult[answers.MembershipWritten, bool],
    responses=documented(
        "User 'alice' is in role 'admin'",
        _MEMBER
        | {
            "added": True,
            "updated": False,
            "not_before": "2026-12-01T09:00:00.000000Z",
            "expires_at": "2026-12-24T18:00:00.000000Z",
            "scope": "project/42",
        },
        "role_not_found",
        "user_not_key_backed",
        *WRITES,
        *BODIES,
        result=True,
    ),
)
async def add_member(
    request: Request,
    user: UserName,
    role: RoleName,
    service: ServiceDep,
    _caller: WriteCaller,
    body: Annotated[
        MembershipBody | None,
        Body(examples=[{"scope": "project/42", "expires_at": "2026-12-24T18:00:00Z"}]),
    ] = None,
) -> Response:
    """A user needs no declaration: any identifier of yours will do. The optional body binds the
    membership to a scope or to a time (in force from `not_before` until just before `expires_at`).
    It states the whole membership: bounds that are absent mean none, other bounds than stored are
    an update.
    """
    bounds = body or MembershipBody()
    change = Change(
        "add_member",
        user=user,
        role=role,
        scope=bounds.scope,
        not_before=bounds.not_before,
        expires_at=bounds.expires_at,
    )
    outcome = await service.write(request, [change])
    effect = outcome.effects[0]
    data = {
        "user": user,
        "role": role,
        "added": effect.changed and not effect.updated,
        "updated": effect.updated,
        "not_before": timestamp(bounds.not_before) if bounds.not_before else None,
        "expires_at": timestamp(bounds.expires_at) if bounds.expires_at else None,
        "scope": bounds.scope,
    }
    message = f"User '{user}' is in role '{role}'"
    return answer(data, message, outcome.stamp.revision, service.clock(), result=True)


@router.delete(
    "/membership/{user}/{role}",
    tags=["Memberships"],
    summary="Take a user out of a role",
    response_model=EnvelopeWithResult[answers.MembershipRemoved, bool],
    responses=documented(
        "User 'alice' is not in role 'admin'",
        _MEMBER | {"removed": True},
        *WRITES,
        result=True,
    ),
)
async def remove_member(
    request: Request,
    user: UserName,
    role: RoleName,
    service: ServiceDep,
    _caller: WriteCaller,
    scope: Annotated[
        ScopeName | None, Query(description="Only the membership bound to this scope")
    ] = None,
) -> Response:
    """Ends the user's memberships in the role: in every scope, or with `scope` in that one only.
    Once this is answered, no check is answered from before it.
    """
    change = Change("remove_member", user=user, role=role, scope=scope)
    outcome = await service.write(request, [change])
    data = {"user": user, "role": role, "removed": outcome.effects[0].changed}
    message = f"User '{user}' is not in role '{role}'"
    return answer(data, message, outcome.stamp.revision, service.clock(), result=True)


@router.get(
    "/membership/{user}/{role}",
    tags=["Memberships"],
    summary="Is a user in a role?",
    response_model=Envelope[answers.HasPermission],
    responses=documented("Answered", {"has_permission": True}),
)
async def is_member(
    user: UserName,
    role: RoleName,
    service: ServiceDep,
    caller: CheckCaller,
    scope: ScopeQuery = None,
) -> Response:
    """Whether the user is in the role now, directly or through a role that inherits it. The
    answer is called `has_permission`, as clients of the original Auth API expect.
    """
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        is_in, reason, stamp = await questions.is_member(user, role)
    data: dict[str, Any] = {"has_permission": is_in}
    if reason is not None:
        data["reason"] = reason
    return answer(data, "Answered", stamp.revision, moment)


@router.get(
    "/user_permissions/{user}",
    tags=["Memberships"],
    summary="What may a user do?",
    response_model=Envelope[answers.UserPermissions],
    responses=documented(
        "Permissions of 'alice'",
        {"count": 1, "permissions": [{"name": "deploy"}]},
        "limit_required",
    ),
)
async def user_permissions(
    user: UserName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    scope: ScopeQuery = None,
) -> Response:
    """Every permission the user has now through any role, each once; wildcards as granted."""
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        found = await questions.user_permissions(user, page)
    data = {"count": len(found.items), "permissions": [{"name": name} for name in found.items]}
    message = f"Permissions of '{user}'"
    return answer(data, message, found.stamp.revision, moment, next=found.next)


def _stored(found: Listing[Stored]) -> list[dict[str, Any]]:
    rows = []
    for stored in found.items:
        m = stored.membership
        rows.append(
            {
                "user": m.user,
                "role": stored.role,
                "scope": m.scope or None,
                "not_before": timestamp(m.not_before) if m.not_before else None,
                "expires_at": timestamp(m.expires_at) if m.expires_at else None,
            }
        )
    return rows


def _pairs(found: Listing[tuple[str, str]]) -> list[dict[str, Any]]:
    return [{"user": user, "role": role} for user, role in found.items]


@router.get(
    "/user_roles/{user}",
    tags=["Memberships"],
    summary="Which roles does a user have?",
    response_model=ListEnvelopeWithResult[answers.UserRole | answers.StoredMembership],
    responses=documented("Roles of 'alice'", [_MEMBER], "limit_required", result=[_MEMBER]),
)
async def user_roles(
    user: UserName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    scope: ScopeQuery = None,
    direct: DirectQuery = False,
) -> Response:
    """The roles the user holds now, then the roles these inherit from. With `direct=true` the
    memberships as stored, with their bounds.
    """
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        if direct:
            rows = await questions.user_rows(user, page)
            items, stamp, next_ = _stored(rows), rows.stamp, rows.next
        else:
            pairs = await questions.user_roles(user, page)
            items, stamp, next_ = _pairs(pairs), pairs.stamp, pairs.next
    message = f"Roles of '{user}'"
    return answer(items, message, stamp.revision, moment, result=items, next=next_)


@router.get(
    "/members/{role}",
    tags=["Memberships"],
    summary="Who is in a role?",
    response_model=ListEnvelopeWithResult[answers.UserRole | answers.StoredMembership],
    responses=documented("Members of 'admin'", [_MEMBER], "limit_required", result=[_MEMBER]),
)
async def members(
    role: RoleName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    scope: ScopeQuery = None,
    direct: DirectQuery = False,
) -> Response:
    """The users in the role now, directly or through a role that inherits it, each once. With
    `direct=true` the role's memberships as stored, with their bounds.
    """
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        if direct:
            rows = await questions.role_rows(role, page)
            items, stamp, next_ = _stored(rows), rows.stamp, rows.next
        else:
            pairs = await questions.members(role, page)
            items, stamp, next_ = _pairs(pairs), pairs.stamp, pairs.next
    message = f"Members of '{role}'"
    return answer(items, message, stamp.revision, moment, result=items, next=next_)


@router.get(
    "/which_users_can/{permission}",
    tags=["Memberships"],
    summary="Which users may do this?",
    response_model=ListEnvelopeWithResult[answers.UserRole],
    responses=documented("Users with 'deploy'", [_MEMBER], "limit_required", result=[_MEMBER]),
)
async def which_users_can(
    permission: PermissionName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    scope: ScopeQuery = None,
) -> Response:
    """Who has the permission now, and through which roles: for each user the role held directly,
    followed by the roles it inherits the permission from. Each pair once.
    """
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        found = await questions.which_users_can(permission, page)
    items = _pairs(found)
    message = f"Users with '{permission}'"
    return answer(items, message, found.stamp.revision, moment, result=items, next=found.next)


@router.get(
    "/workflow/users/{workflow}",
    tags=["Workflows"],
    summary="Who may run a workflow?",
    response_model=Envelope[answers.WorkflowUsers],
    responses=documented(
        "Users of workflow 'deploy'", {"count": 1, "members": [_MEMBER]}, "limit_required"
    ),
)
async def workflow_users(
    workflow: PermissionName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    scope: ScopeQuery = None,
) -> Response:
    """Who has the permission that is named like the workflow."""
    moment = service.clock()
    async with service.database.read() as tx:
        questions = Questions(tx, caller.tenant_id, scope, moment)
        found = await questions.which_users_can(workflow, page)
    data = {"count": len(found.items), "members": _pairs(found)}
    message = f"Users of workflow '{workflow}'"
    return answer(data, message, found.stamp.revision, moment, next=found.next)


@router.delete(
    "/user/{user}",
    tags=["Memberships"],
    summary="Remove everything about a user",
    response_model=Envelope[answers.UserRemoved],
    responses=documented(
        "Nothing is left of user 'alice'",
        {"memberships_removed": 2, "api_keys_revoked": 1},
        *WRITES,
    ),
)
async def remove_user(
    request: Request, user: UserName, service: ServiceDep, _caller: WriteCaller
) -> Response:
    """Ends all of the user's memberships, in force or not, in every scope, and revokes the user's
    API keys, in one transaction.
    """
    outcome = await service.write(request, [Change("remove_user", user=user)])
    effect = outcome.effects[0]
    data = {"memberships_removed": effect.count, "api_keys_revoked": effect.keys}
    message = f"Nothing is left of user '{user}'"
    return answer(data, message, outcome.stamp.revision, service.clock())
