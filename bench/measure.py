"""The measurements: which requests go to which server, and what came of it."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median

from fleet import BENCH, FIRST_CORE, SECOND_CORE, Postgresql, Server, Tenant, resident_mb
from people import EVERYBODY_MAY, EVERYBODY_MOST, question, user_name

BATCH = 1000
CHANGES = 10_000
_MOST_USERS = 10_000

Request = tuple[str, str]
"""A whole request, and what its answer must contain."""


@dataclass(frozen=True, slots=True)
class Result:
    """What ``load.py`` measured."""

    count: int
    seconds: float
    cpu_us: float
    p50_ms: float
    p99_ms: float
    worst_ms: float

    @property
    def rate(self) -> float:
        """Requests in a second."""
        return self.count / self.seconds


@dataclass(frozen=True, slots=True)
class Contender:
    """A server and the single checks it is asked."""

    name: str
    server: Server
    requests: list[Request]


def request(server: Server, method: str, path: str, key: str, body: object = None) -> str:
    """The bytes of a request as ASCII."""
    head = (
        f"{method} {path} HTTP/1.1\r\nhost: 127.0.0.1:{server.port}\r\n"
        f"authorization: Bearer {key}\r\naccept: */*\r\n"
    )
    if body is None:
        return f"{head}\r\n"
    text = json.dumps(body, separators=(",", ":"))
    return f"{head}content-type: application/json\r\ncontent-length: {len(text)}\r\n\r\n{text}"


def load(
    server: Server,
    requests: Sequence[Request],
    *,
    connections: int,
    seconds: float,
    warm_up: float = 0.3,
    once: bool = False,
) -> Result:
    """Put a server under load from the second core."""
    plan = {
        "port": server.port,
        "pid": server.pid,
        "core": SECOND_CORE,
        "connections": connections,
        "seconds": seconds,
        "warm_up": warm_up,
        "once": once,
        "requests": requests,
    }
    with tempfile.NamedTemporaryFile("w", suffix=".json") as file:
        json.dump(plan, file)
        file.flush()
        done = subprocess.run(
            [sys.executable, str(BENCH / "load.py"), file.name], capture_output=True, text=True
        )
    if done.returncode:
        raise SystemExit(done.stderr)
    return Result(**json.loads(done.stdout))


def single_checks(server: Server, tenant: Tenant, *, unasked: bool = False) -> list[Request]:
    """Checks of users in random order, half of them true.

    ``unasked``: of 500 users whom nothing else asks about.
    """
    chance = random.Random(tenant.users)
    odd = range(1, tenant.users, 2)
    numbers = chance.sample(odd, min(len(odd), 500)) if unasked else _asked(tenant)
    found = []
    for number in numbers:
        user, permission, expected = question(number, chance)
        path = f"/api/has_permission/{user}/{permission}"
        found.append((request(server, "GET", path, tenant.key), _answered(expected)))
    return found


def anchor_checks(
    server: Server, users: Sequence[str], permissions: dict[str, bool]
) -> list[Request]:
    """Checks for an anchor, as long as those for authsvc; what each permission's answer is."""
    key = "00000000-0000-4000-8000-000000000000"
    return [
        (request(server, "GET", f"/api/has_permission/{user}/{name}", key), _answered(expected))
        for user in users
        for name, expected in permissions.items()
    ]


def _answered(expected: bool) -> str:
    return f'"has_permission":{"true" if expected else "false"}'


def warm(server: Server, tenant: Tenant) -> None:
    """Let the service remember everybody ``single_checks`` and ``batches`` ask for."""
    checks = [{"user": user_name(number), "permission": "area-1:read"} for number in _asked(tenant)]
    server.ask("POST", "/api/check", tenant.key, {"checks": checks})


def _asked(tenant: Tenant) -> list[int]:
    """The users who are asked about again and again, in random order; their numbers are even."""
    numbers = range(0, tenant.users, 2)
    return random.Random(tenant.users).sample(numbers, min(len(numbers), _MOST_USERS))


def batches(server: Server, tenant: Tenant) -> list[Request]:
    """Lists of checks of the users ``warm`` has asked for, in random order."""
    chance = random.Random(tenant.users)
    asked = _asked(tenant)
    found = []
    for _ in range(20):
        questions = [question(chance.choice(asked), chance) for _ in range(BATCH)]
        checks = [{"user": user, "permission": permission} for user, permission, _ in questions]
        text = ",".join("true" if expected else "false" for *_, expected in questions)
        sent = request(server, "POST", "/api/check", tenant.key, {"checks": checks})
        found.append((sent, f'"results":[{text}]'))
    return found


class Writes:
    """Writes of users nobody has written before."""

    def __init__(self) -> None:
        self._user = 0

    def single(self, server: Server, tenant: Tenant, count: int) -> list[Request]:
        """One membership each."""
        return [
            (request(server, "POST", path, tenant.key), '"added":true')
            for user in self._users(count)
            for path in [f"/api/membership/{user}/role-1"]
        ]

    def lists(self, server: Server, tenant: Tenant, count: int) -> list[Request]:
        """Many memberships in one request."""
        found = []
        for _ in range(count):
            changes = [
                {"op": "add_member", "user": user, "role": f"role-{number % 1000}"}
                for number, user in enumerate(self._users(CHANGES))
            ]
            sent = request(server, "POST", "/api/changes", tenant.key, {"changes": changes})
            found.append((sent, f'"applied":{CHANGES},'))
        return found

    def _users(self, count: int) -> list[str]:
        self._user += count
        return [f"writer-{number:08}" for number in range(self._user - count, self._user)]


def first_page(server: Server, tenant: Tenant, seconds: float) -> Result:
    """The first thousand of everybody; before that, all pages are followed and counted."""
    expected = min(tenant.users, EVERYBODY_MOST)
    path = f"/api/which_users_can/{EVERYBODY_MAY}?limit=1000"
    users: list[str] = []
    cursor = ""
    while True:
        page = server.ask("GET", path + cursor, tenant.key)
        users += [item["user"] for item in page["data"]]
        if "next" not in page:
            break
        cursor = f"&cursor={page['next']}"
    if users != [user_name(number) for number in range(expected)]:
        raise SystemExit(f"the pages of a list hold {len(users)} of {expected} users")
    piece = '"next":' if expected > 1000 else '"data":['
    asked = [(request(server, "GET", path, tenant.key), piece)]
    return load(server, asked, connections=1, seconds=seconds)


def one_read_ms(engine: Postgresql, tenant: Tenant) -> float:
    """One primary-key read of PostgreSQL from the first core, in milliseconds."""
    done = subprocess.run(
        [
            sys.executable, str(BENCH / "one_read.py"), engine.url, str(FIRST_CORE),
            str(tenant.id),
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return float(done.stdout)


def start_seconds(start: Callable[[], Server], times: int) -> float:
    """From the start of the process to the first successful ``/health/ready``."""
    taken = []
    for _ in range(times):
        server = start()
        taken.append(server.seconds_to_ready)
        server.stop()
    return median(taken)


def memory_mb(start: Callable[[], Server], tenant: Tenant) -> float:
    """How much a server grows when it has been asked about every user of a tenant."""
    server = start()
    before = resident_mb(server.pid)
    for first in range(0, tenant.users, CHANGES):
        numbers = range(first, min(first + CHANGES, tenant.users))
        checks = [{"user": user_name(number), "permission": "area-1:read"} for number in numbers]
        server.ask("POST", "/api/check", tenant.key, {"checks": checks})
    grown = resident_mb(server.pid) - before
    server.stop()
    return grown
