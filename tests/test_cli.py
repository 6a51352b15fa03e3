"""The command as people run it: processes of their own, with a home and nothing else around them.

Everything that any of them prints is searched for the secrets they were given, and so are their
command lines.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import sqlite3
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

import encrypted
from authsvc import __version__
from authsvc.credentials import digest_of
from services import PostgresServer

PATIENCE_SECONDS = 60.0
COMMAND = str(Path(sys.executable).with_name("authsvc"))

FIRST_KEY = "8f14e45f-ceea-467f-a0e6-3d5b1f2c7a01"
SECOND_KEY = "c9f0f895-fb98-4b91-92f5-0c6d8e4a1b02"
PASSWORD = "S3cret/of:the@database%"
STRONG = "Qk3v8sYc2mJx0pWd7hTz5nRb1fLg9aEu4oKi6yCq"
SECRETS = (FIRST_KEY, SECOND_KEY, PASSWORD, STRONG)

# Every test here waits for several processes to start.
pytestmark = pytest.mark.timeout(400)


def free_port() -> int:
    """A port nobody uses at the moment."""
    with socket.socket() as tried:
        tried.bind(("127.0.0.1", 0))
        return int(tried.getsockname()[1])


def eventually(condition: Callable[[], object], what: str) -> None:
    """Wait until something holds, or fail saying what did not."""
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < until, f"not within {PATIENCE_SECONDS} s: {what}"
        time.sleep(0.05)


def command_lines(pid: int) -> str:
    """The command line of a process and of its children, as any user of the machine sees them."""
    children = Path(f"/proc/{pid}/task/{pid}/children")
    pids = [pid, *map(int, children.read_text().split() if children.exists() else ())]
    lines = [Path(f"/proc/{one}/cmdline") for one in pids]
    return "\n".join(line.read_bytes().decode() for line in lines if line.exists())


@dataclass
class Finished:
    """A command that has ended."""

    status: int
    out: str
    err: str

    @property
    def sentence(self) -> str:
        """The one line of an expected failure, apart from records of the log."""
        assert self.out == ""
        lines = [line for line in self.err.splitlines() if not line.startswith("{")]
        assert len(lines) == 1, self.err
        assert lines[0].startswith("authsvc: ")
        return lines[0].removeprefix("authsvc: ")


@dataclass
class Serving:
    """A server that is up, and what it prints."""

    process: subprocess.Popen[bytes]
    url: str
    log: Path
    http: httpx.Client = field(repr=False)

    @property
    def printed(self) -> str:
        return self.log.read_text()

    def ask(self, path: str, key: str | None = None, method: str = "GET") -> httpx.Response:
        """One request, with a client key if it needs one."""
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        return self.http.request(method, f"{self.url}{path}", headers=headers)

    def ask_until_known(self, path: str, key: str, method: str = "GET") -> httpx.Response:
        """As a client does: again while the service, on a machine under load, cannot know."""
        given: list[httpx.Response] = []

        def known() -> bool:
            given.append(self.ask(path, key, method))
            return given[-1].status_code != 503

        eventually(known, f"an answer other than 503 to {path}")
        return given[-1]


@dataclass
class Home:
    """A home folder, in which commands find their ``.env`` and their SQLite file."""

    path: Path
    settings: dict[str, str] = field(default_factory=dict)

    @property
    def database(self) -> Path:
        return self.path / ".auth.sqlite3"

    def environment(self, settings: dict[str, str]) -> dict[str, str]:
        """What a command gets: no more than a home, a path and its settings."""
        least = {"HOME": str(self.path), "PATH": os.environ["PATH"]}
        return least | encrypted.ENVIRONMENT | self.settings | settings

    def begin(self, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        """Start a command."""
        return subprocess.Popen(
            [COMMAND, *arguments],
            cwd=self.path,
            env=self.environment(settings),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )

    def run(self, *arguments: str, **settings: str) -> Finished:
        """Run a command to its end."""
        return ended(self.begin(*arguments, **settings))

    def run_all(self, *commands: str, **settings: str) -> dict[str, Finished]:
        """Run several commands beside each other."""
        begun = {command: self.begin(*command.split(), **settings) for command in commands}
        return {command: ended(process) for command, process in begun.items()}

    def json(self, *arguments: str, **settings: str) -> Any:
        """What a successful command prints with ``--json``."""
        done = self.run(*arguments, "--json", **settings)
        assert (done.status, done.err) == (0, "")
        return json.loads(done.out)

    @contextmanager
    def serving(self, **settings: str) -> Iterator[Serving]:
        """A server that answers, stopped at the end."""
        port = free_port()
        log = self.path / f"log-{port}"
        with log.open("wb") as out:
            process = subprocess.Popen(
                [COMMAND, "serve"],
                cwd=self.path,
                env=self.environment({"AUTH_SERVER_PORT": str(port)} | settings),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
            )
        try:
            with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as http:
                server = Serving(process, f"http://127.0.0.1:{port}", log, http)
                eventually(lambda: answers(server), "the server answers")
                shown = command_lines(process.pid)
                assert "authsvc" in shown
                assert not [secret for secret in SECRETS if secret in shown]
                yield server
        finally:
            if process.poll() is None:
                process.terminate()
            try:
                process.wait(PATIENCE_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        printed = log.read_text()
        assert not [secret for secret in SECRETS if secret in printed]
        assert "Traceback" not in printed


def ended(process: subprocess.Popen[bytes]) -> Finished:
    """Wait for a command; fail if it shows a secret or a traceback."""
    try:
        out, err = process.communicate(timeout=PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    done = Finished(process.returncode, out.decode(), err.decode())
    assert not [secret for secret in SECRETS if secret in done.out + done.err]
    assert "Traceback" not in done.err, done.err
    return done


def answers(server: Serving) -> bool:
    """Whether a server that is starting is ready; an error if it has ended."""
    assert server.process.poll() is None, server.printed
    try:
        return server.ask("/health/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of this test's own."""
    return Home(tmp_path)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Home, Serving]]:
    """A home in which a server runs with nothing set at all but its port."""
    home = Home(tmp_path_factory.mktemp("served"))
    with home.serving() as server:
        yield home, server


