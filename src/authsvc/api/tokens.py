"""The token endpoints: RFC 6749, RFC 7009 and RFC 7662, without the envelope.

They carry their own credentials: a client key as Bearer, as the password of HTTP Basic or as
``client_secret``. Their errors have the shape of RFC 6749, section 5.2; what is not about tokens
(an unavailable database, a body that is too large) is answered like everywhere else.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from functools import partial
from typing import Any
from urllib.parse import unquote_to_bytes

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json

from authsvc.api.dependencies import Service, ServiceDep, described
from authsvc.api.json_body import parse_json
from authsvc.api.problems import body_too_large, error_responses, unsupported_media_type
from authsvc.api.rate_limits import limit_failures, limit_tokens
from authsvc.api.route import contract_route
from authsvc.errors import BadRequest, TokenRefused
from authsvc.records import Caller
from authsvc.schemas import tokens as schemas
from authsvc.services.tokens import Issued

router = APIRouter(prefix="/api", tags=["Tokens"], route_class=contract_route(json_bodies=False))

_MOST_FIELDS = 20
_MOST_BYTES = 8 * 1024
_form_type = re.compile(
    r"application/x-www-form-urlencoded[ \t]*(?:;[ \t]*charset=\"?utf-8\"?[ \t]*)?",
    re.IGNORECASE,
).fullmatch
_json_type = re.compile(
    r"application/json[ \t]*(?:;[ \t]*charset=\"?utf-8\"?[ \t]*)?", re.IGNORECASE
).fullmatch
_ERRORS = error_responses(413, 415, 429, 500, 503)
_REFUSED = {"model": schemas.Refused, "description": "RFC 6749, section 5.2"}
_UNAUTHENTICATED = {"model": schemas.Refused, "description": "`invalid_client`"}
_FIELDS = {
    "grant_type": {"type": "string", "enum": ["client_credentials", "refresh_token"]},
    "client_secret": {"type": "string", "description": "The client key, if it is in no header."},
    "client_id": {"type": "string", "description": "Ignored: the key says who it belongs to."},
    "refresh_token": {"type": "string"},
    "scope": {"type": "string", "description": "Narrower than the key: words with blanks between."},
}


def _body_of(required: list[str], *names: str) -> dict[str, Any]:
    """``openapi_extra=`` of an endpoint with these fields, as a form or as JSON."""
    fields = {name: _FIELDS.get(name, {"type": "string"}) for name in names}
    schema = {"type": "object", "required": required, "properties": fields}
    content = {kind: {"schema": schema} for kind in _KINDS}
    return {
        "requestBody": {"required": True, "content": content},
        "security": [{"credential": []}, {"basic": []}, {}],
    }


_KINDS = ("application/x-www-form-urlencoded", "application/json")


async def _fields(request: Request) -> dict[str, str]:
    """The fields of a body, each once; those that are not known are ignored (section 3.2)."""
    kind = request.headers.get("content-type", "")
    body = await request.body()
    if len(body) > _MOST_BYTES:
        raise body_too_large(_MOST_BYTES)
    if _form_type(kind):
        return _form(body)
    if not body:
        return {}
    if not _json_type(kind):
        raise unsupported_media_type()
    try:
        value = parse_json(body)
    except BadRequest as error:
        raise TokenRefused("invalid_request", error.message) from None
    if not isinstance(value, dict) or not all(isinstance(one, str) for one in value.values()):
        raise TokenRefused("invalid_request", "The body is an object of texts")
    return value


def _form(body: bytes) -> dict[str, str]:
    pairs = [pair.partition(b"=") for pair in body.split(b"&") if pair]
    if len(pairs) > _MOST_FIELDS:
        raise TokenRefused("invalid_request", f"A form has at most {_MOST_FIELDS} fields")
    fields: dict[str, str] = {}
    for name, _, value in pairs:
        try:
            decoded, text = _unescaped(name), _unescaped(value)
        except UnicodeDecodeError:
            raise TokenRefused("invalid_request", "A form is UTF-8") from None
        if decoded in fields:
            raise TokenRefused("invalid_request", "A field may be given once")
        fields[decoded] = text
    return fields


def _unescaped(text: bytes) -> str:
    return unquote_to_bytes(text.replace(b"+", b" ")).decode()


def _client_key(request: Request, fields: dict[str, str]) -> str | None:
    """The client key, presented in exactly one of the three ways (section 2.3)."""
    sent = request.headers.getlist("authorization")
    if len(sent) > 1 or (sent and "client_secret" in fields):
        raise TokenRefused("invalid_request", "Present the client key in one way")
    if not sent:
        return fields.get("client_secret")
    scheme, _, credential = sent[0].partition(" ")
    if scheme.lower() == "bearer":
        return credential.strip(" ")
    if scheme.lower() == "basic":
        try:
            decoded = base64.b64decode(credential.strip(" "), validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            return None
        return decoded.partition(":")[2]
    return None


def _answer(data: Any) -> Response:
    return Response(to_json(data), media_type="application/json", headers={"Pragma": "no-cache"})


async def _refusing(
    service: Service, request: Request, work: Callable[[], Awaitable[Response]]
) -> Response:
    """What ``work`` answers, or its refusal in the RFC's shape."""
    try:
        return await work()
    except TokenRefused as error:
        if error.code in ("invalid_client", "invalid_grant"):
            service.refused(request, error.code)
        if error.code != "invalid_scope":
            # All the others may come from somebody who has no credential at all.
            await limit_failures(service.limits, request)
        data = {"error": error.code, "error_description": error.message}
        headers = {"Pragma": "no-cache"}
        status = 400
        if error.code == "invalid_client":
            status = 401
            basic = request.headers.get("authorization", "").lower().startswith("basic")
            headers["WWW-Authenticate"] = ("Basic" if basic else "Bearer") + ' realm="authsvc"'
        return Response(to_json(data), status, headers, "application/json")


