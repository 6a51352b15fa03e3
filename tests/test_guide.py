"""The security guide's snippets, run: what it tells people to type does what it says it does.

Names are this package's where the guide's are another's. nginx runs in ``test_nginx.py``.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest

from authsvc.errors import SettingsError
from authsvc.records import Change
from authsvc.sanitizer import sanitize_input
from authsvc.settings import Settings, load_settings
from conftest import Storage, TenantAtWork, connect_driver
from http_api import HEADERS, Api, Serve
from secret_servers import Store
from test_secret_stores import aws, vault, vault_settings  # noqa: F401 - fixtures
from test_settings import MASTER_KEY
from trail import storage_settings

pytest_plugins = ["http_fixtures"]

TOP = Path(__file__).parents[1]
NGINX = (TOP / "docker" / "nginx.conf").read_text()


# Where it is not installed.
_UUIDGEN = """
command -v uuidgen >/dev/null || uuidgen() { python -c 'import uuid; print(uuid.uuid4())'; }
"""


def settings_of(commands: str, **more: str) -> Settings:
    """What ``authsvc`` reads after these lines were typed into a shell."""
    before = {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": "/nonexistent"}
    done = subprocess.run(
        ["bash", "-ec", f"{_UUIDGEN}\n{commands}\nenv -0"],
        env=before | more,
        capture_output=True,
        check=True,
    )
    lines = done.stdout.decode().split("\0")
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    kept = {name: value for name, value in found.items() if name.startswith("AUTH_")}
    return load_settings(kept, None)


# Client keys


def test_client_keys_are_uuid4() -> None:
    good = str(uuid.uuid4())
    found = settings_of(f"export AUTH_CLIENT_KEY={good}").client_key
    assert found is not None
    assert found.get_secret_value() == good
    for bad in ("my-app-key", "abc-123-def"):
        with pytest.raises(
            SettingsError, match="AUTH_CLIENT_KEY: is not a version-4 UUID"
        ) as error:
            settings_of(f'export AUTH_CLIENT_KEY="{bad}"')
        assert bad not in str(error.value)


def test_keys_are_rotated_in_the_environment() -> None:
    old = settings_of("export AUTH_CLIENT_KEY=$(uuidgen)").client_key
    new = settings_of("NEW_KEY=$(uuidgen)\nexport AUTH_CLIENT_KEY=$NEW_KEY").client_key
    assert old is not None
    assert new is not None
    assert old != new


# JWT


def test_a_strong_secret_and_lifetimes() -> None:
    typed = (
        'export AUTH_JWT_SECRET_KEY="$(openssl rand -base64 32)"\n'
        "export AUTH_JWT_ACCESS_TOKEN_EXPIRE_MINUTES=15\n"
        "export AUTH_JWT_REFRESH_TOKEN_EXPIRE_DAYS=7\n"
    )
    found = settings_of(typed, AUTH_ENVIRONMENT="production", AUTH_CLIENT_REGISTRATION="closed")
    assert found.jwt_access_token_expire_minutes == 15
    assert found.jwt_refresh_token_expire_days == 7
    assert len(found.token_keys) == 1
    with pytest.raises(SettingsError, match="AUTH_JWT_SECRET_KEY"):
        settings_of("export AUTH_JWT_SECRET_KEY=dev-secret-key", AUTH_ENVIRONMENT="production")


# Transport security


def test_the_servers_own_lines() -> None:
    for line in (
        "listen 443 ssl http2;",
        "server_name auth.example.com;",
        "ssl_protocols TLSv1.2 TLSv1.3;",
        "ssl_ciphers HIGH:!aNULL:!MD5;",
        "ssl_prefer_server_ciphers on;",
    ):
        assert line in NGINX
    assert re.search(r"ssl_certificate \S+\.pem;", NGINX)
    assert re.search(r"ssl_certificate_key \S+\.pem;", NGINX)
    proxy = (TOP / "docker" / "authsvc_proxy.conf").read_text()
    assert "proxy_set_header X-Forwarded-Proto https;" in proxy


# Database security


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
async def test_the_guides_role_is_enough(
    storage: Storage, tenant: TenantAtWork, engine: str
) -> None:
    async with storage.administrator() as admin:
        name = f"authuser_{uuid.uuid4().hex[:8]}"
        await admin.execute(f"CREATE USER {name} WITH PASSWORD 'veryStr0ng&SecureP@ssw0rd!'")
        try:
            await admin.execute(f'GRANT CONNECT ON DATABASE "{storage.name}" TO {name}')
            await admin.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO {name}"
            )
            server = storage.owner_url.partition("@")[2]
            # A password in a URL is escaped; in AUTH_POSTGRESQL_PASSWORD it need not be.
            url = f"postgresql://{name}:veryStr0ng%26SecureP%40ssw0rd%21@{server}"
            connection = await connect_driver(url)
            try:
                assert await connection.fetchval("SELECT count(*) FROM client_key") == 1
                for refused in ("DROP TABLE role", "CREATE TABLE x (a int)", "TRUNCATE role"):
                    with pytest.raises(asyncpg.InsufficientPrivilegeError):
                        await connection.execute(refused)
            finally:
                await connection.close()
        finally:
            await admin.execute(f"DROP OWNED BY {name}; DROP USER {name}")


def test_tls_in_the_url() -> None:
    url = "postgresql://authuser:password@localhost:5432/authdb?sslmode=require"
    found = settings_of(f'export AUTH_POSTGRESQL_URL="{url}"')
    assert found.gate is not None
    assert found.postgresql_url is not None
    assert "password" not in str(found.postgresql_url)


def test_the_sqlite_file_is_its_owners(tmp_path: Path) -> None:
    home = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    command = [str(Path(sys.executable).with_name("authsvc")), "migrate"]
    subprocess.run(command, env=home, cwd=tmp_path, check=True, capture_output=True)
    made = tmp_path / ".auth.sqlite3"
    assert made.stat().st_mode & 0o777 == 0o600
    assert made.stat().st_uid == os.getuid()


def test_input_is_checked_and_never_rewritten() -> None:
    assert sanitize_input("admin") == "admin"
    for text in ("<script>alert(1)</script>", "a'; DROP TABLE roles; --", "a" * 1000):
        with pytest.raises(Exception, match="characters"):
            sanitize_input(text)


# CORS


def test_cors_in_development_and_production() -> None:
    everybody = 'export AUTH_ALLOW_CORS=true\nexport AUTH_CORS_ORIGINS="*"'
    assert settings_of(everybody).cors_origins == ("*",)
    strong = {"AUTH_ENVIRONMENT": "production", "AUTH_JWT_SECRET_KEY": "x7Gk2pQ9vLm4sT8wZb3nR6yHd1f"
              "Jc5aV"}  # fmt: skip
    with pytest.raises(SettingsError, match="AUTH_CORS_ORIGINS"):
        settings_of(everybody, **strong)
    named = "https://app.example.com,https://admin.example.com"
    found = settings_of(
        f'export AUTH_ALLOW_CORS=true\nexport AUTH_CORS_ORIGINS="{named}"', **strong
    )
    assert found.cors_origins == tuple(named.split(","))


# Audit logging


_MONITOR = """
from authsvc.audit import query_audit_logs
# Monitor suspicious activity
recent_logs = query_audit_logs(
    action='delete',
    hours=24
)
for log in recent_logs:
    if log['entity_type'] == 'role':
        alert_security_team(log)
