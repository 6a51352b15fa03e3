"""The audit trail proves itself: eight ways to tamper with it, and what tells of each."""

from __future__ import annotations

import hashlib
import json
import random
import secrets
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from sqlalchemy import delete, insert, select, text, update

from authsvc import audit_triggers, checkpoints, models, verify_bundle
from authsvc.audit_bundle import BundleReader, BundleWriter
from authsvc.audit_chain import NO_KEYS, AuditKeys, canonical, event_hash, read_payload
from authsvc.checkpoint_file import CheckpointFile
from authsvc.checkpoints import Checkpoint
from authsvc.database import Database, Transaction
from authsvc.errors import DamagedError, StartError
from authsvc.records import AuditEvent, Change
from authsvc.repositories.audit_pages import SEARCHED, pages
from authsvc.repositories.retention import Retention
from authsvc.services import audit_proof, audit_retention, operator
from authsvc.services.audit_proof import Verdict, prove_all
from authsvc.services.checkpoints import (
    CheckpointMaker,
    make_checkpoint,
    refuse_older_state,
    stored_checkpoints,
)
from conftest import MakeTenant, Storage, TenantAtWork
from planted import without

KEYS = AuditKeys(b"the audit key of these tests, 32+")
SIGNS = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = SIGNS.public_key()
TRIALS = 60
FEWER = 20

_event = models.audit_event
_head = models.tenant_head


@pytest.fixture
async def kept(tenant: TenantAtWork) -> TenantAtWork:
    """A tenant whose trail is sealed, with a few dozen events."""
    tenant.database.audit_keys = KEYS
    await tenant.write(Change("add_role", role="reader"), Change("add_role", role="writer"))
    for number in range(6):
        tenant.clock.advance(60)
        await tenant.write(
            Change("grant", role="writer", permission=f"doc:{number}"),
            Change("add_member", user=f"user{number}", role="reader"),
            Change("add_member", user="mallory", role="writer", scope=f"s{number}"),
        )
    return tenant


# --- Tampering, with all rights and without any trigger ---


class Tamper:
    """What somebody can do who owns the tables, in a transaction that is thrown away."""

    def __init__(self, tx: Transaction, tenant_id: UUID, dice: random.Random) -> None:
        self.tx = tx
        self.tenant = tenant_id
        self.dice = dice
        self.events: list[AuditEvent] = []

    async def begin(self) -> None:
        if self.tx.engine_name == "sqlite":
            names = await self.tx.execute(
                text("SELECT name FROM sqlite_master WHERE type = 'trigger'")
            )
            for (name,) in names.all():
                await self.tx.execute(text(f"DROP TRIGGER {name}"))
        else:
            await self.tx.execute(text("SET LOCAL session_replication_role = replica"))
        self.events = [s.event async for page in pages(self.tx, self.tenant, 0) for s in page]

    def some(self, first: int = 0) -> int:
        """The index of an event that is neither the first nor the last."""
        return self.dice.randrange(max(first, 1), len(self.events) - 1)

    async def put(self, event: AuditEvent) -> None:
        """Store an event in the place of the one with its number, with the words it says."""
        said = read_payload(event)
        await self.drop(event.seq)
        await self.tx.execute(
            insert(_event).values(
                tenant_id=self.tenant,
                seq=event.seq,
                at=event.at,
                payload_hash=event.payload_hash,
                hash=event.hash,
                payload=event.payload,
                mac=event.mac,
                **{name: said[name] for name in SEARCHED},
            )
        )

    async def drop(self, seq: int) -> None:
        await self.tx.execute(
            delete(_event).where(_event.c.tenant_id == self.tenant, _event.c.seq == seq)
        )

    async def set_head(self, seq: int, digest: bytes) -> None:
        await self.tx.execute(
            update(_head).where(_head.c.tenant_id == self.tenant).values(revision=seq, head=digest)
        )

    def forged(self, event: AuditEvent) -> AuditEvent:
        """The event with another payload: somebody else did it."""
        said = read_payload(event) | {"actor": f"key_{self.dice.randrange(10**6)}"}
        payload = self.dice.randbytes(16) + canonical(said)
        return replace(event, payload=payload, payload_hash=hashlib.sha256(payload).digest())

    async def rechain(self, index: int, keys: AuditKeys, *, strip: bool = False) -> None:
        """Compute everything after a forged event anew, as far as the keys at hand allow."""
        previous = self.events[index - 1].hash
        for event in [self.forged(self.events[index]), *self.events[index + 1 :]]:
            digest = event_hash(self.tenant, event.seq, event.at, previous, event.payload_hash)
            mac = keys.seal(digest) if keys is not NO_KEYS else None if strip else event.mac
            await self.put(replace(event, hash=digest, mac=mac))
            previous = digest
        await self.set_head(self.events[-1].seq, previous)

    async def forget_checkpoints(self) -> None:
        await self.tx.execute(delete(models.audit_checkpoint))


