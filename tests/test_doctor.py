"""``authsvc doctor``: what it passes on the shipped example, and that each item can fail."""

from __future__ import annotations

import json
import re
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

import encrypted
from authsvc import doctor
from authsvc.app import create_app
from authsvc.host_review import argument_checks
from authsvc.http_probe import Answer, Ask, in_process
from authsvc.production import ITEMS, Check
from authsvc.repositories.server_rights import ServerRights
from authsvc.settings import Settings, build_settings, load_settings
from authsvc.tls_review import tls_checks
from certificates import server_context
from conftest import RUNTIME_PASSWORD, RUNTIME_ROLE, Storage
from services import PostgresServer
from test_cli import STRONG, Home, command_lines, eventually
from test_settings import AUDITED

EXAMPLE = Path(__file__).parents[1] / "docker" / "production.env.example"
KEY = "0b9a2e8e-0d0e-4c57-9a6e-3f6c8a5b1c2d"
DATABASE_PASSWORD = "T9w-c7Lq_Zx2mB4vN8rJ"


def verdicts(found: list[Check]) -> dict[int, str]:
    """Each item with the worst that was found about it."""
    order = ["pass", "warn", "fail"]
    worst: dict[int, str] = {}
    for check in found:
        worst[check.item] = max(worst.get(check.item, "pass"), check.verdict, key=order.index)
    return worst


def about(found: list[Check], item: int, verdict: str = "fail") -> str:
    """What was found about one item."""
    return "; ".join(it.evidence for it in found if (it.item, it.verdict) == (item, verdict))


def settings_on(storage: Storage, *, as_owner: bool = False, **more: Any) -> Settings:
    """Production settings, not refused, whose database is a test's."""
    where: dict[str, Any] = {"sqlite_path": storage.path}
    if storage.path is None:
        where = {"postgresql_url": storage.owner_url if as_owner else storage.url}
    values = {"jwt_secret_key": STRONG, "client_registration": "closed"} | AUDITED
    values |= encrypted.SETTINGS | where | more
    return build_settings(**values).model_copy(update={"environment": "production"})


# --- The whole command ---


