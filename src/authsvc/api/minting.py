"""What routes that mint a secret have in common: ``Idempotency-Key`` and the way to write."""

from __future__ import annotations

import re
from typing import Annotated, Any

from fastapi import Header, Request

from authsvc.api.dependencies import Service
from authsvc.credentials import parse_client_key
from authsvc.errors import InputError, Unauthorized
from authsvc.records import Caller
from authsvc.services import keys
from authsvc.services.authentication import presented
from authsvc.services.changes import RegisteredMeanwhile

_idempotency_key = re.compile(r"[!-~]{16,128}").fullmatch

IdempotencyKey = Annotated[
    str | None,
    Header(
        alias="Idempotency-Key",
        description="16 to 128 visible characters; repeats are safe",
        json_schema_extra={"minLength": 16, "maxLength": 128, "pattern": "^[!-~]{16,128}$"},
    ),
]


def minting_request(request: Request, body: dict[str, Any]) -> keys.Request:
    """What a request asks for, as it is compared with its repeats. Raises InputError."""
    found = request.headers.getlist("idempotency-key")
    if found and (len(found) > 1 or _idempotency_key(found[0]) is None):
        raise InputError.of("Idempotency-Key", "This must be 16 to 128 visible characters, once.")
    sent = presented(request.headers.getlist("authorization"))
    return keys.Request(
        parse_client_key(sent) or sent,
        found[0] if found else None,
        keys.content_of(request.url.path, body),
    )


async def minted(
    request: Request, service: Service, asked: keys.Request, work: keys.Mint, *, ends: bool = False
) -> keys.Answer:
    """The answer to a request that mints, or to the one it repeats, committed on return."""
    caller: Caller = request.state.caller
    for attempt in range(3):
        try:
            return await service.database.write(
                caller.tenant_id or caller.digest,
                lambda tx, caller=caller: keys.mint(  # type: ignore[misc]
                    tx, caller, asked, service.clock, work, ends=ends
                ),
            )
        except RegisteredMeanwhile:
            if attempt == 2:
                raise
            caller = await service.authenticated(request)
    raise Unauthorized(sent=True)
