"""The schema: what the migrations make, who may do what with it, and how it is brought about."""

from __future__ import annotations

import asyncio
import stat
import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from alembic import command
from sqlalchemy import (
    Connection,
    CreateTable,
    Table,
    column,
    exc,
    insert,
    inspect,
    select,
    text,
)
from sqlalchemy import table as table_of

from authsvc import migrations, models
from authsvc.audit_chain import canonical
from authsvc.database import Database
from authsvc.errors import SchemaError, SettingsError
from conftest import RUNTIME_ROLE, Storage, TenantAtWork

on_postgresql = pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
TABLES = {
    "tenant", "tenant_head", "client_key", "role", "role_parent", "role_permission", "membership",
    "minted", "token_family", "audit_event", "api_key", "audit_anchor", "tenant_erasure",
    "audit_checkpoint", "audit_progress", "outgoing", "activity_event", "grant_use", "alerts_begun",
    "tenant_key", "master_key",
}  # fmt: skip
ACROSS_TENANTS = {
    "tenant", "tenant_erasure", "audit_checkpoint", "outgoing", "activity_event", "alerts_begun",
    "master_key",
}  # fmt: skip
"""The tables that are not a tenant's."""


async def on_writer(database: Database, work: Any) -> Any:
    """Run something synchronous in a transaction of the writer."""
    async with database.writer.begin() as connection:
        return await connection.run_sync(work)


def described(connection: Connection) -> object:
    """The whole schema, in the database's own words."""
    if connection.dialect.name == "sqlite":
        query = "SELECT type, name, tbl_name, sql FROM sqlite_master ORDER BY type, name"
        return connection.execute(text(query)).all()
    columns = connection.execute(
        text(
            "SELECT table_name, column_name, data_type, character_maximum_length, is_nullable,"
            " column_default, collation_name FROM information_schema.columns"
            " WHERE table_schema = 'public' ORDER BY table_name, column_name"
        )
    ).all()
    indexes = connection.execute(
        text("SELECT indexdef FROM pg_indexes WHERE schemaname = 'public' ORDER BY indexdef")
    ).all()
    constraints = connection.execute(
        text(
            "SELECT conname, pg_get_constraintdef(oid) FROM pg_constraint"
            " WHERE connamespace = 'public'::regnamespace ORDER BY conname"
        )
    ).all()
    options = connection.execute(
        text("SELECT relname, reloptions FROM pg_class WHERE reloptions IS NOT NULL"
             " AND relnamespace = 'public'::regnamespace")
    ).all()  # fmt: skip
    return columns, indexes, constraints, options


async def test_models_and_migrations_agree(storage: Storage) -> None:
    database = storage.open(as_owner=True)
    # Raises when autogeneration would find anything to do.
    await on_writer(
        database, lambda connection: command.check(migrations.alembic_config(connection))
    )


async def test_models_would_make_what_the_migrations_made(
    storage: Storage, empty_storage: Storage
) -> None:
    """Beyond what Alembic compares: collations, options, names of constraints and indexes."""
    migrated, made = storage.open(as_owner=True), empty_storage.open(as_owner=True)
    await on_writer(made, models.metadata.create_all)
    expected = await on_writer(made, described)
    found = await on_writer(migrated, described)
    assert normal(found) == normal(expected)
    assert len(normal(found)) > len(TABLES)


def normal(description: Any) -> set[str]:
    """The description apart from Alembic's own table, white space and the order inside lines."""
    rows = [row for part in description for row in part] if isinstance(description, tuple) else (
        description
    )  # fmt: skip
    lines = ("\n".join(map(str, row)) for row in rows)
    return {" ".join(sorted(line.split())) for line in lines if "alembic_version" not in line}