def rows(database: Path, statement: str, *values: object) -> list[tuple[Any, ...]]:
    """Run one statement on a SQLite file."""
    connection = sqlite3.connect(database, timeout=10)
    try:
        with connection:
            return connection.execute(statement, values).fetchall()
    finally:
        connection.close()


# What is printed


def test_every_command_explains_itself(home: Home) -> None:
    commands = (
        "", "serve", "migrate", "tenants", "tenants create", "tenants list", "tenants disable",
        "tenants enable", "tenants erase", "keys", "keys issue", "keys list", "keys revoke",
        "keys rotate", "audit", "audit query", "audit tail", "audit export", "audit verify",
        "audit checkpoint", "audit bundle", "audit prune", "audit seal", "audit verifier", "verify",
        "report", "access-review", "incident", "incident revert", "incident affected",
        "incident lockdown", "init", "doctor", "selftest", "keys rewrap", "keys reseal",
        "encryption", "encryption enable", "encryption disable", "encryption status",
    )  # fmt: skip
    asked = home.run_all(*(f"{command} --help" for command in commands))
    for command, done in asked.items():
        assert (done.status, done.err) == (0, ""), command
        assert "Usage: " in done.out
        assert "--help" in done.out
    alone = home.run_all("", "--version")
    assert "Usage: " in alone[""].out + alone[""].err
    assert alone["--version"].out == f"authsvc {__version__}\n"


