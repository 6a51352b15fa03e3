"""Keys for the tenant's own users."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any

from fastapi import APIRouter, Body, Request, Response

from authsvc.api.dependencies import (
    CheckCaller,
    PageDep,
    ReadCaller,
    Service,
    ServiceDep,
    WriteCaller,
    admit,
)
from authsvc.api.documented import BODIES, WRITES, documented
from authsvc.api.envelope import Envelope, answer, timestamp
from authsvc.api.minting import IdempotencyKey, minted, minting_request
from authsvc.api.route import contract_route
from authsvc.records import ApiKey, Caller
from authsvc.schemas import api_keys as schemas
from authsvc.schemas.names import KeyId, UserName
from authsvc.services import api_keys
from authsvc.services.api_keys import Validated

router = APIRouter(prefix="/api", route_class=contract_route(admit))

_TAGS: list[Any] = ["API keys"]
_ITEM = {
    "key_id": "key_5c0d3a61f2b94e8c9a17",
    "key_prefix": "rak_8hQ2xZ",
    "label": "laptop",
    "is_active": False,
    "created": "2026-11-23T10:11:12.345678Z",
    "revoked_at": "2026-11-25T09:10:11.121314Z",
    "expires_at": "2027-11-23T10:11:12.345678Z",
    "last_used_at": "2026-11-24T08:00:00.000000Z",
}
_VALID = {
    "valid": True,
    "user": "alice",
    "key_id": _ITEM["key_id"],
    "label": "laptop",
    "expires_at": _ITEM["expires_at"],
}


def _moment(value: datetime | None) -> str | None:
    return timestamp(value) if value else None


def _minted(key: ApiKey, secret: str) -> dict[str, Any]:
    return {
        "api_key": secret,
        "key_id": key.id,
        "user": key.user,
        "label": key.label,
        "key_prefix": key.prefix,
        "created": timestamp(key.created_at),
        "expires_at": _moment(key.expires_at),
    }


def _listed(key: ApiKey, now: datetime) -> dict[str, Any]:
    return {
        "key_id": key.id,
        "key_prefix": key.prefix,
        "label": key.label,
        "is_active": key.is_active(now),
        "created": timestamp(key.created_at),
        "revoked_at": _moment(key.revoked_at),
        "expires_at": _moment(key.expires_at),
        "last_used_at": _moment(key.last_used_at),
    }


def _told(found: Validated) -> dict[str, Any]:
    key = found.key
    if key is None:
        return {"valid": False, "reason": found.refusal}
    return {
        "valid": True,
        "user": key.user,
        "key_id": key.id,
        "label": key.label,
        "expires_at": _moment(key.expires_at),
    }


def _note_use(service: Service, caller: Caller, found: Validated, now: datetime) -> None:
    if found.key is not None and caller.tenant_id is not None:
        service.uses.api_key(found.key.id, caller.tenant_id, now)


@router.post(
    "/apikeys/user/{user}",
    tags=_TAGS,
    summary="Make an API key for a user",
    response_model=Envelope[schemas.ApiKeyMinted],
    responses=documented(
        "The key is made",
        {
            "api_key": "rak_8hQ2xZ" + "0" * 37,
            "key_id": _ITEM["key_id"],
            "user": "alice",
            "label": "laptop",
            "key_prefix": _ITEM["key_prefix"],
            "created": _ITEM["created"],
            "expires_at": _ITEM["expires_at"],
        },
        "conflict",
        "idempotency_mismatch",
        *WRITES,
        *BODIES,
    ),
)
async def add(
    request: Request,
    user: UserName,
    service: ServiceDep,
    _caller: WriteCaller,
    body: Annotated[schemas.ApiKeyBody | None, Body(examples=[{"label": "laptop"}])] = None,
    idempotency_key: IdempotencyKey = None,
) -> Response:
    """The key is in this answer and nowhere else. A user has at most 25 keys in force: one more is
    409. With an `Idempotency-Key` the same request may be repeated for 24 hours.
    """
    wanted = body or schemas.ApiKeyBody()
    asked = minting_request(request, wanted.model_dump(mode="json"))
    work = api_keys.add_api_key(user, wanted.label, wanted.expires_at, _minted)
    made = await minted(request, service, asked, work)
    return answer(made.data, "The key is made", made.revision, service.clock())


@router.get(
    "/apikeys/user/{user}",
    tags=_TAGS,
    summary="The API keys of a user",
    response_model=Envelope[schemas.ApiKeyList],
    responses=documented("Keys of 'alice'", {"count": 1, "keys": [_ITEM]}, "limit_required"),
)
async def list_(user: UserName, service: ServiceDep, caller: ReadCaller, page: PageDep) -> Response:
    """Every key the user ever had, oldest first; never the keys themselves."""
    now = caller.at or service.clock()
    async with service.database.read() as tx:
        found = await api_keys.list_api_keys(tx, caller.tenant_id, user, page)
    data = {"count": len(found.items), "keys": [_listed(key, now) for key in found.items]}
    message = f"Keys of '{user}'"
    return answer(data, message, found.stamp.revision, service.clock(), next=found.next)


@router.delete(
    "/apikeys/user/{user}/{key_id}",
    tags=_TAGS,
    summary="Revoke an API key",
    response_model=Envelope[schemas.ApiKeyRevoked],
    responses=documented(
        "The key is revoked",
        {"revoked": True, "already_revoked": False},
        "key_not_found",
        *WRITES,
    ),
)
async def revoke(
    user: UserName, key_id: KeyId, service: ServiceDep, caller: WriteCaller
) -> Response:
    """Not accepted from now on, by any process."""
    ended, stamp = await service.database.write(
        caller.tenant_id or caller.digest,
        lambda tx: api_keys.revoke_api_key(tx, caller, user, key_id, service.clock),
    )
    data = {"revoked": True, "already_revoked": not ended}
    return answer(data, "The key is revoked", stamp.revision, service.clock())


@router.post(
    "/apikeys/validate",
    tags=_TAGS,
    summary="Is this API key in force, and whose is it?",
    response_model=Envelope[schemas.ApiKeyValid | schemas.ApiKeyInvalid],
    responses=documented("Answered", _VALID, *BODIES),
)
async def validate(
    request: Request, body: schemas.PresentedKey, service: ServiceDep, _caller: CheckCaller
) -> Response:
    """Answered from the state of now: what was revoked is not valid any more. A key of another
    tenant is an unknown key.
    """
    # The body may have taken long to arrive: what counts is the credential's state after it.
    caller = await service.authenticated(request)
    now = caller.at or service.clock()
    found = await api_keys.validate(service.current, caller.tenant_id, body.api_key, now)
    _note_use(service, caller, found, now)
    return answer(_told(found), "Answered", found.stamp.revision, now)


@router.post(
    "/apikeys/check_permission",
    tags=_TAGS,
    summary="May the user of this API key do this?",
    response_model=Envelope[schemas.ApiKeyMay | schemas.ApiKeyMayNot],
    responses=documented("Answered", _VALID | {"has_permission": True}, *BODIES),
)
async def check_permission(
    request: Request, body: schemas.PresentedKeyQuestion, service: ServiceDep, _caller: CheckCaller
) -> Response:
    """The key and the permission in one question, answered from one revision."""
    caller = await service.authenticated(request)
    now = caller.at or service.clock()
    found, allowed = await api_keys.check_permission(
        service.current, caller, body.api_key, body.permission, now
    )
    _note_use(service, caller, found, now)
    user = "" if found.key is None else found.key.user
    service.activity.check(caller, now, user, body.permission, None, allowed)
    if allowed and caller.tenant_id is not None:
        service.grants.note(caller.tenant_id, user, body.permission)
    data = _told(found) | {"has_permission": allowed}
    return answer(data, "Answered", found.stamp.revision, now)