async def edit(tamper: Tamper) -> None:
    event = tamper.forged(tamper.events[tamper.some()])
    if tamper.dice.random() < 0.5:
        event = replace(event, payload_hash=tamper.events[event.seq - 1].payload_hash)
    await tamper.put(event)


async def remove(tamper: Tamper) -> None:
    index = tamper.some()
    await tamper.drop(tamper.events[index].seq)
    if tamper.dice.random() < 0.5:
        # Close the gap.
        for event in tamper.events[index + 1 :]:
            await tamper.drop(event.seq)
            await tamper.put(replace(event, seq=event.seq - 1))
        await tamper.set_head(tamper.events[-1].seq - 1, tamper.events[-1].hash)


async def add(tamper: Tamper) -> None:
    last = tamper.events[-1]
    index = tamper.some()
    if tamper.dice.random() < 0.5:
        # At the end, chained rightly as far as that goes without the key.
        event = tamper.forged(tamper.events[index])
        digest = event_hash(tamper.tenant, last.seq + 1, event.at, last.hash, event.payload_hash)
        mac = event.mac if tamper.dice.random() < 0.5 else None
        await tamper.put(replace(event, seq=last.seq + 1, hash=digest, mac=mac))
        await tamper.set_head(last.seq + 1, digest)
        return
    for event in reversed(tamper.events[index:]):
        await tamper.drop(event.seq)
        await tamper.put(replace(event, seq=event.seq + 1))
    await tamper.put(tamper.forged(tamper.events[index]))
    await tamper.set_head(last.seq + 1, last.hash)


async def reorder(tamper: Tamper) -> None:
    one, other = tamper.dice.sample(range(len(tamper.events)), 2)
    first, second = tamper.events[one], tamper.events[other]
    await tamper.put(replace(second, seq=first.seq))
    await tamper.put(replace(first, seq=second.seq))


async def cut_tail(tamper: Tamper) -> None:
    # Behind the first two, which were written before there was a key.
    index = tamper.some(2)
    for event in tamper.events[index + 1 :]:
        await tamper.drop(event.seq)
    await tamper.set_head(tamper.events[index].seq, tamper.events[index].hash)


async def older_copy(tamper: Tamper) -> None:
    await cut_tail(tamper)
    await tamper.forget_checkpoints()


async def rechain_without_the_key(tamper: Tamper) -> None:
    await tamper.rechain(tamper.some(), NO_KEYS, strip=tamper.dice.random() < 0.5)


async def rechain_with_the_key(tamper: Tamper) -> None:
    await tamper.rechain(tamper.some(), KEYS)


WAYS: dict[str, Callable[[Tamper], Any]] = {
    "edit": edit,
    "delete": remove,
    "insert": add,
    "reorder": reorder,
    "cut the tail": cut_tail,
    "older copy": older_copy,
    "re-chain without the key": rechain_without_the_key,
    "re-chain with the key": rechain_with_the_key,
}
ONLY_BESIDE_A_CHECKPOINT = {"cut the tail", "older copy", "re-chain with the key"}


async def outside(database: Database) -> list[Checkpoint]:
    """The checkpoints as somebody keeps them elsewhere."""
    async with database.read() as tx:
        return [checkpoint async for checkpoint in stored_checkpoints(tx)]


