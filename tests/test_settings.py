"""The settings: where they are looked for, what is refused, and that no secret is ever shown."""

from __future__ import annotations

import logging
import pickle
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from pydantic import SecretStr, ValidationError

from authsvc.encryption import MasterKey
from authsvc.errors import SettingsError
from authsvc.postgresql_url import PostgreSQLTarget
from authsvc.settings import Settings, SqliteFile, build_settings, load_settings

EXAMPLE = Path(__file__).parent.parent / ".env.example"
KEY = "0b9a2e8e-0d0e-4c57-9a6e-3f6c8a5b1c2d"
OTHER_KEY = "f47ac10b-58cc-4372-a567-0e02b2c3d479"
SECRET = "hunter2secret-with-more-than-32-characters"
STRONG = "Qk3v8sYc2mJx0pWd7hTz5nRb1fLg9aEu4oKi6yCq"
PEM = (
    ec.derive_private_key(7, ec.SECP256R1())
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
    .strip()
)
PUBLIC_PEM = (
    ec.derive_private_key(7, ec.SECP256R1())
    .public_key()
    .public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    .decode()
    .strip()
)
SIGNING_PEM = (
    Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
    .private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    .decode()
    .strip()
)
URL = "postgresql://app@db.example.com/auth"
LOCAL_URL = "postgresql://app@localhost/auth"
SECRETS = (
    "postgresql_url",
    "database_url",
    "postgresql_password",
    "postgresql_gate_url",
    "vault_token",
    "vault_secret_id",
    "client_key",
    "jwt_secret_key",
    "jwt_old_secret_keys",
    "jwt_private_key",
    "jwt_old_public_keys",
    "encryption_key",
    "encryption_old_keys",
    "audit_key",
    "audit_old_keys",
    "checkpoint_private_key",
    "rate_limit_storage_url",
    "webhook_url",
    "webhook_secret",
)
MASTER_KEY = "Pq8rS1tU4vW7xY0zA3bC6dE9fG2hI5jK8lM1nO4pQ7s="
AUDITED = {
    "audit_key": "Gx5nRt9wQe2yUi7oPa4sDf8gHj3kLz6xCv1bNm0q",
    "checkpoint_private_key": SIGNING_PEM,
    "checkpoint_file": "/var/lib/checkpoints.jsonl",
}
"""What nothing is to be said about in production."""


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A home and a working directory without settings, and an environment with wrong ones."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("AUTH_SERVER_PORT", "1")
    monkeypatch.chdir(tmp_path)


def variable(name: str) -> str:
    return f"AUTH_{name.upper()}"


def load(env_file: str | None = None, **env: str) -> Settings:
    """The settings of ``env`` (by field name) and of ``.env``, given that text if any."""
    path = Path(".env")
    if env_file is not None:
        path.write_text(env_file)
        path.chmod(0o600)
    if env.get("environment") == "production":
        env = {"jwt_secret_key": STRONG} | AUDITED | env
    return load_settings({variable(name): value for name, value in env.items()}, path)


def refusal(env_file: str | None = None, **env: str) -> str:
    """The sentence that settings are refused with."""
    with pytest.raises(SettingsError) as caught:
        load(env_file, **env)
    assert SECRET not in "".join(traceback.format_exception(caught.value))
    # Whatever is left hanging on the error is shown by some tool, some day.
    assert not isinstance(caught.value.__context__, ValidationError)
    assert caught.value.exit_code == 78
    return caught.value.message


# --- Defaults, and the file that explains them ---


def test_defaults() -> None:
    settings = build_settings()
    assert settings.environment == "local"
    assert settings.database == SqliteFile(Path.home() / ".auth.sqlite3")
    assert settings.gate is None
    assert (settings.server_host, settings.server_port, settings.workers) == ("127.0.0.1", 5000, 1)
    assert settings.xss_protection_header == "1; mode=block"
    assert settings.docs_enabled
    assert settings.check_short_way
    assert not settings.debug_mode
    assert not settings.strict_names
    assert settings.registration_open
    assert settings.warnings == ()
    assert load() == settings


