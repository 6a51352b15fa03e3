"""Would a broken build be noticed? Each of these has one fault, and has to be caught.

    PYTHONPATH=tests python -m history.faults [FAULT ...] [--seconds N]
    PYTHONPATH=tests python -m history.faults --serve FAULT

The product has no switch for any of this: ``--serve`` replaces a piece of it, in the process that
is about to serve, and then is ``authsvc serve``. A fault that is not caught in time makes the exit
status 1.
"""

from __future__ import annotations

import argparse
import random
import sqlite3
import sys
import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from authsvc.api.check_path import CheckPath
from authsvc.decision_cache import TenantState
from authsvc.errors import Unavailable
from authsvc.records import Stamp
from authsvc.repositories.policy import load_policy
from authsvc.repositories.policy_statements import Load
from authsvc.revision_gate import Now, PostgresGate, SqliteGate
from authsvc.services.current_state import CurrentState
from history.run import World, shown

_FROZEN_SECONDS = 0.2
_FORGOTTEN_SHARE = 0.05
_ROUNDS = (4.0, 8.0, 16.0, 32.0)


def _join_running_read() -> None:
    """Whoever asks while the gate reads is served by that read, which began before the question."""
    answer = PostgresGate._answer

    def joined(self: PostgresGate, waiters: list[Any], rows: list[Any], number: int) -> None:
        read = {row[0] for row in rows}
        waiters += [waiter for waiter in self._waiting if waiter[0] in read]
        self._waiting = [waiter for waiter in self._waiting if waiter[0] not in read]
        answer(self, waiters, rows, number)

    PostgresGate._answer = joined  # type: ignore[method-assign]


def _install_older_loads() -> None:
    """A load that a newer revision has overtaken is remembered as if it were of that revision."""

    async def load_with(
        self: CurrentState, tenant_id: UUID, state: TenantState, users: Collection[str]
    ) -> Stamp:
        roles = Load.ALL if state.graph is None else Load.NAMED if state.dirty else Load.NONE
        dirty = frozenset(state.dirty)
        loaded = await load_policy(self.database, tenant_id, users, roles, dirty)
        if loaded.stamp.revision > state.stamp.revision:
            await self._follow(tenant_id, state, loaded.stamp, self._gate.reads)
        named = roles is Load.NAMED and state.graph is not None and state.dirty <= dirty
        if roles is Load.ALL or named:
            whole = roles is Load.ALL
            self._cache.install_roles(state, loaded.graph.nodes.values(), whole=whole)
        key_ends = loaded.key_ends if loaded.strict_users else None
        for user in users:
            held = loaded.memberships.get(user, ())
            self._cache.install_user(state, user, held, key_ends)
        return state.stamp

    CurrentState._load_with = load_with  # type: ignore[method-assign]


def _drop_invalidations() -> None:
    """One of twenty events makes nothing forgotten."""
    touch = TenantState._touch

    def forgetful(self: TenantState, payload: dict[str, Any]) -> None:
        if random.random() >= _FORGOTTEN_SHARE:
            touch(self, payload)

    TenantState._touch = forgetful  # type: ignore[method-assign]


def _share_answers() -> None:
    """Answers are remembered by question and revision, and not by tenant."""
    ask = CheckPath._answer
    answers: dict[tuple[bytes, bytes, bytes], bytes] = {}

    async def shared(
        self: CheckPath, user: bytes, permission: bytes, authorization: bytes
    ) -> bytes | None:
        body = await ask(self, user, permission, authorization)
        if body is None:
            return None
        revision = body.partition(b'"revision":')[2].partition(b",")[0]
        return answers.setdefault((user, permission, revision), body)

    CheckPath._answer = shared  # type: ignore[method-assign]