def test_a_setting_that_cannot_be_used_is_named_and_not_shown(home: Home) -> None:
    table = {
        "AUTH_CLIENT_KEY": f"{FIRST_KEY}x",
        "AUTH_WORKERS": "2",
        "AUTH_POSTGRESQL_URL": f"postgresql://a:{PASSWORD}@h/d",
        "AUTH_SERVER_PROT": PASSWORD,
    }
    begun = {name: home.begin("serve", **{name: value}) for name, value in table.items()}
    for name, process in begun.items():
        done = ended(process)
        assert done.status == 78
        assert name in done.sentence
    assert list(home.path.iterdir()) == []


def test_the_greeting_is_a_conversation_that_works(served: tuple[Home, Serving]) -> None:
    _, server = served
    assert server.ask("/health/ready").json() == {"status": "ready", "reasons": []}
    conversation = [line.strip() for line in server.printed.splitlines() if line.startswith("    ")]
    assert [line.split()[0] for line in conversation][-1] == "ask"
    assert shutil.which("curl")
    done = subprocess.run(
        ["/bin/sh", "-c", "\n".join(conversation)],
        env={"PATH": os.environ["PATH"], "no_proxy": "*"},
        capture_output=True,
        text=True,
        timeout=PATIENCE_SECONDS,
    )
    said = [json.loads(line) for line in done.stdout.splitlines() if line]
    assert [answer["success"] for answer in said] == [True] * 4, done
    assert said[-1]["data"] == {"has_permission": True}
    assert f"{server.url}/docs" in server.printed


# Serving


def test_a_port_that_is_taken_is_one_sentence(served: tuple[Home, Serving], home: Home) -> None:
    port = served[1].url.rpartition(":")[2]
    done = home.run("serve", AUTH_SERVER_PORT=port)
    assert done.status == 3
    assert f"Port {port} on 127.0.0.1 cannot be used" in done.sentence
    assert "AUTH_SERVER_PORT" in done.sentence


def test_a_second_server_on_one_file_is_refused(served: tuple[Home, Serving]) -> None:
    home, server = served
    done = home.run("serve", AUTH_SERVER_PORT=str(free_port()))
    assert done.status == 75
    assert str(home.database) in done.sentence
    assert server.ask("/health/ready").status_code == 200


def test_an_open_database_file_is_closed_with_a_warning(home: Home) -> None:
    home.database.touch(mode=0o644)
    home.database.chmod(0o644)
    done = home.run("serve", AUTH_ENVIRONMENT="production", AUTH_JWT_SECRET_KEY=STRONG)
    assert done.status == 3
    assert f"chmod 600 {home.database}" in done.sentence
    with home.serving() as server:
        assert f"warning: {home.database} could be read by other users" in server.printed
    beside = sorted(path for path in home.path.iterdir() if path.name.startswith(".auth"))
    assert {path.stat().st_mode & 0o777 for path in beside} == {0o600}


def test_sigterm_lets_a_running_request_finish(home: Home) -> None:
    body = json.dumps({"changes": [{"op": "add_role", "role": "admin"}]}).encode()
    head = (
        "POST /api/changes HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {FIRST_KEY}\r\nExpect: 100-continue\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    with home.serving() as server:
        port = int(server.url.rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), PATIENCE_SECONDS) as slow:
            slow.sendall(head.encode() + body[:10])
            # The server says this when the request has begun to read its body.
            assert slow.recv(1000).startswith(b"HTTP/1.1 100 ")
            server.process.terminate()
            eventually(lambda: refused(port), "no new connection is accepted")
            assert server.process.poll() is None
            slow.sendall(body[10:])
            answer = b""
            while part := slow.recv(65536):
                answer += part
        assert answer.startswith(b"HTTP/1.1 200 ")
        assert b'"applied":1' in answer
        status = server.process.wait(PATIENCE_SECONDS)
        assert status in (0, -signal.SIGTERM)
    assert rows(home.database, "SELECT name FROM role")