async def test_the_schema_goes_down_and_up_again(empty_storage: Storage) -> None:
    database = empty_storage.open(as_owner=True)
    assert await migrations.migrate(database) == (None, migrations.head_revision())
    first = await on_writer(database, described)
    await on_writer(
        database,
        lambda connection: command.downgrade(migrations.alembic_config(connection), "base"),
    )
    left = await on_writer(database, lambda connection: inspect(connection).get_table_names())
    assert set(left) <= {"alembic_version"}
    with pytest.raises(SchemaError):
        await migrations.require_head(database)
    assert await migrations.migrate(database) == (None, migrations.head_revision())
    await migrations.require_head(database)
    assert await on_writer(database, described) == first


async def test_migrating_twice_changes_nothing(empty_storage: Storage) -> None:
    database = empty_storage.open(as_owner=True)
    head = migrations.head_revision()
    assert await migrations.migrate(database) == (None, head)
    first = await on_writer(database, described)
    assert await migrations.migrate(database) == (head, head)
    assert await on_writer(database, described) == first


async def test_migrating_twice_at_once_happens_once(empty_storage: Storage) -> None:
    head = migrations.head_revision()
    databases = [empty_storage.open(as_owner=True) for _ in range(3)]
    ends = await asyncio.gather(*map(migrations.migrate, databases))
    assert sorted(ends, key=str) == [(head, head), (head, head), (None, head)]
    await migrations.require_head(databases[0])


