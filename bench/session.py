"""One run of the benchmark: everything is started, measured in turns, and stopped."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from anchors import fill_textbook
from fleet import Engine, Postgresql, Server, Sqlite, anchor, empty_sqlite, resident_mb
from goals import number
from measure import (
    Contender,
    Result,
    Writes,
    anchor_checks,
    batches,
    first_page,
    load,
    memory_mb,
    one_read_ms,
    single_checks,
    start_seconds,
    warm,
)

MANY = 32
WRITERS = 8


@dataclass(frozen=True, slots=True)
class Extent:
    """How much is measured; the second size is the one that goals are measured with."""

    rounds: int
    seconds: float
    sizes: list[int]
    starts: int


QUICK = Extent(1, 1.0, [1_000, 10_000], 1)
USUAL = Extent(3, 2.0, [1_000, 100_000], 3)
FULL = Extent(5, 3.0, [1_000, 100_000, 1_000_000], 5)


@dataclass(slots=True)
class Found:
    """Everything that was measured, a list of rounds each."""

    checks: dict[tuple[str, int], list[Result]] = field(default_factory=dict)
    batches: dict[str, list[Result]] = field(default_factory=dict)
    writes: dict[str, list[Result]] = field(default_factory=dict)
    lists: dict[str, list[Result]] = field(default_factory=dict)
    first: dict[str, Result] = field(default_factory=dict)
    pages: dict[str, Result] = field(default_factory=dict)
    reads_ms: list[float] = field(default_factory=list)
    starts: dict[str, float] = field(default_factory=dict)
    resident: dict[str, float] = field(default_factory=dict)
    memory: float | None = None

    def ratio(
        self, over: str, under: str, connections: int, of: Callable[[Result], float]
    ) -> float:
        """The median over the rounds of one contender's figure by another's."""
        pairs = zip(self.checks[over, connections], self.checks[under, connections], strict=True)
        return median(of(one) / of(other) for one, other in pairs)


def cpu(result: Result) -> float:
    """For ``Found.ratio``."""
    return result.cpu_us


def p50(result: Result) -> float:
    """For ``Found.ratio``."""
    return result.p50_ms


def p99(result: Result) -> float:
    """For ``Found.ratio``."""
    return result.p99_ms


def contender_name(engine: str, users: int) -> str:
    """How a contender is called in the tables."""
    return f"authsvc, {engine}, {number(users)} users"


class Run:
    """One run: everything is started, measured and stopped."""

    def __init__(self, extent: Extent, folder: Path, stack: contextlib.ExitStack) -> None:
        self._extent = extent
        self._folder = folder
        self._stack = stack
        self._began = time.monotonic()
        self._sizes = [str(size) for size in extent.sizes]
        self.found = Found()
        self.sqlite = Sqlite(folder / "sqlite")
        self.postgresql = Postgresql(folder / "postgresql")
        stack.callback(self.postgresql.close)

    @property
    def goal_size(self) -> str:
        """The tenant that goals are measured with."""
        return self._sizes[1]

    def all(self) -> Found:
        """Every measurement in its order; those that write come last."""
        engines: list[Engine] = [self.sqlite, self.postgresql]
        for engine in engines:
            self._say(f"filling {engine.name}")
            engine.fill(self._extent.sizes)
        self.postgresql.settle()
        self._say("starts")
        self._starts()
        largest = self.sqlite.tenants[self._sizes[-1]]
        if largest.users >= 1_000_000:
            self._say("memory")
            self.found.memory = memory_mb(self._roomy, largest)
        servers = {engine.name: self._served(engine.serve()) for engine in engines}
        contenders = [*self._anchors(), *self._services(servers)]
        for turn in range(self._extent.rounds):
            self._say(f"single checks, round {turn + 1} of {self._extent.rounds}")
            self._checks(contenders)
            self._batches(servers)
        for engine in engines:
            self._say(f"first checks and lists, {engine.name}")
            self._reads(engine, servers[engine.name])
        for contender in contenders:
            self.found.resident[contender.name] = resident_mb(contender.server.pid)
        writes = Writes()
        for turn in range(self._extent.rounds):
            self._say(f"writes, round {turn + 1} of {self._extent.rounds}")
            for engine in engines:
                self._writes(engine, servers[engine.name], writes)
        self._say("done")
        return self.found

    def _say(self, what: str) -> None:
        print(f"{time.monotonic() - self._began:6.1f} s  {what}", file=sys.stderr, flush=True)

    def _served(self, server: Server) -> Server:
        self._stack.callback(server.stop)
        return server

    def _roomy(self) -> Server:
        return self.sqlite.serve(AUTH_CACHE_MB="2048")

    def _starts(self) -> None:
        times = self._extent.starts
        empty = self._folder / "empty"
        self.found.starts["empty"] = start_seconds(lambda: empty_sqlite(empty), times)
        for engine in (self.sqlite, self.postgresql):
            self.found.starts[engine.name] = start_seconds(engine.serve, times)

    def _anchors(self) -> list[Contender]:
        users = [f"user-{number:08}" for number in range(1000)]
        file = self._folder / "textbook.sqlite3"
        fill_textbook(file, users, 10, "area-1:read")
        made = []
        for name, permissions in (
            ("bare", {"area-1:read": True}),
            ("fastapi", {"area-1:read": True}),
            ("textbook", {"area-1:read": True, "area-2:read": False}),
        ):
            server = self._served(anchor(name, self._folder, file))
            made.append(Contender(name, server, anchor_checks(server, users, permissions)))
        return made

    def _services(self, servers: dict[str, Server]) -> list[Contender]:
        made = []
        for engine in (self.sqlite, self.postgresql):
            server = servers[engine.name]
            for size in self._sizes:
                tenant = engine.tenants[size]
                warm(server, tenant)
                name = contender_name(engine.name, tenant.users)
                made.append(Contender(name, server, single_checks(server, tenant)))
        return made

    def _checks(self, contenders: list[Contender]) -> None:
        for connections in (1, MANY):
            for one in contenders:
                result = load(
                    one.server, one.requests, connections=connections, seconds=self._extent.seconds
                )
                self.found.checks.setdefault((one.name, connections), []).append(result)
        tenant = self.postgresql.tenants[self.goal_size]
        self.found.reads_ms.append(one_read_ms(self.postgresql, tenant))

    def _batches(self, servers: dict[str, Server]) -> None:
        for engine in (self.sqlite, self.postgresql):
            server = servers[engine.name]
            asked = batches(server, engine.tenants[self.goal_size])
            result = load(server, asked, connections=4, seconds=self._extent.seconds)
            self.found.batches.setdefault(engine.name, []).append(result)

    def _reads(self, engine: Engine, server: Server) -> None:
        tenant = engine.tenants[self._sizes[-1]]
        asked = single_checks(server, tenant, unasked=True)
        self.found.first[engine.name] = load(
            server, asked, connections=1, seconds=60, warm_up=0, once=True
        )
        self.found.pages[engine.name] = first_page(server, tenant, self._extent.seconds)

    def _writes(self, engine: Engine, server: Server, writes: Writes) -> None:
        tenant = engine.tenants["writes"]
        seconds = self._extent.seconds
        asked = writes.single(server, tenant, int(5000 * seconds))
        result = load(server, asked, connections=WRITERS, seconds=seconds, warm_up=0, once=True)
        self.found.writes.setdefault(engine.name, []).append(result)
        asked = writes.lists(server, tenant, 1)
        result = load(server, asked, connections=1, seconds=600, warm_up=0, once=True)
        self.found.lists.setdefault(engine.name, []).append(result)
