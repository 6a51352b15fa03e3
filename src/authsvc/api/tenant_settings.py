"""What the tenant has chosen for itself."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response

from authsvc.api.dependencies import AdminCaller, ServiceDep, admit
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import Envelope, answer
from authsvc.api.route import contract_route
from authsvc.records import Caller
from authsvc.schemas import tenant_settings as schemas
from authsvc.services.changes import RegisteredMeanwhile
from authsvc.services.tenant_settings import choose_strict_users, read_strict_users

router = APIRouter(prefix="/api", route_class=contract_route(admit))


@router.get(
    "/settings",
    tags=["Settings"],
    summary="What the tenant has chosen",
    response_model=Envelope[schemas.Settings],
    responses=documented("Settings", {"strict_users": False}),
)
async def read(service: ServiceDep, caller: AdminCaller) -> Response:
    """A new tenant's users need no API key."""
    async with service.database.read() as tx:
        strict, stamp = await read_strict_users(tx, caller.tenant_id)
    return answer({"strict_users": strict}, "Settings", stamp.revision, service.clock())


@router.put(
    "/settings",
    tags=["Settings"],
    summary="Choose the tenant's settings",
    response_model=Envelope[schemas.Settings],
    responses=documented("Settings are in force", {"strict_users": True}, *WRITES, *BODIES),
)
async def write(
    request: Request, body: schemas.SettingsBody, service: ServiceDep, _caller: AdminCaller
) -> Response:
    """With strict users every decision about a user without an API key in force is negative, and
    such a user can be put into no role: 409. In force for every check from now on.
    """
    caller: Caller = request.state.caller
    for attempt in range(3):
        try:
            stamp = await service.database.write(
                caller.tenant_id or caller.digest,
                lambda tx, caller=caller: choose_strict_users(  # type: ignore[misc]
                    tx, caller, body.strict_users, service.clock
                ),
            )
            break
        except RegisteredMeanwhile:
            if attempt == 2:
                raise
            caller = await service.authenticated(request)
    data = {"strict_users": body.strict_users}
    return answer(data, "Settings are in force", stamp.revision, service.clock())
