"""Every route declares the scope it needs, and a credential without it is refused."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from fastapi.dependencies.models import Dependant
from fastapi.routing import APIRoute, iter_route_contexts

from authsvc.api import dependencies
from authsvc.api.dependencies import NeedsScope
from http_api import Api

pytest_plugins = ["http_fixtures"]

CONTRACT = {
    "check": [
        "GET /api/permission/{role}/{permission}",
        "GET /api/membership/{user}/{role}",
        "GET /api/has_permission/{user}/{permission}",
        "POST /api/check",
        "GET /api/workflow/user/{user}/can_run/{workflow}",
        "POST /api/apikeys/validate",
        "POST /api/apikeys/check_permission",
    ],
    "read": [
        "GET /api/role/{role}",
        "GET /api/roles",
        "GET /api/user_permissions/{user}",
        "GET /api/role_permissions/{role}",
        "GET /api/user_roles/{user}",
        "GET /api/members/{role}",
        "GET /api/which_roles_can/{permission}",
        "GET /api/which_users_can/{permission}",
        "GET /api/workflow/users/{workflow}",
        "GET /api/apikeys/user/{user}",
    ],
    "write": [
        "POST /api/role/{role}",
        "DELETE /api/role/{role}",
        "POST /api/role/{role}/parent/{parent}",
        "DELETE /api/role/{role}/parent/{parent}",
        "POST /api/permission/{role}/{permission}",
        "DELETE /api/permission/{role}/{permission}",
        "POST /api/membership/{user}/{role}",
        "DELETE /api/membership/{user}/{role}",
        "DELETE /api/user/{user}",
        "POST /api/changes",
        "POST /api/apikeys/user/{user}",
        "DELETE /api/apikeys/user/{user}/{key_id}",
    ],
    "audit": [
        "GET /api/audit",
        "GET /api/audit/verify",
    ],
    "admin": [
        "GET /api/keys",
        "POST /api/keys",
        "POST /api/keys/rotate",
        "DELETE /api/keys/{key_id}",
        "GET /api/settings",
        "PUT /api/settings",
    ],
}
"""The contract's table: scope -> routes."""
IMPLIED = {
    "check": {"check", "read", "write", "admin"},
    "read": {"read", "write", "admin"},
    "write": {"write", "admin"},
    "audit": {"audit", "admin"},
    "admin": {"admin"},
}
"""Scope of a route -> the scopes that open it."""
SCOPES = ["check", "read", "write", "audit", "admin"]


def declared(dependant: Dependant) -> set[str]:
    """The scopes that a route's dependencies ask for."""
    own = {dependant.call.scope} if isinstance(dependant.call, NeedsScope) else set()
    return own.union(*(declared(inner) for inner in dependant.dependencies))


def scopes_of_routes(app: FastAPI) -> dict[str, set[str]]:
    """'METHOD /path' -> the scopes declared, for everything under ``/api``."""
    return {
        f"{method} {route.path}": declared(route.original_route.dependant)
        for route in iter_route_contexts(app.routes)
        if isinstance(route.original_route, APIRoute)
        and str(route.path).startswith("/api/")
        and not str(route.path).startswith("/api/token")
        for method in route.methods or ()
    }


async def test_every_route_declares_the_scope_of_the_contract(api: Api, app: FastAPI) -> None:
    expected = {route: {scope} for scope, routes in CONTRACT.items() for route in routes}
    assert scopes_of_routes(app) == expected
    document = (await api.http.get("/openapi.json")).json()
    documented = {
        f"{method.upper()} {path}"
        for path, methods in document["paths"].items()
        if path.startswith("/api/") and not path.startswith("/api/token")
        for method in methods
    }
    assert documented == set(expected)


async def refusals_that_differ(api: Api) -> list[str]:
    """Ask every route with a key of every single scope; where the contract says otherwise."""
    wrong = []
    for held in SCOPES:
        made = await api.data("POST", "/api/keys", {"scopes": [held]})
        caller = api.with_key(made["key"])
        for needed, routes in CONTRACT.items():
            for route in routes:
                method, template = route.split(" ")
                path = template.replace("{key_id}", f"key_{'0' * 20}")
                path = re.sub(r"\{(\w+)\}", r"no-\1", path)
                if route == "POST /api/keys/rotate" and held in IMPLIED[needed]:
                    continue  # It would change the key that is asking.
                answered = await caller.send(method, path)
                refused = answered.status_code == 403
                if refused != (held not in IMPLIED[needed]):
                    wrong.append(f"{held}: {route} {answered.status_code}")
                if refused and answered.json()["error"] != "insufficient_scope":
                    wrong.append(f"{held}: {route} {answered.text}")
    return wrong


async def test_a_key_opens_what_its_scope_covers_and_nothing_else(api: Api) -> None:
    assert await refusals_that_differ(api) == []


async def test_a_route_that_does_not_ask_is_noticed(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dependencies, "require_scope", lambda *_: None)
    assert len(await refusals_that_differ(api)) > 50


async def test_a_scope_is_asked_of_the_short_way_too(api: Api) -> None:
    made = await api.data("POST", "/api/keys", {"scopes": ["audit"]})
    path = "/api/has_permission/alice/deploy"
    await api.ok("GET", path)
    await api.with_key(made["key"]).refused(403, "insufficient_scope", "GET", path)