async def tampered(
    owner: Database,
    tenant: TenantAtWork,
    way: str,
    seed: int,
    brought: list[Checkpoint],
    prove: Any = prove_all,
) -> Verdict:
    """What is found after tampering, of which nothing stays."""
    found: list[Verdict] = []

    async def work(tx: Transaction) -> None:
        tx.abandon()
        tamper = Tamper(tx, tenant.id, random.Random(f"{way} {seed}"))
        await tamper.begin()
        await WAYS[way](tamper)
        # Who can do all that leaves no checkpoint in the database that tells of it.
        await tamper.forget_checkpoints()
        found.append(await prove(tx, KEYS, outside=brought, public_key=PUBLIC))

    await owner.write("tampering", work)
    return found[0]


@pytest.mark.parametrize("way", WAYS)
async def test_every_tampering_is_found_beside_one_checkpoint(
    storage: Storage, kept: TenantAtWork, way: str
) -> None:
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    brought = await outside(kept.database)
    async with kept.database.read() as tx:
        clean = await prove_all(tx, KEYS, outside=brought, public_key=PUBLIC)
    assert not clean.tampered
    assert not clean.incomplete
    owner = storage.open(as_owner=True)
    found = 0
    for seed in range(TRIALS):
        verdict = await tampered(owner, kept, way, seed, brought)
        # That the checkpoint is gone from the database is not what this is about.
        found += any(proof.problem for proof in verdict.proofs)
    assert found == TRIALS


@pytest.mark.parametrize("way", WAYS)
async def test_what_is_found_without_a_checkpoint(
    storage: Storage, kept: TenantAtWork, way: str
) -> None:
    """The table in docs/audit.md."""
    owner = storage.open(as_owner=True)
    found = 0
    for seed in range(FEWER):
        verdict = await tampered(owner, kept, way, seed, [])
        found += verdict.tampered or verdict.incomplete
    assert found == (0 if way in ONLY_BESIDE_A_CHECKPOINT else FEWER)


async def test_a_trail_without_seals_is_found_only_by_its_hashes(
    storage: Storage, kept: TenantAtWork
) -> None:
    """The same without AUTH_AUDIT_KEY: whoever can compute hashes can forge."""
    owner = storage.open(as_owner=True)

    async def work(tx: Transaction) -> None:
        tx.abandon()
        tamper = Tamper(tx, kept.id, random.Random(1))
        await tamper.begin()
        await tamper.rechain(tamper.some(), NO_KEYS, strip=True)
        verdict = await prove_all(tx, NO_KEYS)
        assert not verdict.tampered
        assert "AUTH_AUDIT_KEY" in str(verdict.proofs[0].lacking)

    await owner.write("tampering", work)


async def test_words_beside_an_event_cannot_be_changed(
    storage: Storage, kept: TenantAtWork
) -> None:
    for column in SEARCHED:
        await storage.forge(
            lambda connection, column=column: connection.execute(  # type: ignore[misc]
                update(_event)
                .where(_event.c.tenant_id == kept.id, _event.c.seq == 5)
                .values({column: "hidden"})
            )
        )
        async with kept.database.read() as tx:
            (proof,) = (await prove_all(tx, KEYS)).proofs
        assert proof.first_broken == 5
        assert "other words" in str(proof.problem)


@pytest.mark.parametrize(
    ("guard", "put", "way"),
    [
        (
            "if self.keys.all and not self.keys.sealed(digest, mac):",
            "if False:",
            "re-chain without the key",
        ),
        (
            "if self.marks.get(seq, event.hash) != event.hash:",
            "if False:",
            "re-chain with the key",
        ),
        (
            "beyond = [seq for seq in walk.marks if seq > end.revision]",
            "beyond: list[int] = []",
            "cut the tail",
        ),
    ],
)
async def test_without_its_guard_tampering_is_missed(
    storage: Storage, kept: TenantAtWork, guard: str, put: str, way: str
) -> None:
    """The trials can fail: with a guard taken out, some of them do."""
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    brought = (
        await outside(kept.database) if way not in ("delete", "re-chain without the key") else []
    )
    planted = without(audit_proof, (guard, put))
    owner = storage.open(as_owner=True)
    missed = 0
    for seed in range(20):
        verdict = await tampered(owner, kept, way, seed, brought, planted.prove_all)
        missed += not any(proof.problem for proof in verdict.proofs)
    assert missed > 0


