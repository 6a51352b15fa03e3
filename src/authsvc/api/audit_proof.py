"""Whether the caller's own trail is what was written."""

from __future__ import annotations

from uuid import UUID

from fastapi import APIRouter, Response

from authsvc.api.dependencies import AuditCaller, ServiceDep, admit
from authsvc.api.documented import documented
from authsvc.api.envelope import Envelope, answer
from authsvc.api.route import contract_route
from authsvc.schemas.audit_proof import Verified
from authsvc.services.audit_proof import Proof, prove_tenant

router = APIRouter(prefix="/api", route_class=contract_route(admit))


@router.get(
    "/audit/verify",
    tags=["Audit"],
    summary="Verify the audit trail",
    response_model=Envelope[Verified],
    responses=documented(
        "Audit trail verified", {"valid": False, "checked": 41, "first_broken_seq": 42}
    ),
)
async def verify(service: ServiceDep, caller: AuditCaller) -> Response:
    """Walks the chain from its first event to the newest, and looks at the seals if the service has
    the key. That the end of a trail was cut shows only beside a checkpoint that was kept outside:
    `authsvc audit verify`.
    """
    if caller.tenant_id is None:
        proof = Proof(UUID(int=0), "", 0)
    else:
        keys = service.settings.audit.keys
        async with service.database.read() as tx:
            proof = await prove_tenant(tx, caller.tenant_id, "", keys)
    data = {
        "valid": proof.problem is None and not proof.lacking,
        "checked": proof.checked,
        "first_broken_seq": proof.first_broken,
    }
    return answer(data, "Audit trail verified", proof.end.revision, service.clock())
