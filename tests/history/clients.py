"""The clients of a history: what they do is drawn at random, and all of it is written down.

    python -m history.clients PLAN

PLAN is a JSON file (``Plan``). Each client is a task with a connection of its own to every server,
and has one request under way at a time. With ``file`` the clients are commands beside the server
of an SQLite file instead: they write through services.changes, with connections of their own.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import uvloop

from authsvc.clock import system_clock
from authsvc.credentials import digest_of
from authsvc.database import Database
from authsvc.errors import AuthsvcError, OutcomeUnknown, Unavailable
from authsvc.records import Change
from authsvc.repositories.tenants import find_credential
from authsvc.services.authentication import resolve
from authsvc.services.changes import Outcome, apply_changes
from history.checker import Operation

USERS = ("ann", "bob", "cem", "dia")
PERMISSIONS = ("doc:read", "doc:write", "deploy", "pay")
"""Sixteen pairs in each tenant, the same in all of them, so that conflicts do happen."""
ROLES = ("r0", "r1", "r2", "r3")
GRANTS = (*PERMISSIONS, "doc:*")
_BATCHES = 0.2
_TOGETHER = 0.75
_HOT = (8, 3, 2, 1)
_PATIENCE_SECONDS = 1.0
_LONG_PATIENCE_SECONDS = 30.0
_AVOIDED_SECONDS = 2.0
_REST_SECONDS = 0.02


@dataclass
class Plan:
    """What one process of clients does.

    ``servers`` and ``keys`` by name, ``until`` in nanoseconds, ``writes`` a share of operations.
    """

    name: str
    servers: dict[str, int]
    keys: dict[str, str]
    clients: list[int]
    seed: int
    until: int
    out: str
    writes: float = 0.25
    file: str = ""


def now() -> int:
    """One clock for every process of the machine, in nanoseconds."""
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME)


def random_changes(rng: random.Random) -> list[Change]:
    """One change, or a few that belong together; roles only inherit from higher ones."""
    role, user = rng.choices(ROLES, _HOT)[0], rng.choices(USERS, _HOT)[0]
    low, high = sorted(rng.sample(ROLES, 2))
    grant = rng.choice(GRANTS)
    kinds: list[tuple[int, Callable[[], list[Change]]]] = [
        (18, lambda: [Change("grant", role=role, permission=grant)]),
        (24, lambda: [Change("revoke", role=role, permission=grant)]),
        (16, lambda: [Change("add_member", user=user, role=role)]),
        (20, lambda: [Change("remove_member", user=user, role=role)]),
        (4, lambda: [Change("add_parent", role=low, parent=high)]),
        (6, lambda: [Change("remove_parent", role=low, parent=high)]),
        (2, lambda: [Change("remove_role", role=role)]),
        (4, lambda: [Change("add_role", role=role)]),
        (4, lambda: [Change("remove_user", user=user)]),
        (6, lambda: [
            Change("remove_member", user=user, role=low), Change("add_role", role=high),
            Change("add_member", user=user, role=high),
        ]),
        (3, lambda: [
            Change("remove_role", role=role), Change("add_role", role=role),
            Change("grant", role=role, permission=grant),
            Change("add_member", user=user, role=role),
        ]),
    ]  # fmt: skip
    return rng.choices([make for _, make in kinds], [weight for weight, _ in kinds])[0]()


def request_of(op: Operation) -> tuple[str, str, Any]:
    """Method, path and body."""
    if op.kind == "check":
        user, permission = op.questions[0]
        return "GET", f"/api/has_permission/{user}/{permission}", None
    if op.kind == "batch":
        asked = [{"user": user, "permission": permission} for user, permission in op.questions]
        return "POST", "/api/check", {"checks": asked}
    if len(op.changes) > 1:
        listed = [{k: v for k, v in asdict(c).items() if v} for c in op.changes]
        return "POST", "/api/changes", {"changes": listed}
    change = op.changes[0]
    method = "POST" if change.op.startswith(("add_", "grant")) else "DELETE"
    path = {
        "add_role": f"role/{change.role}",
        "grant": f"permission/{change.role}/{change.permission}",
        "add_member": f"membership/{change.user}/{change.role}",
        "add_parent": f"role/{change.role}/parent/{change.parent}",
        "remove_user": f"user/{change.user}",
    }
    path |= {
        "remove_role": path["add_role"],
        "revoke": path["grant"],
        "remove_member": path["add_member"],
        "remove_parent": path["add_parent"],
    }
    return method, f"/api/{path[change.op]}", None


def answered(op: Operation, status: int, body: dict[str, Any]) -> Operation:
    """The operation with what was answered."""
    at = now()
    if status != 200:
        error = str(body.get("error", ""))
        unknown = error == "outcome_unknown"
        return replace(
            op, t_return=at, status=status, error=error,
            outcome="unknown" if unknown else "refused",
        )  # fmt: skip
    data = body["data"]
    answer: list[bool] = []
    effects = 0
    if op.kind == "check":
        answer = [data["has_permission"]]
    elif op.kind == "batch":
        answer = data["results"]
    elif len(op.changes) > 1:
        effects = data["applied"]
    elif op.changes[0].op == "remove_user":
        effects = int(data["memberships_removed"] > 0)
    else:
        effects = int(any(data.get(k) for k in ("created", "granted", "added", "removed")))
    return replace(
        op, t_return=at, outcome="ok", status=200, answer=tuple(answer), effects=effects,
        revision=body["revision"],
    )  # fmt: skip


class Connection:
    """One keep-alive connection to one server, opened when it is needed."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None
        self.avoided_until = 0

    async def ask(self, op: Operation, key: str, patience: float) -> Operation:
        """Send the request; no answer, or half of one, is an unknown outcome."""
        try:
            async with asyncio.timeout(patience):
                return answered(op, *await self._exchange(op, key))
        except ConnectionRefusedError:
            self._drop()
            return replace(op, t_return=now(), outcome="refused", status=0, error="refused")
        except (OSError, EOFError, TimeoutError) as error:
            if isinstance(error, TimeoutError):
                self.avoided_until = now() + int(_AVOIDED_SECONDS * 1e9)
            self._drop()
            return replace(op, status=0, error=type(error).__name__)

    async def _exchange(self, op: Operation, key: str) -> tuple[int, dict[str, Any]]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        method, path, body = request_of(op)
        sent = b"" if body is None else json.dumps(body).encode()
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {key}\r\n"
            f"X-Request-ID: {op.op_id}\r\n"
        )
        if body is not None:
            head += f"Content-Type: application/json\r\nContent-Length: {len(sent)}\r\n"
        writer.write(head.encode() + b"\r\n" + sent)
        lines = (await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")
        names = dict(line.lower().split(b": ", 1) for line in lines[1:] if b": " in line)
        content = await reader.readexactly(int(names[b"content-length"]))
        return int(lines[0].split()[1]), json.loads(content)

    def _drop(self) -> None:
        if self._streams is not None:
            self._streams[1].close()
        self._streams = None

    def close(self) -> None:
        """Close it."""
        self._drop()


class Client:
    """One task: an operation, its answer, the next one. Every fourth client waits very long."""

    def __init__(self, plan: Plan, number: int, record: Callable[[Operation], None]) -> None:
        self._plan = plan
        self._number = number
        self._record = record
        self._rng = random.Random(f"{plan.seed}-{number}")
        self._count = 0
        self._connections = {name: Connection(port) for name, port in plan.servers.items()}
        self._patience = _PATIENCE_SECONDS if number % 4 else _LONG_PATIENCE_SECONDS

    def new(self, **what: Any) -> Operation:
        """An operation that begins now."""
        self._count += 1
        return Operation(
            f"{self._plan.name}-{self._number}-{self._count}", self._number,
            t_invoke=now(), t_return=None, outcome="unknown", **what,
        )  # fmt: skip

    async def run(self) -> None:
        """Work until the plan's end, then ask every server about everything once more."""
        while now() < self._plan.until:
            name = self._pick()
            tenant = self._tenant()
            op = await self._send(name, tenant, self._draw())
            if op.outcome != "ok" and op.status != 404:
                await asyncio.sleep(_REST_SECONDS)
            elif op.kind == "write" and self._rng.random() < 0.5:
                # The one who wrote asks another server about it.
                pairs = self._about(op.changes[0])
                await self._send(self._pick(), tenant, {"kind": "check", "questions": (pairs,)})
        everything = tuple((user, permission) for user in USERS for permission in PERMISSIONS)
        self._patience = _LONG_PATIENCE_SECONDS
        for name in self._connections:
            for tenant in self._plan.keys:
                await self._send(name, tenant, {"kind": "batch", "questions": everything})
        for connection in self._connections.values():
            connection.close()

    def _tenant(self) -> str:
        """Mostly the one that everybody works on during this second."""
        names = sorted(self._plan.keys)
        if self._rng.random() < _TOGETHER:
            return names[now() // 1_000_000_000 % len(names)]
        return self._rng.choice(names)

    def _pick(self) -> str:
        instant = now()
        names = [n for n, c in self._connections.items() if c.avoided_until < instant]
        return self._rng.choice(names or list(self._connections))

    async def _send(self, name: str, tenant: str, what: dict[str, Any]) -> Operation:
        op = self.new(server=name, tenant=tenant, **what)
        op = await self._connections[name].ask(op, self._plan.keys[tenant], self._patience)
        self._record(op)
        return op

    def _pair(self) -> tuple[str, str]:
        return self._rng.choices(USERS, _HOT)[0], self._rng.choice(PERMISSIONS)

    def _about(self, change: Change) -> tuple[str, str]:
        permission = change.permission if change.permission in PERMISSIONS else ""
        return (
            change.user or self._rng.choice(USERS),
            permission or self._rng.choice(PERMISSIONS),
        )

    def _draw(self) -> dict[str, Any]:
        if self._rng.random() < self._plan.writes:
            return {"kind": "write", "changes": tuple(random_changes(self._rng))}
        if self._rng.random() >= _BATCHES:
            return {"kind": "check", "questions": (self._pair(),)}
        count = self._rng.randint(2, 6)
        return {"kind": "batch", "questions": tuple(self._pair() for _ in range(count))}


class Command(Client):
    """A client that is a command: it writes to the file itself, beside the server."""

    def __init__(
        self, plan: Plan, number: int, record: Callable[[Operation], None], database: Database
    ) -> None:
        super().__init__(plan, number, record)
        self._database = database

    async def run(self) -> None:
        """Write until the plan's end."""
        while now() < self._plan.until:
            tenant = self._tenant()
            changes = tuple(random_changes(self._rng))
            op = self.new(server="command", tenant=tenant, kind="write", changes=changes)
            op = await self._write(op)
            self._record(op)
            await asyncio.sleep(self._rng.uniform(0, _REST_SECONDS))

    async def _write(self, op: Operation) -> Operation:
        digest = digest_of(self._plan.keys[op.tenant])
        try:
            credential = await find_credential(self._database, digest)
            caller = resolve(credential, digest, system_clock(), registration_open=False)
            caller = replace(caller, request_id=op.op_id)
            outcome: Outcome = await self._database.write(
                caller.tenant_id, lambda tx: apply_changes(tx, caller, op.changes, system_clock)
            )
        except OutcomeUnknown as error:
            return replace(op, t_return=now(), status=503, error=error.code)
        except AuthsvcError as error:
            status = 503 if isinstance(error, Unavailable) else 404
            return replace(op, t_return=now(), status=status, error=error.code, outcome="refused")
        return replace(
            op, t_return=now(), outcome="ok", effects=outcome.applied,
            revision=outcome.stamp.revision,
        )  # fmt: skip


async def run(plan: Plan, record: Callable[[Operation], None]) -> None:
    """All clients of a plan, to its end."""
    if not plan.file:
        await asyncio.gather(*(Client(plan, number, record).run() for number in plan.clients))
        return
    database = Database.sqlite(Path(plan.file), beside_server=True)
    try:
        commands = (Command(plan, number, record, database) for number in plan.clients)
        await asyncio.gather(*(command.run() for command in commands))
    finally:
        await database.dispose()


def main() -> None:
    """Run from the command line."""
    plan = Plan(**json.loads(Path(sys.argv[1]).read_text()))
    with open(plan.out, "w") as out:

        def record(op: Operation) -> None:
            out.write(json.dumps(op.as_json()) + "\n")

        uvloop.run(run(plan, record))


if __name__ == "__main__":
    main()