# --- Seals ---


async def test_older_keys_verify_and_foreign_ones_do_not(kept: TenantAtWork) -> None:
    new = AuditKeys(b"another audit key of these tests!", KEYS.all)
    kept.database.audit_keys = new
    await kept.write(Change("add_role", role="later"))
    for keys, problem in (
        (new, None),
        (KEYS, "is sealed with another key"),
        (AuditKeys(new.key), "is sealed with another key"),
        (AuditKeys(None, new.all), None),
    ):
        async with kept.database.read() as tx:
            (proof,) = (await prove_all(tx, keys)).proofs
        assert (proof.problem is None) == (problem is None)
        assert problem is None or problem in str(proof.problem)


async def test_a_key_that_is_set_later_is_put_to_use_by_a_command(tenant: TenantAtWork) -> None:
    await tenant.write(Change("add_role", role="before"))
    tenant.database.audit_keys = KEYS
    async with tenant.database.read() as tx:
        verdict = await prove_all(tx, KEYS)
    assert not verdict.tampered
    assert "authsvc audit seal" in str(verdict.proofs[0].lacking)
    assert await audit_retention.seal_heads(tenant.database, tenant.clock) == ["acme"]
    assert await audit_retention.seal_heads(tenant.database, tenant.clock) == []
    async with tenant.database.read() as tx:
        verdict = await prove_all(tx, KEYS)
    assert not verdict.tampered
    assert not verdict.incomplete


# --- Checkpoints ---


async def test_a_checkpoint_names_what_has_changed(
    kept: TenantAtWork, make_tenant: MakeTenant
) -> None:
    first = await make_checkpoint(kept.database, SIGNS, kept.clock)
    assert first is not None
    assert set(checkpoints.said(first.body).heads) == {kept.id}
    assert await make_checkpoint(kept.database, SIGNS, kept.clock) is None
    other = await make_tenant("other")
    second = await make_checkpoint(kept.database, SIGNS, kept.clock)
    assert second is not None
    assert set(checkpoints.said(second.body).heads) == {other.id}
    assert checkpoints.said(second.body).previous == first.hash
    empty = await make_checkpoint(kept.database, SIGNS, kept.clock, even_empty=True)
    assert empty is not None
    assert checkpoints.said(empty.body).heads == {}
    assert checkpoints.first_broken([first, second, empty], PUBLIC) is None


async def test_a_run_of_checkpoints_that_was_changed(kept: TenantAtWork) -> None:
    made = []
    for number in range(4):
        await kept.write(Change("add_role", role=f"r{number}"))
        made.append(await make_checkpoint(kept.database, SIGNS, kept.clock))
    run = [checkpoint for checkpoint in made if checkpoint is not None]
    stranger = Ed25519PrivateKey.generate()
    forged = replace(run[1], signature=stranger.sign(run[1].body))
    for wrong, key, problem in (
        ([run[0], run[2]], PUBLIC, "2 is missing"),
        ([run[0], forged, *run[2:]], PUBLIC, "2 is not signed"),
        ([run[0], forged, *run[2:]], None, "3 does not follow"),
        ([replace(run[0], body=run[1].body)], None, "1 says that it is number 2"),
        ([replace(run[0], body=b"{}")], None, "1 cannot be read"),
    ):
        assert problem in str(checkpoints.first_broken(wrong, key))
    assert checkpoints.first_broken(run[1:], PUBLIC) is None


async def test_checkpoints_that_are_made_at_once_are_one_run(
    kept: TenantAtWork, storage: Storage
) -> None:
    import asyncio

    other = storage.open()
    for number in range(5):
        await kept.write(Change("add_role", role=f"r{number}"))
        await asyncio.gather(
            *(make_checkpoint(d, SIGNS, kept.clock) for d in (kept.database, other) * 3)
        )
    run = await outside(kept.database)
    assert checkpoints.first_broken(run, PUBLIC) is None
    assert checkpoints.said(run[-1].body).number == len(run) >= 5