def refused(port: int) -> bool:
    """Whether nobody listens on a port any more."""
    try:
        socket.create_connection(("127.0.0.1", port), 5).close()
    except OSError:
        return True
    return False


# The key of the settings


def key_end(database: Path, key: str) -> datetime | None:
    """When a key ends; None for a key without an end."""
    found = rows(database, "SELECT expires_at FROM client_key WHERE digest = ?", digest_of(key))
    assert len(found) == 1
    return as_instant(found[0][0])


def as_instant(stored: object) -> datetime | None:
    if stored is None:
        return None
    if isinstance(stored, int):
        return datetime.fromtimestamp(stored / 1e6, UTC)
    return datetime.fromisoformat(str(stored)).replace(tzinfo=UTC)


def test_the_key_of_the_settings_is_added_replaced_and_refused_when_revoked(home: Home) -> None:
    secret = home.path / "key"
    secret.write_text(f"{FIRST_KEY.upper()}\n")
    with home.serving(AUTH_CLIENT_KEY_FILE=str(secret), AUTH_CLIENT_REGISTRATION="closed") as one:
        assert one.ask("/api/roles", FIRST_KEY).status_code == 200
        assert one.ask("/api/roles", SECOND_KEY).status_code == 401
        assert "authsvc tenants create NAME" in one.printed
        assert '"AUTH_CLIENT_KEY": "AUTH_CLIENT_KEY_FILE"' in one.printed
    assert key_end(home.database, FIRST_KEY) is None

    with home.serving(AUTH_CLIENT_KEY=SECOND_KEY, AUTH_CLIENT_REGISTRATION="closed") as other:
        assert other.ask("/api/roles", SECOND_KEY).status_code == 200
        assert other.ask("/api/roles", FIRST_KEY).status_code == 200
    end = key_end(home.database, FIRST_KEY)
    assert end is not None
    assert datetime.now(UTC) < end <= datetime.now(UTC) + timedelta(days=1)
    assert key_end(home.database, SECOND_KEY) is None

    rows(home.database, "UPDATE client_key SET revoked_at = created_at")
    done = home.run("serve", AUTH_CLIENT_KEY=SECOND_KEY, AUTH_SERVER_PORT=str(free_port()))
    assert done.status == 78
    assert "AUTH_CLIENT_KEY" in done.sentence
    assert "revoked" in done.sentence


# Schema and tenants


def test_migrate_can_be_repeated(home: Home) -> None:
    first = home.json("migrate")
    assert first["before"] is None
    assert first["after"]
    assert home.database.stat().st_mode & 0o777 == 0o600
    asked = home.run_all("migrate", "migrate --json", "migrate --grant-to somebody")
    plain, again, refused = asked.values()
    assert (plain.status, plain.err) == (0, "")
    assert plain.out == f"The SQLite file {home.database} is already at schema {first['after']}.\n"
    assert json.loads(again.out) == first | {"before": first["after"]}
    assert refused.status == 78
    assert "PostgreSQL" in refused.sentence


def test_a_database_newer_than_the_code_is_one_sentence(home: Home, sqlite_template: Path) -> None:
    shutil.copyfile(sqlite_template, home.database)
    home.database.chmod(0o600)
    rows(home.database, "UPDATE alembic_version SET version_num = 'f00000000000'")
    for done in home.run_all("serve", "tenants list").values():
        assert done.status == 3
        assert "f00000000000" in done.sentence
        assert "newer authsvc" in done.sentence


def test_a_damaged_database_is_one_sentence(home: Home) -> None:
    home.database.write_bytes(b"this is not a database" * 1000)
    home.database.chmod(0o600)
    for done in home.run_all("serve", "tenants list").values():
        assert done.status == 74
        assert str(home.database) in done.sentence


