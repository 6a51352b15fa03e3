"""The service over HTTP, in the test's own process: an app on a real database, and callers.

Registered as a plugin by the test modules that need it (``pytest_plugins``). Tests share one
database of each kind, because tenants are apart from each other; each has a tenant of its own.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from authsvc.app import create_app
from authsvc.credentials import new_client_key
from authsvc.database import Database
from authsvc.services.tenants import create_tenant
from authsvc.sqlite_file import prepare_file
from conftest import ControlledClock, Storage, TenantAtWork, copied
from http_api import Api, NewTenant, Serve, served, settings_for
from services import PostgresServer

Shared = tuple[Storage, Database]


@pytest.fixture(scope="session")
async def shared_sqlite(
    sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Shared]:
    """One SQLite file for many tests."""
    path = tmp_path_factory.mktemp("shared") / "auth.sqlite3"
    prepare_file(path)
    shutil.copyfile(sqlite_template, path)
    made = Storage("sqlite", path)
    yield made, made.open()
    await made.close()


@pytest.fixture(scope="session")
async def shared_postgresql(
    postgresql_template: str, postgres_server: PostgresServer
) -> AsyncIterator[Shared]:
    """One PostgreSQL database for many tests."""
    async with copied(postgres_server, postgresql_template) as made:
        yield made, made.open()


@pytest.fixture
def shared(engine: str, request: pytest.FixtureRequest) -> Shared:
    """The database of each kind that tests share, and a way into it."""
    found: Shared = request.getfixturevalue(f"shared_{engine}")
    return found


@pytest.fixture
def new_tenant(shared: Shared, clock: ControlledClock) -> NewTenant:
    """Makes tenants that nothing was written to; each is at revision 2."""
    database = shared[1]

    async def make() -> TenantAtWork:
        name, key = uuid.uuid4().hex, new_client_key()
        made = await database.write(
            name, lambda tx: create_tenant(tx, name, clock(), actor="tests", key=key)
        )
        return TenantAtWork(database, clock, made.id, key)

    return make


@pytest.fixture
async def owner(new_tenant: NewTenant) -> TenantAtWork:
    """The tenant that ``api`` calls for."""
    return await new_tenant()


@pytest.fixture
def serve(shared: Shared, clock: ControlledClock) -> Serve:
    """Starts services on the shared database (or another) with settings of their own."""

    @asynccontextmanager
    async def start(storage: Storage | None = None, **settings: Any) -> AsyncIterator[Api]:
        app = create_app(settings_for(storage or shared[0], **settings), clock=clock)
        async with served(app) as http:
            yield Api(http, clock, None)

    return start


@pytest.fixture
def app(shared: Shared, clock: ControlledClock) -> FastAPI:
    """The application, not started yet; closed to unknown keys."""
    return create_app(settings_for(shared[0]), clock=clock)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a credential of the started application."""
    async with served(app) as http:
        yield http


@pytest.fixture
async def api(client: httpx.AsyncClient, clock: ControlledClock, owner: TenantAtWork) -> Api:
    """A caller whose tenant has nothing but its key: revision 2."""
    return Api(client, clock, owner.key)