@pytest.mark.timeout(300)
def test_the_shipped_example_passes(
    postgres_server: PostgresServer, postgresql_template: str, tmp_path: Path
) -> None:
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    postgres_server.execute(f"ALTER ROLE {RUNTIME_ROLE} PASSWORD '{DATABASE_PASSWORD}'")
    name = "example_of_production"
    postgres_server.create_database(name, postgresql_template)
    postgres_server.execute(f'GRANT CONNECT ON DATABASE "{name}" TO {RUNTIME_ROLE}')
    for file, content in (
        ("jwt_secret_key", STRONG),
        ("postgresql_password", DATABASE_PASSWORD),
        ("client_key", KEY),
        ("audit_key", AUDITED["audit_key"]),
        ("encryption_key", encrypted.KEY),
        ("checkpoint_private_key", AUDITED["checkpoint_private_key"]),
    ):
        (secrets / file).write_text(content)
        (secrets / file).chmod(0o400)
    given = dict(re.findall(r"^(AUTH_\w+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE))
    given["AUTH_SECRETS_DIR"] = str(secrets)
    assert "sslmode=verify-full" in given["AUTH_POSTGRESQL_URL"]
    given["AUTH_POSTGRESQL_URL"] = (
        f"postgresql://{RUNTIME_ROLE}@{postgres_server.host}:{postgres_server.port}/{name}"
        f"?sslmode=verify-full&sslrootcert={postgres_server.certificate}"
    )
    # Nobody is there: the test of this item is another.
    given["AUTH_PUBLIC_URL"] = "https://127.0.0.1:9"
    try:
        done = Home(tmp_path, given).run("doctor", "--production", "--json")
        plain = Home(tmp_path, given).run("doctor")
    finally:
        password = RUNTIME_PASSWORD.replace("'", "''")
        postgres_server.execute(f"ALTER ROLE {RUNTIME_ROLE} PASSWORD '{password}'")
        postgres_server.drop_database(name)
    shown = json.loads(done.out)
    assert [item["name"] for item in shown["items"]] == list(ITEMS)
    worst = {item["item"]: item["verdict"] for item in shown["items"]}
    passes = {1, 2, 3, 5, 7, 8, 10, 12}
    if load_settings({}, None).rate_limit_profile != "off":
        passes.add(9)
    assert {item for item, verdict in worst.items() if verdict == "pass"} >= passes, done.out
    assert worst[6] == "pass"
    assert done.status == 1
    assert shown["failed"] == [item for item, verdict in worst.items() if verdict == "fail"]
    assert "AUTH_JWT_SECRET_KEY from AUTH_SECRETS_DIR" in done.out
    for secret in (STRONG, DATABASE_PASSWORD, KEY):
        assert secret not in done.out + done.err + plain.out + plain.err
    assert plain.status == 0
    assert [f" {number:>2}. {item}" in plain.out for number, item in enumerate(ITEMS, 1)] == [
        True
    ] * 13


def test_a_bare_default_fails_and_is_left_alone(tmp_path: Path) -> None:
    home = Home(tmp_path)
    done = home.run("doctor", "--production", "--json")
    shown = json.loads(done.out)
    assert done.status == 1
    assert len(shown["failed"]) >= (7 if encrypted.ON else 8)
    assert home.run("doctor").status == 0
    assert list(tmp_path.iterdir()) == []


def test_settings_that_cannot_be_read_at_all(tmp_path: Path) -> None:
    done = Home(tmp_path).run("doctor", AUTH_WORKERS="none")
    assert done.status == 78
    assert done.sentence.startswith("AUTH_WORKERS: ")


# --- The database, on both engines ---


async def test_a_database_in_order(storage: Storage) -> None:
    found = await doctor.examine(settings_on(storage))
    worst = verdicts(found)
    assert worst[6] == worst[12] == worst[10] == "pass", found
    assert "0 tenants verified" in about(found, 6, "pass")
    again = await doctor.examine(settings_on(storage))
    assert "2 tenants verified" in about(again, 6, "pass")
    if storage.path is None:
        assert "reads and writes rows and no more" in about(found, 3, "pass")
        assert "scram-sha-256" in about(found, 3, "pass")
    else:
        assert "not PostgreSQL" in about(found, 3)
    # What was lent opens nothing any more, and there is no policy left.
    async with storage.open().read() as tx:
        alive = text("SELECT count(*) FROM client_key WHERE revoked_at IS NULL")
        assert (await tx.execute(alive)).scalar() == 0
        for table in ("role", "membership", "role_permission"):
            count = text(f"SELECT count(*) FROM {table}")
            assert (await tx.execute(count)).scalar() == 0


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_too_many_rights(storage: Storage) -> None:
    found = await doctor.examine(settings_on(storage, as_owner=True))
    assert "is a superuser" in about(found, 3)
    assert "makes tables" in about(found, 3)
    assert "owns the tables" in about(found, 3)


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_a_role_that_may_change_the_trail(storage: Storage) -> None:
    async with storage.administrator() as connection:
        await connection.execute(f"GRANT DELETE ON audit_event TO {RUNTIME_ROLE}")
    found = await doctor.examine(settings_on(storage))
    assert "may change the audit trail" in about(found, 3)


@pytest.mark.parametrize(
    ("method", "encryption", "encrypted", "verdict", "said"),
    [
        ("scram-sha-256", "scram-sha-256", True, "pass", "let in by scram-sha-256"),
        ("trust", "scram-sha-256", True, "fail", "let in by trust"),
        ("md5", "md5", True, "fail", "let in by md5"),
        ("", "scram-sha-256", True, "pass", "keeps passwords as scram-sha-256"),
        ("", "md5", True, "fail", "keeps passwords as md5"),
        ("scram-sha-256", "scram-sha-256", False, "fail", "in the clear"),
    ],
)
def test_how_the_role_is_let_in(
    method: str, encryption: str, encrypted: bool, verdict: str, said: str
) -> None:
    rights = ServerRights("app", [], method, encryption, encrypted)
    found = list(doctor._rights(rights, encrypt=True))
    assert verdicts(found) == {3: verdict}
    assert said in about(found, 3, verdict)


@pytest.mark.parametrize("engine", ["postgresql"])
async def test_an_audit_trail_that_cannot_be_written(storage: Storage) -> None:
    async with storage.administrator() as connection:
        await connection.execute(f"REVOKE INSERT ON audit_event FROM {RUNTIME_ROLE}")
    found = await doctor.examine(settings_on(storage))
    assert "no audit event can be written" in about(found, 6)


async def test_an_audit_trail_that_was_changed(storage: Storage) -> None:
    await doctor.examine(settings_on(storage))

    await storage.forge(
        lambda connection: connection.exec_driver_sql(
            "UPDATE audit_event SET seq = seq + 100 WHERE seq = 2"
        )
    )
    found = await doctor.examine(settings_on(storage))
    assert "audit trail of 2 tenants is broken" in about(found, 6)
    assert "authsvc:selftest:one" in about(found, 6)


async def test_a_database_that_is_away_or_empty(empty_storage: Storage) -> None:
    found = await doctor.examine(settings_on(empty_storage))
    assert "run 'authsvc migrate' first" in about(found, 6) + about(found, 12)
    if empty_storage.path is None:
        gone = "postgresql://app@127.0.0.1:9/none"
        found = await doctor.examine(settings_on(empty_storage, postgresql_url=gone))
        assert "cannot be reached" in about(found, 12)
    assert verdicts(found)[10] == "pass"


@pytest.mark.parametrize("engine", ["sqlite"])
async def test_a_file_that_others_can_read(storage: Storage) -> None:
    assert storage.path
    storage.path.chmod(0o644)
    assert "others have access" in about(await doctor.examine(settings_on(storage)), 3)


# --- One item at a time ---


async def test_a_header_that_is_missing() -> None:
    def headers(**without: str) -> Ask:
        async def ask(method: str, path: str, *_: Any) -> Answer:
            status = next(it[3] for it in doctor._OUTCOMES if it[:2] == (method, path))
            kept = {name: values[0] for name, values in doctor._GUIDE.items()}
            kept |= {name.replace("_", "-"): value for name, value in without.items()}
            return Answer(status, kept, b"")

        return ask

    assert (await doctor._headers(headers())).verdict == "pass"
    for name in doctor._GUIDE:
        found = await doctor._headers(headers(**{name.replace("-", "_"): "other"}))
        assert (found.verdict, name in found.evidence) == ("fail", True)


@pytest.mark.parametrize(
    ("profile", "workers", "store", "verdict"),
    [
        ("off", 1, None, "fail"),
        ("service", 2, None, "fail"),
        ("service", 1, None, "pass"),
        ("strict", 2, "redis://r", "pass"),
    ],
)
def test_rate_limits(profile: str, workers: int, store: str | None, verdict: str) -> None:
    change = {"rate_limit_profile": profile, "workers": workers, "rate_limit_storage_url": store}
    (found,) = doctor._limits(build_settings().model_copy(update=change))
    assert found.verdict == verdict


def test_a_secret_in_the_arguments_of_a_process() -> None:
    secrets = {"AUTH_JWT_SECRET_KEY": STRONG}
    assert [check.verdict for check in argument_checks(secrets)] == ["pass"]
    process = subprocess.Popen(["/bin/sh", "-c", "read x", STRONG], stdin=subprocess.PIPE)
    try:
        # Until the child has become the shell, its arguments are those of this process.
        eventually(lambda: STRONG in command_lines(process.pid), "the shell has begun")
        (found,) = argument_checks(secrets)
        assert (found.verdict, found.item) == ("fail", 7)
        assert STRONG not in found.sentence
    finally:
        process.communicate(b"\n")


# --- The flows, against broken builds ---


def broken_build(ask: Ask, fault: str) -> Ask:
    """The service behind ``ask`` with one fault."""
    first: dict[str, Answer] = {}
    issued: set[str] = set()

    async def faulty(method: str, path: str, key: str | None = None, body: Any = None) -> Answer:
        if fault == "revoking does nothing" and path == "/api/token/revoke":
            return Answer(200, {}, b"{}")
        if fault == "a refresh token works twice" and "refresh_token" in (body or {}):
            token = body["refresh_token"]
            if token not in first:
                first[token] = await ask(method, path, key, body)
            return first[token]
        answer = await ask(method, path, key, body)
        if path == "/api/token" and answer.status == 200:
            issued.add(answer.json["access_token"])
        if fault == "access tokens outlive their family" and key in issued:
            return Answer(200, answer.headers, answer.body)
        if fault == "every check is allowed":
            body = answer.body.replace(b'"has_permission":false', b'"has_permission":true')
            return Answer(answer.status, answer.headers, body)
        if fault == "another tenant's role is shown" and answer.status == 404:
            return Answer(200, answer.headers, answer.body)
        if fault == "any credential is good" and answer.status == 401:
            return Answer(200, answer.headers, b"{}")
        return answer

    return faulty


async def flows_of(storage: Storage, fault: str) -> dict[str, str]:
    """The flows that go wrong, with what was seen."""
    app = create_app(settings_on(storage).model_copy(update={"environment": "local"}))
    async with app.router.lifespan_context(app):
        ask = broken_build(in_process(app), fault)
        steps = await doctor.run_selftest(ask, storage.open())
    assert len(steps) == 7
    return {step.name: step.seen for step in steps if not step.good}


@pytest.mark.parametrize(
    ("fault", "flow"),
    [
        ("revoking does nothing", "revoke"),
        ("a refresh token works twice", "end the family of a refresh token that is used twice"),
        (
            "access tokens outlive their family",
            "end the family of a refresh token that is used twice",
        ),
        ("every check is allowed", "take a permission away"),
        ("another tenant's role is shown", "keep tenants apart"),
        ("any credential is good", "refuse what is no credential"),
        ("none", ""),
    ],
)
async def test_broken_builds_are_found(storage: Storage, fault: str, flow: str) -> None:
    found = await flows_of(storage, fault)
    assert (flow in found) if flow else (found == {})


@pytest.mark.timeout(300)
def test_selftest_of_a_running_server(tmp_path: Path) -> None:
    home = Home(tmp_path)
    with home.serving() as server:
        done = home.run("selftest", "--url", server.url)
        assert (done.status, done.out.count("PASS")) == (0, 7), done
        assert home.json("selftest", "--url", server.url)["good"] is True
        other = home.run("selftest", "--url", f"{server.url}/elsewhere")
        assert (other.status, other.out.count("FAIL")) == (1, 7)
        assert [row["name"] for row in home.json("tenants", "list")] == list(doctor.LENT_TENANTS)
        url = server.url
    away = home.run("selftest", "--url", url)
    assert away.status == 69
    assert "does not answer" in away.sentence
    assert home.run("selftest", "--url", "x").status == 78


# --- The certificate, over real connections ---


@contextmanager
def tls_server(folder: Path, days: float, *, highest: Any = None, name: str = "") -> Iterator[int]:
    """A port that shows a certificate of its own authority for 127.0.0.1."""
    context = server_context(folder, days, name)
    if highest:
        context.maximum_version = highest
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(10)

    def serve() -> None:
        try:
            accepted, _ = listener.accept()
            with accepted, context.wrap_socket(accepted, server_side=True) as secured:
                secured.recv(1)
        except OSError:
            pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        listener.close()
        thread.join()


@pytest.mark.parametrize(
    ("days", "verdict", "said"),
    [
        (90.5, "pass", "TLSv1.3, chain and name are good, 90 days left"),
        (20.5, "warn", "20 days left"),
        (14.5, "fail", "14 days left"),
        (-1, "fail", "expired"),
    ],
)
def test_days_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, days: float, verdict: str, said: str
) -> None:
    with tls_server(tmp_path, days) as port:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        (found,) = tls_checks(f"https://127.0.0.1:{port}", time.time())
    assert found.verdict == verdict
    assert said in found.evidence


def test_certificates_that_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with tls_server(tmp_path, 90) as port:
        (found,) = tls_checks(f"https://127.0.0.1:{port}", time.time())
    assert (found.verdict, "refused" in found.evidence) == ("fail", True)
    with tls_server(tmp_path, 90, name="other.example.com") as port:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        (found,) = tls_checks(f"https://127.0.0.1:{port}", time.time())
    assert (found.verdict, "refused" in found.evidence) == ("fail", True)
    with tls_server(tmp_path, 90, highest=ssl.TLSVersion.TLSv1_2) as port:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "certificate.pem"))
        (found,) = tls_checks(f"https://127.0.0.1:{port}", time.time())
    assert (found.verdict, "TLSv1.2" in found.evidence) == ("pass", True)


