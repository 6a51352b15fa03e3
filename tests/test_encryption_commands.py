"""Keys changed while the service runs: under load, killed, against each other, twice at once."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

import encrypted
from authsvc import models
from authsvc.app import create_app
from authsvc.commands.one_at_work import one_at_work
from authsvc.database import Database, Transaction
from authsvc.errors import Busy, BusyError, Unavailable
from authsvc.records import Change
from authsvc.repositories import field_ciphers, policy
from authsvc.repositories.tenant_keys import TenantKeys
from authsvc.services import encryption, operator
from authsvc.services.encryption import Aim, change_tenant
from authsvc.services.replay_review import review_tenant
from conftest import Storage, TenantAtWork
from http_api import Api, served, settings_for
from test_encrypted_names import Encrypted, change, furnish, here, may  # noqa: F401 - fixture
from trail import storage_settings

KEYS = {"AUTH_ENCRYPTION_KEY": encrypted.KEY}
NEXT = {"AUTH_ENCRYPTION_KEY": encrypted.NEXT_KEY, "AUTH_ENCRYPTION_OLD_KEYS": encrypted.KEY}
COMMAND = str(Path(sys.executable).parent / "authsvc")
CLIENTS = 8
ROWS = 19_900
"""With a few more, just what nobody is asked about."""


def begin(storage: Storage, *arguments: str, **keys: str) -> subprocess.Popen[str]:
    """Start the command as an operator would."""
    assert storage.path is None or storage.path.exists()
    environment = {"HOME": "/nonexistent", "PATH": os.environ["PATH"]}
    return subprocess.Popen(
        [COMMAND, *arguments],
        env=environment | storage_settings(storage) | (keys or KEYS),
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


async def run(storage: Storage, *arguments: str, **keys: str) -> tuple[int, str, str]:
    """Run it to its end: status, what it printed, what it said beside that."""
    process = begin(storage, *arguments, **keys)
    out, err = await asyncio.to_thread(process.communicate)
    assert "Traceback" not in err, err
    assert encrypted.KEY not in out + err
    return process.returncode, out, err


async def digest(storage: Storage) -> tuple[int, str]:
    """How many names there are, and a hash of all of them in the clear."""
    database = storage.open(as_owner=True)
    names: list[str] = []
    async with database.read() as tx:
        for tenant in (await tx.execute(select(models.tenant))).all():
            opened = await encrypted.opener(tx, tenant.id)
            for path in PATHS:
                table, _, column = path.partition(".")
                rows = await tx.execute(
                    select(models.metadata.tables[table]).where(
                        models.metadata.tables[table].c.tenant_id == tenant.id
                    )
                )
                for row in rows.mappings():
                    rest = [str(row.get(name)) for name in ("id", "role_id", "scope")]
                    said = opened.text(path, row[column])
                    names.append("|".join([str(tenant.id), path, said, *rest]))
    await database.dispose()
    return len(names), hashlib.sha256("\n".join(sorted(names)).encode()).hexdigest()


PATHS = (
    "membership.user_id", "role_permission.permission", "grant_use.permission", "role.description",
    "api_key.user_id", "api_key.label", "client_key.label",
)  # fmt: skip


async def forms(storage: Storage, *keys: str) -> tuple[int, int, int]:
    """Values that are encrypted, that are not, and that are in another form than their tenant's."""
    database = storage.open()
    database.data_keys = encrypted.ring(*keys)
    found = await encryption.status(database)
    await database.dispose()
    columns = found.columns
    return sum(c.encrypted for c in columns), sum(c.plain for c in columns), found.astray


# --- Under load ---


