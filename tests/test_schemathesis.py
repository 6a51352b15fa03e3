"""Requests made up from the OpenAPI document, good and bad ones, against a real server.

No answer may be a server error, and none may be undocumented in status, type or schema.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import uvicorn
from schemathesis import openapi
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema

from authsvc.app import create_app
from authsvc.database import Database
from conftest import ControlledClock, Storage, TenantAtWork
from http_api import bearer, check_headers, settings_for

pytest_plugins = ("http_fixtures",)

CHECKS = (
    "not_a_server_error",
    "status_code_conformance",
    "content_type_conformance",
    "response_schema_conformance",
    "negative_data_rejection",
    "positive_data_acceptance",
    "unsupported_method",
    "ignored_auth",
)
# What a schema cannot say: which of two forms a body has, that one time is later than another,
# that a text is in NFC, what is a cursor, that a client key is presented once.
MORE_THAN_A_SCHEMA = (
    "POST /api/role/{role}",
    "POST /api/membership/{user}/{role}",
    "POST /api/check",
    "POST /api/changes",
    "POST /api/keys",
    "POST /api/apikeys/user/{user}",
    "GET /api/apikeys/user/{user}",
    "GET /api/audit",
    "GET /api/roles",
    "GET /api/role_permissions/{role}",
    "GET /api/which_roles_can/{permission}",
    "GET /api/user_permissions/{user}",
    "GET /api/user_roles/{user}",
    "GET /api/members/{role}",
    "GET /api/which_users_can/{permission}",
    "GET /api/workflow/users/{workflow}",
    "POST /api/token",
    "POST /api/token/revoke",
    "POST /api/token/introspect",
)


class _Server(uvicorn.Server):
    """A server in a thread, which gets no signals."""

    def install_signal_handlers(self) -> None:
        return None


@pytest.fixture
def server(shared: tuple[Storage, Database], clock: ControlledClock) -> Iterator[str]:
    """The address of the service behind a real HTTP server."""
    app = create_app(settings_for(shared[0]), clock=clock)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="on", server_header=False, log_config=None)
    running = _Server(config)
    thread = threading.Thread(target=running.run, kwargs={"sockets": [listener]})
    thread.start()
    deadline = time.monotonic() + 30
    while not running.started and thread.is_alive() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert running.started
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    running.should_exit = True
    thread.join(30)
    listener.close()


def test_headers_of_a_real_server(server: str, owner: TenantAtWork) -> None:
    with httpx.Client(base_url=server, headers=bearer(owner.key)) as http:
        for method, path, expected in (
            ("GET", "/api/roles", 200),
            ("GET", "/api/role/none", 404),
            ("PUT", "/api/roles", 405),
            ("HEAD", "/api/roles", 405),
            ("POST", "/api/role/a%0Ab", 422),
            ("GET", "/ping", 200),
        ):
            response = http.request(method, path)
            assert response.status_code == expected
            check_headers(response)
            assert len(response.headers.get_list("date")) == 1


def _campaign(server: str, key: str, examples: int) -> list[str]:
    """What is wrong with the answers to made-up requests."""
    config: dict[str, Any] = {
        "seed": 20261123,
        "headers": bearer(key),
        "generation": {"max-examples": examples, "deterministic": True, "no-shrink": True},
        "phases": {"stateful": {"enabled": False}},
        "checks": {"enabled": False} | {name: {"enabled": True} for name in CHECKS},
        "operations": [
            {
                "include-name": name,
                "checks": {"positive_data_acceptance": {"enabled": False}},
            }
            for name in MORE_THAN_A_SCHEMA
        ],
    }
    document = httpx.get(f"{server}/openapi.json").json()
    schema = openapi.from_dict(document, config=SchemathesisConfig.from_dict(config))
    schema.config.update(base_url=server)
    wrong: list[str] = []
    requests = 0
    # It would replace the key that asks; tests/test_keys.py asks for that.
    asked = schema.exclude(path="/api/keys/rotate")
    for event in from_schema(asked).execute():
        if isinstance(event, events.ScenarioFinished):
            requests += len(event.recorder.interactions)
            for case_id, checks in event.recorder.checks.items():
                for check in checks:
                    if check.failure_info is not None:
                        failure = check.failure_info.failure
                        case = event.recorder.cases[case_id].value
                        line = f"{event.recorder.label} {check.name}: {failure.title}"
                        wrong.append(f"{line} {failure.message}\n  {case.as_curl_command()}")
        elif isinstance(event, events.NonFatalError | events.FatalError):
            wrong.append(repr(event))
    assert requests > 1000
    print(f"{requests} requests")
    return wrong


@pytest.mark.timeout(600)
def test_no_answer_is_undocumented(server: str, owner: TenantAtWork) -> None:
    wrong = _campaign(server, owner.key, 15)
    assert not wrong, "\n".join(wrong[:20])


@pytest.mark.campaign
@pytest.mark.timeout(7200)
def test_no_answer_is_undocumented_however_long(server: str, owner: TenantAtWork) -> None:
    wrong = _campaign(server, owner.key, 1000)
    assert not wrong, "\n".join(wrong[:20])