async def test_the_file_gets_every_checkpoint_once(
    kept: TenantAtWork, storage: Storage, tmp_path: Path
) -> None:
    path = tmp_path / "checkpoints"
    makers = [
        CheckpointMaker(database, SIGNS, kept.clock, file=CheckpointFile(path))
        for database in (kept.database, storage.open())
    ]
    for number in range(4):
        await kept.write(Change("add_role", role=f"r{number}"))
        for maker in makers:
            await maker.round()
            assert maker.problem is None
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(CheckpointFile(path)) == await outside(kept.database)
    # A machine that stopped in the middle of a line.
    whole = path.read_bytes()
    path.write_bytes(whole[:-30])
    again = CheckpointMaker(kept.database, SIGNS, kept.clock, file=CheckpointFile(path))
    await again.round()
    assert list(CheckpointFile(path)) == await outside(kept.database)
    path.write_bytes(b"something\nelse\n")
    with pytest.raises(StartError, match="no checkpoints"):
        list(CheckpointFile(path))


async def test_a_place_that_cannot_be_written_to_is_told_and_made_good(
    kept: TenantAtWork, tmp_path: Path
) -> None:
    folder = tmp_path / "away"
    maker = CheckpointMaker(
        kept.database, SIGNS, kept.clock, file=CheckpointFile(folder / "checkpoints")
    )
    await maker.round()
    assert "No such file or directory" in str(maker.problem)
    await kept.write(Change("add_role", role="meanwhile"))
    folder.mkdir()
    await maker.round()
    assert maker.problem is None
    assert list(CheckpointFile(folder / "checkpoints")) == await outside(kept.database)


async def test_an_older_state_is_not_started_with(
    kept: TenantAtWork, storage: Storage, tmp_path: Path
) -> None:
    file = CheckpointFile(tmp_path / "checkpoints")
    await refuse_older_state(kept.database, file)
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    file.add(await outside(kept.database))
    await kept.write(Change("add_role", role="newer"))
    await refuse_older_state(kept.database, file)
    async with kept.database.read() as tx:
        told = checkpoints.said((await outside(kept.database))[0].body).heads[kept.id]
        assert told.revision
        assert tx

    def cut(connection: Any) -> None:
        mine = _event.c.tenant_id == kept.id
        connection.execute(delete(_event).where(mine, _event.c.seq >= told.revision))
        digest = connection.execute(
            select(_event.c.hash).where(mine, _event.c.seq == told.revision - 1)
        ).scalar_one()
        connection.execute(
            update(_head)
            .where(_head.c.tenant_id == kept.id)
            .values(revision=told.revision - 1, head=digest)
        )

    await storage.forge(cut)
    with pytest.raises(DamagedError, match="older copy"):
        await refuse_older_state(kept.database, file)


# --- Retention ---


async def test_what_is_pruned_is_kept_and_the_rest_still_verifies(
    kept: TenantAtWork, storage: Storage, tmp_path: Path
) -> None:
    owner = storage.open(as_owner=True)
    owner.audit_keys = KEYS
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    brought = await outside(kept.database)
    instant = kept.clock() - timedelta(seconds=150)
    async with kept.database.read() as tx:
        (segment,) = await audit_retention.older_than(tx, instant, None)
    assert 0 < segment.events < len(await events_of(kept))
    before = await events_of(kept)
    path = await audit_retention.prune(owner, segment, tmp_path, SIGNS, kept.clock)
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(BundleReader(path).events()) == before[: segment.events]
    assert await events_of(kept) == before[segment.events :]
    await kept.write(Change("add_role", role="afterwards"))
    async with kept.database.read() as tx:
        verdict = await prove_all(tx, KEYS, outside=brought, public_key=PUBLIC)
        assert await audit_retention.older_than(tx, instant, "acme") == []
    assert not verdict.tampered
    assert not verdict.incomplete
    assert verdict.proofs[0].pruned == segment.until.revision
    # The segment and what is left, verified by the program that knows nothing else.
    rest = tmp_path / "rest.jsonl"
    async with kept.database.read() as tx:
        left = await audit_retention.whole(tx, "acme")
    await audit_retention.write_bundle(kept.database, left, rest, SIGNS, kept.clock)
    assert verified(tmp_path, path, rest)[0] == verify_bundle.INTACT
    assert verified(tmp_path, rest)[0] == verify_bundle.INCOMPLETE
    assert verified(tmp_path, rest, path)[0] == verify_bundle.TAMPERED


