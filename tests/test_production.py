"""What production refuses: weak, shared and open secrets, through the command and one by one."""

from __future__ import annotations

import base64
import secrets
import uuid
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet

from authsvc.errors import SettingsError
from authsvc.production import Check, open_to_others, refuse, settings_checks
from authsvc.secret_strength import estimated_bits
from authsvc.settings import Settings, build_settings, load_settings
from test_cli import STRONG, Home, ended
from test_settings import AUDITED, MASTER_KEY

URL = "postgresql://app:{}@localhost/auth"
WEAK = (
    "short-but-random-7Gq2",
    "dev-secret-key",
    "x" * 40,
    "0123456789" * 4,
    "abcdefghijklmnopqrstuvwxyz0123456789",
    "change-me-in-production-please-32",
    "your-256-bit-secret-your-256-bit-secret",
    "supersecretkey_please_change_in_production_2024",
    "correct horse battery staple now!",
    "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=",
    "A" * 43 + "=",
    "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
)


@pytest.fixture
def home(tmp_path: Path) -> Home:
    """A home of this test's own."""
    return Home(tmp_path, {"AUTH_ENVIRONMENT": "production"})


def production(**values: Any) -> Settings:
    """Settings of a production service that are taken whatever they are."""
    good: dict[str, Any] = {
        "jwt_secret_key": STRONG,
        "client_registration": "closed",
        "enable_encryption": True,
        "encryption_key": MASTER_KEY,
        **AUDITED,
    }
    local = build_settings(**good | values)
    return local.model_copy(update={"environment": "production"})


def failed(settings: Settings) -> list[Check]:
    return [check for check in settings_checks(settings) if check.verdict == "fail"]


@pytest.mark.timeout(400)
def test_twelve_weak_secrets_do_not_start_and_a_strong_one_does(home: Home) -> None:
    assert len(WEAK) == 12
    for part in (WEAK[:4], WEAK[4:8], WEAK[8:]):
        begun = {value: home.begin("serve", AUTH_JWT_SECRET_KEY=value) for value in part}
        for value, process in begun.items():
            done = ended(process)
            assert done.status == 78, value
            assert done.sentence.startswith("AUTH_JWT_SECRET_KEY: ")
            assert value not in done.err
    absent = home.run("serve")
    assert (absent.status, absent.sentence[:20]) == (78, "AUTH_JWT_SECRET_KEY:")
    assert not home.database.exists()
    with home.serving(AUTH_JWT_SECRET_KEY=STRONG) as server:
        assert server.ask("/health/ready").status_code == 200
        assert "AUTH_CLIENT_REGISTRATION" in server.printed
        assert STRONG not in server.printed


@pytest.mark.timeout(400)
def test_the_other_refusals_through_the_command(home: Home) -> None:
    table: dict[str, dict[str, str]] = {
        "AUTH_JWT_SECRET_KEY and AUTH_AUDIT_KEY": {"AUTH_AUDIT_KEY": STRONG},
        "AUTH_DEBUG_MODE": {"AUTH_DEBUG_MODE": "true"},
        "AUTH_ENABLE_AUDIT_LOGGING": {"AUTH_ENABLE_AUDIT_LOGGING": "false"},
        "AUTH_WORKERS": {"AUTH_WORKERS": "2"},
        "AUTH_POSTGRESQL_URL": {"AUTH_POSTGRESQL_URL": URL.format("password")},
    }
    begun = {
        name: home.begin("serve", AUTH_JWT_SECRET_KEY=STRONG, **more)
        for name, more in table.items()
    }
    for name, process in begun.items():
        done = ended(process)
        assert (done.status, done.sentence.startswith(name)) == (78, True), done.err


def test_every_generator_of_the_guide_is_strong_enough() -> None:
    for _ in range(200):
        for made in (
            base64.b64encode(secrets.token_bytes(32)).decode(),
            secrets.token_urlsafe(32),
            secrets.token_hex(32),
            str(uuid.uuid4()),
        ):
            assert estimated_bits(made) > 80, made


@pytest.mark.parametrize("value", [value for value in WEAK if len(value) >= 32])
def test_old_secrets_are_judged_like_the_new_one(value: str) -> None:
    (check,) = failed(production(jwt_old_secret_keys=f"{STRONG[::-1]},{value}"))
    assert (check.item, check.fatal) == (1, True)
    assert check.evidence.startswith("AUTH_JWT_OLD_SECRET_KEYS: ")


