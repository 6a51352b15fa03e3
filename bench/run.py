"""Measure authsvc beside what it could be at best and what it is usually like.

    python bench/run.py [--quick | --full] [--write]

A bare ASGI application, a FastAPI route, a textbook service and authsvc on both engines are asked
in turns, each server alone at work on the first core, with the load, PostgreSQL and all the rest
on the second. Absolute figures move with the machine and with what else runs on it; ratios within
one run travel. CPU time per request of the server process is the steadiest of them.

--quick makes one short round and fails only if a ratio of CPU times falls under half of its goal.
--full adds a tenant of a million users. --write puts the result into docs/performance.md.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
from pathlib import Path
from statistics import median

from fleet import rest_on_second_core
from goals import DUTIES, Goal, goal_table, machine, number, table, write_page
from measure import BATCH, CHANGES
from people import EVERYBODY_MOST
from session import (
    FULL,
    MANY,
    QUICK,
    USUAL,
    WRITERS,
    Extent,
    Found,
    Run,
    contender_name,
    cpu,
    p50,
    p99,
)

PAGE = Path(__file__).parents[1] / "docs" / "performance.md"
_ENGINES = ("SQLite", "PostgreSQL")


def goals_of(found: Found, extent: Extent) -> list[Goal]:
    """The goals with what was reached."""
    users = extent.sizes[1]
    lite, postgres = (contender_name(engine, users) for engine in _ENGINES)
    read_ms = median(found.reads_ms)
    bare_ms = median(result.p50_ms for result in found.checks["bare", 1])
    goals = [
        Goal(
            "check, SQLite: CPU of bare ASGI by CPU of the check", 0.70,
            found.ratio("bare", lite, MANY, cpu), gated=True,
        ),
        Goal(
            "check, PostgreSQL: the same", 0.60,
            found.ratio("bare", postgres, MANY, cpu), gated=True,
        ),
        Goal(
            "check, SQLite, 1 connection: p50 by bare's", 1.3,
            found.ratio(lite, "bare", 1, p50), most=True,
        ),
        Goal(
            "check, PostgreSQL, 1 connection: p50 by (one read + 1.5 x bare's)", 1.0,
            median(r.p50_ms for r in found.checks[postgres, 1]) / (read_ms + 1.5 * bare_ms),
            most=True, note=f"one read {read_ms:.3f} ms, bare {bare_ms:.3f} ms",
        ),
    ]  # fmt: skip
    for engine, name in zip(_ENGINES, (lite, postgres), strict=True):
        goal = f"check, {engine}, {MANY} connections: p99 by bare's"
        goals.append(Goal(goal, 1.5, found.ratio(name, "bare", MANY, p99), most=True))
    for engine in _ENGINES:
        ends = (extent.sizes[0], extent.sizes[-1])
        few, many = (contender_name(engine, size) for size in ends)
        goal = f"check, {engine}: CPU with {number(ends[0])} users by CPU with {number(ends[1])}"
        goals.append(Goal(goal, 0.85, found.ratio(few, many, MANY, cpu), gated=True))
    for engine in _ENGINES:
        rate = median(1e6 / r.cpu_us * BATCH for r in found.batches[engine])
        goal = f"POST /api/check, {BATCH} checks, {engine}"
        goals.append(Goal(goal, 1_500_000, rate, "/s", note="by CPU time of the server process"))
    goals.append(
        Goal("check: times the original Auth service on its own deployment", 150, None,
             note=f"{found.ratio('textbook', lite, MANY, cpu):.0f} times the textbook service")
    )  # fmt: skip
    goals.append(
        Goal("memory of 10⁶ users and 10⁷ memberships", 200, found.memory, " MB", most=True,
             note="5000 different combinations of ten roles" if found.memory else "--full only")
    )  # fmt: skip
    for engine in _ENGINES:
        first = found.first[engine]
        note = f"p50 of {first.count} users; p99 {first.p99_ms:.2f} ms"
        goal = f"first check of a user not in memory, {engine}"
        goals.append(Goal(goal, 2.0, first.p50_ms, " ms", most=True, note=note))
    for engine, wanted in zip(_ENGINES, (700, 1500), strict=True):
        rate = median(r.rate for r in found.writes[engine])
        worst = median(r.p99_ms for r in found.writes[engine])
        goal = f"single writes with audit, {engine}, {WRITERS} callers"
        goals.append(Goal(goal, wanted, rate, "/s", note=f"p99 {worst:.1f} ms"))
    for engine in _ENGINES:
        rate = median(CHANGES / r.p50_ms * 1e3 for r in found.lists[engine])
        goal = f"POST /api/changes, {number(CHANGES)} changes, {engine}"
        goals.append(Goal(goal, 20_000, rate, "/s"))
    matches = number(min(extent.sizes[-1], EVERYBODY_MOST))
    for engine in _ENGINES:
        page = found.pages[engine]
        goal = f"first 1 000 of {matches} in which_users_can, {engine}"
        note = f"p50; p99 {page.p99_ms:.1f} ms; every page complete"
        goals.append(Goal(goal, 10.0, page.p50_ms, " ms", most=True, note=note))
    goals.append(Goal("start to ready, empty SQLite", 1.5, found.starts["empty"], " s", most=True))
    for engine in _ENGINES:
        goal = f"start to ready, {engine}, {number(extent.sizes[-1])} users"
        goals.append(Goal(goal, 1.5, found.starts[engine], " s", most=True))
    return goals


def figures(found: Found) -> str:
    """The absolute figures, which hold for this machine at this time."""
    head = [
        "", "CPU µs", "requests/s", f"p50 ms, {MANY}", f"p99 ms, {MANY}", "p50 ms, 1", "p99 ms, 1",
        "of bare, CPU", "memory MB",
    ]  # fmt: skip
    lines = []
    for name, connections in found.checks:
        if connections == MANY:
            many, one = found.checks[name, MANY], found.checks[name, 1]
            cells = [
                median(r.cpu_us for r in many), median(r.rate for r in many),
                median(r.p50_ms for r in many), median(r.p99_ms for r in many),
                median(r.p50_ms for r in one), median(r.p99_ms for r in one),
                found.ratio("bare", name, MANY, cpu), found.resident[name],
            ]  # fmt: skip
            lines.append([name, *map(number, cells)])
    return table(head, lines)


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    extent = parser.add_mutually_exclusive_group()
    extent.add_argument("--quick", action="store_true", help="one round of a second, for CI")
    extent.add_argument("--full", action="store_true", help="also a tenant of a million users")
    parser.add_argument("--write", action="store_true", help=f"into {PAGE.name}")
    arguments = parser.parse_args()
    chosen = QUICK if arguments.quick else FULL if arguments.full else USUAL
    rest_on_second_core()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        run = Run(chosen, Path(folder), stack)
        found = run.all()
        command = " ".join(["python bench/run.py", *(a for a in sys.argv[1:] if a != "--write")])
        where = machine(run.postgresql.version(), command)
    goals = goals_of(found, chosen)
    measured = "\n\n".join(
        [
            where,
            f"{chosen.rounds} rounds of {chosen.seconds:g} s each, medians; checks of users in "
            f"memory, in random order, in a tenant of {number(chosen.sizes[1])} users, {MANY} "
            "keep-alive connections unless said otherwise. The server has one core to itself; the "
            "load and PostgreSQL share the other.",
            DUTIES,
            goal_table(goals),
            "`of the goal` is 1 where a goal is just met, and more is better.",
            figures(found),
        ]
    )
    print(measured)
    if arguments.write:
        write_page(PAGE, measured)
    failed = [goal.name for goal in goals if goal.failed]
    for name in failed:
        print(f"under half of its goal: {name}", file=sys.stderr)
    return 1 if arguments.quick and failed else 0


if __name__ == "__main__":
    sys.exit(main())