"""
_INVESTIGATE = """
# Query audit logs
from authsvc.audit import query_audit_logs
# Find suspicious activity
logs = query_audit_logs(hours=24)
suspicious = [log for log in logs if is_suspicious(log)]
"""


async def test_audit_logs_are_monitored_and_investigated(
    storage: Storage, tenant: TenantAtWork, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("AUTH_")]:
        monkeypatch.delenv(name)
    for name, value in storage_settings(storage).items():
        monkeypatch.setenv(name, value)
    now = datetime.now(UTC)
    for instant, role in ((now - timedelta(hours=25), "old"), (now, "admin")):
        tenant.clock.instant = instant
        await tenant.write(Change("add_role", role=role), Change("remove_role", role=role))
        await tenant.write(
            Change("add_role", role="kept"), Change("grant", role="kept", permission=role)
        )
    alerts: list[dict[str, Any]] = []
    exec(_MONITOR, {"alert_security_team": alerts.append})
    assert [(log["entity_id"], log["action"], log["tenant"]) for log in alerts] == [
        ("admin", "delete", "acme")
    ]
    found: dict[str, Any] = {"is_suspicious": lambda log: log["action"] == "grant"}
    exec(_INVESTIGATE, found)
    assert [(log["entity_id"], log["details"]) for log in found["suspicious"]] == [
        ("admin", {"role": "kept"})
    ]
    assert [log["action"] for log in found["logs"]] == ["grant", "delete", "create"]


# Secrets


def test_the_files_of_the_guide_are_kept_out_of_git() -> None:
    for name in (".env", ".env.local", ".env.production", "server.key", "secrets/anything"):
        done = subprocess.run(["git", "check-ignore", "--no-index", "-q", name], cwd=TOP)
        assert done.returncode == 0, name


def test_aws_and_vault_by_the_guides_names(
    aws: Store,  # noqa: F811
    vault: Store,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in (
        ("AWS_ACCESS_KEY_ID", "AKIAPLANTED"),
        ("AWS_SECRET_ACCESS_KEY", "planted-access-key"),
        ("AWS_DEFAULT_REGION", "eu-central-1"),
        ("NO_PROXY", "127.0.0.1"),
    ):
        monkeypatch.setenv(name, value)
    from_aws = load_settings({"AUTH_AWS_SECRET_ID": "auth/production"}, None).jwt_secret_key
    assert from_aws is not None
    assert from_aws.get_secret_value() == aws.secrets["jwt_key"]
    from_vault = load_settings(vault_settings(vault), None).jwt_secret_key
    assert from_vault is not None
    assert from_vault.get_secret_value() == vault.secrets["jwt_key"]


def test_kubernetes_by_the_guides_names(tmp_path: Path) -> None:
    for name, value in (
        ("jwt-secret", "x7Gk2pQ9vLm4sT8wZb3nR6yHd1fJc5aV"),
        ("encryption-key", MASTER_KEY),
        ("db-password", "veryStr0ng&SecureP@ssw0rd!"),
    ):
        (tmp_path / name).write_text(value)
    given = {
        "AUTH_SECRETS_DIR": str(tmp_path),
        "AUTH_POSTGRESQL_URL": "postgresql://authuser@localhost/authdb",
    }
    found = load_settings(given, None)
    assert found.jwt_secret_key is not None
    assert found.encryption_key is not None
    assert found.postgresql_password is not None
    assert found.postgresql_password.get_secret_value() == "veryStr0ng&SecureP@ssw0rd!"


# Security headers


async def test_the_five_headers(api: Api) -> None:
    page, answer = await api.http.get("/docs"), await api.send("GET", "/api/roles")
    for response in (page, answer):
        for name in HEADERS:
            assert response.headers[name] == HEADERS[name]
    assert page.headers["content-security-policy"] == "default-src 'self'"


# Rate limiting


def test_the_guides_limit_in_nginx() -> None:
    for line in (
        "limit_req_zone $binary_remote_addr zone=auth_limit:10m rate=10r/s;",
        "location /api/ {",
        "limit_req zone=auth_limit burst=20 nodelay;",
        "limit_req_status 429;",
    ):
        assert line in NGINX


async def test_the_guides_limit_in_the_service(serve: Serve, api: Api) -> None:
    async with serve(rate_limit_profile="strict") as service:
        known = service.with_key(api.key)
        made = [(await known.send("POST", f"/api/role/r{n}")).status_code for n in range(6)]
        assert made == [200] * 5 + [429]
        asked = [(await known.send("GET", "/api/roles")).status_code for _ in range(11)]
        assert asked == [200] * 10 + [429]