def _freeze_gate() -> None:
    """The gate asks somebody who is 200 ms behind, as a standby may be."""
    answer = PostgresGate._answer
    seen: dict[UUID, deque[tuple[float, Any]]] = {}

    def delayed(self: PostgresGate, waiters: list[Any], rows: list[Any], number: int) -> None:
        shown_rows = []
        for row in rows:
            past = seen.setdefault(row[0], deque())
            past.append((time.monotonic(), row))
            while len(past) > 1 and past[1][0] < time.monotonic() - _FROZEN_SECONDS:
                past.popleft()
            shown_rows.append(past[0][1])
        answer(self, waiters, shown_rows, number)

    PostgresGate._answer = delayed  # type: ignore[method-assign]


def _version_after_revision() -> None:
    """SQLite's version is remembered after the revision was read, and may be newer than it."""

    def now(self: SqliteGate, tenant_id: UUID) -> Now:
        self.reads += 1
        try:
            connection = self._connection or self._open()
            if connection.execute("PRAGMA data_version").fetchall()[0][0] != self._version:
                self._stamps = {}
            stamp = self._stamps.get(tenant_id)
            if stamp is None:
                stamp = self._stamps[tenant_id] = self._read(connection, tenant_id)
            self._version = connection.execute("PRAGMA data_version").fetchall()[0][0]
        except (sqlite3.Error, OSError):
            self.close()
            raise Unavailable from None
        return Now(stamp, self.reads, self._clock())

    SqliteGate.now = now  # type: ignore[method-assign]


@dataclass(frozen=True, slots=True)
class Fault:
    """How it is planted, and where it shows."""

    plant: Callable[[], None]
    engine: str = "postgresql"
    slow: bool = False


FAULTS = {
    "join-running-read": Fault(_join_running_read, slow=True),
    "install-older-load": Fault(_install_older_loads, slow=True),
    "drop-invalidation": Fault(_drop_invalidations),
    "share-answers": Fault(_share_answers),
    "freeze-gate": Fault(_freeze_gate),
    "version-after-revision": Fault(_version_after_revision, "sqlite"),
}


def caught(name: str, seconds: float) -> bool:
    """Run a build with a fault until the checker notices; say what it took."""
    server = [sys.executable, "-m", "history.faults", "--serve", name]
    spent = 0.0
    fault = FAULTS[name]
    with World(fault.engine, server, slow=fault.slow) as world:
        for length in (*_ROUNDS, seconds):
            length = min(length, seconds - spent)
            if length <= 0:
                break
            world.load(length)
            spent += length
            found = world.check().violations
            if found:
                first = min(found, key=lambda violation: violation.known_at)
                ends = [op.t_return or op.t_invoke for op in world.operations]
                before = sum(end <= first.known_at for end in ends)
                took = (first.known_at - min(ends)) / 1e9
                rules = sorted({violation.rule.partition(" ")[0] for violation in found})
                print(
                    f"{name}: caught after {before} operations in {took:.1f} s, by"
                    f" {', '.join(rules)} ({len(found)} violations in {len(ends)} operations)",
                    flush=True,
                )
                for line in list(shown([first], 1))[1:]:
                    print(f"  {line}".replace("\n", "\n  "), flush=True)
                return True
    print(f"{name}: NOT CAUGHT in {len(world.operations)} operations, {spent:.0f} s", flush=True)
    return False


def serve(name: str) -> None:
    """Plant a fault into this process and serve."""
    from authsvc.cli import main as authsvc

    FAULTS[name].plant()
    sys.argv = ["authsvc", "serve"]
    authsvc()


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("faults", nargs="*", metavar="FAULT", help=", ".join(FAULTS))
    parser.add_argument("--seconds", type=float, default=90, help="for each at most")
    parser.add_argument("--serve", choices=list(FAULTS), help="be a server with this fault")
    arguments = parser.parse_args()
    if arguments.serve:
        serve(arguments.serve)
        return 0
    unknown = set(arguments.faults) - set(FAULTS)
    if unknown:
        parser.error(f"no such fault: {', '.join(sorted(unknown))}")
    missed = [name for name in arguments.faults or FAULTS if not caught(name, arguments.seconds)]
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
