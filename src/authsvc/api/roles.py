"""Roles, what they inherit, and what is granted to them."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from authsvc.api.dependencies import (
    CheckCaller,
    DirectQuery,
    PageDep,
    ReadCaller,
    ServiceDep,
    WriteCaller,
    admit,
)
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import (
    Envelope,
    EnvelopeWithResult,
    ListEnvelope,
    ListEnvelopeWithResult,
    answer,
    timestamp,
)
from authsvc.api.route import contract_route
from authsvc.records import Change
from authsvc.schemas import answers
from authsvc.schemas.changes import RoleBody
from authsvc.schemas.names import GrantName, PermissionName, RoleName
from authsvc.services import roles

router = APIRouter(prefix="/api", route_class=contract_route(admit))

_ROLE_EXAMPLE = {"role": "admin", "description": "May deploy"}


@router.post(
    "/role/{role}",
    tags=["Roles"],
    summary="Make a role",
    response_model=EnvelopeWithResult[answers.RoleWritten, bool],
    responses=documented(
        "Role 'admin' is in place", _ROLE_EXAMPLE | {"created": True}, *WRITES, *BODIES, result=True
    ),
)
async def add_role(
    request: Request,
    role: RoleName,
    service: ServiceDep,
    _caller: WriteCaller,
    body: Annotated[RoleBody | None, Body(examples=[{"description": "May deploy"}])] = None,
) -> Response:
    """Makes the role if there is none of that name. Asking again is fine and changes nothing.

    With a `description` that differs from the stored one, the description is updated; without a
    body it is left as it is. `created` tells whether the role is new.
    """
    text = body.description if body else None
    outcome = await service.write(request, [Change("add_role", role=role, description=text)])
    effect = outcome.effects[0]
    data = {
        "role": role,
        "description": effect.description,
        "created": effect.changed and not effect.updated,
    }
    message = f"Role '{role}' is in place"
    return answer(data, message, outcome.stamp.revision, service.clock(), result=True)


@router.get(
    "/role/{role}",
    tags=["Roles"],
    summary="Look at a role",
    response_model=Envelope[answers.RoleDetails],
    responses=documented(
        "Role 'admin'",
        _ROLE_EXAMPLE
        | {
            "parents": ["staff"],
            "permissions": ["deploy"],
            "members_count": 2,
            "created_at": "2026-11-23T10:11:12.345678Z",
        },
        "role_not_found",
    ),
)
async def get_role(role: RoleName, service: ServiceDep, caller: ReadCaller) -> Response:
    """The role as it is stored: its own grants, the roles it inherits from directly, and how many
    users hold it directly. What follows from inheritance is answered by `role_permissions` and
    `members`.
    """
    async with service.database.read() as tx:
        found, stamp = await roles.describe_role(tx, caller.tenant_id, role)
    data = {
        "role": role,
        "description": found.role.description,
        "parents": found.parents,
        "permissions": found.permissions,
        "members_count": found.members_count,
        "created_at": timestamp(found.role.created_at),
    }
    return answer(data, f"Role '{role}'", stamp.revision, service.clock())


@router.delete(
    "/role/{role}",
    tags=["Roles"],
    summary="Remove a role",
    response_model=Envelope[answers.RoleRemoved],
    responses=documented(
        "Role 'admin' is not there",
        {"result": True, "role": "admin", "removed": True},
        *WRITES,
    ),
)
async def remove_role(
    request: Request, role: RoleName, service: ServiceDep, _caller: WriteCaller
) -> Response:
    """Removes the role with its members, its grants and its place in the hierarchy. A role made
    again under the same name starts empty. Removing what is not there is no error.
    """
    outcome = await service.write(request, [Change("remove_role", role=role)])
    removed = outcome.effects[0].changed
    data = {"result": removed, "role": role, "removed": removed}
    return answer(data, f"Role '{role}' is not there", outcome.stamp.revision, service.clock())


@router.get(
    "/roles",
    tags=["Roles"],
    summary="List the roles",
    response_model=ListEnvelopeWithResult[answers.RoleItem],
    responses=documented("Roles", [_ROLE_EXAMPLE], "limit_required", result=[_ROLE_EXAMPLE]),
)
async def list_roles(service: ServiceDep, caller: ReadCaller, page: PageDep) -> Response:
    """All roles of the tenant, in the order they were made. Without `limit` the list is complete
    or refused (more than 10 000 roles); with it, follow `next`.
    """
    async with service.database.read() as tx:
        found = await roles.list_roles(tx, caller.tenant_id, page)
    items = [{"role": role.name, "description": role.description} for role in found.items]
    return answer(
        items, "Roles", found.stamp.revision, service.clock(), result=items, next=found.next
    )


@router.post(
    "/role/{role}/parent/{parent}",
    tags=["Hierarchy"],
    summary="Let a role inherit from another",
    response_model=Envelope[answers.ParentWritten],
    responses=documented(
        "Role 'lead' inherits from 'admin'",
        {"role": "lead", "parent": "admin", "added": True},
        "role_not_found",
        "role_cycle",
        *WRITES,
        *BODIES,
    ),
)
async def add_parent(
    request: Request,
    role: RoleName,
    parent: RoleName,
    service: ServiceDep,
    _caller: WriteCaller,
) -> Response:
    """From now on `role` holds everything `parent` holds, and whoever is in `role` counts as a
    member of `parent`. A cycle is refused with 409 naming the way it would close.
    """
    outcome = await service.write(request, [Change("add_parent", role=role, parent=parent)])
    data = {"role": role, "parent": parent, "added": outcome.effects[0].changed}
    message = f"Role '{role}' inherits from '{parent}'"
    return answer(data, message, outcome.stamp.revision, service.clock())


@router.delete(
    "/role/{role}/parent/{parent}",
    tags=["Hierarchy"],
    summary="End an inheritance",
    response_model=Envelope[answers.ParentRemoved],
    responses=documented(
        "Role 'lead' does not inherit from 'admin' directly",
        {"role": "lead", "parent": "admin", "removed": True},
        *WRITES,
    ),
)
async def remove_parent(
    request: Request,
    role: RoleName,
    parent: RoleName,
    service: ServiceDep,
    _caller: WriteCaller,
) -> Response:
    """Removes the direct inheritance. What `role` inherits on another way stays."""
    outcome = await service.write(request, [Change("remove_parent", role=role, parent=parent)])
    data = {"role": role, "parent": parent, "removed": outcome.effects[0].changed}
    message = f"Role '{role}' does not inherit from '{parent}' directly"
    return answer(data, message, outcome.stamp.revision, service.clock())


@router.post(
    "/permission/{role}/{permission}",
    tags=["Permissions"],
    summary="Grant a permission to a role",
    response_model=EnvelopeWithResult[answers.PermissionGranted, bool],
    responses=documented(
        "Role 'admin' has permission 'deploy'",
        {"role": "admin", "permission": "deploy", "granted": True},
        "role_not_found",
        *WRITES,
        *BODIES,
        result=True,
    ),
)
async def grant(
    request: Request,
    role: RoleName,
    permission: GrantName,
    service: ServiceDep,
    _caller: WriteCaller,
) -> Response:
    """Whoever is in the role may do this from now on. A permission needs no declaration: it
    exists by being granted. `invoice:*` covers every permission with exactly one more segment
    (`invoice:read`). `granted` is false when the role had it already.
    """
    change = Change("grant", role=role, permission=permission)
    outcome = await service.write(request, [change])
    data = {"role": role, "permission": permission, "granted": outcome.effects[0].changed}
    message = f"Role '{role}' has permission '{permission}'"
    return answer(data, message, outcome.stamp.revision, service.clock(), result=True)


@router.delete(
    "/permission/{role}/{permission}",
    tags=["Permissions"],
    summary="Take a permission from a role",
    response_model=EnvelopeWithResult[answers.PermissionRemoved, bool],
    responses=documented(
        "Role 'admin' has no grant 'deploy'",
        {"role": "admin", "permission": "deploy", "removed": True},
        *WRITES,
        result=True,
    ),
)
async def revoke(
    request: Request,
    role: RoleName,
    permission: GrantName,
    service: ServiceDep,
    _caller: WriteCaller,
) -> Response:
    """Removes the role's own grant of exactly this name. Once this is answered, no check is
    answered from before it. Removing what is not there is no error.
    """
    change = Change("revoke", role=role, permission=permission)
    outcome = await service.write(request, [change])
    data = {"role": role, "permission": permission, "removed": outcome.effects[0].changed}
    message = f"Role '{role}' has no grant '{permission}'"
    return answer(data, message, outcome.stamp.revision, service.clock(), result=True)


@router.get(
    "/permission/{role}/{permission}",
    tags=["Permissions"],
    summary="Does a role have a permission?",
    response_model=EnvelopeWithResult[answers.HasPermission, bool],
    responses=documented("Answered", {"has_permission": True}, result=True),
)
async def role_has_permission(
    role: RoleName, permission: PermissionName, service: ServiceDep, caller: CheckCaller
) -> Response:
    """Whether a grant of the role, its own or an inherited one, covers the permission. A role
    that does not exist has none.
    """
    async with service.database.read() as tx:
        has, stamp = await roles.role_has_permission(tx, caller.tenant_id, role, permission)
    data = {"has_permission": has}
    return answer(data, "Answered", stamp.revision, service.clock(), result=has)


@router.get(
    "/role_permissions/{role}",
    tags=["Permissions"],
    summary="What may a role do?",
    response_model=ListEnvelope[answers.PermissionItem],
    responses=documented("Permissions of 'admin'", [{"name": "deploy"}], "limit_required"),
)
async def role_permissions(
    role: RoleName,
    service: ServiceDep,
    caller: ReadCaller,
    page: PageDep,
    direct: DirectQuery = False,
) -> Response:
    """Every permission the role has, inherited ones included, each once; wildcards as they were
    granted. With `direct=true` only what was granted to the role itself.
    """
    async with service.database.read() as tx:
        found = await roles.role_permissions(tx, caller.tenant_id, role, page, direct=direct)
    items: list[Any] = [{"name": name} for name in found.items]
    message = f"Permissions of '{role}'"
    return answer(items, message, found.stamp.revision, service.clock(), next=found.next)


@router.get(
    "/which_roles_can/{permission}",
    tags=["Permissions"],
    summary="Which roles may do this?",
    response_model=ListEnvelopeWithResult[answers.RoleName],
    responses=documented(
        "Roles with 'deploy'", [{"role": "admin"}], "limit_required", result=[{"role": "admin"}]
    ),
)
async def which_roles_can(
    permission: PermissionName, service: ServiceDep, caller: ReadCaller, page: PageDep
) -> Response:
    """The roles that have the permission, by their own grant, a wildcard, or inheritance."""
    async with service.database.read() as tx:
        found = await roles.which_roles_can(tx, caller.tenant_id, permission, page)
    items = [{"role": name} for name in found.items]
    message = f"Roles with '{permission}'"
    return answer(
        items, message, found.stamp.revision, service.clock(), result=items, next=found.next
    )