async def events_of(tenant: TenantAtWork) -> list[AuditEvent]:
    async with tenant.database.read() as tx:
        return [stored.event async for page in pages(tx, tenant.id, 0) for stored in page]


@pytest.mark.parametrize("known", [True, False])
async def test_an_anchor_that_nobody_put_there_is_found(
    kept: TenantAtWork, storage: Storage, known: bool
) -> None:
    keys = KEYS if known else NO_KEYS
    events = await events_of(kept)
    owner = storage.open(as_owner=True)
    owner.audit_keys = AuditKeys(b"a key that the attacker made up..")
    await owner.write(
        "x", lambda tx: Retention(tx).set_anchor(kept.id, events[5].stamp, kept.clock())
    )
    await owner.write("x", lambda tx: Retention(tx).delete_some(kept.id, 100))
    async with kept.database.read() as tx:
        (proof,) = (await prove_all(tx, keys)).proofs
    if known:
        assert "anchor is not sealed" in str(proof.problem)
    else:
        assert "retention anchor" in str(proof.lacking)


async def test_a_broken_trail_is_not_pruned(
    kept: TenantAtWork, storage: Storage, tmp_path: Path
) -> None:
    await storage.forge(
        lambda connection: connection.execute(
            update(_event).where(_event.c.seq == 4).values(actor="somebody")
        )
    )
    owner = storage.open(as_owner=True)
    owner.audit_keys = KEYS
    async with owner.read() as tx:
        segment = await audit_retention.whole(tx, "acme")
    with pytest.raises(DamagedError, match="not pruned: event 4"):
        await audit_retention.prune(owner, segment, tmp_path, SIGNS, kept.clock)
    assert list(tmp_path.glob("*.jsonl*")) == []


