"""When keys were last used: noted by every way in, written seldom, without a revision."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import event

from authsvc.database import Database
from authsvc.errors import Busy
from authsvc.services.key_use import KeyUse
from conftest import ControlledClock, TenantAtWork
from http_api import Api, Serve, instant
from http_fixtures import Shared

pytest_plugins = ["http_fixtures"]

ALICE = "/api/apikeys/user/alice"
PLAIN = "/api/has_permission/alice/deploy"


def uses_of(app: FastAPI) -> KeyUse:
    """What the application has noted."""
    found: KeyUse = app.state.service.uses
    return found


async def last_used(api: Api) -> Any:
    """What is shown of the tenant's only client key."""
    [key] = await api.data("GET", "/api/keys")
    return key["last_used_at"]


async def test_a_client_key_shows_its_use(
    api: Api, app: FastAPI, clock: ControlledClock, owner: TenantAtWork
) -> None:
    assert await last_used(api) is None
    first = await api.ok("GET", PLAIN)
    await uses_of(app).flush()
    now = instant(clock())
    assert await last_used(api) == now
    # Within a minute of what is stored nothing is written, whichever process it is.
    clock.advance(59)
    await asyncio.sleep(0)
    await api.ok("GET", PLAIN)
    await uses_of(app).flush()
    assert await last_used(api) == now
    clock.advance(1)
    await asyncio.sleep(0)
    await uses_of(app).flush()
    for _ in range(3):
        # The short way, from memory.
        last = await api.ok("GET", PLAIN)
    await uses_of(app).flush()
    assert await last_used(api) == instant(clock())
    assert last["revision"] == first["revision"]
    assert await owner.violations() == []


async def test_a_token_is_a_use_of_its_key(api: Api, app: FastAPI, clock: ControlledClock) -> None:
    given = {"grant_type": "client_credentials"}
    issued = (await api.send("POST", "/api/token", given)).json()
    await uses_of(app).flush()
    at_first = instant(clock())
    clock.advance(60)
    await asyncio.sleep(0)
    with_token = api.with_key(issued["access_token"])
    for _ in range(3):
        await with_token.ok("GET", PLAIN)
    await uses_of(app).flush()
    assert at_first != instant(clock()) == await last_used(api)


async def test_an_api_key_shows_its_use(api: Api, app: FastAPI, clock: ControlledClock) -> None:
    made = await api.data("POST", ALICE, {})
    other = await api.data("POST", "/api/apikeys/user/bob", {})
    await api.data("POST", "/api/apikeys/validate", {"api_key": made["api_key"]})
    await uses_of(app).flush()
    [shown] = (await api.data("GET", ALICE))["keys"]
    assert shown["last_used_at"] == instant(clock())
    [unused] = (await api.data("GET", "/api/apikeys/user/bob"))["keys"]
    assert unused["last_used_at"] is None
    await api.data("DELETE", f"/api/apikeys/user/bob/{other['key_id']}")
    await api.data("POST", "/api/apikeys/validate", {"api_key": other["api_key"]})
    await uses_of(app).flush()
    [unused] = (await api.data("GET", "/api/apikeys/user/bob"))["keys"]
    assert unused["last_used_at"] is None


async def test_what_is_noted_is_written_at_the_end(
    api: Api, serve: Serve, clock: ControlledClock
) -> None:
    async with serve() as elsewhere:
        await elsewhere.with_key(api.key).ok("GET", PLAIN)
        assert await last_used(api) is None
    assert await last_used(api) == instant(clock())


async def test_a_request_writes_nothing(api: Api, app: FastAPI) -> None:
    await api.ok("GET", PLAIN)
    database: Database = app.state.service.database
    written: list[str] = []

    def noted(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.upper().startswith("UPDATE"):
            written.append(statement)

    event.listen(database.writer.sync_engine, "before_cursor_execute", noted)
    for _ in range(20):
        await api.ok("GET", PLAIN)
        await api.ok("GET", "/api/roles")
    assert written == []
    await uses_of(app).flush()
    assert len(written) == 1


async def test_two_processes_write_the_same_keys_at_once(
    api: Api, app: FastAPI, shared: Shared, clock: ControlledClock, owner: TenantAtWork
) -> None:
    keys = [(await api.data("POST", "/api/keys", {}))["key"] for _ in range(20)]
    other = KeyUse(shared[0].open())
    for key in keys:
        await api.with_key(key).ok("GET", PLAIN)
    listed = await api.data("GET", "/api/keys")
    for shown in reversed(listed):
        other.client_key(shown["key_id"], owner.id, clock())
    await asyncio.gather(uses_of(app).flush(), other.flush())
    shown = await api.data("GET", "/api/keys")
    assert {key["last_used_at"] for key in shown} == {instant(clock())}


async def test_what_could_not_be_written_is_kept(
    api: Api, app: FastAPI, clock: ControlledClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    await api.ok("GET", PLAIN)
    database: Database = app.state.service.database

    async def busy(*_: Any, **__: Any) -> None:
        raise Busy("Others are writing")

    with monkeypatch.context() as away:
        away.setattr(Database, "write", busy)
        with pytest.raises(Busy):
            await uses_of(app).flush()
    assert database is app.state.service.database
    await uses_of(app).flush()
    assert await last_used(api) == instant(clock())
