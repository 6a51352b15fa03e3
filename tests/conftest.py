"""What tests are given: a fresh database of each kind, a clock, tenants.

Both databases are migrated once and copied for every test. On PostgreSQL the service connects the
way it is meant to: as a role of its own with a password and no more than the documented grants.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import asyncpg
import hypothesis
import pytest
from sqlalchemy import Connection

import encrypted
from authsvc import audit_triggers, migrations
from authsvc.credentials import digest_of, new_client_key
from authsvc.database import Database
from authsvc.postgresql_url import parse_postgresql_url
from authsvc.records import Caller, Change
from authsvc.repositories.tenants import find_credential
from authsvc.services.authentication import presented_key, resolve
from authsvc.services.changes import Outcome, apply_changes
from authsvc.services.tenants import create_tenant
from authsvc.sqlite_file import prepare_file
from replay import violations
from services import PostgresServer

# The same examples in every run, and no verdict on how fast the machine is.
hypothesis.settings.register_profile(
    "suite",
    derandomize=True,
    database=None,
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("suite")

RUNTIME_ROLE = f"authsvc_runtime_{uuid.uuid4().hex[:8]}"
RUNTIME_PASSWORD = "only-for:tests@127.0.0.1/%"
"""With characters that a URL has to escape."""
_TEMPLATE = f"authsvc_template_{uuid.uuid4().hex[:8]}"


class ControlledClock:
    """A clock that stands still until it is told to go on."""

    def __init__(self) -> None:
        self.instant = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.instant

    def advance(self, seconds: float) -> datetime:
        """Let time pass; the new instant."""
        self.instant += timedelta(seconds=seconds)
        return self.instant


def connect_postgresql(url: str) -> Database:
    """A database object for a libpq-style URL."""
    target = parse_postgresql_url(url)
    return Database.postgresql(target.url, target.connect_args)


async def connect_driver(url: str) -> asyncpg.Connection:
    """A PostgreSQL connection without any of our code around it."""
    return await asyncpg.connect(**parse_postgresql_url(url).driver_kwargs())


@dataclass
class Storage:
    """One test's database, apart from anything connected to it.

    ``path`` is the file on SQLite; on PostgreSQL ``owner_url`` is for the one who may do
    everything, ``url`` for the service.
    """

    engine: str
    path: Path | None = None
    owner_url: str = ""
    url: str = ""
    name: str = ""
    opened: list[Database] = field(default_factory=list)

    def open(self, *, as_owner: bool = False) -> Database:
        """A database object with connections of its own, closed when the test ends.

        What a second process would have.
        """
        if self.path is not None:
            database = Database.sqlite(self.path)
        else:
            database = connect_postgresql(self.owner_url if as_owner else self.url)
        database.data_keys = encrypted.data_keys()
        self.opened.append(database)
        return database

    async def close(self) -> None:
        """Close every connection of every database object."""
        for database in self.opened:
            await database.dispose()

    async def forge(self, work: Callable[[Connection], object]) -> None:
        """Change what the triggers protect, as somebody could who owns the tables."""
        owner = self.open(as_owner=True)
        async with owner.writer.begin() as connection:
            await connection.run_sync(self._without_triggers, work)

    def _without_triggers(
        self, connection: Connection, work: Callable[[Connection], object]
    ) -> None:
        if self.path is None:
            connection.exec_driver_sql("SET LOCAL session_replication_role = replica")
            work(connection)
            return
        rows = connection.exec_driver_sql("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        for (name,) in rows.all():
            connection.exec_driver_sql(f"DROP TRIGGER {name}")
        work(connection)
        for statement in audit_triggers.STATEMENTS["sqlite"]:
            connection.exec_driver_sql(statement)

    @asynccontextmanager
    async def administrator(self) -> AsyncIterator[asyncpg.Connection]:
        """A plain connection of PostgreSQL's owner to this database."""
        connection = await connect_driver(self.owner_url)
        try:
            yield connection
        finally:
            await connection.close()


async def authenticate(
    database: Database, authorization: list[str], now: datetime, *, registration_open: bool
) -> Caller:
    """The caller behind ``Authorization`` headers, asked of the database and of no memory."""
    digest = digest_of(presented_key(authorization))
    credential = await find_credential(database, digest)
    return resolve(credential, digest, now, registration_open=registration_open)


@dataclass
class TenantAtWork:
    """A tenant with one client key that may do everything, and a short way to write as it."""

    database: Database
    clock: ControlledClock
    id: UUID
    key: str

    async def caller(self, database: Database | None = None) -> Caller:
        """The caller behind the tenant's key, at the state of now."""
        return await authenticate(
            database or self.database,
            [f"Bearer {self.key}"],
            self.clock(),
            registration_open=False,
        )

    async def write(
        self, *changes: Change, dry_run: bool = False, database: Database | None = None
    ) -> Outcome:
        """Authenticate and apply changes in one transaction, as a request does."""
        used = database or self.database
        caller = await self.caller(used)
        return await used.write(
            self.id,
            lambda tx: apply_changes(tx, caller, changes, self.clock, dry_run=dry_run),
        )

    async def violations(self) -> list[str]:
        """What is wrong with the tenant at rest."""
        async with self.database.read() as tx:
            return await violations(tx, self.id)


