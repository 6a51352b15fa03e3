"""Load two servers, disturb them in the middle, and check the recorded history.

    PYTHONPATH=tests python -m history.run [--engine postgresql|sqlite] [--seconds N]
        [--nemesis none|slow|terminate|restart|pause]

On a private PostgreSQL two servers of one worker each are asked by eight clients in two processes.
On SQLite one server is asked by four clients while two commands write beside it. A line says what
came of it; anything but 0 violations makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import http.client
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from uuid import UUID

from authsvc import migrations
from authsvc.audit_chain import read_payload
from authsvc.clock import system_clock
from authsvc.database import Database
from authsvc.postgresql_url import parse_postgresql_url
from authsvc.services.tenants import create_tenant
from authsvc.sqlite_file import prepare_file
from history.checker import Event, Operation, Violation, check
from history.clients import Plan, now
from replay import stored_events, violations
from services import PostgresServer

TENANTS = ("one", "two", "three")
NEMESES = ("none", "slow", "terminate", "restart", "pause")
PAUSE_SECONDS = 10.0
_SLOW_SHARE = 0.05
_SLOWEST_SECONDS = 0.1
_TESTS = Path(__file__).parents[1]
_BIN = Path(sys.executable).parent
_PATIENCE_SECONDS = 60.0
_TERMINATE = (
    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
    " WHERE datname = current_database() AND pid <> pg_backend_pid()"
)


@dataclass(frozen=True, slots=True)
class Report:
    """What a history holds, and what is wrong with it.

    A role that is not there is an answer, so those writes do not count as ``refused``.
    """

    operations: int
    checks: int
    writes: int
    refused: int
    unknown: int
    longest_pause: float
    violations: Sequence[Violation]

    def __str__(self) -> str:
        return (
            f"{self.operations} operations, {self.checks} checks, {self.writes} writes,"
            f" {self.refused} refused, {self.unknown} unknown,"
            f" {len(self.violations)} violations, longest pause {self.longest_pause:.2f} s"
        )


class SlowWay:
    """A way to PostgreSQL on which some answers take long, so that others overtake them.

    On one machine a read is answered before anything else can happen; over a network it is not.
    """

    def __init__(self, port: int) -> None:
        self._to = port
        self._rng = random.Random(1)
        self.port = 0
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._tasks: set[asyncio.Task[None]] = set()

    def start(self) -> None:
        """Listen."""
        self._thread.start()
        self._ready.wait()

    def stop(self) -> None:
        """Close everything."""
        self._loop.call_soon_threadsafe(self._end.set)
        self._thread.join()

    def _run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._listen())

    async def _listen(self) -> None:
        self._end = asyncio.Event()
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._end.wait()
        server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        with contextlib.closing(writer), contextlib.suppress(OSError):
            there, back = await asyncio.open_connection("127.0.0.1", self._to)
            with contextlib.closing(back):
                async with asyncio.TaskGroup() as group:
                    group.create_task(self._pump(reader, back, slow=False))
                    group.create_task(self._pump(there, writer, slow=True))

    async def _pump(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, *, slow: bool
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(1 << 16):
                if slow and self._rng.random() < _SLOW_SHARE:
                    await asyncio.sleep(self._rng.uniform(0, _SLOWEST_SECONDS))
                writer.write(data)
        writer.close()


class World:
    """A database, its servers and its tenants, for as long as the context lasts.

    ``server`` is the command that serves: the product's own unless a fault is planted.
    ``postgres`` is a running server to use instead of one of the world's own,
    ``slow`` puts a ``SlowWay`` between it and the servers.
    """

    def __init__(
        self,
        engine: str,
        server: Sequence[str] = (),
        postgres: PostgresServer | None = None,
        *,
        slow: bool = False,
    ) -> None:
        self._slow = slow
        self.engine = engine
        self._database = f"history_{uuid.uuid4().hex[:8]}"
        self._server = list(server) or [str(_BIN / "authsvc"), "serve"]
        self._stack = contextlib.ExitStack()
        self._environment: dict[str, str] = {}
        self._round = 0
        self.postgres = postgres
        self.file = ""
        self.ports: dict[str, int] = {}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.keys: dict[str, str] = {}
        self.ids: dict[str, UUID] = {}
        self.operations: list[Operation] = []

    def __enter__(self) -> World:
        try:
            self._start()
        except BaseException:
            self._stack.close()
            raise
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def _start(self) -> None:
        self._folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory()))
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(self._folder),
            "PYTHONPATH": str(_TESTS),
            "AUTH_RATE_LIMIT_PROFILE": "off",
        }
        if self.engine == "sqlite":
            self.file = str(self._folder / "history.sqlite3")
            self._environment["AUTH_SQLITE_PATH"] = self.file
        else:
            if self.postgres is None:
                self.postgres = PostgresServer(private=True)
                self._stack.callback(self.postgres.stop)
                self.postgres.start()
            self.postgres.create_database(self._database)
            self._stack.callback(self.postgres.drop_database, self._database)
            self._environment["AUTH_POSTGRESQL_URL"] = self._url
            if self._slow:
                way = SlowWay(self.postgres.port)
                way.start()
                self._stack.callback(way.stop)
                there = f":{self.postgres.port}/"
                self._environment["AUTH_POSTGRESQL_URL"] = self._url.replace(there, f":{way.port}/")
        asyncio.run(self._make())
        for name in ("a",) if self.file else ("a", "b"):
            self._serve(name)
        for name in self.ports:
            self._await_ready(name)

    async def _make(self) -> None:
        if self.file:
            prepare_file(Path(self.file))
        async with self._open() as database:
            await migrations.migrate(database)
            for name in TENANTS:
                work = partial(create_tenant, name=name, now=system_clock(), actor="history")
                made = await database.write(name, work)
                self.keys[name], self.ids[name] = made.key, made.id

    @contextlib.asynccontextmanager
    async def _open(self) -> AsyncIterator[Database]:
        if self.file:
            database = Database.sqlite(Path(self.file), beside_server=True)
        else:
            target = parse_postgresql_url(self._url)
            database = Database.postgresql(target.url, target.connect_args)
        try:
            yield database
        finally:
            await database.dispose()

    @property
    def _url(self) -> str:
        assert self.postgres
        return f"{self.postgres.url(self._database)}?sslmode=disable"

    def _serve(self, name: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.ports[name] = port = free.getsockname()[1]
        log = self._stack.enter_context((self._folder / f"log-{name}").open("wb"))
        process = self.processes[name] = subprocess.Popen(
            self._server,
            env=self._environment | {"AUTH_SERVER_PORT": str(port)},
            cwd=self._folder,
            stdout=log,
            stderr=log,
        )
        self._stack.callback(_end, process)

    def _await_ready(self, name: str) -> None:
        until = time.monotonic() + _PATIENCE_SECONDS
        while time.monotonic() < until:
            if self.processes[name].poll() is not None:
                raise RuntimeError(f"a server ended:\n{self.said(name)}")
            with contextlib.suppress(OSError):
                asked = http.client.HTTPConnection("127.0.0.1", self.ports[name], timeout=5)
                with contextlib.closing(asked):
                    asked.request("GET", "/health/ready")
                    if asked.getresponse().status == 200:
                        return
            time.sleep(0.02)
        raise RuntimeError(f"a server did not get ready:\n{self.said(name)}")

    def said(self, name: str) -> str:
        """The end of what a server printed."""
        return (self._folder / f"log-{name}").read_text()[-4000:]

    def load(self, seconds: float, nemesis: str = "none") -> None:
        """Let the clients work; their operations are added to the history."""
        self._round += 1
        disturbing = threading.Thread(target=self._disturb, args=(seconds, nemesis))
        begun = [self._begin(process, seconds) for process in range(2)]
        disturbing.start()
        try:
            for process, _ in begun:
                process.wait(seconds + 2 * _PATIENCE_SECONDS)
        finally:
            disturbing.join()
        for process, out in begun:
            if process.returncode:
                raise RuntimeError(f"clients ended with {process.returncode}")
            with out.open() as lines:
                self.operations += [Operation.from_json(json.loads(line)) for line in lines]

    def _begin(self, process: int, seconds: float) -> tuple[subprocess.Popen[bytes], Path]:
        name = f"{self._round}{'xy'[process]}"
        out = self._folder / f"history-{name}.jsonl"
        # On SQLite the second process is one of commands, which share one connection to write.
        file = self.file if process else ""
        clients = list(range(process * 4, process * 4 + (2 if file else 4)))
        plan = Plan(
            name, self.ports, self.keys, clients, self._round, now() + int(seconds * 1e9),
            str(out), 0.05 if self.file else 0.25, file,
        )  # fmt: skip
        path = self._folder / f"plan-{name}.json"
        path.write_text(json.dumps(asdict(plan)))
        begun = subprocess.Popen(
            [sys.executable, "-m", "history.clients", str(path)],
            env=self._environment,
            cwd=self._folder,
        )
        self._stack.callback(_end, begun)
        return begun, out

    def _disturb(self, seconds: float, nemesis: str) -> None:
        if nemesis == "pause":
            time.sleep(seconds * 0.25)
            process = self.processes[list(self.processes)[-1]]
            process.send_signal(signal.SIGSTOP)
            time.sleep(min(PAUSE_SECONDS, seconds / 2))
            process.send_signal(signal.SIGCONT)
        elif nemesis == "terminate":
            assert self.postgres
            for _ in range(5):
                time.sleep(seconds / 6)
                self.postgres.execute(_TERMINATE, self._database)
        elif nemesis == "restart":
            assert self.postgres
            time.sleep(seconds * 0.4)
            self.postgres.restart()

    def check(self) -> Report:
        """Check the whole history so far against the tables and the events."""
        events, wrong = asyncio.run(self._stored())
        found = [*wrong, *check(self.operations, events)]
        ops = self.operations
        return Report(
            operations=len(ops),
            checks=sum(len(op.questions) for op in ops),
            writes=sum(op.kind == "write" for op in ops),
            refused=sum(op.outcome == "refused" and op.status != 404 for op in ops),
            unknown=sum(op.outcome == "unknown" for op in ops),
            longest_pause=_longest_pause(ops),
            violations=found,
        )

    async def _stored(self) -> tuple[dict[str, list[Event]], list[Violation]]:
        events: dict[str, list[Event]] = {}
        wrong: list[Violation] = []
        async with self._open() as database:
            for name, tenant_id in self.ids.items():
                async with database.read() as tx:
                    stored = await stored_events(tx, tenant_id)
                    found = await violations(tx, tenant_id)
                events[name] = [Event(event.seq, read_payload(event)) for event in stored]
                wrong += [Violation("C8 reconciliation", f"{name}: {text}") for text in found]
        return events, wrong


def _longest_pause(ops: Sequence[Operation]) -> float:
    """The longest time, in seconds, in which nothing was answered with success."""
    instants = sorted(op.t_return for op in ops if op.outcome == "ok" and op.t_return)
    return max((later - one for one, later in pairwise(instants)), default=0) / 1e9


def _end(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        process.send_signal(signal.SIGCONT)
        process.terminate()
    try:
        process.wait(_PATIENCE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def shown(found: Sequence[Violation], most: int = 3) -> Iterator[str]:
    """The violations in words, those with the fewest operations first, a few of each rule."""
    by_rule: dict[str, list[Violation]] = {}
    for violation in found:
        by_rule.setdefault(violation.rule, []).append(violation)
    for rule, broken in by_rule.items():
        yield f"{rule}: {len(broken)}"
        yield from (str(violation) for violation in sorted(broken, key=_size)[:most])


def _size(violation: Violation) -> tuple[int, int]:
    return len(violation.operations), violation.known_at


def run(engine: str, seconds: float, nemesis: str, say: Callable[[str], None] = print) -> Report:
    """One run from an empty database to a checked history."""
    with World(engine, slow=nemesis == "slow") as world:
        world.load(seconds, nemesis)
        report = world.check()
    say(f"{engine}, {nemesis}, {seconds:g} s: {report}")
    for line in shown(report.violations):
        say(line)
    return report


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--engine", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--seconds", type=float, default=20)
    parser.add_argument("--nemesis", choices=NEMESES, default="none")
    arguments = parser.parse_args()
    if arguments.engine == "sqlite" and arguments.nemesis in ("slow", "terminate", "restart"):
        parser.error("there is no server of SQLite")
    report = run(arguments.engine, arguments.seconds, arguments.nemesis)
    return 1 if report.violations else 0


if __name__ == "__main__":
    sys.exit(main())
