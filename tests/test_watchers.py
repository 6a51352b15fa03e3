"""What works beside the requests on the audit trail is put together as it is set."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from authsvc.app import create_app, prepare
from authsvc.checkpoint_file import CheckpointFile
from authsvc.checkpoints import said
from authsvc.errors import DamagedError
from authsvc.services.alerts import Alerts
from authsvc.services.checkpoints import CheckpointMaker
from authsvc.services.deliveries import Deliveries
from authsvc.services.grant_use import GrantUse
from conftest import Storage, TenantAtWork
from http_api import Api, served, settings_for
from test_settings import AUDITED
from test_webhook import Receiver, receiving


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    """A webhook in the own network, without TLS."""
    yield from receiving(None)


def everything(tmp_path: Path, receiver: Receiver) -> dict[str, Any]:
    """Settings with all of it."""
    rules = tmp_path / "rules.json"
    rules.write_text('{"watch": {"roles": ["admin"]}}')
    return AUDITED | {
        "checkpoint_file": tmp_path / "checkpoints.jsonl",
        "alert_rules": rules,
        "webhook_url": f"http://127.0.0.1:{receiver.port}/hook",
        "webhook_secret": "the webhook's secret of these tests",
        "webhook_allow_private": True,
    }


async def test_a_grant_that_is_watched_reaches_the_webhook_and_the_file(
    storage: Storage, tenant: TenantAtWork, tmp_path: Path, receiver: Receiver
) -> None:
    settings = settings_for(storage, **everything(tmp_path, receiver))
    app = create_app(settings, clock=tenant.clock)
    async with served(app) as http:
        watchers = {type(watcher): watcher for watcher in app.state.service.watchers}
        assert set(watchers) == {GrantUse, CheckpointMaker, Alerts, Deliveries}
        await watchers[Alerts].round()  # what was there before is history
        api = Api(http, tenant.clock, tenant.key)
        await api.ok("POST", "/api/role/admin")
        await api.ok("POST", "/api/membership/mallory/admin")
        for kind in (Alerts, CheckpointMaker, Deliveries):
            await watchers[kind].round()
        ready = (await api.send("GET", "/health/ready")).json()
        assert ready == {"status": "ready", "reasons": []}
    bodies = [json.loads(body) for _, _, body in receiver.got]
    assert {body["rule"] for body in bodies if body.get("type") == "alert"} == {"watched_role"}
    kept = list(CheckpointFile(tmp_path / "checkpoints.jsonl"))
    assert said(kept[-1].body).heads[tenant.id].revision == 4
    sent = [body for body in bodies if body.get("type") == "checkpoint"]
    assert [json.loads(body["checkpoint"])["number"] for body in sent] == [
        checkpoint.number for checkpoint in kept
    ]


async def test_without_settings_there_is_nothing_but_the_use_of_grants(storage: Storage) -> None:
    app = create_app(settings_for(storage))
    async with served(app):
        assert [type(watcher) for watcher in app.state.service.watchers] == [GrantUse]


async def test_what_stopped_is_told_by_readiness(
    storage: Storage, tenant: TenantAtWork, tmp_path: Path, receiver: Receiver
) -> None:
    settings = everything(tmp_path, receiver) | {"checkpoint_file": tmp_path / "none" / "file"}
    app = create_app(settings_for(storage, **settings), clock=tenant.clock)
    async with served(app) as http:
        maker = next(w for w in app.state.service.watchers if isinstance(w, CheckpointMaker))
        await maker.round()
        ready = (await http.get("/health/ready")).json()
    assert ready["status"] == "degraded"
    assert "checkpoints are not carried out" in ready["reasons"][0]


async def test_an_older_database_does_not_start(
    storage: Storage, tenant: TenantAtWork, tmp_path: Path, receiver: Receiver
) -> None:
    settings = settings_for(storage, **everything(tmp_path, receiver))
    app = create_app(settings, clock=tenant.clock)
    async with served(app) as http:
        await Api(http, tenant.clock, tenant.key).ok("POST", "/api/role/ops")
        maker = next(w for w in app.state.service.watchers if isinstance(w, CheckpointMaker))
        await maker.round()
    await prepare(settings, clock=tenant.clock)

    def cut(connection: Any) -> None:
        connection.exec_driver_sql("DELETE FROM audit_event WHERE seq = 3")
        connection.exec_driver_sql("UPDATE tenant_head SET revision = 2")

    await storage.forge(cut)
    with pytest.raises(DamagedError) as refused:
        await prepare(settings, clock=tenant.clock)
    assert refused.value.exit_code == 74