def example_lines() -> list[tuple[str, str]]:
    return re.findall(r"^# (AUTH_[A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.MULTILINE)


def test_the_example_has_every_setting_once() -> None:
    names = [name for name, _ in example_lines()]
    assert sorted(names) == sorted(variable(name) for name in Settings.model_fields)


def test_the_example_sets_nothing() -> None:
    text = EXAMPLE.read_text()
    assert all(line.startswith("#") or not line for line in text.splitlines())
    assert load(text) == build_settings()


def test_the_example_shows_the_defaults() -> None:
    text = "\n".join(f"{name}={value}" for name, value in example_lines())
    shown, default = load(text), build_settings()
    differing = {
        name for name in Settings.model_fields if getattr(shown, name) != getattr(default, name)
    }
    assert differing <= {"sqlite_path"}
    assert shown.database == default.database


# --- Where settings are looked for ---


def test_keyword_arguments_alone() -> None:
    Path(".env").write_text("AUTH_WORKERS=nonsense\n")
    assert build_settings().server_port == 5000
    assert Settings(server_port=6000).server_port == 6000


def test_this_process_by_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTH_SERVER_PORT", "6001")
    Path(".env").write_text(f"AUTH_SERVER_PORT=6002\nAUTH_CLIENT_KEY={KEY}\n")
    Path(".env").chmod(0o600)
    settings = load_settings()
    assert settings.server_port == 6001
    assert settings.client_key == SecretStr(KEY)


def test_precedence_of_sources() -> None:
    Path("key").write_text(f"{KEY}\n")
    from_env_file = f"AUTH_CLIENT_KEY={OTHER_KEY}\nAUTH_WORKERS=1\n"

    def key(env_file: str | None = None, **env: str) -> str | None:
        found = load(env_file, **env).client_key
        return None if found is None else found.get_secret_value()

    assert key(from_env_file) == OTHER_KEY
    assert key(from_env_file, client_key_file="key") == KEY
    assert key(from_env_file, client_key=KEY) == KEY
    assert key("AUTH_CLIENT_KEY_FILE=key") == KEY
    assert key("AUTH_CLIENT_KEY_FILE=absent", client_key=OTHER_KEY) == OTHER_KEY
    assert key("AUTH_CLIENT_KEY=", client_key="") is None


def test_empty_is_not_set() -> None:
    empty = dict.fromkeys(Settings.model_fields, "")
    assert load(**empty) == build_settings()
    assert load("".join(f"{variable(name)}=\n" for name in empty)) == build_settings()
    assert load("AUTH_SERVER_PORT=6000", server_port="").server_port == 6000


def test_capitals_do_not_matter() -> None:
    assert load_settings({"auth_server_port": "6000"}, None).server_port == 6000
    with pytest.raises(SettingsError, match="AUTH_WORKERS: set twice"):
        load_settings({"auth_workers": "1", "AUTH_WORKERS": "2"}, None)


def test_no_env_file() -> None:
    assert load_settings({}, None) == load_settings({}, Path("absent")) == build_settings()
    Path("folder").mkdir()
    assert load_settings({}, Path("folder")) == build_settings()


def test_env_file_is_taken_literally(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORD", "expanded")
    text = f"""\ufeff# a comment
export AUTH_POSTGRESQL_URL={LOCAL_URL}
AUTH_POSTGRESQL_PASSWORD='a b#c${{WORD}}$WORD"'
OTHER_PROGRAM=${{WORD}}
BARE
"""
    target = load(text).database
    assert isinstance(target, PostgreSQLTarget)
    assert target.password == 'a b#c${WORD}$WORD"'


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (f"AUTH_WORKERS=1\nAUTH_JWT_SECRET_KEY='{SECRET}\n", ".env: line 2 is not NAME=value"),
        (f"AUTH_WORKERS=1\n=={SECRET}\n", ".env: line 2 is not NAME=value"),
        (f"AUTH_WORKER={SECRET}", "AUTH_WORKER in .env: there is no such setting; is AUTH_WORKERS"),
        (f"AUTH_ZZZ={SECRET}", "AUTH_ZZZ in .env: there is no such setting; remove it"),
        (f"AUTH_PASSWORD={SECRET}", "AUTH_PASSWORD in .env: there is no such setting"),
        (f"AUTH_CLIENT_KEY={KEY}\nAUTH_CLIENT_KEY_FILE=x", "both are set; keep one"),
    ],
)
def test_env_file_refusals(text: str, sentence: str) -> None:
    assert sentence in refusal(text)