async def test_a_migration_that_fails_leaves_nothing(
    empty_storage: Storage, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = empty_storage.open(as_owner=True)

    def fail(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("half way")

    with monkeypatch.context() as patched:
        patched.setattr("alembic.op.create_index", fail)
        with pytest.raises(RuntimeError, match="half way"):
            await migrations.migrate(database)
    left = await on_writer(database, lambda connection: inspect(connection).get_table_names())
    assert left == []
    assert (await migrations.migrate(database))[0] is None


async def test_an_empty_database_is_told_the_command(empty_storage: Storage) -> None:
    database = empty_storage.open()
    with pytest.raises(SchemaError, match="authsvc migrate") as refused:
        await migrations.require_head(database)
    assert "empty" in refused.value.message


async def test_a_newer_schema_is_refused_by_its_name(storage: Storage) -> None:
    owner = storage.open(as_owner=True)
    await migrations.require_head(owner)
    await on_writer(
        owner, lambda c: c.execute(text("UPDATE alembic_version SET version_num = 'of_2031'"))
    )
    before = await on_writer(owner, described)
    for refused in (migrations.require_head, migrations.migrate):
        with pytest.raises(SchemaError, match="of_2031"):
            await refused(owner)
    assert await on_writer(owner, described) == before


async def test_keys_lead_with_the_tenant_and_references_carry_it(storage: Storage) -> None:
    def look(connection: Connection) -> None:
        inspector = inspect(connection)
        names = set(inspector.get_table_names()) - {"alembic_version"}
        assert names == TABLES
        for name in names - ACROSS_TENANTS:
            key = inspector.get_pk_constraint(name)["constrained_columns"]
            assert key[0] == "tenant_id", name
            for reference in inspector.get_foreign_keys(name):
                if reference["referred_table"] in ACROSS_TENANTS - {"tenant"}:
                    continue
                carried = dict(
                    zip(
                        reference["constrained_columns"], reference["referred_columns"], strict=True
                    )
                )
                assert "tenant_id" in carried, (name, reference)
                assert carried["tenant_id"] in {"tenant_id", "id"}
                if carried["tenant_id"] == "id":
                    assert reference["referred_table"] == "tenant"
            assert inspector.get_foreign_keys(name), f"{name} refers to its tenant"
            for index in inspector.get_indexes(name):
                columns = index["column_names"]
                # A key or a refresh token is looked up before its tenant is known, and data keys
                # by what they are under.
                known = columns[0] == "tenant_id"
                assert known or columns in (["digest"], ["handle"], ["master_key"]), (name, columns)
        for name in names:
            assert "user" not in {column["name"] for column in inspector.get_columns(name)}

    await on_writer(storage.open(as_owner=True), look)


async def test_names_are_compared_as_bytes(storage: Storage) -> None:
    def look(connection: Connection) -> None:
        if connection.dialect.name == "sqlite":
            for (sql,) in connection.execute(text("SELECT sql FROM sqlite_master WHERE sql != ''")):
                assert "COLLATE" not in sql.upper()
            return
        rows = connection.execute(
            text(
                "SELECT table_name, column_name, collation_name FROM information_schema.columns"
                " WHERE table_schema = 'public' AND table_name != 'alembic_version'"
                " AND data_type IN ('text', 'character varying', 'character')"
            )
        ).all()
        assert len(rows) >= 8
        assert {row.collation_name for row in rows} == {"C"}, rows

    await on_writer(storage.open(as_owner=True), look)


def test_the_tables_are_the_models() -> None:
    assert set(models.metadata.tables) == TABLES
    for table in models.metadata.tables.values():
        assert isinstance(table, Table)
        assert str(CreateTable(table))


# --- Rights ----------------------------------------------------------------------------------


@on_postgresql
async def test_the_service_has_the_guides_rights_and_no_more(storage: Storage) -> None:
    async with storage.administrator() as administrator:
        rows = await administrator.fetch(
            "SELECT table_name, privilege_type FROM information_schema.table_privileges"
            " WHERE grantee = $1",
            RUNTIME_ROLE,
        )
        role = await administrator.fetchrow(
            "SELECT rolsuper, rolcreatedb, rolcreaterole, rolreplication, rolbypassrls"
            " FROM pg_roles WHERE rolname = $1",
            RUNTIME_ROLE,
        )
        owned = await administrator.fetchval(
            "SELECT count(*) FROM pg_class WHERE pg_get_userbyid(relowner) = $1", RUNTIME_ROLE
        )
        await administrator.execute("CREATE TABLE later (n int)")
        later = await administrator.fetchval(
            "SELECT string_agg(privilege_type, ',' ORDER BY privilege_type)"
            " FROM information_schema.table_privileges"
            " WHERE grantee = $1 AND table_name = 'later'",
            RUNTIME_ROLE,
        )
    rights = {"SELECT", "INSERT", "UPDATE", "DELETE"}
    given: dict[str, set[str]] = {}
    for name, privilege in rows:
        given.setdefault(name, set()).add(privilege)
    expected = dict.fromkeys(TABLES | {"alembic_version"}, rights)
    expected["audit_event"] = expected["audit_checkpoint"] = {"SELECT", "INSERT"}
    expected["audit_anchor"] = expected["tenant_erasure"] = {"SELECT"}
    assert given == expected
    assert later == ",".join(sorted(rights))
    assert not any(role)
    assert owned == 0


@on_postgresql
@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TABLE mine (n int)",
        "CREATE SCHEMA mine",
        "DROP TABLE membership",
        "TRUNCATE audit_event",
        "ALTER TABLE role ADD COLUMN mine int",
        "CREATE INDEX mine ON role (name)",
    ],
)
async def test_the_service_cannot_change_the_schema(storage: Storage, statement: str) -> None:
    database = storage.open()
    async with database.writer.connect() as connection:
        with pytest.raises(exc.ProgrammingError) as refused:
            await connection.execute(text(statement))
    # https://www.postgresql.org/docs/current/errcodes-appendix.html: insufficient_privilege
    assert getattr(refused.value.orig, "sqlstate", "") == "42501"


@on_postgresql
async def test_rights_are_given_to_roles_that_exist(storage: Storage) -> None:
    owner = storage.open(as_owner=True)
    for name in ("nobody_of_that_name", 'quoted"; DROP TABLE role; --', "", "1st"):
        with pytest.raises(SettingsError):
            await migrations.grant_to(owner, name)
    await migrations.grant_to(owner, RUNTIME_ROLE)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_a_file_has_no_roles_to_give_rights_to(storage: Storage) -> None:
    with pytest.raises(SettingsError, match="SQLite"):
        await migrations.grant_to(storage.open(), RUNTIME_ROLE)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_every_file_of_a_database_in_use_is_private(
    storage: Storage, tenant: TenantAtWork
) -> None:
    assert storage.path is not None
    files = sorted(storage.path.parent.glob(f"{storage.path.name}*"))
    assert {file.name.removeprefix(storage.path.name) for file in files} >= {"", "-wal", "-shm"}
    assert {stat.S_IMODE(file.stat().st_mode) for file in files} == {0o600}
    async with tenant.database.read() as tx:
        for pragma, value in (("foreign_keys", 1), ("synchronous", 2), ("journal_mode", "wal")):
            assert (await tx.execute(text(f"PRAGMA {pragma}"))).scalar_one() == value


