"""Load an organisation's real permissions, then ask about every user-permission pair.

    python bench/real_data.py FILE.csv[.gz] [--engine sqlite|postgresql|both] [--one-by-one]

The file has the columns user and permission. Each distinct permission set becomes a role; all of
it is loaded through POST /api/changes, and every pair comes back through POST /api/check (with
--one-by-one also through GET /api/has_permission) from a server of its own, over HTTP. Any answer
that differs from the file makes the exit status 1.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import csv
import gzip
import os
import socket
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, TextIO

import httpx

TOP = Path(__file__).parents[1]
sys.path.insert(0, str(TOP / "tests"))

BATCH = 10_000


def read_pairs(file: Path) -> dict[str, set[str]]:
    """The file as user -> permissions."""
    held: dict[str, set[str]] = {}
    with _open(file) as text:
        for row in csv.DictReader(text):
            held.setdefault(row["user"], set()).add(row["permission"])
    return held


def _open(file: Path) -> TextIO:
    if file.suffix == ".gz":
        return gzip.open(file, "rt", encoding="utf-8")
    return file.open(encoding="utf-8")


def changes_for(held: dict[str, set[str]]) -> list[dict[str, str]]:
    """One role per distinct permission set, its grants, and everybody's membership."""
    roles: dict[frozenset[str], str] = {}
    for permissions in held.values():
        roles.setdefault(frozenset(permissions), f"set-{len(roles) + 1}")
    changes = [{"op": "add_role", "role": role} for role in roles.values()]
    changes += [
        {"op": "grant", "role": role, "permission": permission}
        for permissions, role in roles.items()
        for permission in sorted(permissions)
    ]
    changes += [
        {"op": "add_member", "user": user, "role": roles[frozenset(permissions)]}
        for user, permissions in held.items()
    ]
    return changes


def chunks(items: list[Any]) -> Iterator[list[Any]]:
    """Lists of at most one request's worth."""
    for start in range(0, len(items), BATCH):
        yield items[start : start + BATCH]


@contextlib.asynccontextmanager
async def server(engine: str) -> AsyncIterator[httpx.AsyncClient]:
    """A server of its own on a fresh database, asked with a fresh key."""
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        key = str(uuid.uuid4())
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            "PATH": os.environ["PATH"],
            "HOME": folder,
            "AUTH_SERVER_PORT": str(port),
            "AUTH_CLIENT_KEY": key,
            "AUTH_RATE_LIMIT_PROFILE": "off",
        }
        authsvc = str(Path(sys.executable).with_name("authsvc"))
        if engine == "postgresql":
            from services import PostgresServer

            postgres = PostgresServer()
            postgres.start()
            stack.callback(postgres.stop)
            postgres.create_database("real_data")
            url = f"postgresql://postgres@{postgres.host}:{postgres.port}/real_data"
            environment["AUTH_POSTGRESQL_URL"] = url
            subprocess.run(
                [authsvc, "migrate"], env=environment, cwd=folder, check=True, capture_output=True
            )
        process = subprocess.Popen(
            [authsvc, "serve"], env=environment, cwd=folder, stderr=subprocess.DEVNULL
        )
        stack.callback(process.wait)
        stack.callback(process.terminate)
        headers = {"Authorization": f"Bearer {key}"}
        async with httpx.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", headers=headers, timeout=120
        ) as client:
            await _answering(client, process)
            yield client


async def _answering(client: httpx.AsyncClient, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        if process.poll() is not None:
            raise SystemExit(f"the server ended with status {process.returncode}")
        with contextlib.suppress(httpx.TransportError):
            if (await client.get("/health/ready")).status_code == 200:
                return
        await asyncio.sleep(0.1)
    raise SystemExit("the server did not get ready")


async def post(client: httpx.AsyncClient, path: str, body: Any) -> Any:
    """The ``data`` of a request that must succeed."""
    answer = await client.post(path, json=body)
    if answer.status_code != 200:
        raise SystemExit(f"{path}: {answer.status_code} {answer.text[:300]}")
    return answer.json()["data"]


async def run(file: Path, engine: str, *, one_by_one: bool) -> int:
    """Load, ask, compare; how many answers were wrong."""
    held = read_pairs(file)
    permissions = sorted({p for own in held.values() for p in own})
    pairs = [(user, permission) for user in held for permission in permissions]
    async with server(engine) as client:
        began = time.perf_counter()
        changes = changes_for(held)
        for part in chunks(changes):
            await post(client, "/api/changes", {"changes": part})
        loaded = time.perf_counter() - began
        print(f"{file.name} on {engine}: {len(changes)} changes in {loaded:.1f} s", flush=True)

        wrong = 0
        began = time.perf_counter()
        for asked, part in enumerate(chunks(pairs)):
            checks = [{"user": user, "permission": permission} for user, permission in part]
            answered = (await post(client, "/api/check", {"checks": checks}))["results"]
            wrong += sum(
                got != (permission in held[user])
                for got, (user, permission) in zip(answered, part, strict=True)
            )
            if sys.stderr.isatty():
                print(f"\r{asked * BATCH:>9} of {len(pairs)}", end="", file=sys.stderr)
        took = time.perf_counter() - began
        print(
            f"{file.name} on {engine}: {len(pairs)} pairs in batches in {took:.1f} s"
            f" ({len(pairs) / took:.0f}/s), {wrong} wrong",
            flush=True,
        )
        if one_by_one:
            began = time.perf_counter()
            single = await _ask_one_by_one(client, held, pairs)
            took = time.perf_counter() - began
            print(
                f"{file.name} on {engine}: {len(pairs)} pairs one by one in {took:.1f} s"
                f" ({len(pairs) / took:.0f}/s), {single} wrong",
                flush=True,
            )
            wrong += single
    return wrong


async def _ask_one_by_one(
    client: httpx.AsyncClient, held: dict[str, set[str]], pairs: list[tuple[str, str]]
) -> int:
    wrong = 0
    waiting = iter(pairs)

    async def ask() -> None:
        nonlocal wrong
        for user, permission in waiting:
            answer = await client.get(f"/api/has_permission/{user}/{permission}")
            allowed = answer.json()["data"]["has_permission"]
            wrong += allowed != (permission in held[user])

    await asyncio.gather(*(ask() for _ in range(8)))
    return wrong


def main() -> int:
    """Run from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path, help="CSV, perhaps gzipped")
    parser.add_argument("--engine", choices=["sqlite", "postgresql", "both"], default="both")
    parser.add_argument("--one-by-one", action="store_true", help="also ask each pair on its own")
    arguments = parser.parse_args()
    engines = ["sqlite", "postgresql"] if arguments.engine == "both" else [arguments.engine]
    wrong = 0
    for engine in engines:
        wrong += asyncio.run(run(arguments.file, engine, one_by_one=arguments.one_by_one))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