def test_env_file_that_is_not_text() -> None:
    Path(".env").write_bytes(b"AUTH_CLIENT_KEY=\xff")
    assert ".env cannot be read: it is not text in UTF-8" in refusal()


def test_env_file_that_may_not_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> str:
        raise PermissionError(13, "Permission denied")

    Path(".env").touch(0o600)
    monkeypatch.setattr(Path, "read_text", refuse)
    assert ".env cannot be read: Permission denied" in refusal()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o601])
def test_env_file_open_to_others(mode: int) -> None:
    path = Path(".env")
    path.write_text("AUTH_WORKERS=1")
    path.chmod(mode)
    (warning,) = load().warnings
    assert "chmod 600" in warning
    assert "chmod 600" in refusal(environment="production")
    path.write_text("AUTH_ENVIRONMENT=production")
    assert "chmod 600" in refusal(jwt_secret_key=STRONG)


def test_secrets_in_env_file_in_production() -> None:
    text = f"AUTH_CLIENT_KEY={KEY}\nAUTH_CLIENT_REGISTRATION=closed\n"
    assert load(text).warnings == ()
    (warning,) = load(text, environment="production").warnings
    assert warning.startswith("AUTH_CLIENT_KEY: stands in .env")
    assert KEY not in warning
    assert load(text, environment="production", client_key=KEY).warnings == ()


@pytest.mark.parametrize("name", SECRETS)
def test_every_secret_can_be_a_file(name: str) -> None:
    value = {
        "client_key": KEY,
        "postgresql_url": LOCAL_URL,
        "database_url": LOCAL_URL,
        "postgresql_gate_url": LOCAL_URL,
        "jwt_private_key": PEM,
        "jwt_old_public_keys": PUBLIC_PEM,
        "rate_limit_storage_url": planted("rate_limit_storage_url"),
        "checkpoint_private_key": SIGNING_PEM,
        "webhook_url": planted("webhook_url"),
        "encryption_key": MASTER_KEY,
        "encryption_old_keys": MASTER_KEY,
    }.get(name, f" {SECRET} ")
    Path("secret").write_text(f"{value}\r\n")
    beside = {"webhook_secret": SECRET} if name == "webhook_url" else {}
    found = getattr(load(**{f"{name}_file": "secret"}, **beside), name)
    assert found.get_secret_value() == value
    both = refusal(**{name: value, f"{name}_file": "secret"})
    assert both == f"{variable(name)} and {variable(name)}_FILE: both are set; keep one"


def test_only_secrets_can_be_files() -> None:
    assert "AUTH_WORKERS meant?" in refusal(workers_file="count")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No such file or directory"),
        (b"\n", "it is empty"),
        (b"\xff", "it is not text in UTF-8"),
    ],
)
def test_secret_files_that_cannot_be_used(content: bytes | None, reason: str) -> None:
    # Somebody will put the secret itself where its file's name belongs.
    if content is not None:
        Path(SECRET).write_bytes(content)
    message = refusal(jwt_secret_key_file=SECRET)
    assert message == f"AUTH_JWT_SECRET_KEY_FILE: the file it names cannot be used: {reason}"


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("AUTH_SERVER_PROT", "AUTH_SERVER_PORT"),
        ("AUTH_JWT_SECRET", "AUTH_JWT_SECRET_KEY"),
        ("AUTH_POSTGRES_URL", "AUTH_POSTGRESQL_URL"),
        ("AUTH_CORS_ORIGIN", "AUTH_CORS_ORIGINS"),
        ("AUTH_CLIENT_KEYS", "AUTH_CLIENT_KEY"),
        ("AUTH_CLIENT_KEY_FILES", "AUTH_CLIENT_KEY_FILE"),
        ("auth_worker", "AUTH_WORKERS"),
    ],
)
def test_misspelt_names_are_refused(given: str, meant: str) -> None:
    with pytest.raises(SettingsError) as caught:
        load_settings({given: SECRET}, None)
    assert caught.value.message == f"{given}: there is no such setting; is {meant} meant?"


def test_other_unknown_names_are_one_warning() -> None:
    unknown = {"AUTH_ZZZ": SECRET, "AUTH_DOMAIN": SECRET, "AUTH_EMPTY": "", "OTHER": SECRET}
    (warning,) = load_settings(unknown, None).warnings
    assert warning == "AUTH_DOMAIN, AUTH_ZZZ: no such settings; see .env.example"


