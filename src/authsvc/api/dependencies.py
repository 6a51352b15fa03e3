"""What routes are given: the service's parts, the caller, the page, the way to write."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Protocol
from uuid import UUID

from fastapi import Depends, Query, Request
from fastapi.security import HTTPBearer
from fastapi.security.http import HTTPAuthorizationCredentials

from authsvc.api.rate_limits import limit, limit_failures, prefix_of
from authsvc.clock import Clock
from authsvc.credentials import digest_of, parse_client_key
from authsvc.database import IDLE_SECONDS, Database
from authsvc.errors import Forbidden, Unauthorized
from authsvc.records import EMPTY, LIST_MAX, Caller, Change, Page
from authsvc.schemas.names import ScopeName, strict_names
from authsvc.services.activity import Activity
from authsvc.services.authentication import (
    caller_with_token,
    presented,
    require_scope,
    resolve,
)
from authsvc.services.changes import Outcome, RegisteredMeanwhile, apply_changes
from authsvc.services.current_state import CurrentState
from authsvc.services.grant_use import GrantUse
from authsvc.services.key_use import KeyUse
from authsvc.services.rate_limits import RateLimits
from authsvc.services.tokens import Tokens
from authsvc.services.write_queue import WriteQueue
from authsvc.settings import Settings

_LONGEST_USER_AGENT = 256


class Watcher(Protocol):
    """What works beside the requests, until it is stopped."""

    @property
    def problem(self) -> str | None:
        """What is not as it should be, in a sentence for the operator; None if all is well."""


@dataclass(frozen=True, slots=True)
class Service:
    """The parts every request works with; made once, by ``create_app``."""

    settings: Settings
    database: Database
    clock: Clock
    current: CurrentState
    writes: WriteQueue
    tokens: Tokens
    limits: RateLimits
    uses: KeyUse
    activity: Activity
    grants: GrantUse
    watchers: Sequence[Watcher]

    async def authenticated(self, request: Request) -> Caller:
        """The caller behind a request's credential, as it is now.

        Raises Unauthorized, Forbidden, Unavailable.
        """
        sent = presented(request.headers.getlist("authorization"))
        key = parse_client_key(sent)
        if key is None:
            token = self.tokens.read(sent)
            session, stamp, now = await self.tokens.session(token)
            caller = replace(caller_with_token(session, token, stamp, now), at=now)
            self._note_use(caller)
            return described(caller, request)
        digest = digest_of(key)
        credential, at = await self.current.credential(digest)
        caller = resolve(
            credential,
            digest,
            at or self.clock(),
            registration_open=self.settings.registration_open,
        )
        caller = replace(caller, at=at)
        self._note_use(caller)
        return described(caller, request)

    def refused(self, request: Request, reason: str, of: tuple[UUID, str] | None = None) -> None:
        """Have a refused credential recorded."""
        address = prefix_of(request.client.host if request.client else None)
        self.activity.failed(reason, address, of, self.clock())

    def _note_use(self, caller: Caller) -> None:
        if caller.tenant_id is not None and caller.key_id is not None:
            self.uses.client_key(caller.key_id, caller.tenant_id, caller.at or self.clock())

    async def write(
        self,
        request: Request,
        changes: Sequence[Change],
        *,
        dry_run: bool = False,
        in_list: bool = False,
    ) -> Outcome:
        """Apply changes for the request's caller in one transaction, committed on return."""
        caller: Caller = request.state.caller
        for _ in range(2):
            try:
                return await self._write(caller, changes, dry_run=dry_run, in_list=in_list)
            except RegisteredMeanwhile:
                caller = await self.authenticated(request)
        return await self._write(caller, changes, dry_run=dry_run, in_list=in_list)

    async def _write(
        self, caller: Caller, changes: Sequence[Change], *, dry_run: bool, in_list: bool
    ) -> Outcome:
        if caller.tenant_id is not None and not in_list:
            return await self.writes.apply(caller.tenant_id, caller, changes[0])
        return await self.database.write(
            caller.tenant_id or caller.digest,
            lambda tx: apply_changes(
                tx, caller, changes, self.clock, dry_run=dry_run, paths=in_list
            ),
            # A long list takes a moment to be worked out, and longer on a busy machine.
            idle_seconds=IDLE_SECONDS + len(changes) // 1000,
        )


