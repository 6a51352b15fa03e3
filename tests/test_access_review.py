"""A review of access finds what nobody needs, and is signed off for the exact list."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from authsvc.records import Change
from authsvc.repositories.grant_use import GrantUses
from authsvc.repositories.key_use import KeyUses
from authsvc.services import access_review, operator
from authsvc.services.grant_use import GrantUse
from authsvc.services.replay_review import review_tenant
from conftest import Storage, TenantAtWork
from test_audit_complete import trail
from trail import storage_settings


@pytest.fixture
async def team(tenant: TenantAtWork) -> TenantAtWork:
    """A tenant of long ago in which a good deal is left over."""
    await tenant.write(
        *[Change("add_role", role=role) for role in ("reader", "lead", "ghost", "base")],
        Change("add_parent", role="lead", parent="base"),
        Change("grant", role="reader", permission="doc:read"),
        Change("grant", role="reader", permission="doc:write"),
        Change("grant", role="base", permission="deploy"),
        Change("add_member", user="alice", role="reader"),
        Change("add_member", user="alice", role="lead"),
        Change("add_member", user="bob", role="reader", scope="eu"),
    )
    return tenant


async def reviewed(tenant: TenantAtWork, **more: int) -> dict[str, list[str]]:
    """The subjects of each section."""
    async with tenant.database.read() as tx:
        found = await access_review.review(tx, "acme", tenant.clock(), **more)
    return {section: [i.subject for i in found.of(section)] for section in access_review.SECTIONS}


async def test_grants_that_are_used_and_grants_that_are_not(team: TenantAtWork) -> None:
    grants = GrantUse(team.database, team.clock)
    assert (await reviewed(team))["unused grant"] == []  # none is old enough to be judged
    team.clock.advance(100 * 86400)
    assert len((await reviewed(team))["unused grant"]) == 3
    grants.note(team.id, "alice", "deploy")  # through the hierarchy
    grants.note(team.id, "alice", "doc:read")
    await grants.flush()
    await team.write(Change("grant", role="reader", permission="new"))
    assert (await reviewed(team))["unused grant"] == ["reader -> doc:write"]
    team.clock.advance(91 * 86400)
    assert len((await reviewed(team))["unused grant"]) == 4


async def test_roles_nobody_holds_and_users_in_many(team: TenantAtWork) -> None:
    found = await reviewed(team, many_roles=1)
    assert found["empty role"] == ["ghost"]
    assert found["many roles"] == ["alice"]
    assert found["membership"] == ["alice", "alice", "bob"]


async def test_a_stale_admin_key_is_found(team: TenantAtWork) -> None:
    stale = await team.database.write(
        team.id,
        lambda tx: operator.issue_key(tx, "acme", "old laptop", ["admin"], None, team.clock),
    )
    ends = await team.database.write(
        team.id,
        lambda tx: operator.issue_key(
            tx, "acme", "job", ["check"], timedelta(days=400), team.clock
        ),
    )
    team.clock.advance(120 * 86400)
    (first,) = [key for key in await _keys(team) if key.id not in (stale.key.id, ends.key.id)]
    await team.database.write(
        "x",
        lambda tx: KeyUses(tx).write_client_keys(
            [(team.id, first.id, team.clock()), (team.id, ends.key.id, team.clock())],
            timedelta(minutes=1),
        ),
    )
    found = await reviewed(team)
    assert found["dormant key"] == [f"client key {stale.key.id} (old laptop), may administer"]
    assert len(found["endless key"]) == 2


async def _keys(tenant: TenantAtWork) -> list[Any]:
    async with tenant.database.read() as tx:
        return await operator.list_keys(tx, "acme")


def run(storage: Storage, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command as a person runs it."""
    done = subprocess.run(
        [str(Path(sys.executable).parent / "authsvc"), "access-review", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"HOME": str(folder), "PATH": os.environ["PATH"]} | storage_settings(storage),
    )
    return done.returncode, done.stdout, done.stderr


async def test_a_list_is_written_read_and_signed_off(
    storage: Storage, team: TenantAtWork, tmp_path: Path
) -> None:
    tenant = ("--tenant", "acme")
    status, out, err = run(storage, tmp_path, *tenant)
    assert (status, err) == (0, "")
    assert "Roles that nobody holds and nothing inherits from: 1" in out
    path = tmp_path / "access.csv"
    assert run(storage, tmp_path, *tenant, "--format", "csv", "--output", str(path))[0] == 0
    assert path.stat().st_mode & 0o777 == 0o600
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["section"] for row in rows} >= {"empty role", "membership"}
    assert run(storage, tmp_path, *tenant, "--format", "csv", "--output", str(path))[0] == 78

    await team.write(Change("remove_role", role="ghost"))
    before = len(await trail(team))
    signing = (*tenant, "--sign-off", "Ada Lovelace", "--list")
    status, out, err = run(storage, tmp_path, *signing, str(path))
    assert (status, err) == (0, "")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert digest in out
    assert "gone since: empty role ghost" in out
    (event,) = (await trail(team))[before:]
    assert (event["action"], event["entity_type"]) == ("update", "tenant")
    said = event["details"]["review"]
    assert (said["reviewer"], said["sha256"], said["items"]) == ("Ada Lovelace", digest, len(rows))
    async with team.database.read() as tx:
        assert (await review_tenant(tx, team.id)).findings == []

    # Another list is another digest; what is no list of this tenant is refused.
    path.write_bytes(path.read_bytes().replace(b"alice", b"alicf", 1))
    assert digest not in run(storage, tmp_path, *signing, str(path))[1]
    path.write_bytes(path.read_bytes().replace(b'"acme"', b'"other"'))
    assert "is the list of other" in run(storage, tmp_path, *signing, str(path))[2]
    path.write_text("nothing")
    assert "is no list of this command" in run(storage, tmp_path, *signing, str(path))[2]
    assert run(storage, tmp_path, *signing, str(tmp_path / "none"))[0] == 78
    assert "belong together" in run(storage, tmp_path, *tenant, "--list", str(path))[2]
    assert len(await trail(team)) == before + 2


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_list_in_json_is_signed_off_as_well(
    storage: Storage, team: TenantAtWork, tmp_path: Path
) -> None:
    status, out, _ = run(storage, tmp_path, "--tenant", "acme", "--format", "json")
    assert status == 0
    assert json.loads(out)["tenant"] == "acme"
    path = tmp_path / "access.json"
    path.write_text(out)
    signing = ("--tenant", "acme", "--sign-off", "Ada", "--list", str(path))
    assert run(storage, tmp_path, *signing)[0] == 0
    (*_, event) = await trail(team)
    assert event["details"]["review"]["items"] == len(json.loads(out)["items"])


async def test_use_that_is_not_recorded_yet_is_said(team: TenantAtWork) -> None:
    async with team.database.read() as tx:
        assert (await access_review.review(tx, "acme", team.clock())).recorded_since is None
    at = team.clock.advance(60)
    await team.database.write("x", lambda tx: GrantUses(tx, team.id).write([(4, "x")], at))
    async with team.database.read() as tx:
        found = await access_review.review(tx, "acme", team.clock())
    assert found.recorded_since == at