def test_ignored_names() -> None:
    names = ("AUTH_TEST_POSTGRESQL_URL", "AUTH_SERVICE_HOST", "AUTH_PORT", "AUTH_PORT_80_TCP")
    assert load_settings(dict.fromkeys(names, SECRET), None) == build_settings()
    assert load("\n".join(f"{name}={SECRET}" for name in names)) == build_settings()


# --- Which database ---


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ({"sqlite_path": "/data/auth.db"}, "/data/auth.db"),
        ({"sqlite_path": "auth.db"}, "{here}/auth.db"),
        ({"sqlite_path": "~/auth.db"}, "{home}/auth.db"),
        ({"database_url": "sqlite:////data/auth.db"}, "/data/auth.db"),
        ({"database_url": "sqlite:///auth.db"}, "{here}/auth.db"),
        ({"database_url": "sqlite:///~/auth.db"}, "{home}/auth.db"),
        ({"database_url": "sqlite:////data/a%20b.db"}, "/data/a b.db"),
    ],
)
def test_sqlite(given: dict[str, str], path: str) -> None:
    expected = Path(path.format(here=Path.cwd(), home=Path.home()))
    assert load(**given).database == SqliteFile(expected)


@pytest.mark.parametrize("name", ["postgresql_url", "database_url"])
def test_postgresql(name: str) -> None:
    given = {name: f"{URL}?sslmode=require&application_name=a"}
    settings = load(**given, postgresql_password="p@ss:w/rd")
    target = settings.database
    assert isinstance(target, PostgreSQLTarget)
    assert target.password == "p@ss:w/rd"
    assert target.sslmode == "require"
    assert target.hosts == (("db.example.com", 5432),)
    assert settings.gate == target
    assert settings.warnings == ()


@pytest.mark.parametrize(
    ("gate_url", "user", "password"),
    [
        ("postgresql://app@primary/auth", "app", "p"),
        ("postgresql://primary/auth", "app", "p"),
        ("postgresql://app:own@primary/auth", "app", "own"),
        ("postgresql://gate@primary/auth", "gate", None),
        ("postgresql://gate:own@primary/auth", "gate", "own"),
    ],
)
def test_gate(gate_url: str, user: str, password: str | None) -> None:
    given = {"postgresql_url": URL, "postgresql_password": "p", "postgresql_gate_url": gate_url}
    gate = load(**given).gate
    assert gate is not None
    assert (gate.hosts[0][0], gate.user, gate.password) == ("primary", user, password)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"sqlite_path": "/a", "postgresql_url": URL},
            "AUTH_SQLITE_PATH and AUTH_POSTGRESQL_URL: two databases are set",
        ),
        (
            {"sqlite_path": "/a", "postgresql_url": URL, "database_url": URL},
            "AUTH_SQLITE_PATH and AUTH_POSTGRESQL_URL and AUTH_DATABASE_URL: two databases",
        ),
        (
            {"postgresql_url": URL, "database_url": URL},
            "AUTH_POSTGRESQL_URL and AUTH_DATABASE_URL: two databases are set",
        ),
        ({"sqlite_path": ":memory:"}, "AUTH_SQLITE_PATH: must name a file"),
        ({"sqlite_path": "sqlite:///a"}, "AUTH_SQLITE_PATH: must name a file"),
        ({"sqlite_path": "file:a?mode=memory"}, "AUTH_SQLITE_PATH: must name a file"),
        ({"sqlite_path": f"postgresql://u:{SECRET}@h/d"}, "AUTH_SQLITE_PATH: must name a file"),
        ({"sqlite_path": "~nobody-of-that-name/a"}, "there is no home directory"),
        ({"database_url": "sqlite://"}, "AUTH_DATABASE_URL: must be"),
        ({"database_url": "sqlite:///"}, "AUTH_DATABASE_URL: must be"),
        ({"database_url": "sqlite:///:memory:"}, "AUTH_DATABASE_URL: must name a file"),
        ({"database_url": "sqlite:///a?mode=ro"}, "AUTH_DATABASE_URL: must be"),
        ({"database_url": "sqlite:///a%00"}, "AUTH_DATABASE_URL: must be"),
        ({"database_url": f"mysql://u:{SECRET}@h/d"}, "AUTH_DATABASE_URL: must be postgresql://"),
        ({"database_url": SECRET}, "AUTH_DATABASE_URL: must be postgresql://"),
        ({"database_url": f"postgres://u:{SECRET}@@h/d"}, "AUTH_DATABASE_URL: this is not a URL"),
        ({"postgresql_url": f"postgres://u:{SECRET}@@h/d"}, "AUTH_POSTGRESQL_URL: this is not"),
        (
            {"postgresql_url": URL, "postgresql_gate_url": f"postgres://u:{SECRET}@@h/d"},
            "AUTH_POSTGRESQL_GATE_URL: this is not a URL",
        ),
        (
            {"postgresql_url": f"postgresql://u:{SECRET}@h/d", "postgresql_password": SECRET},
            "AUTH_POSTGRESQL_URL and AUTH_POSTGRESQL_PASSWORD: the password is set twice",
        ),
        ({"workers": "2"}, "AUTH_WORKERS: SQLite is served by one process"),
    ],
)
def test_database_refusals(given: dict[str, str], sentence: str) -> None:
    assert sentence in refusal(**given)