@pytest.mark.parametrize(
    "reused",
    ["encryption_key", "audit_key", "jwt_old_secret_keys", "encryption_old_keys", "vault_token"],
)
def test_one_secret_for_two_purposes(reused: str) -> None:
    secret = Fernet.generate_key().decode()
    given = f"{Fernet.generate_key().decode()},{secret}" if reused.endswith("_keys") else secret
    (check,) = failed(production(**{"jwt_secret_key": secret, reused: given}))
    assert (check.item, check.fatal) == (1, True)
    assert f"AUTH_{reused.upper()}" in check.evidence
    assert secret not in check.sentence


def test_encryption_that_is_off_is_told_and_does_not_keep_from_starting() -> None:
    (check,) = failed(production(enable_encryption=False))
    assert (check.item, check.fatal) == (2, False)


@pytest.mark.parametrize(
    ("password", "good"),
    [
        ("password", False),
        ("auth", False),
        ("app", False),
        ("veryStr0ng%26SecureP%40ssw0rd!", False),
        ("Summer2024!!", False),
        ("Zk3v8sYc2mJ", False),
        ("Zk3v8sYc2mJx0pWd7h", True),
        (secrets.token_urlsafe(32), True),
    ],
)
def test_passwords_of_the_database(password: str, good: bool) -> None:
    found = failed(production(postgresql_url=URL.format(password)))
    assert [(check.item, check.fatal) for check in found] == [(3, True)] * (not good)
    assert all(password not in check.sentence for check in found if len(password) > 8)


@pytest.mark.parametrize(
    ("origins", "verdict"),
    [
        (("*",), "fail"),
        (("https://*.example.com",), "fail"),
        (("null",), "fail"),
        (("https://a.example.com", "http://b.example.com"), "warn"),
        (("https://a.example.com",), "pass"),
        ((), "pass"),
    ],
)
def test_origins(origins: tuple[str, ...], verdict: str) -> None:
    settings = production().model_copy(update={"allow_cors": True, "cors_origins": origins})
    (check,) = [check for check in settings_checks(settings) if check.item == 5]
    assert check.verdict == verdict
    if verdict == "fail":
        with pytest.raises(SettingsError, match="AUTH_CORS_ORIGINS"):
            refuse(settings)


@pytest.mark.parametrize(
    ("address", "good"),
    [
        ("http://vault.example.com:8200", False),
        ("http://127.0.0.1:8200", True),
        ("http://localhost:8200", True),
        ("https://vault.example.com", True),
    ],
)
def test_secrets_over_the_network_need_tls(address: str, good: bool) -> None:
    found = failed(production(vault_addr=address))
    assert [check.evidence[:16] for check in found] == ["AUTH_VAULT_ADDR:"] * (not good)


def test_good_settings_fail_nothing() -> None:
    settings = production(postgresql_url="postgresql://app@db.example.com/a?sslmode=verify-full")
    assert failed(settings) == []
    assert refuse(settings) == []
    assert {check.item for check in settings_checks(settings)} == {1, 2, 3, 5, 6, 7, 8}


# --- Files ---


@pytest.mark.parametrize(
    ("mode", "folder", "is_open"),
    [
        (0o600, 0o755, False),
        (0o640, 0o755, False),
        (0o644, 0o755, True),
        (0o660, 0o755, True),
        (0o602, 0o755, True),
        (0o644, 0o700, False),
    ],
)
def test_files_that_others_can_reach(mode: int, folder: int, is_open: bool) -> None:
    place = Path("/var/tmp") / f"authsvc-{uuid.uuid4().hex}"
    place.mkdir()
    try:
        place.chmod(folder)
        file = place / "secret"
        file.write_text(STRONG)
        file.chmod(mode)
        assert open_to_others(file) is is_open
        env = {
            "AUTH_ENVIRONMENT": "production",
            "AUTH_CLIENT_REGISTRATION": "closed",
            "AUTH_JWT_SECRET_KEY_FILE": str(file),
        } | {f"AUTH_{name.upper()}": value for name, value in AUDITED.items()}
        if is_open:
            with pytest.raises(SettingsError, match="AUTH_JWT_SECRET_KEY: others have access"):
                load_settings(env, None)
        else:
            assert load_settings(env, None).warnings == ()
        assert load_settings(env | {"AUTH_ENVIRONMENT": "local"}, None).warnings == ()
    finally:
        file.unlink()
        place.rmdir()
    assert not open_to_others(file)
