"""What encryption of names costs, side by side in one run.

    python bench/encryption_cost.py [--rounds 5] [--seconds 2]

Two databases of the same 10 000 users on each engine, one of them encrypted, are served and asked
in turns: checks of users in memory, first checks of users, single writes, and a list of changes.
Medians are printed, with the least and the most, in microseconds of CPU of the server for each
check or change; before that, what one value takes by itself.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from statistics import median

from cryptography.fernet import Fernet

from authsvc.encryption import MEMBER, FieldCipher, MasterKey, MasterKeys, new_data_key
from fleet import Engine, Postgresql, Server, Sqlite, rest_on_second_core
from measure import CHANGES, Request, Writes, load, single_checks, warm

USERS = 10_000
CONNECTIONS = 32
WRITERS = 8
PORTION = 100
"""Users of whom each round asks for the first time."""
VARIANTS = ("plain", "encrypted")


class Subject:
    """One engine in one variant, filled and served."""

    def __init__(self, engine: Engine, variant: str, stack: contextlib.ExitStack) -> None:
        self.name = f"{engine.name}, {variant}"
        stack.callback(engine.close)
        engine.fill([USERS])
        if variant == "encrypted":
            began = time.perf_counter()
            key = Fernet.generate_key().decode()
            engine.settings = {"AUTH_ENABLE_ENCRYPTION": "true", "AUTH_ENCRYPTION_KEY": key}
            engine.command("encryption", "enable", "--yes")
            print(f"{self.name}: enabled in {time.perf_counter() - began:.1f} s", file=sys.stderr)
        self.server: Server = engine.serve()
        stack.callback(self.server.stop)
        self._tenant = engine.tenants[str(USERS)]
        self._written = engine.tenants["writes"]
        self._writes = Writes()
        warm(self.server, self._tenant)
        self._known = single_checks(self.server, self._tenant)
        self._unasked = single_checks(self.server, self._tenant, unasked=True)
        self.found: dict[str, list[float]] = {}

    def round(self, number: int, seconds: float) -> None:
        """Measure everything once."""
        check = load(self.server, self._known, connections=CONNECTIONS, seconds=seconds)
        self._note("check", check.cpu_us)
        fresh = self._unasked[PORTION * number : PORTION * (number + 1)]
        self._note("first check", self._all(fresh, 1))
        single = self._writes.single(self.server, self._written, 500)
        self._note("single write", self._all(single, WRITERS))
        many = self._writes.lists(self.server, self._written, 1)
        self._note("change of a list", self._all(many, 1) / CHANGES)

    def _all(self, requests: list[Request], connections: int) -> float:
        asked = load(
            self.server, requests, connections=connections, seconds=60, warm_up=0, once=True
        )
        return asked.cpu_us

    def _note(self, what: str, value: float) -> None:
        self.found.setdefault(what, []).append(value)


def microseconds(work: Callable[[], object], times: int) -> float:
    """What a call takes, at best."""
    took = []
    for _ in range(5):
        began = time.perf_counter()
        for _ in range(times):
            work()
        took.append((time.perf_counter() - began) / times * 1e6)
    return min(took)


def print_values() -> None:
    """One value by itself."""
    tenant, key = uuid.uuid4(), new_data_key()
    cipher = FieldCipher(tenant, 1, key)
    stored = cipher.seal(MEMBER, "user-00000001")
    master = MasterKeys(MasterKey(Fernet.generate_key().decode()))
    wrapped, _ = master.wrap(tenant, 1, key)
    for what, work, times in (
        ("encrypt a name", lambda: cipher.seal(MEMBER, "user-00000001"), 20_000),
        ("open a name", lambda: cipher.open(MEMBER, stored), 20_000),
        ("the key of a column", lambda: FieldCipher(tenant, 1, key).seal(MEMBER, "a"), 2_000),
        ("unwrap a data key", lambda: master.unwrap(tenant, 1, wrapped), 2_000),
    ):
        print(f"{what:<22} {microseconds(work, times):7.1f} us")


def main() -> None:
    """Measure both engines."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5, help="at most 5")
    parser.add_argument("--seconds", type=float, default=2.0)
    given = parser.parse_args()
    print_values()
    rest_on_second_core()
    for kind in (Sqlite, Postgresql):
        with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
            subjects = [Subject(kind(Path(folder) / one), one, stack) for one in VARIANTS]
            for number in range(given.rounds):
                for subject in subjects[:: -1 if number % 2 else 1]:
                    subject.round(number, given.seconds)
            for what in subjects[0].found:
                for subject in subjects:
                    took = subject.found[what]
                    print(
                        f"{what:<17} {subject.name:<22} {median(took):7.1f} us"
                        f" ({min(took):.1f} to {max(took):.1f})"
                    )


if __name__ == "__main__":
    main()