def test_workers_with_postgresql() -> None:
    assert load(workers="4", postgresql_url=URL).workers == 4


def test_settings_of_the_database_that_is_not_used() -> None:
    (warning,) = load(postgresql_password=SECRET, postgresql_pool_size="5").warnings
    assert warning.startswith("AUTH_POSTGRESQL_PASSWORD, AUTH_POSTGRESQL_POOL_SIZE: ")
    assert "the database is a SQLite file" in warning


# --- One setting at a time ---


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"client_key": KEY.upper()}, SecretStr(KEY)),
        ({"trusted_proxies": "10.0.1.0/24, ::1,,"}, ("10.0.1.0/24", "::1")),
        ({"allowed_hosts": "Auth.example,*.example.org"}, ("auth.example", "*.example.org")),
        ({"allowed_hosts": "*"}, ("*",)),
        ({"allowed_hosts": "[::1],127.0.0.1"}, ("[::1]", "127.0.0.1")),
        ({"public_url": "https://auth.example.com/api"}, "https://auth.example.com/api"),
        ({"server_host": "::"}, "::"),
        ({"server_host": "0.0.0.0"}, "0.0.0.0"),
        ({"server_host": "auth.internal"}, "auth.internal"),
        ({"docs_enabled": "false"}, False),
        ({"strict_names": "TRUE"}, True),
        ({"debug_mode": "1"}, True),
        ({"xss_protection_header": "0"}, "0"),
        ({"xss_protection_header": "1"}, "1"),
        ({"xss_protection_header": "1; mode=block"}, "1; mode=block"),
    ],
)  # fmt: skip
def test_values(given: dict[str, str], expected: object) -> None:
    (name,) = given
    assert getattr(load(**given), name) == expected


@pytest.mark.parametrize(
    "given",
    [
        {"environment": "staging"},
        {"client_key": SECRET},
        {"client_key": KEY.replace("-", "")},
        {"client_key": f"{{{KEY}}}"},
        {"client_key": f"{KEY}\n"},
        {"client_key": "00000000-0000-0000-0000-000000000000"},
        {"client_key": "c232ab00-9414-11ec-b3c8-9f6bdeced846"},
        {"client_registration": "maybe"},
        {"server_host": "127.0.0.1:80"},
        {"server_host": "http://localhost"},
        {"server_host": "-"},
        {"server_port": "0"},
        {"server_port": "65536"},
        {"server_port": "http"},
        {"server_port": "tcp://10.0.0.1:80"},
        {"workers": "0"},
        {"workers": "1000"},
        {"trusted_proxies": "*"},
        {"trusted_proxies": "10.0.1.5/24"},
        {"trusted_proxies": "proxy.example.com"},
        {"allowed_hosts": "https://auth.example.com"},
        {"allowed_hosts": "auth.example.com:443"},
        {"allowed_hosts": "*.*.example.com"},
        {"allowed_hosts": "a/b"},
        {"public_url": "auth.example.com"},
        {"public_url": "ftp://auth.example.com"},
        {"public_url": f"https://u:{SECRET}@auth.example.com"},
        {"public_url": "https://auth.example.com?a=b"},
        {"public_url": "https://auth.example.com#a"},
        {"public_url": "https://auth.example.com\n"},
        {"postgresql_pool_size": "0"},
        {"postgresql_pgbouncer": "perhaps"},
        {"cache_mb": "0"},
        {"check_short_way": "2"},
        {"strict_names": "2"},
        {"docs_enabled": "2"},
        {"debug_mode": "2"},
        {"xss_protection_header": "1; report=x"},
        {"xss_protection_header": "1;mode=block"},
        {"jwt_access_token_expire_minutes": "0"},
        {"jwt_refresh_token_expire_days": "soon"},
        {"enable_encryption": "2"},
        {"enable_audit_logging": "2"},
        {"audit_checks": "some"},
        {"allow_cors": "2"},
        {"rate_limit_profile": "loose"},
    ],
)
def test_values_refused(given: dict[str, str]) -> None:
    ((name, value),) = given.items()
    message = refusal(**given)
    assert message.startswith(f"{variable(name)}: ")
    assert "Value error" not in message
    assert "Input" not in message
    if name in SECRETS:
        assert value.strip() not in message


