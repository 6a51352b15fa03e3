"""The short way for ``GET /api/has_permission/{user}/{permission}``, answered from memory.

The outermost application's first stop. It takes only the plainest form of the question and gives
the same bytes as the ordinary route, because it is made of the same pieces: the credential's
rules, the gate, the decision, the body and the headers. Whatever is unusual about a request, it
does nothing and lets the request go on: that costs a microsecond and can never be wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import TypeVar
from uuid import UUID

from starlette.types import ASGIApp, Receive, Scope, Send

from authsvc.api.check_answer import check_body
from authsvc.api.security_headers import Pairs
from authsvc.credentials import digest_of, parse_client_key
from authsvc.decision_cache import KeyBacked, TenantState, allowed
from authsvc.errors import AuthsvcError
from authsvc.keyring import Token
from authsvc.services.authentication import may_check, presented, token_may_check
from authsvc.services.current_state import CurrentState
from authsvc.services.grant_use import GrantUse
from authsvc.services.key_use import KeyUse
from authsvc.services.rate_limits import RateLimits
from authsvc.services.tokens import Tokens

T = TypeVar("T", bytes, str, Token)

_PREFIX = b"/api/has_permission/"
_permission_name = re.compile(rb"(?!\.)[A-Za-z0-9_\-.:]{1,128}").fullmatch
_MOST_REMEMBERED = 10_000
_LONGEST_REMEMBERED = 1024
_PLAIN_HEADER = len(b"Bearer ") + 36
_READ = frozenset({b"authorization", b"host", b"x-request-id"})
_UNUSUAL = frozenset(
    {
        b"content-length",
        b"transfer-encoding",
        b"expect",
        b"origin",
        b"traceparent",
        b"upgrade",
    }
)


class CheckPath:
    """ASGI application in front of another: answers plain checks itself, hands on the rest."""

    def __init__(
        self,
        app: ASGIApp,
        current: CurrentState,
        tokens: Tokens,
        limits: RateLimits,
        uses: KeyUse,
        grants: GrantUse,
        *,
        headers: Pairs,
        request_id_of: Callable[[bytes | None], str],
        allowed_hosts: Iterable[str] = (),
        records_denied: bool = False,
    ) -> None:
        """``headers``: what every answer under ``/api`` carries. ``allowed_hosts`` as for Edge.
        ``records_denied``: checks that are refused are recorded, by the ordinary route.
        """
        self._app = app
        self._current = current
        self._tokens = tokens
        self._limits = limits
        self._uses = uses
        self._grants = grants
        self._headers = headers
        self._request_id_of = request_id_of
        self._records_denied = records_denied
        self._hosts = frozenset(host.encode() for host in allowed_hosts)
        self._digests: dict[bytes, bytes] = {}
        self._verified: dict[bytes, Token] = {}
        self._permissions: dict[bytes, str] = {}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if (
            scope["type"] == "http"
            and (path := scope.get("raw_path") or b"").startswith(_PREFIX)
            and scope["method"] == "GET"
            and not scope["query_string"]
            and not scope.get("root_path")
            and (given := self._given(scope)) is not None
        ):
            user, _, permission = path[len(_PREFIX) :].partition(b"/")
            body = await self._answer(user, permission, given[0])
            if body is not None:
                await self._send(body, given[1], send)
                return
        await self._app(scope, receive, send)

    def _given(self, scope: Scope) -> tuple[bytes, bytes | None] | None:
        """The credential's header and the request id sent; None where a header wants more."""
        authorization = sent_id = host = None
        for name, value in scope["headers"]:
            if name in _READ:
                if name == b"authorization":
                    if authorization is not None:
                        return None
                    authorization = value
                elif name == b"host":
                    if host is not None:
                        return None
                    host = value
                else:
                    sent_id = value
            elif name in _UNUSUAL:
                return None
        if authorization is None or (self._hosts and host not in self._hosts):
            return None
        return authorization, sent_id

    async def _answer(self, user: bytes, permission: bytes, authorization: bytes) -> bytes | None:
        """The body of the answer, or None if it is not to be had from memory."""
        # '.' and '..' mean something in a path: what begins with a dot goes the ordinary way.
        wanted = self._permissions.get(permission) or self._named(permission)
        if wanted is None or user.startswith(b"."):
            return None
        try:
            digest = self._digests.get(authorization)
            if digest is not None:
                glance = await self._current.glance(digest)
                if glance is None or not may_check(glance[1], glance[2]):
                    return None
                state, credential, at = glance
                key = credential.key
                tenant_id = key.tenant_id
                self._uses.client_key(key.id, tenant_id, at)
            else:
                seen = await self._with_token(authorization)
                if seen is None:
                    return None
                state, tenant_id, at = seen
        except AuthsvcError:
            # A refusal is the ordinary route's to word.
            return None
        # What is not a name is nobody's whose holdings could be remembered.
        name = _decoded(user)
        held = self._current.remembered(state, name)
        graph = state.graph
        if held is None or graph is None or state.dirty or isinstance(held, KeyBacked):
            # With strict users there is more to judge and to tell: the ordinary route does.
            return None
        is_allowed = allowed(held, graph, wanted, None, at)
        if self._records_denied and not is_allowed:
            return None
        if not self._limits.take_check(tenant_id):
            return None
        if is_allowed:
            self._grants.note(tenant_id, name, wanted)
        return check_body(is_allowed, state.stamp.revision, at)

    def _named(self, sent: bytes) -> str | None:
        """The permission a path asks for; None if it is not a name as it stands."""
        if _permission_name(sent) is None:
            return None
        return _remember(self._permissions, sent, sent.decode("ascii"))

    async def _with_token(self, authorization: bytes) -> tuple[TenantState, UUID, datetime] | None:
        """The state to answer from, whose it is and its instant, for a credential that is seen for
        the first time, or is a token. Raises Unauthorized, Unavailable.
        """
        token = self._verified.get(authorization)
        if token is None:
            sent = presented((authorization.decode("latin-1"),))
            key = parse_client_key(sent)
            if key is not None:
                if len(authorization) <= _PLAIN_HEADER:
                    _remember(self._digests, authorization, digest_of(key))
                # The ordinary route answers this one; from the next one on it is known here.
                return None
            token = self._tokens.read(sent)
            if len(authorization) <= _LONGEST_REMEMBERED:
                _remember(self._verified, authorization, token)
        glance = await self._current.glance_at_session(token.tenant_id, token.family)
        if glance is None or not token_may_check(glance[1], token, glance[2]):
            return None
        self._uses.client_key(token.key_id, token.tenant_id, glance[2])
        return glance[0], token.tenant_id, glance[2]

    async def _send(self, body: bytes, sent_id: bytes | None, send: Send) -> None:
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [
                    (b"content-length", b"%d" % len(body)),
                    (b"content-type", b"application/json"),
                    *self._headers,
                    (b"x-request-id", self._request_id_of(sent_id).encode("ascii")),
                ],
            }
        )
        await send({"type": "http.response.body", "body": body})


def _remember(memory: dict[bytes, T], key: bytes, value: T) -> T:
    """Spare the next request that sends the same its parsing."""
    if len(memory) >= _MOST_REMEMBERED:
        memory.clear()
    memory[key] = value
    return value


def _decoded(name: bytes) -> str:
    """The name in a path, with the escapes undone that clients tend to use in names."""
    if b"%" in name:
        for escape, plain in _ESCAPES:
            name = name.replace(escape, plain)
    return name.decode("latin-1")


_ESCAPES = (
    (b"%40", b"@"),
    (b"%2B", b"+"),
    (b"%2b", b"+"),
    (b"%3A", b":"),
    (b"%3a", b":"),
    (b"%7C", b"|"),
    (b"%7c", b"|"),
)