def test_tenants_are_made_beside_a_running_server(served: tuple[Home, Serving]) -> None:
    home, server = served
    name = f"acme-{uuid.uuid4()}"
    done = home.run("tenants", "create", name)
    assert (done.status, done.err) == (0, "")
    key = next(line.strip() for line in done.out.splitlines() if line.startswith("    "))
    made = server.ask("/api/role/admin", key, "POST")
    assert made.status_code == 200, made.text

    other = home.json("tenants", "create", "other")
    assert sorted(other) == ["key", "key_id", "name", "tenant"]
    assert (
        server.ask("/api/roles", other["key"]).json()["data"]
        == server.ask("/api/roles", str(uuid.uuid4())).json()["data"]
    )

    asked = home.run_all(
        "tenants create other",
        "tenants create no/name",
        "tenants list",
        "tenants list --json",
    )
    taken, unnamable, text, listing = asked.values()
    assert (taken.status, unnamable.status) == (1, 78)
    assert "'other'" in taken.sentence
    assert "'no/name'" in unnamable.sentence
    listed = {row["name"]: row for row in json.loads(listing.out)}
    assert listed.keys() >= {name, "other"}
    assert listed["other"]["tenant"] == other["tenant"]
    assert listed[name]["revision"] == listed["other"]["revision"] + 1
    assert name in text.out
    assert key not in text.out + listing.out


def test_tenants_without_a_database(home: Home) -> None:
    done = home.run("tenants", "list")
    assert done.status == 3
    assert "authsvc serve" in done.sentence
    assert not home.database.exists()


# PostgreSQL


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[PostgresServer]:
    """A server that these tests may kill."""
    server = PostgresServer(private=True)
    server.start()
    server.create_role("service", PASSWORD)
    yield server
    server.stop()


@dataclass
class OnPostgres:
    """A home whose settings name a migrated database, as the service's role."""

    home: Home
    server: PostgresServer


@pytest.fixture(scope="module")
def on_postgres(
    own_postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory
) -> OnPostgres:
    """A PostgreSQL database brought up as documented, from empty."""
    server = own_postgres
    server.create_database("auth")
    folder = tmp_path_factory.mktemp("postgresql")
    (folder / "password").write_text(f"{PASSWORD}\n")
    where = f"{server.host}:{server.port}/auth?sslmode=require"
    home = Home(
        folder,
        {
            "AUTH_POSTGRESQL_URL": f"postgresql://service@{where}",
            "AUTH_POSTGRESQL_PASSWORD_FILE": str(folder / "password"),
            "AUTH_CLIENT_KEY": FIRST_KEY,
        },
    )
    for done in home.run_all("serve", "tenants list").values():
        assert done.status == 3
        assert "run 'authsvc migrate' first" in done.sentence

    owner = Home(folder, {"AUTH_DATABASE_URL": f"postgresql://postgres@{where}"})
    made = owner.json("migrate", "--grant-to", "service")
    assert made["granted_to"] == "service"
    assert made["before"] is None
    return OnPostgres(home, server)


def test_two_workers_serve_one_postgresql(on_postgres: OnPostgres) -> None:
    home = on_postgres.home
    with home.serving(AUTH_WORKERS="2") as server:
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        assert len(children.read_text().split()) >= 2
        for path in ("role/admin", "permission/admin/deploy", "membership/alice/admin"):
            written = server.ask_until_known(f"/api/{path}", FIRST_KEY, "POST")
            assert written.status_code == 200, written.text
        for _ in range(10):
            # A connection of its own each time, so that both workers are asked.
            with httpx.Client(trust_env=False, timeout=PATIENCE_SECONDS) as http:
                asked = Serving(server.process, server.url, server.log, http)
                answer = asked.ask_until_known("/api/has_permission/alice/deploy", FIRST_KEY)
            assert answer.status_code == 200
            assert answer.json()["data"] == {"has_permission": True}
        unknown = server.ask_until_known("/api/role/x", str(uuid.uuid4()), "POST")
        assert unknown.status_code == 401
        assert home.json("tenants", "list")[0]["name"] == "default"


