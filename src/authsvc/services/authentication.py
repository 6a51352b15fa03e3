"""Who is calling: from a credential to a tenant and its scopes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime

from authsvc.credentials import parse_client_key
from authsvc.decision_cache import Credential, Session
from authsvc.errors import Forbidden, Unauthorized
from authsvc.keyring import Token
from authsvc.records import COVERED_BY, EMPTY, SCOPES, Caller, Stamp, covered


def presented(authorization: Sequence[str]) -> str:
    """What stands after ``Bearer`` in the request's one ``Authorization`` header.

    Raises Unauthorized for anything else: no header, several, another scheme.
    """
    if len(authorization) != 1:
        raise Unauthorized(sent=bool(authorization))
    scheme, _, credential = authorization[0].partition(" ")
    if scheme.lower() != "bearer":
        raise Unauthorized(sent=True)
    return credential.strip(" ")


def presented_key(authorization: Sequence[str]) -> str:
    """The client key in the request's ``Authorization`` header, in its canonical form.

    Raises Unauthorized for anything else, access tokens too.
    """
    key = parse_client_key(presented(authorization))
    if key is None:
        raise Unauthorized(sent=True)
    return key


def is_alive(credential: Credential, now: datetime) -> bool:
    """Whether a stored key is accepted at this instant."""
    key = credential.key
    return key.revoked_at is None and (key.expires_at is None or now < key.expires_at)


def may_check(credential: Credential, now: datetime) -> bool:
    """Whether ``caller_of`` and ``require_scope(..., "check")`` both accept this key."""
    return (
        is_alive(credential, now)
        and credential.disabled_at is None
        and not credential.key.scopes.isdisjoint(COVERED_BY["check"])
    )


def caller_of(credential: Credential, digest: bytes, now: datetime) -> Caller:
    """The caller behind a stored key.

    Raises Unauthorized if the key has ended, Forbidden if its tenant is disabled.
    """
    if not is_alive(credential, now):
        raise Unauthorized(sent=True, of=(credential.key.tenant_id, credential.key.id))
    if credential.disabled_at is not None:
        raise Forbidden("This tenant is disabled: ask its operator", "tenant_disabled")
    key = credential.key
    return Caller(
        key.tenant_id, key.id, digest, key.scopes, credential.stamp, expires_at=key.expires_at
    )


def is_in_force(session: Session, token: Token, now: datetime) -> bool:
    """Whether a verified token is accepted at this instant, as its family and its key stand."""
    return (
        token.in_force(now)
        and session.revoked_at is None
        and session.generation == token.generation
        and session.credential.key.id == token.key_id
        and is_alive(session.credential, now)
    )


def token_may_check(session: Session, token: Token, now: datetime) -> bool:
    """Whether ``caller_with_token`` and ``require_scope(..., "check")`` both accept this token."""
    return (
        is_in_force(session, token, now)
        and session.credential.disabled_at is None
        and not token.scopes.isdisjoint(COVERED_BY["check"])
        and not session.credential.key.scopes.isdisjoint(COVERED_BY["check"])
    )


def caller_with_token(session: Session | None, token: Token, stamp: Stamp, now: datetime) -> Caller:
    """The caller behind a verified token, with those of its scopes that its key still covers.

    Raises Unauthorized, and Forbidden if the tenant is disabled.
    """
    if session is None:
        raise Unauthorized(sent=True)
    if not is_in_force(session, token, now):
        key = session.credential.key
        raise Unauthorized(sent=True, of=(key.tenant_id, key.id))
    caller = caller_of(session.credential, session.digest, now)
    ends = min(token.expires_at, caller.expires_at or token.expires_at)
    return replace(
        caller,
        scopes=covered(token.scopes, caller.scopes),
        stamp=stamp,
        expires_at=ends,
        family=token.family,
    )


def resolve(
    credential: Credential | None, digest: bytes, now: datetime, *, registration_open: bool
) -> Caller:
    """The caller behind what was found, or not, of a well-formed key.

    With open registration a key that is not known yet is a caller without a tenant. Raises
    Unauthorized, Forbidden.
    """
    if credential is not None:
        return caller_of(credential, digest, now)
    if not registration_open:
        raise Unauthorized(sent=True)
    return Caller(None, None, digest, frozenset(SCOPES), EMPTY)


def require_scope(caller: Caller, scope: str) -> None:
    """Raise Forbidden unless one of the caller's scopes covers this one."""
    if caller.scopes.isdisjoint(COVERED_BY[scope]):
        raise Forbidden(f"This credential lacks the scope '{scope}'")
