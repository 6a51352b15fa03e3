"""Access tokens and refresh tokens: asked for with a client key, renewed, revoked, looked into.

A *family* is what one ``client_credentials`` request began: one refresh token at a time, and the
access tokens issued along with each. A family is bound to its client key and ends as a whole: at
its end, with its key, by being revoked, or when a refresh token is presented that was spent.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from authsvc.clock import Clock
from authsvc.credentials import digest_of, parse_client_key
from authsvc.database import Database, Transaction
from authsvc.decision_cache import Session
from authsvc.errors import Forbidden, TokenRefused, Unauthorized, Unavailable
from authsvc.keyring import Keyring, Token
from authsvc.records import SCOPES, Caller, Stamp, covered
from authsvc.repositories.tokens import TokenFamilies, find_session_by_handle
from authsvc.services.authentication import caller_of, is_alive, is_in_force
from authsvc.services.changes import lock_tenant, origin, record
from authsvc.services.current_state import CurrentState
from authsvc.services.key_use import KeyUse

Admit = Callable[[UUID], Awaitable[None]]
_MOST_REMEMBERED = 10_000
_HANDLE = 26
# A common part of 22 characters (128 bits) behind the prefix, then 43 of its own (256 bits).
_refresh_token = re.compile(r"rft_[A-Za-z0-9_-]{65}").fullmatch


@dataclass(frozen=True, slots=True)
class Issued:
    """The answer to a request for tokens; ``token`` is what the access token says."""

    token: Token
    access_token: str = field(repr=False)
    refresh_token: str = field(repr=False)
    expires_in: int
    refresh_expires_in: int
    scope: str


class Tokens:
    """The tokens of one installation."""

    def __init__(
        self,
        database: Database,
        current: CurrentState,
        keyring: Keyring,
        clock: Clock,
        refresh_lifetime: timedelta,
        uses: KeyUse,
    ) -> None:
        """``refresh_lifetime``: of a family, from the first token to the last."""
        self.keyring = keyring
        self._database = database
        self._current = current
        self._clock = clock
        self._lifetime = refresh_lifetime
        self._uses = uses
        self._verified: dict[bytes, Token] = {}

    def read(self, text: str) -> Token:
        """What a token says, its signature verified once and then remembered.

        Whether it is in force is for the tenant's state to say. Raises Unauthorized.
        """
        digest = hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()
        token = self._verified.get(digest)
        if token is None:
            token = self.keyring.verify(text)
            if len(self._verified) >= _MOST_REMEMBERED:
                self._verified.clear()
            self._verified[digest] = token
        return token

    async def session(self, token: Token) -> tuple[Session | None, Stamp, datetime]:
        """The token's family as it is now, the tenant's stamp and the instant to judge it by.

        Raises Unavailable when the clock went back: what has ended would be in force again.
        """
        session, stamp, now = await self._current.session(token.tenant_id, token.family)
        self._trust(now)
        return session, stamp, now

    async def refuse_unless_judged(self) -> None:
        """Raise Unavailable while tokens cannot be judged."""
        self._trust(await self._current.now())

    def _trust(self, now: datetime) -> None:
        if self._current.clock_went_back(now):
            raise Unavailable(
                "The clock went back by more than a minute, so tokens cannot be judged: set it"
                " right, or restart the service once it is",
                retry_after=30,
            )

    async def client(self, key: str | None) -> tuple[Caller, datetime]:
        """The caller behind a client key, for an endpoint that takes nothing else.

        Raises TokenRefused for what is no key in force.
        """
        canonical = None if key is None else parse_client_key(key)
        if canonical is not None:
            digest = digest_of(canonical)
            credential, at = await self._current.credential(digest)
            if credential is not None and at is not None:
                try:
                    caller = caller_of(credential, digest, at)
                except (Unauthorized, Forbidden):
                    pass
                else:
                    self._uses.client_key(credential.key.id, credential.key.tenant_id, at)
                    return caller, at
        raise TokenRefused("invalid_client", "A client key that is in force is required")

    async def issue(self, caller: Caller, now: datetime, scope: str | None) -> Issued:
        """Begin a family for what ``client`` answered (RFC 6749, section 4.4).

        ``scope`` narrows what the key may do. Raises TokenRefused, Unavailable.
        """
        self._trust(now)
        tenant_id, key_id = caller.tenant_id, caller.key_id
        if tenant_id is None or key_id is None:
            raise TokenRefused("invalid_client", "A client key that is in force is required")
        wanted = caller.scopes if scope is None else _scopes(scope)
        if covered(wanted, caller.scopes) != wanted:
            raise TokenRefused("invalid_scope", "The client key does not cover this scope")
        family = "fam_" + uuid.uuid4().hex[:20]
        handle = "rft_" + secrets.token_urlsafe(16)
        refresh = handle + secrets.token_urlsafe(32)
        end = min(now + self._lifetime, caller.expires_at or now + self._lifetime)

        async def add(tx: Transaction) -> int:
            families = TokenFamilies(tx, tenant_id)
            await families.forget_ended(now)
            await families.add(
                family,
                key_id,
                handle=digest_of(handle),
                current=digest_of(refresh),
                scopes=wanted,
                at=now,
                expires_at=end,
            )
            stored = await families.session(family)
            return stored.generation if stored else 0

        generation = await self._database.write(family, add)
        return self._issued(tenant_id, key_id, family, generation, wanted, refresh, now, end)

    async def refresh(self, text: str, by: Caller, admit: Admit) -> Issued:
        """Spend a refresh token for an access token and the next refresh token.

        Presenting one that was spent ends its family: either it was stolen, or its holder lost an
        answer and asks again with its client key. ``by`` describes the request, for the audit
        trail; ``admit`` is told whose token it is, and raises to refuse. Raises TokenRefused,
        Unavailable.
        """
        found = await self._family(text)
        if found is None:
            raise _bad_grant()
        tenant_id = found.credential.key.tenant_id
        await admit(tenant_id)
        session, _stamp, now = await self._current.session(tenant_id, found.family)
        self._trust(now)
        if session is None or not _usable(session, now):
            raise _bad_grant()
        successor = text[:_HANDLE] + secrets.token_urlsafe(32)

        async def spend(tx: Transaction) -> bool:
            families = TokenFamilies(tx, tenant_id)
            spent = await families.spend(session.family, digest_of(text), digest_of(successor))
            if not spent:
                tx.abandon()
            return spent

        if not await self._database.write(session.family, spend):
            await self._end(session, by, "reuse_detected")
            raise _bad_grant()
        key_id = session.credential.key.id
        return self._issued(
            tenant_id, key_id, session.family, session.generation, session.scopes, successor, now,
            session.expires_at,
        )  # fmt: skip

    async def revoke(self, text: str, by: Caller) -> None:
        """End the family of an access token or a refresh token (RFC 7009).

        Nothing happens to a token that is not known, or not the caller's: another key's only where
        the caller administers their tenant.
        """
        session = await self._owned(text, by)
        if session is not None:
            await self._end(session, by, "revoke")

    async def introspect(self, text: str, by: Caller) -> dict[str, Any]:
        """What a token of the caller's own tenant says (RFC 7662), or that it is not active."""
        token = self._read_or_none(text)
        told = await (self._told_of_refresh(text, by) if token is None else self._told(token, by))
        return {"active": False} if told is None else {"active": True, **told}

    async def _told(self, token: Token, by: Caller) -> dict[str, Any] | None:
        if token.tenant_id != by.tenant_id:
            return None
        session, _stamp, now = await self.session(token)
        if session is None or not is_in_force(session, token, now):
            return None
        if session.credential.disabled_at is not None:
            return None
        return {
            "scope": _listed(covered(token.scopes, session.credential.key.scopes)),
            "client_id": token.key_id,
            "token_type": "Bearer",
            "exp": int(token.expires_at.timestamp()),
            "iat": int(token.issued_at.timestamp()),
            "nbf": int(token.not_before.timestamp()),
            "sub": token.key_id,
            "aud": self.keyring.audience,
            "iss": self.keyring.issuer,
            "jti": token.id,
        }

    async def _told_of_refresh(self, text: str, by: Caller) -> dict[str, Any] | None:
        found = await self._family(text)
        if found is None or found.credential.key.tenant_id != by.tenant_id:
            return None
        tenant_id = found.credential.key.tenant_id
        session, _stamp, now = await self._current.session(tenant_id, found.family)
        self._trust(now)
        if session is None or not _usable(session, now):
            return None
        async with self._database.read() as tx:
            families = TokenFamilies(tx, tenant_id)
            if not await families.is_current(session.family, digest_of(text)):
                return None
        return {
            "scope": _listed(covered(session.scopes, session.credential.key.scopes)),
            "client_id": session.credential.key.id,
            "exp": int(session.expires_at.timestamp()),
            "sub": session.credential.key.id,
        }

    def _issued(
        self,
        tenant_id: UUID,
        key_id: str,
        family: str,
        generation: int,
        scopes: frozenset[str],
        refresh: str,
        now: datetime,
        end: datetime,
    ) -> Issued:
        text, token = self.keyring.issue(
            tenant_id=tenant_id,
            key_id=key_id,
            family=family,
            generation=generation,
            scopes=_listed(scopes).split(" "),
            now=now,
            until=end,
        )
        return Issued(
            token,
            access_token=text,
            refresh_token=refresh,
            expires_in=max(0, int((token.expires_at - token.issued_at).total_seconds())),
            refresh_expires_in=int((end - now).total_seconds()),
            scope=_listed(scopes),
        )

    async def _family(self, text: str) -> Session | None:
        """The family of a refresh token, spent or not; its state is not made sure of."""
        if not text.isascii() or _refresh_token(text) is None:
            return None
        return await find_session_by_handle(self._database, digest_of(text[:_HANDLE]))

    def _read_or_none(self, text: str) -> Token | None:
        try:
            return self.read(text)
        except Unauthorized:
            return None

    async def _owned(self, text: str, by: Caller) -> Session | None:
        token = self._read_or_none(text)
        if token is None:
            session = await self._family(text)
        else:
            session = (await self._current.session(token.tenant_id, token.family))[0]
        if session is None or session.credential.key.tenant_id != by.tenant_id:
            return None
        own = session.credential.key.id == by.key_id or "admin" in by.scopes
        return session if own else None

    async def _end(self, session: Session, by: Caller, action: str) -> None:
        """End a family: a change of policy, so that every process knows with the next request."""
        key = session.credential.key

        async def work(tx: Transaction) -> None:
            stamp = await lock_tenant(tx, key.tenant_id)
            now = self._clock()
            if not await TokenFamilies(tx, key.tenant_id).revoke(session.family, now):
                tx.abandon()
                return
            event = {
                "action": action,
                "entity_type": "token",
                "entity_id": session.family,
                "details": {"key_id": key.id},
            }
            by_whom = origin(by, by.key_id or key.id)
            await record(tx, key.tenant_id, stamp, [event], by_whom, now)

        await self._database.write(key.tenant_id, work)


def _usable(session: Session, now: datetime) -> bool:
    """Whether a family may still be refreshed, as far as it does not depend on its token."""
    if session.revoked_at is not None or now >= session.expires_at:
        return False
    return is_alive(session.credential, now) and session.credential.disabled_at is None


def _bad_grant() -> TokenRefused:
    return TokenRefused("invalid_grant", "This refresh token is not in force: use the client key")


def _scopes(text: str) -> frozenset[str]:
    names = text.split(" ")
    if not names or any(name not in SCOPES for name in names):
        message = f"Scopes are words of {', '.join(SCOPES)}, with blanks between"
        raise TokenRefused("invalid_scope", message)
    return frozenset(names)


def _listed(scopes: frozenset[str]) -> str:
    return " ".join(scope for scope in SCOPES if scope in scopes)