def described(caller: Caller | None, request: Request) -> Caller:
    """A caller (None: nobody that is known) with what the audit trail says of its request."""
    agent = request.headers.get("user-agent")
    return replace(
        caller or Caller(None, None, b"", frozenset(), EMPTY),
        request_id=request.scope["state"]["request_id"],
        address=request.client.host if request.client else None,
        user_agent=_printable(agent) if agent else None,
    )


def _printable(text: str) -> str:
    """As much of a header as goes into the audit trail."""
    return "".join(c if c.isprintable() else "?" for c in text[:_LONGEST_USER_AGENT])


def get_service(request: Request) -> Service:
    """The application's parts."""
    service: Service = request.app.state.service
    return service


async def service_of(request: Request) -> Service:
    """The application's parts, as a dependency."""
    return get_service(request)


ServiceDep = Annotated[Service, Depends(service_of)]


async def admit(request: Request) -> None:
    """Find the caller, and whether it may ask so often, before anything of the body is read."""
    service = get_service(request)
    if service.settings.strict_names:
        strict_names.set(True)
    try:
        caller = await service.authenticated(request)
    except Unauthorized as error:
        reason = "ended" if error.of else "unknown" if error.sent else "missing"
        service.refused(request, reason, error.of)
        await limit_failures(service.limits, request)
        raise
    except Forbidden as error:
        service.refused(request, error.code)
        raise
    if caller.tenant_id is None:
        # A key that nobody made may be a guess, until its first write has made it one.
        await limit_failures(service.limits, request)
    else:
        await limit(service.limits, request, caller)
    request.state.caller = caller


_bearer = HTTPBearer(
    scheme_name="credential",
    bearerFormat="UUID version 4",
    description="A client key or an access token. `make run` and `authsvc tenants create` print a"
    " key.",
    auto_error=False,
)


class NeedsScope:
    """A dependency: the caller, who must hold the scope this route declares."""

    def __init__(self, scope: str) -> None:
        self.scope = scope

    async def __call__(
        self,
        request: Request,
        _documented: Annotated[HTTPAuthorizationCredentials | None, Depends(_bearer)],
    ) -> Caller:
        caller: Caller = request.state.caller
        try:
            require_scope(caller, self.scope)
        except Forbidden:
            service = get_service(request)
            route = getattr(request.scope.get("route"), "path", "")
            details = {"scope": self.scope, "method": request.method, "route": route}
            at, key_id = caller.at or service.clock(), caller.key_id or ""
            service.activity.note(
                "scope_refused", "credential", key_id, caller, at, details, success=False
            )
            raise
        return caller


CheckCaller = Annotated[Caller, Depends(NeedsScope("check"))]
ReadCaller = Annotated[Caller, Depends(NeedsScope("read"))]
AuditCaller = Annotated[Caller, Depends(NeedsScope("audit"))]
AdminCaller = Annotated[Caller, Depends(NeedsScope("admin"))]
WriteCaller = Annotated[Caller, Depends(NeedsScope("write"))]


async def page_of(
    limit: Annotated[
        int | None, Query(ge=1, le=LIST_MAX, description="Items on this page at most")
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=2048, description="`next` of the page before")
    ] = None,
) -> Page:
    """Which part of a list is asked for."""
    return Page(limit, cursor)


PageDep = Annotated[Page, Depends(page_of)]
ScopeQuery = Annotated[
    ScopeName | None, Query(description="Count memberships bound to this scope too")
]
DirectQuery = Annotated[
    bool,
    Query(description="The rows as stored, in force or not, instead of what follows from them"),
]
