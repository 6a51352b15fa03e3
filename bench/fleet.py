"""The servers that are measured: started on the first core, everything else on the second."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg

from people import policy, rows

BENCH = Path(__file__).parent
sys.path.insert(0, str(BENCH.parent / "tests"))

_BIN = Path(sys.executable).parent
_PATIENCE_SECONDS = 120.0
_EMPTY_KEY = "00000000-0000-4000-8000-000000000000"

_usable = sorted(os.sched_getaffinity(0))
FIRST_CORE, SECOND_CORE = _usable[0], _usable[-1]


def rest_on_second_core() -> None:
    """Leave the first core to the server that is measured; children inherit this."""
    os.sched_setaffinity(0, {SECOND_CORE})


def resident_mb(pid: int) -> float:
    """The memory a process holds."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"process {pid} has no memory")


@dataclass(frozen=True, slots=True)
class Tenant:
    """A tenant with so many users, and the key it is asked with."""

    id: UUID
    key: str
    users: int


# Every request is counted, as everywhere, and none is refused.
_COUNTED = {
    f"AUTH_RATE_LIMIT_{budget}": "1000000000/second" for budget in ("CHECK", "READ", "WRITE")
}


class Server:
    """A process on the first core that answers HTTP on a port of its own."""

    def __init__(self, command: list[str], environment: dict[str, str], ready: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port: int = free.getsockname()[1]
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - closed by stop()
        began = time.perf_counter()
        self._process = subprocess.Popen(
            [word.replace("{port}", str(self.port)) for word in command],
            env=_COUNTED | environment | {"AUTH_SERVER_PORT": str(self.port)},
            cwd=environment.get("HOME"),
            stdout=self._log,
            stderr=subprocess.STDOUT,
            preexec_fn=lambda: os.sched_setaffinity(0, {FIRST_CORE}),
        )
        self.pid = self._process.pid
        try:
            self._await(ready)
        except BaseException:
            self.stop()
            raise
        self.seconds_to_ready = time.perf_counter() - began

    def stop(self) -> None:
        """End the process."""
        self._process.terminate()
        self._process.wait(_PATIENCE_SECONDS)
        self._log.close()

    def ask(self, method: str, path: str, key: str = "", body: Any = None) -> Any:
        """The JSON of an answer that must be a success."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=300)
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        if body is not None:
            headers["Content-Type"] = "application/json"
        sent = None if body is None else json.dumps(body)
        with contextlib.closing(connection):
            connection.request(method, path, sent, headers)
            response = connection.getresponse()
            content = response.read()
        if response.status != 200:
            raise SystemExit(f"{method} {path}: {response.status} {content[:300]!r}")
        return json.loads(content)

    def _await(self, path: str) -> None:
        until = time.perf_counter() + _PATIENCE_SECONDS
        while time.perf_counter() < until:
            if self._process.poll() is not None:
                self._log.seek(0)
                said = self._log.read().decode(errors="replace")[-2000:]
                raise SystemExit(f"a server ended with {self._process.returncode}:\n{said}")
            with contextlib.suppress(OSError, SystemExit):
                self.ask("GET", path)
                return
            time.sleep(0.005)
        raise SystemExit("a server did not get ready")


def anchor(name: str, folder: Path, textbook: Path) -> Server:
    """One application of anchors.py, served by uvicorn as authsvc is."""
    command = [
        str(_BIN / "uvicorn"), f"anchors:{name}", "--app-dir", str(BENCH), "--port", "{port}",
        "--loop", "uvloop", "--http", "httptools", "--no-access-log", "--no-server-header",
        "--log-level", "warning",
    ]  # fmt: skip
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "BENCH_TEXTBOOK": str(textbook),
    }
    return Server(command, environment, "/api/has_permission/nobody/nothing")


class Engine(ABC):
    """authsvc on one engine: a database that is filled first and then served."""

    name = ""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.tenants: dict[str, Tenant] = {}
        self.settings: dict[str, str] = {}

    @abstractmethod
    def variables(self) -> dict[str, str]:
        """The settings that name the database."""

    @abstractmethod
    def write_rows(self, found: Iterable[tuple[UUID, str, int, str]]) -> None:
        """Write memberships past the service: (tenant id, user, role id, scope) in order."""

    @abstractmethod
    def role_ids(self, tenant_id: UUID) -> dict[str, int]:
        """The stored id of each role by its name."""

    def close(self) -> None:  # noqa: B027 - a file needs nothing, and may leave it as it is
        """Give everything up."""

    def fill(self, sizes: list[int]) -> None:
        """Make a tenant for each number of users, and one named ``writes`` to be written to."""
        self.command("migrate")
        for name in (*map(str, sizes), "writes"):
            made = json.loads(self.command("tenants", "create", f"users-{name}", "--json"))
            users = int(name) if name.isdigit() else 0
            self.tenants[name] = Tenant(UUID(made["tenant"]), made["key"], users)
        server = self.serve()
        for tenant in self.tenants.values():
            server.ask("POST", "/api/changes", tenant.key, {"changes": policy()})
        server.stop()
        for tenant in self.tenants.values():
            if tenant.users:
                ids = self.role_ids(tenant.id)
                self.write_rows(
                    (tenant.id, user, role_id, "") for user, role_id in rows(tenant.users, ids)
                )

    def serve(self, **more: str) -> Server:
        """Serve what is there; ``more`` are further settings."""
        return Server([str(_BIN / "authsvc"), "serve"], self._environment() | more, "/health/ready")

    def command(self, *words: str) -> str:
        """What a command of authsvc prints."""
        done = subprocess.run(
            [str(_BIN / "authsvc"), *words],
            env=self._environment(),
            cwd=self.folder,
            capture_output=True,
            text=True,
        )
        if done.returncode:
            raise SystemExit(f"authsvc {' '.join(words)}: {done.stderr}")
        return done.stdout

    def _environment(self) -> dict[str, str]:
        base = {"PATH": os.environ["PATH"], "HOME": str(self.folder)}
        return base | self.settings | self.variables()


class Sqlite(Engine):
    """A file."""

    name = "SQLite"

    @property
    def file(self) -> Path:
        """The database."""
        return self.folder / "bench.sqlite3"

    def variables(self) -> dict[str, str]:
        return {"AUTH_SQLITE_PATH": str(self.file)}

    def role_ids(self, tenant_id: UUID) -> dict[str, int]:
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            found = connection.execute(
                "SELECT name, id FROM role WHERE tenant_id = ?", (tenant_id.bytes,)
            )
            return dict(found.fetchall())

    def write_rows(self, found: Iterable[tuple[UUID, str, int, str]]) -> None:
        with contextlib.closing(sqlite3.connect(self.file)) as connection:
            indexes = connection.execute(
                "SELECT name, sql FROM sqlite_master"
                " WHERE tbl_name = 'membership' AND type = 'index' AND sql IS NOT NULL"
            ).fetchall()
            for name, _ in indexes:
                connection.execute(f'DROP INDEX "{name}"')
            connection.executemany(
                "INSERT INTO membership (tenant_id, user_id, role_id, scope) VALUES (?, ?, ?, ?)",
                ((tenant.bytes, user, role_id, scope) for tenant, user, role_id, scope in found),
            )
            for _, sql in indexes:
                connection.execute(sql)
            connection.commit()
            connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")


class Postgresql(Engine):
    """A private server on the second core that, unlike the tests', waits for the disk."""

    name = "PostgreSQL"

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        from services import PostgresServer

        self._server = PostgresServer(private=True)
        self._server.start()
        for setting in ("fsync", "full_page_writes", "synchronous_commit"):
            self._server.execute(f"ALTER SYSTEM SET {setting} = on")
        # What the data set leaves behind must not be written while something is measured.
        self._server.execute("ALTER SYSTEM SET max_wal_size = '8GB'")
        self._server.execute("ALTER SYSTEM SET shared_buffers = '512MB'")
        self._server.restart()
        self._server.create_database("bench")

    @property
    def url(self) -> str:
        """Where it is, without TLS."""
        return f"{self._server.url('bench')}?sslmode=disable"

    def variables(self) -> dict[str, str]:
        return {"AUTH_POSTGRESQL_URL": self.url}

    def role_ids(self, tenant_id: UUID) -> dict[str, int]:
        sql = f"SELECT name, id FROM role WHERE tenant_id = '{tenant_id}'"
        return dict(self._server.fetch(sql, "bench"))

    def write_rows(self, found: Iterable[tuple[UUID, str, int, str]]) -> None:
        asyncio.run(self._copy(found))

    async def _copy(self, found: Iterable[tuple[UUID, str, int, str]]) -> None:
        connection = await asyncpg.connect(self.url)
        # The rows are right by construction; looking each role up again takes minutes.
        await connection.execute("SET session_replication_role = replica")
        columns = ["tenant_id", "user_id", "role_id", "scope"]
        await connection.copy_records_to_table("membership", records=found, columns=columns)
        await connection.close()

    def settle(self) -> None:
        """Statistics, and everything on the disk."""
        self._server.execute("VACUUM ANALYZE membership", "bench")
        self._server.execute("CHECKPOINT", "bench")

    def version(self) -> str:
        """The server's version."""
        return str(self._server.fetch("SHOW server_version")[0][0])

    def close(self) -> None:
        self._server.stop()


def empty_sqlite(folder: Path) -> Server:
    """authsvc on a file that it has yet to make."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "AUTH_SQLITE_PATH": str(folder / "empty.sqlite3"),
        "AUTH_CLIENT_KEY": _EMPTY_KEY,
    }
    return Server([str(_BIN / "authsvc"), "serve"], environment, "/health/ready")