def test_a_service_link_of_kubernetes_is_explained() -> None:
    assert "enableServiceLinks: false" in refusal(server_port="tcp://10.0.0.1:80")


def test_all_wrong_values_at_once() -> None:
    message = refusal(server_port="http", workers="none", client_key=SECRET)
    for name in ("AUTH_SERVER_PORT", "AUTH_WORKERS", "AUTH_CLIENT_KEY"):
        assert message.count(f"{name}: ") == 1


def test_unknown_keyword() -> None:
    with pytest.raises(SettingsError, match="AUTH_WORKER: there is no such setting"):
        build_settings(worker=SECRET)


@pytest.mark.parametrize(
    ("given", "is_open"),
    [
        ({}, True),
        ({"server_host": "localhost"}, True),
        ({"server_host": "::1"}, True),
        ({"server_host": "127.8.8.8"}, True),
        ({"server_host": "0.0.0.0"}, False),
        ({"server_host": "::"}, False),
        ({"server_host": "10.0.0.1"}, False),
        ({"server_host": "auth.internal"}, False),
        ({"postgresql_url": LOCAL_URL}, False),
        ({"database_url": LOCAL_URL}, False),
        ({"database_url": "sqlite:////data/auth.db"}, True),
        ({"client_registration": "closed"}, False),
        ({"client_registration": "open", "server_host": "0.0.0.0"}, True),
        ({"client_registration": "open", "postgresql_url": LOCAL_URL}, True),
    ],
)
def test_registration(given: dict[str, str], is_open: bool) -> None:
    assert load(**given).registration_open is is_open


# --- Keys ---


@pytest.mark.parametrize(
    "value",
    [
        "k" * 44,
        "A" * 43 + "=",
        "dev-encryption-key",
        MASTER_KEY[:-2],
        f"{MASTER_KEY}{MASTER_KEY}",
        MASTER_KEY.replace("z", "+"),
        "openssl rand -base64 32",
    ],
)
@pytest.mark.parametrize("name", ["encryption_key", "encryption_old_keys"])
def test_what_is_not_32_random_bytes_is_no_master_key(name: str, value: str) -> None:
    text = refusal(**{name: value})
    assert text.startswith(f"{variable(name)}: ")
    assert "python -c 'from cryptography.fernet import Fernet; print(" in text
    assert value not in text


def test_a_master_key_as_the_guide_makes_it() -> None:
    key, old, older = (Fernet.generate_key().decode() for _ in range(3))
    settings = load(
        enable_encryption="true", encryption_key=key, encryption_old_keys=f"{old},{older}"
    )
    assert [one.id for one in settings.master_keys.all] == [
        MasterKey(text).id for text in (key, old, older)
    ]
    assert settings.warnings == ()
    # A key that is to come, or that encrypted what is there, is read without the switch.
    assert load(encryption_key=key).master_keys.key is not None


