"""Questions to the audit trail, and exports of it."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Query, Request, Response
from pydantic import Field
from starlette.responses import StreamingResponse

from authsvc.api.dependencies import AuditCaller, Service, ServiceDep, admit
from authsvc.api.documented import documented
from authsvc.api.envelope import Envelope, answer
from authsvc.api.route import contract_route
from authsvc.audit_entries import FIELDS, LONGEST_HOURS, Selection, Stream, shown
from authsvc.audit_lines import Format, header, line
from authsvc.errors import InputError
from authsvc.records import Caller
from authsvc.schemas import audit as schemas
from authsvc.schemas.names import Instant
from authsvc.services import audit_search
from authsvc.services.authentication import require_scope

router = APIRouter(prefix="/api", route_class=contract_route(admit))

_DEFAULT_LIMIT = 50
_TYPES: dict[Format, str] = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8; header=present",
}
_ENTRY: dict[str, Any] = {
    "seq": 17,
    "timestamp": "2026-11-23T10:11:12.345678Z",
    "action": "add",
    "entity_type": "membership",
    "entity_id": "mallory",
    "details": {"role": "admin", "scope": None, "not_before": None, "expires_at": None},
    "actor": "key_5c0d3a61f2b94e8c9a17",
    "ip_address": "203.0.113.7",
    "user_agent": "curl/8.9",
    "request_id": "1f0c6e52a7d94b3f8c2ad3b1f45c9e07",
    "success": True,
    "hash": "7d1a" * 16,
}


_CURSOR = "WyI3ZDFhN2QxYTdkMWE3ZDFhIiwxNywwLDAsMF0"


class AuditAnswer(Envelope[schemas.AuditPage]):
    """Some entries of the trail; ``next`` as other lists have it too."""

    next: str = Field(default="", description="The same as `data.next`; absent on the last page")


async def selection_of(
    stream: Annotated[
        Stream, Query(description="`policy`: what changed; `activity`: what else happened")
    ] = "policy",
    action: Annotated[
        schemas.Word | None, Query(description="Such as `create`, `grant`, `add`, `remove`")
    ] = None,
    entity_type: Annotated[
        schemas.Word | None, Query(description="Such as `role`, `permission`, `membership`")
    ] = None,
    entity_id: Annotated[
        schemas.Searched | None, Query(description="The name of what it happened to")
    ] = None,
    actor: Annotated[
        schemas.Searched | None, Query(description="The id of a client key, or `command`")
    ] = None,
    outcome: Annotated[
        Literal["success", "failure"] | None,
        Query(description="Whether it was let through; every change in `policy` was"),
    ] = None,
    ip: Annotated[schemas.Searched | None, Query(description="The address it came from")] = None,
    hours: Annotated[
        int | None,
        Query(ge=1, le=LONGEST_HOURS, description="The last so many hours, instead of `since`"),
    ] = None,
    since: Annotated[Instant | None, Query(description="This instant and later")] = None,
    until: Annotated[Instant | None, Query(description="Before this instant")] = None,
    order: Annotated[
        Literal["asc", "desc"], Query(description="`desc`: the newest first")
    ] = "desc",
) -> Selection:
    """Which entries are asked for."""
    return Selection(
        stream=stream,
        action=action,
        entity_type=entity_type,
        entity_id=entity_id,
        actor=actor,
        ip=ip,
        outcome=outcome,
        hours=hours,
        since=since,
        until=until,
        oldest_first=order == "asc",
    )


def _documented() -> dict[int | str, dict[str, Any]]:
    made = documented("Found", {"entries": [_ENTRY], "next": _CURSOR}, next=_CURSOR)
    lines = {"schema": {"type": "string"}}
    made[200]["content"] |= {kind.partition(";")[0]: lines for kind in _TYPES.values()}
    return made


@router.get(
    "/audit",
    tags=["Audit"],
    summary="Who did what, when and from where",
    response_model=AuditAnswer,
    responses=_documented(),
)
async def search(
    request: Request,
    wanted: Annotated[Selection, Depends(selection_of)],
    service: ServiceDep,
    caller: AuditCaller,
    limit: Annotated[
        int | None,
        Query(
            ge=1,
            le=audit_search.PAGE_MAX,
            description=f"Entries on this page at most; {_DEFAULT_LIMIT} if not given",
        ),
    ] = None,
    cursor: Annotated[
        str | None, Query(max_length=2048, description="`next` of the page before")
    ] = None,
    format: Annotated[
        Format | None,
        Query(description="All that is selected, as a file: JSON Lines, or CSV"),
    ] = None,
) -> Response:
    """The newest first, unless `order=asc`. Every filter compares whole values; what is found lets
    all of them through. Pages stay in place while entries are being added.

    With `format` the answer is a file of all entries selected, without an envelope, whatever their
    number. In CSV a cell that a spreadsheet would calculate begins with an apostrophe.
    """
    now = caller.at or service.clock()
    if format is not None:
        return await _export(request, service, caller, wanted, format, limit, cursor)
    async with service.database.read() as tx:
        found = await audit_search.page(
            tx, caller.tenant_id, wanted, limit or _DEFAULT_LIMIT, cursor, now
        )
    data = {"entries": [shown(entry) for entry in found.items], "next": found.next}
    return answer(data, "Found", found.stamp.revision, service.clock(), next=found.next)


async def _export(
    request: Request,
    service: Service,
    caller: Caller,
    wanted: Selection,
    form: Format,
    limit: int | None,
    cursor: str | None,
) -> Response:
    for name, value in (("limit", limit), ("cursor", cursor)):
        if value is not None:
            raise InputError.of(name, "an export is all that is selected: leave this out")
    now = caller.at or service.clock()
    wanted.at(now)
    lines = _lines(request, service, caller, wanted, form)
    # Whatever can be refused is refused before the answer has begun.
    first = await anext(lines, "")

    async def body() -> AsyncGenerator[str, None]:
        async with aclosing(lines):
            yield first
            async for some in lines:
                yield some

    name = f"audit-{wanted.stream}.{form}"
    return StreamingResponse(
        body(),
        headers={
            "Content-Type": _TYPES[form],
            "Content-Disposition": f'attachment; filename="{name}"',
        },
    )


async def _lines(
    request: Request, service: Service, caller: Caller, wanted: Selection, form: Format
) -> AsyncGenerator[str, None]:
    """The file, a page at a time. No transaction is open while one is being sent."""
    begun = header(FIELDS, form)
    if caller.tenant_id is not None:
        found = audit_search.pages(
            service.database, caller.tenant_id, wanted, caller.at or service.clock()
        )
        async with aclosing(found):
            async for some in found:
                yield begun + "".join(line(shown(entry), FIELDS, form) for entry in some)
                begun = ""
                # Sending may have taken long: a credential that has ended gets no further.
                require_scope(await service.authenticated(request), "audit")
    if begun:
        yield begun