def test_postgresql_stopped_while_serving(on_postgres: OnPostgres) -> None:
    home, postgres = on_postgres.home, on_postgres.server
    with home.serving() as server:
        assert server.ask_until_known("/api/roles", FIRST_KEY).status_code == 200
        postgres.kill()
        try:
            for method, path in (
                ("GET", "/api/roles"),
                ("GET", "/api/has_permission/alice/deploy"),
                ("POST", "/api/role/late"),
            ):
                refused = server.ask(path, FIRST_KEY, method)
                assert refused.status_code == 503, refused.text
                assert int(refused.headers["retry-after"]) >= 1
                body = refused.json()
                assert sorted(body) == [
                    "code",
                    "details",
                    "error",
                    "message",
                    "request_id",
                    "success",
                    "timestamp",
                ]
                assert (body["success"], body["code"]) == (False, 503)
                assert body["error"] == "storage_unavailable"
            assert server.ask("/health/live").status_code == 200
            ready = server.ask("/health/ready")
            assert ready.status_code == 503
            assert ready.headers["retry-after"] == "1"
            assert ready.json()["status"] == "not_ready"
            assert ready.json()["reasons"]
            assert server.ask("/health").status_code == 503

            for done in home.run_all("serve", "tenants list").values():
                assert done.status == 69
                assert "cannot be reached" in done.sentence
        finally:
            postgres.start()
        eventually(lambda: answers(server), "the service recovers by itself")
        assert server.ask_until_known("/api/role/late", FIRST_KEY, "POST").status_code == 200


def test_a_wrong_password_is_one_sentence(on_postgres: OnPostgres) -> None:
    wrong = on_postgres.home.path / "wrong"
    wrong.write_text(f"{PASSWORD}x")
    done = on_postgres.home.run("serve", AUTH_POSTGRESQL_PASSWORD_FILE=str(wrong))
    assert done.status in (3, 69)
    assert done.sentence


# The operator's commands beside a running server


@pytest.fixture
def beside(engine: str, request: pytest.FixtureRequest) -> Iterator[tuple[Home, Serving]]:
    """A server that runs on either kind of database, and the home of the commands beside it."""
    if engine == "sqlite":
        found: tuple[Home, Serving] = request.getfixturevalue("served")
        yield found
    else:
        home: Home = request.getfixturevalue("on_postgres").home
        with home.serving() as server:
            yield home, server


def test_keys_are_looked_after_beside_a_running_server(beside: tuple[Home, Serving]) -> None:
    home, server = beside
    name = f"acme-{uuid.uuid4()}"
    first = home.json("tenants", "create", name)

    def status(key: str, path: str = "/api/keys", method: str = "GET") -> int:
        return server.ask_until_known(path, key, method).status_code

    assert status(first["key"]) == 200
    issued = home.json("keys", "issue", "--tenant", name, "--label", "web", "--scope", "check")
    assert status(issued["key"], "/api/has_permission/alice/deploy") == 200
    assert status(issued["key"]) == 403
    rotated = home.json("keys", "rotate", issued["key_id"], "--tenant", name, "--overlap", "0")
    assert (rotated["label"], rotated["scopes"]) == ("web", ["check"])
    assert status(issued["key"], "/api/has_permission/alice/deploy") == 401
    assert status(rotated["key"], "/api/has_permission/alice/deploy") == 200
    gone = home.json("keys", "revoke", rotated["key_id"], "--tenant", name)
    assert gone == {"key_id": rotated["key_id"], "tenant": name, "revoked": True}
    assert status(rotated["key"], "/api/has_permission/alice/deploy") == 401

    text = home.run("keys", "issue", "--tenant", name, "--days", "30")
    key = next(line.strip() for line in text.out.splitlines() if line.startswith("    "))
    assert status(key) == 200
    asked = home.run_all(
        f"keys list --tenant {name}",
        f"keys list --tenant {name} --json",
        f"keys issue --tenant {name} --scope all",
        f"keys revoke key_none --tenant {name}",
        f"keys rotate {issued['key_id']} --tenant {name}",
        "keys list --tenant nobody",
    )
    shown, listing, *refused = asked.values()
    header, *lines = shown.out.splitlines()
    assert header.split() == ["KEY_ID", "LABEL", "SCOPES", "MADE", "ENDS", "LAST", "USED", "STATE"]
    assert [line.split()[-1] for line in lines] == ["active", "revoked", "revoked", "active"]
    assert [row["label"] for row in json.loads(listing.out)] == ["first key", "web", "web", ""]
    for secret in (first["key"], issued["key"], rotated["key"], key):
        assert secret not in shown.out + listing.out
    assert [done.status for done in refused] == [78, 1, 1, 1]
    assert all(done.sentence for done in refused)

    # The last key that can administer the tenant.
    by_id = {row["key_id"]: row for row in json.loads(listing.out)}
    [last] = [row["key_id"] for row in by_id.values() if row["expires_at"] and row["label"] == ""]
    assert home.run("keys", "revoke", first["key_id"], "--tenant", name).status == 1
    done = home.run("keys", "revoke", first["key_id"], "--tenant", name, "--even-last")
    assert done.status == 0
    assert "warning" in done.err
    assert status(first["key"]) == 401
    assert home.run("keys", "revoke", last, "--tenant", name).status == 1
    assert status(key) == 200


