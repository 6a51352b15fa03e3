"""Whether the service is there, and whether it can answer. Public, and not under ``/api``."""

from __future__ import annotations

from typing import Literal

from fastapi import APIRouter
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from authsvc.api.dependencies import ServiceDep
from authsvc.api.envelope import timestamp
from authsvc.api.problems import error_responses
from authsvc.api.route import ContractRoute
from authsvc.errors import Unavailable
from authsvc.services.encryption import missing_master_keys, short

router = APIRouter(tags=["Service"], route_class=ContractRoute)


class Pong(BaseModel):
    """The answer to a ping."""

    message: Literal["PONG"]
    status: Literal["ok"]
    timestamp: str


class Health(BaseModel):
    """Whether the service can do its work."""

    status: Literal["healthy", "unhealthy"]


class Readiness(BaseModel):
    """Whether the service can do its work, and why not."""

    status: Literal["ready", "degraded", "not_ready"]
    reasons: list[str]


_ERRORS = error_responses(400, 422, 500)


@router.get("/ping", summary="Is anybody there?", response_model=Pong, responses=_ERRORS)
async def ping(service: ServiceDep) -> JSONResponse:
    """Answers as long as the process does; asks nothing of the database."""
    moment = timestamp(service.clock())
    return JSONResponse({"message": "PONG", "status": "ok", "timestamp": moment})


async def _reasons(service: ServiceDep) -> list[str]:
    try:
        await service.database.refuse_unless_primary()
        await service.tokens.refuse_unless_judged()
    except Unavailable as error:
        return [error.message]
    return []


async def _keys_missing(service: ServiceDep) -> list[str]:
    """Tenants whose key is missing are refused; who has every key serves them better."""
    return [
        f"AUTH_ENCRYPTION_OLD_KEYS lacks the key with the check value {short(one)}"
        for one in await missing_master_keys(service.database)
    ]


@router.get(
    "/health",
    summary="Can the service answer?",
    response_model=Health,
    responses=_ERRORS | {503: {"model": Health, "description": "The database cannot be reached"}},
)
async def health(service: ServiceDep) -> JSONResponse:
    """`healthy` when the database answers, else 503 `unhealthy`."""
    if await _reasons(service):
        return JSONResponse({"status": "unhealthy"}, 503, {"Retry-After": "1"})
    return JSONResponse({"status": "healthy"})


def _unreadable(service: ServiceDep) -> str | None:
    count = len(service.database.data_keys.unreadable)
    if not count:
        return None
    return f"the data keys of {count} tenant{'s' * (count != 1)} do not open: run 'authsvc verify'"


@router.get(
    "/health/live", summary="Is the process alive?", response_model=Health, responses=_ERRORS
)
async def live() -> JSONResponse:
    """For a supervisor: restart the process only when this fails. Asks nothing of the database."""
    return JSONResponse({"status": "healthy"})


@router.get(
    "/health/ready",
    summary="Should requests be sent here?",
    response_model=Readiness,
    responses=_ERRORS | {503: {"model": Readiness, "description": "Not now, and why"}},
)
async def ready(service: ServiceDep) -> JSONResponse:
    """For a load balancer: 503 with the reasons while requests would be refused. `degraded` answers
    requests as ever, but something beside them is not as it should be.
    """
    reasons = await _reasons(service) or await _keys_missing(service)
    if reasons:
        answered = {"status": "not_ready", "reasons": reasons}
        return JSONResponse(answered, 503, {"Retry-After": "1"})
    found = [service.limits.reduced, service.activity.reduced, _unreadable(service)]
    found += [watcher.problem for watcher in service.watchers]
    reduced = [reason for reason in found if reason]
    if reduced:
        return JSONResponse({"status": "degraded", "reasons": reduced})
    return JSONResponse({"status": "ready", "reasons": []})