async def test_pruning_that_was_cut_off_goes_on(
    kept: TenantAtWork, storage: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = storage.open(as_owner=True)
    owner.audit_keys = KEYS
    async with owner.read() as tx:
        segment = await audit_retention.whole(tx, "acme")
    monkeypatch.setattr(audit_retention, "_MOST_AT_ONCE", 3)
    delete_some, calls = Retention.delete_some, 0

    async def cut_off(self: Retention, *given: Any) -> int:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise ConnectionError
        return await delete_some(self, *given)

    monkeypatch.setattr(Retention, "delete_some", cut_off)
    with pytest.raises(Exception, match=r"^") as cut:
        await audit_retention.prune(owner, segment, tmp_path, SIGNS, kept.clock)
    assert cut.value is not None
    async with kept.database.read() as tx:
        assert not (await prove_all(tx, KEYS)).tampered
    await audit_retention.prune(owner, segment, tmp_path, SIGNS, kept.clock)
    assert await events_of(kept) == []
    async with kept.database.read() as tx:
        assert not (await prove_all(tx, KEYS)).tampered


# --- Erasure ---


async def test_an_erased_tenant_is_missing_by_right(
    kept: TenantAtWork, make_tenant: MakeTenant, storage: Storage
) -> None:
    await make_tenant("other")
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    owner = storage.open(as_owner=True)
    owner.audit_keys = KEYS
    await operator.erase_tenant(owner, "acme", kept.clock)
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    brought = await outside(kept.database)
    assert kept.id in checkpoints.said(brought[-1].body).erased
    async with kept.database.read() as tx:
        verdict = await prove_all(tx, KEYS, outside=brought, public_key=PUBLIC)
    assert not verdict.tampered
    await storage.forge(lambda connection: connection.execute(delete(models.tenant_erasure)))
    async with kept.database.read() as tx:
        verdict = await prove_all(tx, KEYS, outside=brought, public_key=PUBLIC)
    assert "gone, with no record of its erasure" in str(verdict.problems)


# --- The program that verifies on its own ---


def verified(folder: Path, *bundles: Path, key: bool = True) -> tuple[int, str]:
    """Run the verifier as an auditor does: a copy of the file, without this package."""
    program = folder / "verify_bundle.py"
    program.write_bytes(Path(verify_bundle.__file__).read_bytes())
    public = folder / "checkpoint.pub.pem"
    public.write_bytes(PUBLIC.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    command = [sys.executable, "-I", str(program), *map(str, bundles)]
    if key:
        command += ["--public-key", str(public)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=folder)
    assert done.stderr == ""
    return done.returncode, done.stdout


@pytest.fixture
async def bundle(kept: TenantAtWork, tmp_path: Path) -> Path:
    """The trail of the tenant as a file."""
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    await kept.write(Change("add_role", role="later"))
    await make_checkpoint(kept.database, SIGNS, kept.clock)
    path = tmp_path / "acme.jsonl"
    async with kept.database.read() as tx:
        segment = await audit_retention.whole(tx, "acme")
    await audit_retention.write_bundle(kept.database, segment, path, SIGNS, kept.clock)
    return path


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_bundle_proves_itself(bundle: Path, tmp_path: Path) -> None:
    status, said = verified(tmp_path, bundle)
    assert (status, said.splitlines()[-1]) == (verify_bundle.INTACT, "INTACT")
    assert "2 checkpoints" in said
    assert verified(tmp_path, bundle, key=False)[0] == verify_bundle.INCOMPLETE


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_bundle_that_was_changed_anywhere_is_found(bundle: Path) -> None:
    whole = bundle.read_bytes()
    lines = whole.splitlines(keepends=True)
    dice = random.Random(7)
    changed = [whole[:at] + bytes((whole[at] ^ 1,)) + whole[at + 1 :]
               for at in dice.sample(range(len(whole) - 1), 150)]  # fmt: skip
    changed += [b"".join(lines[:n] + lines[n + 1 :]) for n in range(len(lines))]
    changed += [b"".join([*lines[:n], lines[n + 1], lines[n], *lines[n + 2 :]])
                for n in range(len(lines) - 1)]  # fmt: skip
    changed.append(b"".join([*lines, lines[-1]]))
    for content in changed:
        bundle.write_bytes(content)
        with pytest.raises(
            (verify_bundle.Tampered, ValueError, KeyError, TypeError, AttributeError)
        ):
            verify_bundle.Verification(PUBLIC).read(bundle)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
def test_a_bundle_written_anew_by_somebody_else_is_found(bundle: Path, tmp_path: Path) -> None:
    """Everything computed rightly, with another signing key: the checkpoints tell."""
    lines = bundle.read_bytes().splitlines(keepends=True)
    body = b"".join(line for line in lines[:-1] if b'"checkpoint"' not in line)
    digest = hashlib.sha256(body).digest()
    stranger = Ed25519PrivateKey.from_private_bytes(secrets.token_bytes(32))
    end: dict[str, str | None] = {"sha256": digest.hex()}
    end["signature"] = stranger.sign(digest).hex()
    bundle.write_bytes(body + json.dumps(end).encode() + b"\n")
    assert verified(tmp_path, bundle)[0] == verify_bundle.TAMPERED
    end["signature"] = None
    bundle.write_bytes(body + json.dumps(end).encode() + b"\n")
    assert verified(tmp_path, bundle)[0] == verify_bundle.INCOMPLETE


def test_a_bundle_is_complete_or_absent(tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    with pytest.raises(StartError, match="already"):
        BundleWriter(there)
    assert there.read_text() == "kept"
    writer = BundleWriter(tmp_path / "new")
    writer.give_up()
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_the_refusal_says_what_the_trail_is() -> None:
    assert all(
        audit_triggers.REFUSAL in statement for statement in audit_triggers.STATEMENTS["sqlite"]
    )