def test_tenants_are_disabled_and_erased_beside_a_running_server(
    beside: tuple[Home, Serving],
) -> None:
    home, server = beside
    name = f"acme-{uuid.uuid4()}"
    key = home.json("tenants", "create", name)["key"]
    other = home.json("tenants", "create", f"other-{uuid.uuid4()}")["key"]
    for path in ("role/ops", "permission/ops/deploy", "membership/alice/ops"):
        for one in (key, other):
            assert server.ask_until_known(f"/api/{path}", one, "POST").status_code == 200

    def asked(one: str = key) -> tuple[int, Any]:
        answer = server.ask_until_known("/api/has_permission/alice/deploy", one)
        body = answer.json()
        return answer.status_code, body["error"] if "error" in body else body["data"]

    may = (200, {"has_permission": True})
    assert [asked() for _ in range(3)] == [may] * 3
    changed = {"name": name, "disabled": True, "changed": True}
    assert home.json("tenants", "disable", name) == changed
    assert asked() == (403, "tenant_disabled")
    assert home.json("tenants", "disable", name) == changed | {"changed": False}
    assert re.search(rf"^{name} .* disabled$", home.run("tenants", "list").out, re.MULTILINE)
    assert "enabled" in home.run("tenants", "enable", name).out
    assert asked() == may

    for confirmed in ((), ("--yes", "other")):
        refused = home.run("tenants", "erase", name, *confirmed)
        assert refused.status == 78
        assert "--yes" in refused.sentence
    assert asked() == may
    owner = home
    if "AUTH_POSTGRESQL_URL" in home.settings:
        # The service's own role takes nothing away.
        refused = home.run("tenants", "erase", name, "--yes", name)
        assert refused.status == 3
        assert "owner of the tables" in refused.sentence
        assert asked() == may
        url = home.settings["AUTH_POSTGRESQL_URL"].replace("//service@", "//postgres@")
        owner = Home(home.path, {"AUTH_DATABASE_URL": url})
    erased = owner.json("tenants", "erase", name, "--yes", name)
    assert erased["rows"] >= 11
    if "AUTH_CLIENT_KEY" in home.settings:
        assert asked() == (401, "unauthorized")
    else:
        # With open registration what is not known is an empty tenant.
        assert asked() == (200, {"has_permission": False})
    assert asked(other) == may
    assert name not in home.run("tenants", "list").out
    assert owner.run("tenants", "erase", name, "--yes", name).status == 1
