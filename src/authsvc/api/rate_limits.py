"""Which budget a request counts against, the 429, and the headers that tell of it.

Of slowapi this takes the kind of its limits and its error; its middleware counts on the event loop
and leaves out every route of an included router (docs/decisions/0010).
"""

from __future__ import annotations

import ipaddress
import math
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

from fastapi import FastAPI, Request
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts
from limits import RateLimitItemPerSecond
from slowapi.errors import RateLimitExceeded
from slowapi.util import get_remote_address
from slowapi.wrappers import Limit

from authsvc.errors import StartError
from authsvc.rate_budgets import AUTH_FAILURE, CHECK, READ, ROLE_CREATE, TOKEN, WRITE
from authsvc.records import Caller
from authsvc.services.rate_limits import RateLimits, Standing

_EXEMPT = frozenset(
    {"/", "/ping", "/health", "/health/live", "/health/ready", "/docs", "/openapi.json"}
)
_EXEMPT_BELOW = ("/docs/", "/static/", "/.well-known/")
_ROLE = ("POST", "/api/role/{role}")
_TOKENS = frozenset({"/api/token", "/api/token/revoke", "/api/token/introspect"})
"""They count themselves, once they know whose token it is about."""
Budgets = dict[Callable[..., Any], str]
"""Endpoint -> the budget that its requests count against."""


class TooManyRequests(RateLimitExceeded):
    """A budget is used up (RFC 6585, section 4). ``Retry-After`` is in whole seconds."""

    def __init__(self, standing: Standing) -> None:
        seconds = max(1, math.ceil(standing.ends_in))
        rate = standing.rate
        item = RateLimitItemPerSecond(rate.amount, rate.seconds)
        sentence = (
            f"More than {rate.amount} requests in {rate.seconds} s ({_WORDS[standing.budget]}):"
            f" ask again in {seconds} s"
        )
        super().__init__(
            Limit(item, get_remote_address, standing.budget, False, None, sentence, None, 1, False)
        )
        self.headers = {"Retry-After": str(seconds)}


_WORDS = {
    CHECK: "checks",
    READ: "reads",
    WRITE: "writes",
    ROLE_CREATE: "new roles",
    TOKEN: "tokens",
    AUTH_FAILURE: "credentials that were refused",
}


def budgets_of_routes(app: FastAPI, limits: RateLimits) -> Budgets:
    """The budget of every endpoint that has one.

    Raises StartError for a route that neither counts nor is known to be free of limits: what
    nobody thought of must not be what nobody counts.
    """
    made: Budgets = {}
    for context in iter_route_contexts(app.routes):
        route, path = context.original_route, str(context.path)
        if path in _EXEMPT | _TOKENS or path.startswith(_EXEMPT_BELOW):
            continue
        scopes = set(_scopes(route.dependant)) if isinstance(route, APIRoute) else set()
        if not isinstance(route, APIRoute) or len(scopes) != 1:
            raise StartError(f"The route {path} has no rate limit")
        methods = context.methods or set()
        budget = _budget_of(scopes.pop(), methods)
        if (*methods, path) == _ROLE and limits.has(ROLE_CREATE):
            budget = ROLE_CREATE
        if made.setdefault(route.endpoint, budget) != budget:
            raise StartError(f"The route {path} has two rate limits")
    return made


def _scopes(dependant: Dependant) -> Iterator[str]:
    scope = getattr(dependant.call, "scope", None)
    if isinstance(scope, str):
        yield scope
    for inner in dependant.dependencies:
        yield from _scopes(inner)


def _budget_of(scope: str, methods: set[str]) -> str:
    if scope == "check":
        return CHECK
    return READ if methods <= {"GET"} else WRITE


async def limit(limits: RateLimits, request: Request, caller: Caller, cost: int = 1) -> None:
    """Count a request of a caller whose tenant is known. Raises TooManyRequests."""
    budget = request.app.state.budgets[request.scope["endpoint"]]
    await _count(limits, request, budget, caller.tenant_id, cost)


async def limit_new_roles(
    limits: RateLimits, request: Request, caller: Caller, number: int
) -> None:
    """Count the roles that a list of changes makes, where they have a budget of their own."""
    if number and limits.has(ROLE_CREATE):
        await _count(limits, request, ROLE_CREATE, caller.tenant_id, number)


async def limit_tokens(limits: RateLimits, request: Request, tenant_id: Any) -> None:
    """Count a request for a token. Raises TooManyRequests."""
    await _count(limits, request, TOKEN, tenant_id, 1)


async def limit_failures(limits: RateLimits, request: Request) -> None:
    """Count a credential that was refused against the address it came from.

    Raises TooManyRequests in place of the refusal.
    """
    address = prefix_of(request.client.host if request.client else None)
    standing = await limits.take(AUTH_FAILURE, address)
    if standing is not None and standing.exceeded:
        _tell(request, standing)
        raise TooManyRequests(standing)


async def _count(
    limits: RateLimits, request: Request, budget: str, subject: Any, cost: int
) -> None:
    standing = await limits.take(budget, subject, cost)
    if standing is None:
        return
    if standing.exceeded or budget != CHECK:
        _tell(request, standing)
    if standing.exceeded:
        raise TooManyRequests(standing)


def _tell(request: Request, standing: Standing) -> None:
    """Have the answer carry the limit (draft-ietf-httpapi-ratelimit-headers, and X-RateLimit)."""
    name, rate = standing.budget.replace("_", "-"), standing.rate
    left, seconds = max(0, standing.remaining), max(1, math.ceil(standing.ends_in))
    request.scope["state"]["rate_limit"] = tuple(
        (header, value.encode("ascii"))
        for header, value in (
            (b"ratelimit", f'"{name}";r={left};t={seconds}'),
            (b"ratelimit-policy", f'"{name}";q={rate.amount};w={rate.seconds}'),
            (b"x-ratelimit-limit", str(rate.amount)),
            (b"x-ratelimit-remaining", str(left)),
            (b"x-ratelimit-reset", str(seconds)),
        )
    )


@lru_cache(4096)
def prefix_of(host: str | None) -> str:
    """The address whose failures count together: an IPv4 address, or a /64 of IPv6, which is what
    one subscriber has.
    """
    try:
        address = ipaddress.ip_address((host or "").partition("%")[0])
    except ValueError:
        return "unknown"
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            return str(address.ipv4_mapped)
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
