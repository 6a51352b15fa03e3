"""The route class of every endpoint: what is asked of a request before FastAPI looks at it.

FastAPI accepts unknown and repeated query parameters, bodies of any content type and JSON with
duplicate keys. ``ContractRoute`` answers those as api.md says, then hands over the parsed body.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, ClassVar

from fastapi import Request, Response
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, _effective_route_context_var
from pydantic import BaseModel
from starlette.routing import Match
from starlette.types import Scope

from authsvc.api.json_body import parse_json
from authsvc.api.problems import unsupported_media_type
from authsvc.errors import InputError, Problem

Admit = Callable[[Request], Awaitable[None]]

_json_type = re.compile(
    r'application/json[ \t]*(?:;[ \t]*charset="?utf-8"?[ \t]*)?', re.IGNORECASE
).fullmatch
_parameter_name = re.compile(r"[A-Za-z0-9_.\-]{1,64}").fullmatch
_BODILESS_METHODS = frozenset({"GET", "DELETE", "HEAD", "OPTIONS"})


class ContractRoute(APIRoute):
    """An ``APIRoute`` that keeps the rules of every request.

    Unknown or repeated query parameters are 422. A body must say ``application/json`` (else 415,
    unread) and is parsed by ``parse_json`` alone. A method that may carry a body, on a route that
    takes none, accepts only ``{}``; the body of a GET or DELETE without one is not read at all.

    ``contract_route`` makes variants. ``admit`` runs before all of that, so that a stranger's
    body is neither read nor parsed; without ``json_bodies`` the endpoint reads the body itself.
    """

    admit: ClassVar[Admit | None] = None
    json_bodies: ClassVar[bool] = True

    def matches(self, scope: Scope) -> tuple[Match, Scope]:
        match, child = super().matches(scope)
        # '$' in the router's patterns also matches before a newline that no parameter took.
        if match is not Match.NONE and scope["path"].endswith("\n"):
            values = child.get("path_params", {}).values()
            if not any(str(value).endswith("\n") for value in values):
                return Match.NONE, {}
        return match, child

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        # Built once per inclusion: what include_router() adds (dependencies and with them query
        # parameters) is found in the context FastAPI builds the handler for.
        context = _effective_route_context_var.get()
        built = context if context is not None and context.original_route is self else self
        names = _query_names(built.dependant) if built.dependant else frozenset()
        takes_body = built.body_field is not None
        reads_body = self.json_bodies and (
            takes_body or not (self.methods or set()) <= _BODILESS_METHODS
        )
        admit = type(self).admit

        async def checked(request: Request) -> Response:
            if admit is not None:
                await admit(request)
            if request.scope["query_string"]:
                _check_query(request, names)
            if reads_body:
                await _plant_body(request, takes_body)
            return await handle(request)

        return checked


def contract_route(admit: Admit | None = None, *, json_bodies: bool = True) -> type[ContractRoute]:
    """A ``ContractRoute`` whose requests must first pass ``admit`` (it raises to refuse).

    With ``json_bodies=False`` bodies are left to the endpoint (the form bodies of RFC 6749).
    """
    attributes = {
        "admit": None if admit is None else staticmethod(admit),
        "json_bodies": json_bodies,
    }
    return type("ContractRoute", (ContractRoute,), attributes)


def _query_names(dependant: Dependant) -> frozenset[str]:
    """The names of all query parameters of a route, its dependencies' and Query models' too."""
    names: set[str] = set()
    waiting = [dependant]
    while waiting:
        current = waiting.pop()
        waiting += current.dependencies
        for field in current.query_params:
            kind = field.field_info.annotation
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                names.update(one.alias or name for name, one in kind.model_fields.items())
            else:
                names.add(field.alias)
    return frozenset(names)


def _check_query(request: Request, names: frozenset[str]) -> None:
    problems: dict[str, str] = {}
    seen: set[str] = set()
    for name, _ in request.query_params.multi_items():
        if name in seen:
            problems[name] = "This parameter may be given once."
        elif name not in names:
            problems[name] = "This parameter is not known here."
        seen.add(name)
    if problems:
        found = [
            Problem(name if _parameter_name(name) else "query", sentence)
            for name, sentence in problems.items()
        ][:20]
        raise InputError(f"{found[0].field}: {found[0].message}", found)


async def _plant_body(request: Request, takes_body: bool) -> None:
    """Read and parse the body where FastAPI will look for it."""
    headers = request.headers
    declared = headers.get("content-length", "")
    chunked = "transfer-encoding" in headers
    is_json = _json_type(headers.get("content-type", "")) is not None
    if not is_json and (chunked or declared.strip("0")):
        raise unsupported_media_type()
    body = await request.body()
    if not body:
        return
    if not is_json:
        raise unsupported_media_type()
    value = parse_json(body)
    if not takes_body and value != {}:
        raise InputError.of("body", "This request takes no body.")
    request._json = value