class Load:
    """Clients that ask and write all the time, each about users of its own."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._stop = asyncio.Event()
        self.wrong: list[str] = []
        self.asked = self.written = 0
        self._clients: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Load:
        self._clients = [asyncio.create_task(self._client(n)) for n in range(CLIENTS)]
        return self

    async def __aexit__(self, *_exception: object) -> None:
        self._stop.set()
        await asyncio.gather(*self._clients)

    async def _send(self, method: str, path: str) -> Any:
        answer = await self._api.send(method, path)
        if answer.status_code != 200:
            self.wrong.append(f"{method} {path}: {answer.status_code} {answer.text}")
            return {}
        return answer.json()["data"]

    async def _client(self, number: int) -> None:
        dice, mine = random.Random(number), f"client{number}"
        while not self._stop.is_set():
            some = dice.randrange(ROWS)
            await self._expect(f"u{some}", True)
            await self._expect(f"nobody{some}", False)
            await self._send("POST", f"/api/membership/{mine}/admin")
            await self._expect(mine, True)
            await self._send("DELETE", f"/api/membership/{mine}/admin")
            await self._expect(mine, False)
            self.written += 2

    async def _expect(self, user: str, allowed: bool) -> None:
        data = await self._send("GET", f"/api/has_permission/{user}/p0")
        self.asked += 1
        if data.get("has_permission") is not allowed:
            self.wrong.append(f"{user}: {data}")


@pytest.mark.timeout(600)
async def test_every_command_under_load(here: Encrypted) -> None:  # noqa: F811
    """8 clients, a tenant of 20 000 rows: nothing fails, and no answer is wrong."""
    tenant = await here.make("acme", here.process())
    await furnish(tenant, 0)
    for start in range(0, ROWS, 9_950):
        names = (f"u{n}" for n in range(start, start + 9_950))
        await tenant.write(*(Change("add_member", role="admin", user=name) for name in names))
    before = await digest(here.storage)
    settings = settings_for(
        here.storage,
        enable_encryption=False,
        encryption_key=encrypted.NEXT_KEY,
        encryption_old_keys=encrypted.KEY,
    )
    async with served(create_app(settings)) as http:
        api = Api(http, here.clock, tenant.key)
        for arguments, keys, said in (
            (("encryption", "enable"), KEYS, "1 tenant are encrypted"),
            (("keys", "reseal", "--tenant", "acme"), KEYS, "under a new data key"),
            (("keys", "rewrap"), NEXT, "2 data keys, 2 rewrapped, 0 left"),
            (("encryption", "disable"), NEXT, "decrypted"),
        ):
            async with Load(api) as load:
                await asyncio.sleep(0.3)
                status, out, err = await run(here.storage, *arguments, **keys)
                await asyncio.sleep(0.3)
            assert (status, load.wrong) == (0, []), (arguments, err)
            assert said in out
            assert min(load.asked, load.written) > CLIENTS
            # Rows of the clients themselves have gone again.
            assert await digest(here.storage) == before
            async with here.process(encrypted.NEXT_KEY, encrypted.KEY).read() as tx:
                assert (await review_tenant(tx, tenant.id)).findings == []


# --- Killed ---

KILLS = 5


async def furnished(here: Encrypted, tenants: int) -> None:  # noqa: F811
    for number in range(tenants):
        tenant = await here.make(f"t{number}", here.process())
        await furnish(tenant, 40)


async def killed_until_done(
    storage: Storage,
    dice: random.Random,
    kills: int,
    arguments: tuple[str, ...],
    keys: dict[str, str],
) -> int:
    """Run a command, kill it at a random moment, again and again; then let it end."""
    before = await digest(storage)
    hit = 0
    for _ in range(kills):
        process = begin(storage, *arguments, **keys)
        # It takes most of a second to begin.
        await asyncio.sleep(0.4 + dice.random() * 1.2)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            hit += 1
        await asyncio.to_thread(process.communicate)
        assert await digest(storage) == before
        assert (await forms(storage, encrypted.NEXT_KEY, encrypted.KEY))[2] == 0
    status, _out, err = await run(storage, *arguments, **keys)
    assert status == 0, err
    assert await digest(storage) == before
    return hit


async def _killed(here: Encrypted, kills: int) -> None:  # noqa: F811
    dice = random.Random(32)
    await furnished(here, 60)
    hit = 0
    for arguments, keys in (
        (("encryption", "enable"), KEYS),
        (("keys", "reseal", "--tenant", "t7"), KEYS),
        (("keys", "rewrap"), NEXT),
        (("encryption", "disable"), NEXT),
    ):
        hit += await killed_until_done(here.storage, dice, kills, arguments, keys)
        encrypted_names, plain, astray = await forms(
            here.storage, encrypted.NEXT_KEY, encrypted.KEY
        )
        assert astray == 0
        assert (plain if "disable" not in arguments else encrypted_names) == 0
    assert hit > kills


@pytest.mark.timeout(600)
async def test_a_command_that_is_killed_can_be_repeated(here: Encrypted) -> None:  # noqa: F811
    await _killed(here, KILLS)


@pytest.mark.campaign
@pytest.mark.timeout(1200)
async def test_twenty_kills_of_each_command(here: Encrypted) -> None:  # noqa: F811
    await _killed(here, 20)


# --- One at a time, and what is said ---


async def test_a_second_one_is_told_who_is_at_work(here: Encrypted) -> None:  # noqa: F811
    await here.make("acme", here.process())
    settings = settings_for(here.storage)
    async with one_at_work(settings, "authsvc keys rewrap"):
        for arguments in (("encryption", "enable"), ("keys", "rewrap")):
            status, out, err = await run(here.storage, *arguments)
            assert (status, out) == (75, "")
            assert "Another is at work: authsvc keys rewrap (process" in err
            assert f"(process {os.getpid()} on " in err
    assert (await run(here.storage, "encryption", "enable"))[0] == 0
    with pytest.raises(BusyError):
        async with one_at_work(settings, "one"), one_at_work(settings, "two"):
            pass


async def test_status_counts_and_says_what_is_next(here: Encrypted) -> None:  # noqa: F811
    plain = await here.make("plain", here.process())
    await furnish(plain)
    tenant = await here.make("acme")
    await furnish(tenant)
    on = KEYS | {"AUTH_ENABLE_ENCRYPTION": "true"}
    status, out, err = await run(here.storage, "encryption", "status", **on)
    assert (status, "1 tenant encrypted, 1 not" in out) == (0, True), err
    assert "Encrypt the rest with: authsvc encryption enable" in out
    status, out, _err = await run(here.storage, "encryption", "status", "--json", **on)
    shown = json.loads(out)
    assert shown["tenants"] == {"encrypted": 1, "plain": 1}
    assert shown["columns"]["membership.user_id"] == {"encrypted": 4, "plain": 4, "astray": 0}
    assert [key["data_keys"] for key in shown["master_keys"]] == [1]
    assert (await run(here.storage, "encryption", "enable", **on))[0] == 0
    status, out, _err = await run(here.storage, "encryption", "enable", **on)
    assert (status, out) == (0, "There is nothing to do: see 'authsvc encryption status'.\n")


async def test_the_old_master_key_goes_when_nothing_is_under_it(
    here: Encrypted,  # noqa: F811
) -> None:
    tenant = await here.make("acme")
    await furnish(tenant)
    alone = {"AUTH_ENCRYPTION_KEY": encrypted.NEXT_KEY}
    status, _out, err = await run(here.storage, "tenants", "list", **alone)
    assert status == 78
    assert "AUTH_ENCRYPTION_OLD_KEYS: lacks the key with the check value" in err
    status, out, _err = await run(here.storage, "keys", "rewrap", **NEXT)
    assert status == 0
    assert "1 data key, 1 rewrapped, 0 left under another key." in out
    assert "may leave AUTH_ENCRYPTION_OLD_KEYS" in out
    assert (await run(here.storage, "tenants", "list", **alone))[0] == 0
    assert await may(tenant, "u0", "p0", here.process(encrypted.NEXT_KEY))
    status, _out, err = await run(here.storage, "tenants", "list", **KEYS)
    assert (status, "lacks the key" in err) == (78, True)


async def test_a_large_tenant_is_asked_about_first(here: Encrypted) -> None:  # noqa: F811
    tenant = await here.make("acme", here.process())
    await furnish(tenant, 0)
    for start in range(0, 20_010, 6_670):
        names = (f"u{n}" for n in range(start, start + 6_670))
        await tenant.write(*(Change("add_member", role="admin", user=name) for name in names))
    status, out, err = await run(here.storage, "encryption", "enable")
    assert (status, out.strip()) == (1, "")
    assert "acme: 200" in err
    assert "rows, about 2 s" in err
    assert (await forms(here.storage))[0] == 0
    status, out, err = await run(here.storage, "encryption", "enable", "--yes")
    assert (status, "are encrypted" in out) == (0, True), err


@pytest.mark.parametrize("name", ["enable", "reseal"])
async def test_without_a_key_nothing_is_begun(here: Encrypted, name: str) -> None:  # noqa: F811
    await here.make("acme", here.process())
    arguments = (
        ("encryption", "enable") if name == "enable" else ("keys", "reseal", "--tenant", "acme")
    )
    process = begin(
        here.storage, *arguments, AUTH_ENABLE_ENCRYPTION="false", AUTH_ENCRYPTION_KEY=""
    )
    _out, err = process.communicate()
    assert (process.returncode, "AUTH_ENCRYPTION_KEY is not set" in err) == (3, True)
    status, _out, err = await run(here.storage, "keys", "reseal", "--tenant", "none")
    assert (status, "There is no tenant called 'none'" in err) == (1, True)
    status, _out, err = await run(here.storage, "keys", "reseal", "--tenant", "acme")
    assert (status, "are not encrypted" in err) == (1, True)


# --- Against each other ---


async def patiently(work: Callable[[], Awaitable[Any]]) -> Any:
    """What a client does that is told to come again."""
    for _ in range(100):
        try:
            return await work()
        except Busy:
            await asyncio.sleep(0.02)
    raise AssertionError("never got a turn")


@pytest.mark.timeout(300)
async def test_rewrap_reseal_and_erase_at_once(here: Encrypted) -> None:  # noqa: F811
    first = here.process(encrypted.KEY)
    tenants = [await here.make(f"t{n}", first) for n in range(12)]
    for tenant in tenants:
        await furnish(tenant)
    owner = here.storage.open(as_owner=True)
    owner.data_keys = encrypted.ring(encrypted.NEXT_KEY, encrypted.KEY)

    async def rewrap() -> None:
        ours = here.process(encrypted.NEXT_KEY, encrypted.KEY)
        for _ in range(6):
            await patiently(lambda: encryption.rewrap(ours, here.clock, lambda _: None))

    async def reseal(keys: tuple[str, ...], chosen: list[TenantAtWork]) -> None:
        ours = here.process(*keys)
        for number, tenant in enumerate(chosen * 2):
            here.clock.advance(1)
            name = f"t{tenants.index(tenant)}"
            await patiently(partial(change, tenant, Aim.RESEAL, ours, name))
            if number % 3 == 0:
                await asyncio.sleep(0)

    async def erase() -> None:
        for number in (9, 10, 11):
            await patiently(partial(operator.erase_tenant, owner, f"t{number}", here.clock))

    old, new = (encrypted.KEY, encrypted.NEXT_KEY), (encrypted.NEXT_KEY, encrypted.KEY)
    await asyncio.gather(
        rewrap(), reseal(old, tenants[:5]), reseal(new, tenants[4:9]), erase()
    )  # fmt: skip
    last = here.process(encrypted.NEXT_KEY, encrypted.KEY)
    done = await encryption.rewrap(last, here.clock, lambda _: None)
    assert (done.left, done.unreadable) == (0, [])
    alone = here.process(encrypted.NEXT_KEY)
    await encryption.require_master_keys(alone)
    for tenant in tenants[:9]:
        assert await may(tenant, "u0", "p0", alone)
        async with alone.read() as tx:
            assert (await review_tenant(tx, tenant.id)).findings == []
    assert (await encryption.status(alone)).astray == 0


async def test_a_rewrap_that_does_not_compare_is_noticed(here: Encrypted) -> None:  # noqa: F811
    """What the comparison is for: a key of another generation is never written over."""
    tenant = await here.make("acme")
    await furnish(tenant)
    ours = here.process(encrypted.NEXT_KEY, encrypted.KEY)

    async def stale(tx: Transaction) -> bool:
        keys = TenantKeys(tx)
        (seen,) = await keys.page(None, 10)
        assert await keys.rewrap(seen, here.clock())
        # What was seen is not there any more.
        return await keys.rewrap(seen, here.clock())

    assert not await ours.write("data keys", stale)
    assert await may(tenant, "u0", "p0", ours)


async def test_queued_writes_and_a_change_of_keys(here: Encrypted) -> None:  # noqa: F811
    """Writes that wait while names change their form: every one in force, in the right form."""
    tenant = await here.make("acme", here.process())
    await furnish(tenant)
    app = create_app(
        settings_for(here.storage, enable_encryption=False, encryption_key=encrypted.KEY),
        clock=here.clock,
    )
    other = here.process(encrypted.KEY)
    async with served(app) as http:
        api = Api(http, here.clock, tenant.key)
        for turn, aim in enumerate((Aim.ENABLE, Aim.RESEAL, Aim.DISABLE, Aim.ENABLE)):
            here.clock.advance(1)
            await api.ok("POST", f"/api/membership/gone{turn}/admin")
            writes = [api.ok("POST", f"/api/membership/w{turn}:{n}/admin") for n in range(30)] + [
                api.ok("DELETE", f"/api/membership/gone{turn}/admin")
            ]
            await asyncio.gather(*writes, patiently(partial(change, tenant, aim, other)))
            for n in range(30):
                body = await api.ok("GET", f"/api/has_permission/w{turn}:{n}/p0")
                assert body["data"]["has_permission"]
            body = await api.ok("GET", f"/api/has_permission/gone{turn}/p0")
            assert not body["data"]["has_permission"], "a revocation did nothing"
            found = await encryption.status(other)
            assert found.astray == 0
            async with other.read() as tx:
                assert (await review_tenant(tx, tenant.id)).findings == []


async def _cold_load_beside(tenant: TenantAtWork, aim: Aim, other: Database) -> bool:
    """A check whose names are made ready just before the tenant's key is changed."""
    database = tenant.database
    rows, done = database.rows, False

    async def late(*arguments: Any, **options: Any) -> Any:
        nonlocal done
        if not done:
            done = True
            assert await change(tenant, aim, other)
        return await rows(*arguments, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(database, "rows", late)
        return await may(tenant, "u0", "p0")


@pytest.mark.parametrize("aim", [Aim.ENABLE, Aim.RESEAL, Aim.DISABLE])
async def test_a_cold_load_beside_a_change_of_keys(
    here: Encrypted,  # noqa: F811
    aim: Aim,
) -> None:
    tenant = await here.make("acme", here.process(*[encrypted.KEY] * (aim is not Aim.ENABLE)))
    await furnish(tenant)
    here.clock.advance(1)
    tenant.database = here.process(encrypted.KEY)
    if aim is not Aim.ENABLE:
        assert await may(tenant, "u0", "p0")
    assert await _cold_load_beside(tenant, aim, here.process(encrypted.KEY))


async def test_a_load_that_does_not_look_at_the_generation_is_noticed(
    here: Encrypted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tenant = await here.make("acme", here.process())
    await furnish(tenant)
    tenant.database = here.process(encrypted.KEY)
    monkeypatch.setattr(policy, "_generation", lambda _rows: (None, None))
    assert not await _cold_load_beside(tenant, Aim.ENABLE, here.process(encrypted.KEY))


async def test_events_beside_the_lock_wait_for_a_change_of_keys(
    here: Encrypted,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Activity and the use of grants are written without the tenant's lock, and hold its row."""
    if here.storage.engine == "sqlite":
        pytest.skip("SQLite has one writer at a time")
    tenant = await here.make("acme", here.process())
    await furnish(tenant)
    one, two = here.process(encrypted.KEY), here.process(encrypted.KEY)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow(tx: Transaction) -> None:
        ciphers = await field_ciphers.held_ciphers(tx, [tenant.id])
        assert ciphers[tenant.id].is_plain
        begun.set()
        await go_on.wait()

    writing = asyncio.create_task(one.write("activity", slow))
    await begun.wait()
    changing = asyncio.create_task(change(tenant, Aim.ENABLE, two))
    await asyncio.sleep(0.3)
    assert not changing.done()
    go_on.set()
    await writing
    assert await changing

    async def no_hold(*_arguments: Any) -> None:
        return None

    monkeypatch.setattr(TenantKeys, "hold", no_hold)
    begun.clear()
    go_on.clear()

    async def slow_again(tx: Transaction) -> None:
        await field_ciphers.held_ciphers(tx, [tenant.id])
        begun.set()
        await go_on.wait()

    writing = asyncio.create_task(one.write("activity", slow_again))
    await begun.wait()
    assert await change(tenant, Aim.DISABLE, two), "without the hold nothing waits"
    go_on.set()
    await writing


async def test_writes_of_a_tenant_at_work_are_told_when_to_come_again(
    here: Encrypted,  # noqa: F811
) -> None:
    """For a tenant that takes long: 503 with Retry-After, and checks go on."""
    tenant = await here.make("acme")
    await furnish(tenant)
    app = create_app(settings_for(here.storage, encryption_key=encrypted.KEY), clock=here.clock)
    other = here.process(encrypted.KEY)
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def long(tx: Transaction) -> None:
        async with other.read() as reading:
            (one,) = await encryption.candidates(reading, Aim.RESEAL, "acme")
        here.clock.advance(1)
        assert await change_tenant(tx, one.tenant, Aim.RESEAL, here.clock)
        begun.set()
        await go_on.wait()

    async with served(app) as http:
        api = Api(http, here.clock, tenant.key)
        working = asyncio.create_task(other.write(tenant.id, long, idle_seconds=60))
        await begun.wait()
        started = time.monotonic()
        refused = await api.send("POST", "/api/membership/new/admin")
        assert (refused.status_code, refused.json()["error"]) == (503, "busy")
        assert int(refused.headers["retry-after"]) >= 1
        assert time.monotonic() - started < 10
        for _ in range(5):
            body = await api.ok("GET", "/api/has_permission/u0/p0")
            assert body["data"]["has_permission"]
        go_on.set()
        await working
        await api.ok("POST", "/api/membership/new/admin")
        body = await api.ok("GET", "/api/has_permission/new/p0")
        assert body["data"]["has_permission"]


async def test_an_unreadable_value_stops_the_work_and_changes_nothing(
    here: Encrypted,  # noqa: F811
) -> None:
    tenant = await here.make("acme")
    await furnish(tenant)
    row = {"tenant_id": tenant.id, "role_id": 3, "permission": "put:in"}
    await here.storage.forge(lambda c: c.execute(models.role_permission.insert(), row))
    before = await digest(here.storage)
    here.clock.advance(1)
    with pytest.raises(Unavailable, match="authsvc verify"):
        await change(tenant, Aim.RESEAL)
    assert await digest(here.storage) == before