MakeTenant = Callable[[str], Awaitable[TenantAtWork]]


@pytest.fixture
def clock() -> ControlledClock:
    """A clock the test moves."""
    return ControlledClock()


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    """A PostgreSQL server of this run's own, running."""
    server = PostgresServer()
    server.start()
    yield server
    server.stop()


@pytest.fixture(params=["sqlite", "postgresql"])
def engine(request: pytest.FixtureRequest) -> str:
    """The kind of database: a test that uses it runs once on each."""
    return str(request.param)


@pytest.fixture(scope="session")
async def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A migrated SQLite file that nobody has open."""
    path = tmp_path_factory.mktemp("template") / "auth.sqlite3"
    prepare_file(path)
    database = Database.sqlite(path)
    await migrations.migrate(database)
    await database.dispose()
    assert not path.with_name(f"{path.name}-wal").exists()
    return path


def owner_url(server: PostgresServer, name: str) -> str:
    """A database of the server, for its owner."""
    return f"{server.url(name)}?sslmode=disable"


def runtime_url(server: PostgresServer, name: str) -> str:
    """A database of the server, for the service."""
    return f"{server.url(name, RUNTIME_ROLE, RUNTIME_PASSWORD)}?sslmode=disable"


@pytest.fixture(scope="session")
async def postgresql_template(postgres_server: PostgresServer) -> str:
    """The name of a migrated PostgreSQL database in which the run-time role has its grants."""
    postgres_server.create_role(RUNTIME_ROLE, RUNTIME_PASSWORD)
    postgres_server.create_database(_TEMPLATE)
    database = connect_postgresql(owner_url(postgres_server, _TEMPLATE))
    await migrations.migrate(database)
    await migrations.grant_to(database, RUNTIME_ROLE)
    await database.dispose()
    return _TEMPLATE


@asynccontextmanager
async def copied(server: PostgresServer, template: str | None) -> AsyncIterator[Storage]:
    """A copy of a PostgreSQL database (an empty one of None) for as long as the context lasts."""
    name = f"test_{uuid.uuid4().hex}"
    like = f' TEMPLATE "{template}"' if template else ""
    connection = await connect_driver(owner_url(server, "postgres"))
    try:
        await connection.execute(f'CREATE DATABASE "{name}"{like}')
        if template:
            # A grant on the database itself is the one thing that is not copied.
            await connection.execute(f'GRANT CONNECT ON DATABASE "{name}" TO {RUNTIME_ROLE}')
    finally:
        await connection.close()
    made = Storage("postgresql", None, owner_url(server, name), runtime_url(server, name), name)
    try:
        yield made
    finally:
        await made.close()
        connection = await connect_driver(owner_url(server, "postgres"))
        try:
            await connection.execute(f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)')
        finally:
            await connection.close()


@pytest.fixture
def storage_source(engine: str, request: pytest.FixtureRequest) -> Path | str:
    """What a test's database is copied from: a file, or the name of a template."""
    source: Path | str = request.getfixturevalue(f"{engine}_template")
    return source


@pytest.fixture
async def storage(
    storage_source: Path | str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Storage]:
    """A fresh, migrated, empty database of each kind."""
    if isinstance(storage_source, Path):
        path = tmp_path / "auth.sqlite3"
        prepare_file(path)
        shutil.copyfile(storage_source, path)
        made = Storage("sqlite", path)
        yield made
        await made.close()
    else:
        async with copied(request.getfixturevalue("postgres_server"), storage_source) as made:
            yield made


@pytest.fixture
async def empty_storage(
    engine: str, tmp_path: Path, request: pytest.FixtureRequest
) -> AsyncIterator[Storage]:
    """A database of each kind that nobody has migrated yet."""
    if engine == "sqlite":
        path = tmp_path / "empty.sqlite3"
        prepare_file(path)
        made = Storage("sqlite", path)
        yield made
        await made.close()
    else:
        async with copied(request.getfixturevalue("postgres_server"), None) as made:
            yield made


@pytest.fixture
def database(storage: Storage) -> Database:
    """The service's way to a fresh, migrated, empty database of each kind."""
    return storage.open()


@pytest.fixture
def make_tenant(database: Database, clock: ControlledClock) -> MakeTenant:
    """Makes tenants by name; each starts at revision 2: itself and its key."""

    async def make(name: str) -> TenantAtWork:
        key = new_client_key()
        made = await database.write(
            name, lambda tx: create_tenant(tx, name, clock(), actor="tests", key=key)
        )
        return TenantAtWork(database, clock, made.id, key)

    return make


@pytest.fixture
async def tenant(make_tenant: MakeTenant) -> TenantAtWork:
    """A tenant with nothing but its key."""
    return await make_tenant("acme")