def test_encryption_without_a_key_is_refused() -> None:
    text = refusal(enable_encryption="true")
    assert text.startswith("AUTH_ENCRYPTION_KEY: must be set with AUTH_ENABLE_ENCRYPTION; make one")
    assert refusal(enable_encryption="true", encryption_old_keys=MASTER_KEY) == text


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"jwt_secret_key": "x" * 31}, "at least 32 characters"),
        ({"jwt_old_secret_keys": f"{STRONG},short"}, "at least 32 characters"),
        ({"jwt_private_key": SECRET}, "PEM"),
        ({"jwt_private_key": PUBLIC_PEM}, "PEM"),
        ({"jwt_old_public_keys": SECRET}, "PEM"),
        ({"jwt_access_token_expire_minutes": "61"}, "60"),
        ({"jwt_refresh_token_expire_days": "91"}, "90"),
    ],
)
def test_keys_of_tokens_that_are_refused(given: dict[str, str], reason: str) -> None:
    ((name, value),) = given.items()
    message = refusal(**given)
    assert message.startswith(f"{variable(name)}: ")
    assert reason in message
    assert len(value) < 3 or value not in message


def test_keys_of_tokens_in_their_order() -> None:
    given = {
        "jwt_private_key": PEM,
        "jwt_secret_key": STRONG,
        "jwt_old_secret_keys": f"{SECRET}, {SECRET[::-1]}",
        "jwt_old_public_keys": PUBLIC_PEM,
    }
    found = [key.algorithm for key in load(**given).token_keys]
    assert found == ["ES256", "HS256", "HS256", "HS256", "ES256"]
    assert load().token_keys == ()
    assert load().jwt_access_token_expire_minutes == 15
    assert load().jwt_refresh_token_expire_days == 7


# --- Production ---


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"debug_mode": "true"}, "AUTH_DEBUG_MODE"),
        ({"jwt_secret_key": ""}, "AUTH_JWT_SECRET_KEY"),
        ({"enable_audit_logging": "false"}, "AUTH_ENABLE_AUDIT_LOGGING"),
        ({"postgresql_url": f"{URL}?sslmode=disable"}, "AUTH_POSTGRESQL_URL"),
        ({"database_url": f"{URL}?sslmode=disable"}, "AUTH_DATABASE_URL"),
        (
            {"postgresql_url": LOCAL_URL, "postgresql_gate_url": f"{URL}?sslmode=disable"},
            "AUTH_POSTGRESQL_GATE_URL",
        ),
        (
            {"postgresql_url": "postgresql://localhost,db.example.com/d?sslmode=disable"},
            "AUTH_POSTGRESQL_URL",
        ),
    ],
)
def test_production_refusals(given: dict[str, str], named: str) -> None:
    load(**given)
    assert refusal(**given, environment="production").startswith(f"{named}: ")


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ({"postgresql_url": URL}, ["AUTH_POSTGRESQL_URL"]),
        ({"database_url": f"{URL}?sslmode=allow"}, ["AUTH_DATABASE_URL"]),
        ({"postgresql_url": f"{URL}?sslmode=require"}, []),
        ({"postgresql_url": f"{URL}?sslmode=verify-full"}, []),
        ({"postgresql_url": LOCAL_URL}, []),
        ({"postgresql_url": f"{LOCAL_URL}?sslmode=disable"}, []),
        ({"postgresql_url": "postgresql:///d?host=/run/postgresql"}, []),
        ({"postgresql_url": "postgresql://127.0.0.1,[::1]/d"}, []),
        ({}, ["AUTH_CLIENT_REGISTRATION"]),
        ({"client_registration": "open"}, ["AUTH_CLIENT_REGISTRATION"]),
        ({"client_registration": "closed"}, []),
    ],
)
def test_production_warnings(given: dict[str, str], warned: list[str]) -> None:
    assert load(**given).warnings == ()
    settings = load(**given, environment="production")
    assert [warning.partition(":")[0] for warning in settings.warnings] == warned


# --- Secrets stay secret ---


def test_the_secrets_are_known() -> None:
    secret = {
        name
        for name, field in Settings.model_fields.items()
        if "SecretStr" in str(field.annotation)
    }
    assert secret == set(SECRETS)
    for name in Settings.model_fields:
        if re.search(r"password|secret|(?<!public_)key|_url$", name) and name not in SECRETS:
            assert name in {"aws_secret_id", "public_url", "secrets_dir"}


