"""The service over HTTP, in the test's own process: an app on a fresh database, and callers.

Registered as a plugin by the test modules that need it (``pytest_plugins``).
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from authsvc.app import create_app
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import Api, Serve, served, settings_for


@pytest.fixture
def serve(storage: Storage, clock: ControlledClock) -> Serve:
    """Starts services on the test's database, with settings of their own; callers have no key."""

    @asynccontextmanager
    async def start(**settings: Any) -> AsyncIterator[Api]:
        app = create_app(settings_for(storage, **settings), clock=clock)
        async with served(app) as http:
            yield Api(http, clock, None)

    return start


@pytest.fixture
def app(storage: Storage, clock: ControlledClock) -> FastAPI:
    """The application on a fresh database, not started yet."""
    return create_app(settings_for(storage), clock=clock)


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A client without a credential of the started application."""
    async with served(app) as http:
        yield http


@pytest.fixture
async def api(client: httpx.AsyncClient, clock: ControlledClock, tenant: TenantAtWork) -> Api:
    """A caller whose tenant has nothing but its key: revision 2."""
    return Api(client, clock, tenant.key)
