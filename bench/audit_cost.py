"""What the audit trail costs a write, side by side in one run.

    python bench/audit_cost.py [--writes 2000] [--rounds 5]

Lists of 100 changes and single changes are written past HTTP, with everything, without seals, and
without the three indexes that events are searched by (dropped in a scratch database). The variants
take turns, each round in another order; medians are printed, in microseconds of wall time for each
change, with the bytes that an event takes in its table and indexes.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
import uuid
from datetime import UTC, datetime
from pathlib import Path

from sqlalchemy import text

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP / "tests"))

from authsvc import audit_chain, migrations  # noqa: E402
from authsvc.audit_chain import NO_KEYS, AuditKeys  # noqa: E402
from authsvc.clock import system_clock  # noqa: E402
from authsvc.credentials import digest_of  # noqa: E402
from authsvc.database import Database  # noqa: E402
from authsvc.postgresql_url import parse_postgresql_url  # noqa: E402
from authsvc.records import EMPTY, Caller, Change  # noqa: E402
from authsvc.repositories.tenants import find_credential  # noqa: E402
from authsvc.services.authentication import caller_of  # noqa: E402
from authsvc.services.changes import apply_changes  # noqa: E402
from authsvc.services.tenants import create_tenant  # noqa: E402
from authsvc.sqlite_file import prepare_file  # noqa: E402
from services import PostgresServer  # noqa: E402

KEYS = AuditKeys(b"an audit key for measuring, 32 ch")
INDEXES = ("entity_id", "actor", "at")
VARIANTS = ("everything", "without seals", "without its indexes")


class Subject:
    """One database in one variant, with a tenant to write to."""

    def __init__(self, database: Database, variant: str) -> None:
        self.database = database
        self.variant = variant
        self.count = 0
        database.audit_keys = NO_KEYS if variant == "without seals" else KEYS

    async def prepare(self) -> None:
        await migrations.migrate(self.database)
        if self.variant == "without its indexes":
            async with self.database.writer.begin() as connection:
                for name in INDEXES:
                    await connection.execute(text(f"DROP INDEX ix_audit_event_{name}"))
        made = await self.database.write(
            "x", lambda tx: create_tenant(tx, "acme", datetime.now(UTC), actor="bench")
        )
        self.tenant, self.digest = made.id, digest_of(made.key)
        await self.write([Change("add_role", role=f"r{n}") for n in range(10)])

    async def caller(self) -> Caller:
        found = await find_credential(self.database, self.digest)
        assert found is not None
        return caller_of(found, self.digest, datetime.now(UTC))

    async def write(self, changes: list[Change]) -> None:
        caller = await self.caller()
        await self.database.write(
            self.tenant, lambda tx: apply_changes(tx, caller, changes, system_clock)
        )

    async def microseconds(self, writes: int, size: int) -> float:
        """The time of a change, when ``size`` of them are written together."""
        began = time.perf_counter()
        for _ in range(writes // size):
            self.count += size
            await self.write(
                [
                    Change("grant", role=f"r{n % 10}", permission=f"p:{self.count + n}")
                    for n in range(size)
                ]
            )
        return (time.perf_counter() - began) / writes * 1e6

    async def bytes_per_event(self) -> tuple[float, float]:
        """Of the table, and of its indexes."""
        async with self.database.read() as tx:
            events = (await tx.execute(text("SELECT count(*) FROM audit_event"))).scalar_one()
            if self.database.is_sqlite:
                sizes = "SELECT sum(pgsize) FROM dbstat WHERE name {}"
                table = (await tx.execute(text(sizes.format("= 'audit_event'")))).scalar_one()
                rest = (await tx.execute(text(sizes.format("LIKE 'ix_audit_event%'")))).scalar_one()
            else:
                table = (await tx.execute(text("SELECT pg_table_size('audit_event')"))).scalar_one()
                rest = (
                    await tx.execute(text("SELECT pg_indexes_size('audit_event')"))
                ).scalar_one()
        return table / events, (rest or 0) / events


def chain_alone() -> tuple[float, float]:
    """Microseconds to chain one event of a list, without and with a seal."""
    said = {
        "actor": "key_0123456789abcdef0123", "request_id": "0" * 32, "ip_address": "192.0.2.1",
        "user_agent": "python-httpx/0.28", "action": "grant", "entity_type": "permission",
        "entity_id": "invoice:read", "details": {"role": "accountant"},
    }  # fmt: skip
    found = []
    for keys in (NO_KEYS, KEYS):
        times = []
        for _ in range(20):
            began = time.perf_counter()
            audit_chain.extend(uuid.uuid4(), EMPTY, datetime.now(UTC), [said] * 1000, keys)
            times.append((time.perf_counter() - began) * 1000)
        found.append(statistics.median(times))
    return found[0], found[1]


async def measure(engine: str, subjects: list[Subject], writes: int, rounds: int) -> None:
    """Let the variants take turns, and print what they took."""
    for subject in subjects:
        await subject.prepare()
    times: dict[tuple[str, int], list[float]] = {}
    for number in range(rounds + 1):
        order = subjects[number % 3 :] + subjects[: number % 3]
        for subject in order:
            for size, count in ((1, max(writes // 10, 50)), (100, writes)):
                took = await subject.microseconds(count, size)
                if number:  # the first round warms up
                    times.setdefault((subject.variant, size), []).append(took)
    for subject in subjects:
        single, listed = times[subject.variant, 1], times[subject.variant, 100]
        table, indexes = await subject.bytes_per_event()
        print(
            f"{engine:<11} {subject.variant:<20}"
            f" single {statistics.median(single):7.0f} us ({min(single):.0f} to {max(single):.0f})"
            f"   in lists {statistics.median(listed):6.1f} us"
            f" ({min(listed):.1f} to {max(listed):.1f})"
            f"   {table:.0f} + {indexes:.0f} bytes"
        )
        await subject.database.dispose()


def main() -> None:
    """Measure both engines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--writes", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    plain, sealed = chain_alone()
    print(f"chaining alone: {plain:.1f} us an event, {sealed:.1f} us with its seal")
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder) / f"{n}.sqlite3" for n in range(3)]
        for file in files:
            prepare_file(file)
        lite = [Subject(Database.sqlite(f), v) for f, v in zip(files, VARIANTS, strict=True)]
        asyncio.run(measure("SQLite", lite, given.writes, given.rounds))
    server = PostgresServer(private=True)
    server.start()
    try:
        targets = []
        for number in range(3):
            server.create_database(f"cost{number}")
            targets.append(parse_postgresql_url(server.url(f"cost{number}")))
        subjects = [
            Subject(Database.postgresql(target.url, target.connect_args), variant)
            for target, variant in zip(targets, VARIANTS, strict=True)
        ]
        asyncio.run(measure("PostgreSQL", subjects, given.writes, given.rounds))
    finally:
        server.stop()


if __name__ == "__main__":
    main()
