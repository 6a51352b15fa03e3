"""Many writes in one transaction."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response

from authsvc.api.dependencies import ServiceDep, WriteCaller, admit
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import Envelope, answer
from authsvc.api.rate_limits import limit_new_roles
from authsvc.api.route import contract_route
from authsvc.records import Change
from authsvc.schemas import answers
from authsvc.schemas.changes import ChangesBody

router = APIRouter(prefix="/api", route_class=contract_route(admit))


@router.post(
    "/changes",
    tags=["Changes"],
    summary="Many changes in one transaction",
    response_model=Envelope[answers.ChangesApplied],
    responses=documented(
        "Changes applied",
        {"applied": 3, "unchanged": 0},
        "role_not_found",
        "role_cycle",
        "user_not_key_backed",
        *WRITES,
        *BODIES,
    ),
)
async def apply(
    request: Request, body: ChangesBody, service: ServiceDep, caller: WriteCaller
) -> Response:
    """Up to 10 000 changes, applied in order, all or nothing; nobody sees a state in between. A
    failure names the change (`changes.3.role`) and leaves everything as it was. With `dry_run`
    nothing is written and `effects` tells what would be.
    """
    changes = [Change(**dict(item)) for item in body.changes]
    if not body.dry_run:
        made = sum(change.op == "add_role" for change in changes)
        await limit_new_roles(service.limits, request, caller, made)
    outcome = await service.write(request, changes, dry_run=body.dry_run, in_list=True)
    data: dict[str, Any] = {
        "applied": outcome.applied,
        "unchanged": len(outcome.effects) - outcome.applied,
    }
    if body.dry_run:
        data["effects"] = [
            {
                "index": effect.index,
                "op": effect.op,
                "changed": effect.changed,
                "updated": effect.updated,
                "count": effect.count,
            }
            for effect in outcome.effects
        ]
    message = "Changes that would be applied" if body.dry_run else "Changes applied"
    return answer(data, message, outcome.stamp.revision, service.clock())
