"""A tenant's client keys."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from authsvc.api.dependencies import AdminCaller, Service, ServiceDep, admit, get_service
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import Envelope, ListEnvelope, answer, timestamp
from authsvc.api.minting import IdempotencyKey, minted, minting_request
from authsvc.api.route import contract_route
from authsvc.errors import Forbidden, InputError, Unauthorized
from authsvc.records import EMPTY, SCOPES, Caller, ClientKey
from authsvc.schemas import keys as schemas
from authsvc.schemas.names import KeyId
from authsvc.services import keys
from authsvc.services.authentication import presented_key

router = APIRouter(prefix="/api", route_class=contract_route(admit))

_EXAMPLE = {
    "key_id": "key_5c0d3a61f2b94e8c9a17",
    "label": "web",
    "scopes": ["check"],
    "created_at": "2026-11-23T10:11:12.345678Z",
    "expires_at": "2027-11-23T10:11:12.345678Z",
    "last_used_at": "2026-11-24T08:00:00.000000Z",
    "revoked_at": "2026-11-25T09:10:11.121314Z",
}
_SECRET = "9b2f7c1e-54a0-4d0b-8f43-0a6f5b1c7d21"  # noqa: S105


async def _admit_rotation(request: Request) -> None:
    """As ``admit``; a key that has ended goes on to be told its own rotation's outcome."""
    try:
        await admit(request)
    except Unauthorized:
        service = get_service(request)
        asked = keys.Request(
            presented_key(request.headers.getlist("authorization")),
            request.headers.get("idempotency-key"),
            b"",
        )
        if asked.idempotency_key is None:
            raise
        async with service.database.read() as tx:
            await keys.ended_outcome(tx, asked, service.clock())
        request.state.caller = Caller(None, None, b"", frozenset(SCOPES), EMPTY)
        request.state.ended = True


rotation = APIRouter(prefix="/api", route_class=contract_route(_admit_rotation))


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None


def _shown(key: ClientKey) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "label": key.label,
        "scopes": [scope for scope in SCOPES if scope in key.scopes],
        "created_at": timestamp(key.created_at),
        "expires_at": _moment(key.expires_at),
        "last_used_at": _moment(key.last_used_at),
        "revoked_at": _moment(key.revoked_at),
    }


async def _rotated(
    request: Request, service: Service, asked: keys.Request, work: keys.Mint, *, ends: bool
) -> keys.Answer | None:
    """The rotation's answer; None if the key ended while it waited, perhaps by its twin."""
    try:
        return await minted(request, service, asked, work, ends=ends)
    except Unauthorized:
        return None


@router.get(
    "/keys",
    tags=["Keys"],
    summary="The tenant's client keys",
    response_model=ListEnvelope[schemas.KeyItem],
    responses=documented("Client keys", [_EXAMPLE]),
)
async def list_keys(service: ServiceDep, caller: AdminCaller) -> Response:
    """Every key there ever was, oldest first; never the keys themselves."""
    found: list[ClientKey] = []
    if caller.tenant_id is not None:
        async with service.database.read() as tx:
            found = await keys.list_keys(tx, caller.tenant_id)
    data = [_shown(key) for key in found]
    return answer(data, "Client keys", caller.stamp.revision, service.clock())


@router.post(
    "/keys",
    tags=["Keys"],
    summary="Make a client key",
    response_model=Envelope[schemas.KeyMinted],
    responses=documented(
        "The key is made", _EXAMPLE | {"key": _SECRET}, "idempotency_mismatch", *WRITES, *BODIES
    ),
)
async def add_key(
    request: Request,
    service: ServiceDep,
    _caller: AdminCaller,
    body: schemas.KeyBody,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The key is in this answer and nowhere else. With an `Idempotency-Key` the same request may
    be repeated for 24 hours and gets the same answer.
    """
    asked = minting_request(request, body.model_dump(mode="json"))
    work = keys.add_key(
        body.label,
        body.scopes or SCOPES,
        body.expires_at,
        lambda key, secret: _shown(key) | {"key": secret},
    )
    made = await minted(request, service, asked, work)
    return answer(made.data, "The key is made", made.revision, service.clock())


@rotation.post(
    "/keys/rotate",
    tags=["Keys"],
    summary="Replace the key that asks",
    response_model=Envelope[schemas.KeyRotated],
    responses=documented(
        "The key is rotated",
        {
            "new_key": _SECRET,
            "key_id": _EXAMPLE["key_id"],
            "old_key_expires_at": "2026-11-24T10:11:12.345678Z",
        },
        "idempotency_mismatch",
        *WRITES,
        *BODIES,
    ),
)
async def rotate(
    request: Request,
    service: ServiceDep,
    _caller: AdminCaller,
    body: Annotated[schemas.RotateBody | None, Body(examples=[{"overlap_seconds": 86_400}])] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """A fresh key with the label and scopes of the one that asks, which goes on for
    `overlap_seconds` (a day). 0 ends it at once and needs an `Idempotency-Key`: should the answer
    be lost, the ended key may repeat exactly this request for ten minutes.
    """
    seconds = (body or schemas.RotateBody()).overlap_seconds
    ended = getattr(request.state, "ended", False)
    if _caller.family is not None:
        raise Forbidden("A key is rotated by whoever holds it: send the client key, not a token")
    asked = minting_request(request, {"overlap_seconds": seconds})
    if not seconds and asked.idempotency_key is None:
        raise InputError.of("Idempotency-Key", "'overlap_seconds': 0 requires this header.")
    work = keys.rotate_key(
        timedelta(seconds=seconds),
        lambda key, secret, end: {
            "new_key": secret,
            "key_id": key.id,
            "old_key_expires_at": timestamp(end),
        },
    )
    made = None if ended else await _rotated(request, service, asked, work, ends=not seconds)
    if made is None:
        async with service.database.read() as tx:
            made = await keys.repeat_ended(tx, asked, service.clock())
    return answer(made.data, "The key is rotated", made.revision, service.clock())


@router.delete(
    "/keys/{key_id}",
    tags=["Keys"],
    summary="Revoke a client key",
    response_model=Envelope[schemas.KeyRevoked],
    responses=documented(
        "The key is revoked",
        {"key_id": _EXAMPLE["key_id"], "removed": True},
        "key_not_found",
        "conflict",
        *WRITES,
    ),
)
async def revoke(
    key_id: KeyId,
    service: ServiceDep,
    caller: AdminCaller,
) -> Response:
    """Refused with 401 from now on, everywhere. The last key that can administer the tenant stays:
    409.
    """
    removed, stamp = await service.database.write(
        caller.tenant_id or caller.digest,
        lambda tx: keys.revoke_key(tx, caller, key_id, service.clock),
    )
    data = {"key_id": key_id, "removed": removed}
    return answer(data, "The key is revoked", stamp.revision, service.clock())