@pytest.mark.parametrize("url", [None, "http://auth.example.com", "https://127.0.0.1:9"])
def test_no_tls_at_all(url: str | None) -> None:
    (found,) = tls_checks(url, time.time())
    assert found.verdict == "fail"


# --- Making a .env ---


def test_init_makes_a_good_env_file_once(tmp_path: Path) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    (tmp_path / ".gitignore").write_text("*.pyc\n.env")
    home = Home(tmp_path)
    done = home.run("init")
    assert done.status == 0
    made = tmp_path / ".env"
    assert made.stat().st_mode & 0o777 == 0o600
    written = made.read_text()
    settings = load_settings({}, made)
    assert settings.client_key is not None
    assert settings.jwt_secret_key is not None
    assert settings.warnings == ()
    for secret in (settings.client_key, settings.jwt_secret_key):
        assert secret.get_secret_value() not in done.out
    again = home.run("init")
    assert (again.status, made.read_text()) == (3, written)
    lines = (tmp_path / ".gitignore").read_text().splitlines()
    assert sorted(lines) == sorted(
        ["*.pyc", ".env", ".env.local", ".env.production", "*.key", "secrets/"]
    )
    for name in (".env", ".env.local", ".env.production", "a.key", "secrets/x"):
        asked = ["git", "-C", str(tmp_path), "check-ignore", "-q", name]
        assert subprocess.run(asked).returncode == 0, name
    with home.serving() as server:
        key = settings.client_key.get_secret_value()
        assert server.ask("/api/roles", key).status_code == 200


def test_init_outside_of_git_and_onto_a_link(tmp_path: Path) -> None:
    home = Home(tmp_path)
    (tmp_path / ".env").symlink_to("elsewhere")
    assert home.run("init").status == 3
    assert not (tmp_path / "elsewhere").exists()
    (tmp_path / ".env").unlink()
    assert home.run("init").status == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [".env"]