async def plan_of(database: Database, statement: Any) -> str:
    """How SQLite goes about a statement with two lists."""
    text = str(statement.compile(dialect=database.reader.dialect))
    async with database.reader.connect() as connection:
        rows = await connection.exec_driver_sql(
            f"EXPLAIN QUERY PLAN {text}", (bytes(16), "[]", "[]")
        )
        return " ".join(str(row) for row in rows)


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_sqlite_finds_lists_of_names_by_their_index(database: Database) -> None:
    """Or a check would read the whole tenant."""
    from authsvc.repositories import grants, memberships

    assert "user_id=? AND role_id=?" in await plan_of(database, memberships._OF_USERS_IN_ROLES)
    of_roles = await plan_of(database, grants._AMONG)
    assert "role_id=?" in of_roles
    assert "permission=?" in of_roles


@pytest.mark.parametrize("engine", ["sqlite"], indirect=True)
async def test_sqlite_does_not_look_for_every_pair_of_two_long_lists(database: Database) -> None:
    from authsvc.repositories import grants, memberships

    of_users = await plan_of(database, memberships._OF_USERS_IN_MANY_ROLES)
    assert "user_id=?" in of_users
    assert "role_id=?" not in of_users
    of_roles = await plan_of(database, grants._AMONG_MANY)
    assert "role_id=?" in of_roles
    assert "permission=?" not in of_roles


async def test_events_of_before_are_given_the_words_they_are_searched_by(
    empty_storage: Storage,
) -> None:
    """Migration 0005 on a database that has been in use."""
    database = empty_storage.open(as_owner=True)

    def upgrade(to: str) -> Any:
        return lambda connection: command.upgrade(migrations.alembic_config(connection), to)

    await on_writer(database, upgrade("0004"))
    said: dict[str, Any] = {
        "action": "add", "entity_type": "membership", "entity_id": "alice", "actor": "key_1",
        "ip_address": "192.0.2.1", "user_agent": None, "request_id": None, "details": {},
    }  # fmt: skip
    tenant_id, now = uuid.uuid4(), datetime(2026, 1, 1, tzinfo=UTC)

    def fill(connection: Connection) -> None:
        row = {"id": tenant_id, "name": "acme", "created_at": now, "settings": {}}
        connection.execute(insert(models.tenant).values(**row, token_generation=0))
        old = [c for c in models.audit_event.c if c.name in EVENT_OF_0004]
        columns: list[Any] = [column(c.name, c.type) for c in old]
        table = table_of("audit_event", *columns)
        connection.execute(
            insert(table),
            [
                {
                    "tenant_id": tenant_id,
                    "seq": seq,
                    "at": now,
                    "payload_hash": bytes(32),
                    "hash": bytes(32),
                    "payload": bytes(16) + canonical(said | {"entity_id": f"user{seq}"}),
                }
                for seq in range(1, 2501)
            ],
        )

    await on_writer(database, fill)
    await on_writer(database, upgrade("head"))
    event = models.audit_event
    async with database.read() as tx:
        rows = list(await tx.execute(select(event).order_by(event.c.seq)))
    assert len(rows) == 2500
    for row in rows:
        assert row.entity_id == f"user{row.seq}"
        assert (row.action, row.entity_type, row.actor) == ("add", "membership", "key_1")
        assert (row.ip_address, row.mac) == ("192.0.2.1", None)


EVENT_OF_0004 = ("tenant_id", "seq", "at", "payload_hash", "hash", "payload")
