"""Credentials replaced while eight clients ask two real processes without a pause."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from conftest import copied, runtime_url
from services import PostgresServer
from test_cli import FIRST_KEY, STRONG, Home, Serving

CHECK = "/api/has_permission/alice/deploy"
CLIENTS = 8
SECOND_SECRET = "Zr8f1wNq6tVb3yHk0sDm9uLc5xGj2eAo7iPv4nTs"

pytestmark = [
    pytest.mark.timeout(400),
    pytest.mark.parametrize("engine", ["postgresql"], indirect=True),
]


@dataclass
class Load:
    """Clients that go on asking, and what was not answered as it should be."""

    done: int = 0
    wrong: list[str] = field(default_factory=list)
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def running(self, ask: Callable[[int, httpx.Client], str | None]) -> Iterator[Load]:
        """``ask`` sends something and tells what was wrong with the answer."""

        def one(number: int) -> None:
            with httpx.Client(trust_env=False, timeout=30) as http:
                while not self._stop.is_set():
                    if complaint := ask(number, http):
                        self.wrong.append(complaint)
                    self.done += 1

        threads = [threading.Thread(target=one, args=(n,)) for n in range(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()


@pytest.fixture
async def home(
    postgresql_template: str, postgres_server: PostgresServer, tmp_path: Path
) -> AsyncIterator[Home]:
    """A home whose settings name a migrated database of this test's own."""
    async with copied(postgres_server, postgresql_template) as storage:
        url = runtime_url(postgres_server, storage.name)
        settings = {
            "AUTH_POSTGRESQL_URL": url,
            "AUTH_CLIENT_KEY": FIRST_KEY,
            "AUTH_JWT_SECRET_KEY": STRONG,
            "AUTH_RATE_LIMIT_PROFILE": "off",
        }
        yield Home(tmp_path, settings)


def turns(servers: list[Serving]) -> Callable[[], str]:
    """The servers' addresses in turn."""
    cycle, lock = itertools.cycle(servers), threading.Lock()

    def following() -> str:
        with lock:
            return next(cycle).url

    return following


def bearer(credential: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {credential}"}


def test_a_key_is_rotated_under_load(engine: str, home: Home) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(home.serving()) for _ in range(2)]
        where = turns(servers)
        ends: list[float] = []

        def ask(_number: int, http: httpx.Client) -> str | None:
            began = time.time()
            answer = http.get(where() + CHECK, headers=bearer(FIRST_KEY))
            ended = time.time()
            if not ends or ended < ends[0]:
                return None if answer.status_code == 200 else f"early {answer.text}"
            if began > ends[0]:
                return None if answer.status_code == 401 else f"late {answer.text}"
            return None

        with Load().running(ask) as load:
            time.sleep(1)
            rotated = servers[0].http.post(
                f"{servers[0].url}/api/keys/rotate",
                headers=bearer(FIRST_KEY),
                json={"overlap_seconds": 4},
            )
            assert rotated.status_code == 200
            data = rotated.json()["data"]
            ends.append(datetime.fromisoformat(data["old_key_expires_at"]).timestamp())
            for server in servers:
                assert server.ask(CHECK, data["new_key"]).status_code == 200
            time.sleep(max(0, ends[0] - time.time()) + 2)
        assert load.wrong == []
        assert load.done > 200
        for server in servers:
            assert server.ask(CHECK, FIRST_KEY).status_code == 401
            assert server.ask(CHECK, data["new_key"]).status_code == 200


def test_tokens_are_refreshed_under_load(engine: str, home: Home) -> None:
    with ExitStack() as stack:
        servers = [stack.enter_context(home.serving()) for _ in range(2)]
        where = turns(servers)
        grant = {"grant_type": "client_credentials", "client_secret": FIRST_KEY}
        asked = f"{servers[0].url}/api/token"
        held = [servers[0].http.post(asked, data=grant).json() for _ in range(CLIENTS)]
        spent: list[str] = []

        def ask(number: int, http: httpx.Client) -> str | None:
            token = held[number]
            answer = http.get(where() + CHECK, headers=bearer(token["access_token"]))
            if answer.status_code != 200:
                return answer.text
            again = {"grant_type": "refresh_token", "refresh_token": token["refresh_token"]}
            answer = http.post(f"{where()}/api/token", data=again)
            if answer.status_code != 200:
                return answer.text
            spent.append(token["refresh_token"])
            held[number] = answer.json()
            return None

        with Load().running(ask) as load:
            time.sleep(5)
        assert load.wrong == []
        assert load.done > 100
        for text in spent[-CLIENTS:]:
            again = {"grant_type": "refresh_token", "refresh_token": text}
            for server in servers:
                assert server.http.post(f"{server.url}/api/token", data=again).status_code == 400
        # Each of these was a reuse, so nothing of the families is left, on either process.
        for token in held:
            for server in servers:
                assert server.ask(CHECK, token["access_token"]).status_code == 401


def test_a_secret_is_rotated_under_load(engine: str, home: Home) -> None:
    """Two processes restarted in turn, twice: first the new secret is known, then it signs."""
    with ExitStack() as stack:
        running = [stack.enter_context(ExitStack()) for _ in range(2)]
        servers = [one.enter_context(home.serving()) for one in running]
        up = [servers[0].url, servers[1].url]
        grant = {"grant_type": "client_credentials", "client_secret": FIRST_KEY}

        def token() -> str:
            found: str = httpx.post(f"{up[0]}/api/token", data=grant).json()["access_token"]
            return found

        tokens = [token()]

        def ask(number: int, http: httpx.Client) -> str | None:
            # As a balancer does: only processes that are up, and not one that is going down.
            url = up[number % len(up)]
            for one in tokens:
                answer = http.get(url + CHECK, headers=bearer(one))
                if answer.status_code != 200:
                    return answer.text
            return None

        def restart(place: int, **settings: str) -> None:
            url = servers[place].url
            up.remove(url)
            # Requests that were on their way are answered first.
            time.sleep(0.5)
            running[place].close()
            servers[place] = running[place].enter_context(home.serving(**settings))
            up.append(servers[place].url)

        known = {"AUTH_JWT_OLD_SECRET_KEYS": SECOND_SECRET}
        signs = {"AUTH_JWT_SECRET_KEY": SECOND_SECRET, "AUTH_JWT_OLD_SECRET_KEYS": STRONG}
        with Load().running(ask) as load:
            for step in (known, signs):
                for place in (0, 1):
                    restart(place, **step)
                    tokens.append(token())
        assert load.wrong == []
        assert load.done > 100
        for place in (0, 1):
            restart(place, AUTH_JWT_SECRET_KEY=SECOND_SECRET)
        for server in servers:
            assert server.ask(CHECK, tokens[0]).status_code == 401
            assert server.ask(CHECK, tokens[-1]).status_code == 200
