"""Which grants let checks through is found out beside the checks, by both ways of answering."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import select

import encrypted
from authsvc import models
from authsvc.app import create_app
from authsvc.database import Database
from authsvc.records import Change
from authsvc.services import grant_use as module
from authsvc.services.grant_use import GrantUse
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, served, settings_for


async def used(tenant: TenantAtWork) -> dict[tuple[str, str], datetime]:
    """Role and permission of every grant whose use is on record."""
    use, role = models.grant_use, models.role
    async with tenant.database.read() as tx:
        rows = await tx.execute(
            select(role.c.name, use.c.permission, use.c.used_at)
            .join(role, (role.c.id == use.c.role_id) & (role.c.tenant_id == use.c.tenant_id))
            .where(use.c.tenant_id == tenant.id)
        )
        named = await encrypted.opener(tx, tenant.id)
        return {
            (row.name, named.text("grant_use.permission", row.permission)): row.used_at
            for row in rows
        }


@pytest.fixture
async def team(tenant: TenantAtWork) -> TenantAtWork:
    """Grants of every kind: own, inherited, by a wildcard, in a scope, and some nobody needs."""
    await tenant.write(
        Change("add_role", role="reader"),
        Change("add_role", role="lead"),
        Change("add_role", role="other"),
        Change("add_parent", role="lead", parent="reader"),
        Change("grant", role="reader", permission="doc:*"),
        Change("grant", role="reader", permission="never"),
        Change("grant", role="lead", permission="deploy"),
        Change("grant", role="other", permission="deploy"),
        Change("add_member", user="alice@example.com", role="lead"),
        Change("add_member", user="bob", role="other", scope="eu"),
    )
    return tenant


ASKED = [
    ("alice@example.com", "doc:read", None),
    ("alice@example.com", "destroy", None),
    ("nobody", "deploy", None),
]
EXPECTED = {("reader", "doc:*")}


@pytest.mark.parametrize("short_way", [True, False])
async def test_use_is_worked_out_for_single_checks(
    storage: Storage, team: TenantAtWork, short_way: bool
) -> None:
    settings: dict[str, Any] = {"check_short_way": short_way}
    app = create_app(settings_for(storage, **settings), clock=team.clock)
    async with served(app) as http:
        api = Api(http, team.clock, team.key)
        for _ in range(3):
            for user, permission, scope in ASKED:
                await api.can(user, permission, scope)
        grants: GrantUse = app.state.service.grants
        await grants.flush()
        assert (await used(team)).keys() == EXPECTED
        await api.can("bob", "deploy", "eu")
        await api.can("bob", "deploy")
        await grants.flush()
    assert (await used(team)).keys() == EXPECTED | {("other", "deploy")}


async def test_use_is_worked_out_for_many_checks_and_when_the_service_stops(
    storage: Storage, team: TenantAtWork
) -> None:
    app = create_app(settings_for(storage), clock=team.clock)
    async with served(app) as http:
        api = Api(http, team.clock, team.key)
        items = [{"user": u, "permission": p} for u, p, _ in ASKED]
        for _ in range(2):
            await api.data("POST", "/api/check", {"checks": items})
        await api.data(
            "POST", "/api/check",
            {"checks": [{"user": "bob", "permission": "deploy", "scope": "eu"}], "explain": True},
        )  # fmt: skip
        assert await used(team) == {}
    assert (await used(team)).keys() == EXPECTED | {("other", "deploy")}


async def test_the_latest_use_is_kept(team: TenantAtWork) -> None:
    grants = GrantUse(team.database, team.clock)
    for _ in range(2):
        team.clock.advance(86400)
        grants.note(team.id, "alice@example.com", "deploy")
        await grants.flush()
    assert await used(team) == {("lead", "deploy"): team.clock()}


async def test_more_than_can_be_noted_is_written_early(
    database: Database, clock: ControlledClock, team: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "MOST_NOTED", 10)
    grants = GrantUse(database, clock)
    for number in range(15):
        grants.note(team.id, f"user{number}", "deploy")
        grants.note(team.id, f"user{number}", "deploy")
    assert grants.skipped == 10
    assert grants._wake.is_set()
    await grants.flush()
    grants.note(team.id, "alice@example.com", "deploy")
    await grants.flush()
    assert (await used(team)).keys() == {("lead", "deploy")}


async def test_what_could_not_be_written_is_kept(
    team: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    from authsvc.errors import Unavailable

    grants = GrantUse(team.database, team.clock)
    grants.note(team.id, "alice@example.com", "deploy")

    async def refuse(*_given: object, **_more: object) -> None:
        raise Unavailable

    with monkeypatch.context() as away:
        away.setattr(team.database, "write", refuse)
        await grants._try()
    assert "not recorded" in str(grants.problem)
    await grants._try()
    assert grants.problem is None
    assert len(await used(team)) == 1