def planted(name: str) -> str:
    """A value for a secret setting that can be used and holds the planted word."""
    if name.startswith("encryption_"):
        return MASTER_KEY
    if name in ("client_key", "jwt_private_key", "jwt_old_public_keys"):
        return {"client_key": KEY, "jwt_private_key": PEM}.get(name, PUBLIC_PEM)
    if name == "checkpoint_private_key":
        return SIGNING_PEM
    if name == "webhook_url":
        return f"https://hooks.example.com/{SECRET}"
    if name == "rate_limit_storage_url":
        return f"redis://:{SECRET}@localhost/0"
    return f"postgresql://u:{SECRET}@localhost/d" if name.endswith("url") else SECRET


@pytest.mark.parametrize("name", SECRETS)
def test_secrets_are_never_shown(name: str, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    given = {name: planted(name)}
    if name.startswith("postgresql") and name != "postgresql_url":
        given["postgresql_url"] = LOCAL_URL
    if name == "webhook_url":
        given["webhook_secret"] = STRONG
    settings = load(**given)
    shown = [
        repr(settings),
        str(settings),
        repr(settings.model_dump()),
        repr(settings.model_dump(mode="json")),
        settings.model_dump_json(),
        repr(settings.database),
        str(settings.database),
        repr(settings.gate),
        repr(vars(settings)),
        *settings.warnings,
        caplog.text,
    ]
    for text in shown:
        assert SECRET not in text
        assert KEY not in text
        assert PEM.splitlines()[1] not in text
        assert MASTER_KEY not in text
    assert getattr(settings, name).get_secret_value() == given[name]


@pytest.mark.parametrize("name", SECRETS)
@pytest.mark.parametrize(
    "wrong",
    [
        {"server_port": "x"},
        {"enable_encryption": "true"},
        {"sqlite_path": ":memory:"},
        {"workers": "0", "trusted_proxies": "*"},
    ],
)
def test_secrets_are_in_no_refusal(name: str, wrong: dict[str, str]) -> None:
    if name == "encryption_key" and "enable_encryption" in wrong:
        wrong = {"enable_encryption": "maybe"}
    text = refusal(**{name: planted(name)}, **wrong)
    assert SECRET not in text
    assert KEY not in text
    assert MASTER_KEY not in text


@pytest.mark.parametrize("name", ["client_key", "postgresql_url", "database_url"])
@pytest.mark.parametrize("value", [SECRET, f"%{SECRET}", f"postgresql://u:{SECRET}@@h/d"])
def test_secrets_that_are_wrong_themselves(name: str, value: str) -> None:
    assert refusal(**{name: value}).startswith(f"{variable(name)}: ")


def test_frozen() -> None:
    settings = build_settings()
    with pytest.raises(ValidationError, match="frozen"):
        settings.workers = 2  # type: ignore[misc]


def test_equal_settings_are_equal_and_survive_a_copy() -> None:
    settings = load(client_key=KEY, sqlite_path="/data/auth.db")
    assert settings == load(client_key=KEY, sqlite_path="/data/auth.db")
    assert pickle.loads(pickle.dumps(settings)) == settings


@pytest.mark.parametrize("name", ["check", "read", "write", "role_create", "token", "auth_failure"])
def test_budgets(name: str) -> None:
    setting = f"rate_limit_{name}"
    for text in ("10/minute", "10 per 2 hours", "100/hour;10/minute", "off", "OFF", "1/day"):
        assert getattr(load(**{setting: text}), setting) == text
    for text in ("10", "fast", "0/minute", "-1/minute", "10/fortnight", "10/minute;", ";", "1e3/s"):
        assert refusal(**{setting: text}).startswith(f"{variable(setting)}: must be rates such as")


def test_the_storage_of_counts_is_a_redis() -> None:
    for url in ("http://localhost", "localhost:6379", "memory://", "redis:6379"):
        assert refusal(rate_limit_storage_url=url).startswith("AUTH_RATE_LIMIT_STORAGE_URL: must")


def test_workers_that_count_alone_are_told_of() -> None:
    several = {"workers": "2", "postgresql_url": LOCAL_URL}
    assert any("AUTH_RATE_LIMIT_STORAGE_URL" in one for one in load(**several).warnings)
    together = several | {"rate_limit_storage_url": "redis://localhost"}
    for given in (together, several | {"rate_limit_profile": "off"}):
        assert not any("AUTH_RATE_LIMIT" in one for one in load(**given).warnings)