async def _client(
    service: Service, request: Request, fields: dict[str, str]
) -> tuple[Caller, datetime]:
    """The caller behind the client key of a request that is let through, and the instant."""
    caller, now = await service.tokens.client(_client_key(request, fields))
    await limit_tokens(service.limits, request, caller.tenant_id)
    return described(caller, request), now


def _note(service: Service, action: str, by: Caller, issued: Issued) -> None:
    """Have it recorded that a token was given."""
    details = {"key_id": issued.token.key_id, "scope": issued.scope}
    at = by.at or service.clock()
    service.activity.note(action, "token", issued.token.family, by, at, details)


@router.post(
    "/token",
    summary="Ask for an access token, or renew one",
    response_model=schemas.Issued,
    responses=_ERRORS | {400: _REFUSED, 401: _UNAUTHENTICATED},
    openapi_extra=_body_of(["grant_type"], *_FIELDS),
)
async def token(request: Request, service: ServiceDep) -> Response:
    """`client_credentials` takes a client key; `refresh_token` takes the refresh token of the last
    answer, which is spent by it. A refresh token that was spent before ends all tokens that came
    of the same request: whoever lost an answer asks again with the client key.
    """

    async def work() -> Response:
        fields = await _fields(request)
        grant = fields.get("grant_type")
        if grant == "client_credentials":
            caller, now = await _client(service, request, fields)
            issued = await service.tokens.issue(caller, now, fields.get("scope"))
            _note(service, "issue", caller, issued)
        elif grant == "refresh_token":
            text = fields.get("refresh_token")
            if text is None:
                raise TokenRefused("invalid_request", "'refresh_token' is missing")
            by = described(None, request)
            admit = partial(limit_tokens, service.limits, request)
            issued = await service.tokens.refresh(text, by, admit)
            by = replace(by, tenant_id=issued.token.tenant_id, key_id=issued.token.key_id)
            _note(service, "refresh", by, issued)
        elif grant is None:
            raise TokenRefused("invalid_request", "'grant_type' is missing")
        else:
            raise TokenRefused(
                "unsupported_grant_type", "Use 'client_credentials' or 'refresh_token'"
            )
        return _answer(
            {
                "access_token": issued.access_token,
                "token_type": "Bearer",
                "expires_in": issued.expires_in,
                "refresh_token": issued.refresh_token,
                "refresh_expires_in": issued.refresh_expires_in,
                "scope": issued.scope,
            }
        )

    return await _refusing(service, request, work)


@router.post(
    "/token/revoke",
    summary="Revoke a token",
    responses=_ERRORS
    | {200: {"description": "Revoked, or not known"}, 400: _REFUSED, 401: _UNAUTHENTICATED},
    openapi_extra=_body_of(["token"], "token", "token_type_hint", "client_secret"),
)
async def revoke(request: Request, service: ServiceDep) -> Response:
    """RFC 7009: ends all tokens that came of the same request as this one, access tokens and
    refresh tokens. A token that is unknown, ended or another tenant's is answered alike.
    """

    async def work() -> Response:
        fields = await _fields(request)
        caller, _ = await _client(service, request, fields)
        await service.tokens.revoke(_token(fields), caller)
        return _answer({})

    return await _refusing(service, request, work)


@router.post(
    "/token/introspect",
    summary="Look into a token",
    response_model=schemas.Introspection,
    response_model_exclude_unset=True,
    responses=_ERRORS | {400: _REFUSED, 401: _UNAUTHENTICATED},
    openapi_extra=_body_of(["token"], "token", "token_type_hint", "client_secret"),
)
async def introspect(request: Request, service: ServiceDep) -> Response:
    """RFC 7662: what a token of the own tenant says, as it stands now; `{"active": false}` for all
    others.
    """

    async def work() -> Response:
        fields = await _fields(request)
        caller, _ = await _client(service, request, fields)
        return _answer(await service.tokens.introspect(_token(fields), caller))

    return await _refusing(service, request, work)


def _token(fields: dict[str, str]) -> str:
    text = fields.get("token")
    if text is None:
        raise TokenRefused("invalid_request", "'token' is missing")
    return text
