"""Where secrets come from: the order of the sources, and that a store in doubt stops the start."""

from __future__ import annotations

import builtins
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from authsvc import secret_stores
from authsvc.errors import SettingsError
from authsvc.secret_stores import store_names
from authsvc.settings import Settings, load_settings
from certificates import server_context
from secret_servers import NAMESPACE, ROLE, TOKEN, Aws, Store, Vault, serving
from test_settings import MASTER_KEY

PLANTED = "planted-{}-value-Qk3v8sYc2mJx0pWd7hTz5nRb1fLg9"
LOCAL_URL = "postgresql://app@localhost/auth"


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "absent"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAPLANTED")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "planted-access-key")
    monkeypatch.setenv("AWS_REGION", "eu-central-1")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "eu-central-1")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")


@pytest.fixture
def vault() -> Iterator[Store]:
    """A Vault that holds a JWT secret under the guide's name."""
    with serving(Store({"jwt_key": PLANTED.format("vault"), "other": {"a": 1}}), Vault) as store:
        yield store


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """An AWS Secrets Manager that does, too."""
    held = {"jwt_key": PLANTED.format("aws"), "encryption_key": MASTER_KEY}
    with serving(Store(held), Aws) as store:
        monkeypatch.setenv("AWS_ENDPOINT_URL", store.url)
        yield store


def vault_settings(store: Store, **more: str) -> dict[str, str]:
    opened = {"AUTH_VAULT_TOKEN": TOKEN} if "AUTH_VAULT_ROLE_ID" not in more else {}
    return {"AUTH_VAULT_ADDR": store.url, "AUTH_VAULT_NAMESPACE": NAMESPACE} | opened | more


def folder(**files: str) -> dict[str, str]:
    made = Path("secrets")
    made.mkdir(exist_ok=True)
    for name, text in files.items():
        (made / name).write_text(text)
    return {"AUTH_SECRETS_DIR": str(made)}


def load(env: dict[str, str], env_file: str = "") -> Settings:
    Path(".env").write_text(env_file)
    Path(".env").chmod(0o600)
    return load_settings(env, Path(".env"))


def secret(env: dict[str, str], env_file: str = "") -> tuple[str | None, str | None]:
    """The JWT secret that these sources give, and where it is said to come from."""
    settings = load(env, env_file)
    found = settings.jwt_secret_key
    assert "planted" not in repr(settings) + " ".join(settings.provenance.origins.values())
    value = None if found is None else found.get_secret_value()
    return value, settings.provenance.origins.get("jwt_secret_key")


def refusal(env: dict[str, str], env_file: str = "") -> str:
    """The sentence of a refused start, after a look for secrets in all that could be printed."""
    with pytest.raises(SettingsError) as caught:
        load(env, f"AUTH_JWT_SECRET_KEY={PLANTED.format('env-file')}\n{env_file}")
    assert caught.value.exit_code == 78
    assert "planted" not in "".join(traceback.format_exception(caught.value))
    return caught.value.message


# --- The order ---


def test_the_first_source_wins(vault: Store, aws: Store) -> None:
    env_file = f"AUTH_JWT_SECRET_KEY={PLANTED.format('env-file')}\n"
    Path("key").write_text(PLANTED.format("file") + "\n")
    from_folder = folder(**{"jwt-secret": PLANTED.format("folder") + "\n"})
    from_aws = {"AUTH_AWS_SECRET_ID": "auth/production"}
    sources: list[tuple[dict[str, str], str, str]] = [
        ({"AUTH_JWT_SECRET_KEY": PLANTED.format("env")}, "env", "the environment"),
        ({"AUTH_JWT_SECRET_KEY_FILE": "key"}, "file", "AUTH_JWT_SECRET_KEY_FILE"),
        (from_folder, "folder", "AUTH_SECRETS_DIR"),
        (from_aws, "aws", "AWS Secrets Manager"),
        (vault_settings(vault), "vault", "Vault"),
    ]
    for place, (_, value, origin) in enumerate(sources):
        # The environment and a file that it names are one source: both at once are refused.
        below = [
            env for env, *_ in sources[place:] if place or "AUTH_JWT_SECRET_KEY_FILE" not in env
        ]
        given = {name: text for env in below for name, text in env.items()}
        assert secret(given, env_file) == (PLANTED.format(value), origin)
    assert secret({}, env_file) == (PLANTED.format("env-file"), ".env")
    assert secret({}, "AUTH_JWT_SECRET_KEY_FILE=key") == (
        PLANTED.format("file"),
        "AUTH_JWT_SECRET_KEY_FILE",
    )
    assert secret({}) == (None, None)


def test_a_store_may_be_set_in_the_env_file_and_opened_by_another(vault: Store) -> None:
    given = folder(**{"vault-token": TOKEN})
    lines = f"AUTH_VAULT_ADDR={vault.url}\nAUTH_VAULT_NAMESPACE={NAMESPACE}\nAUTH_VAULT_TOKEN=wrong"
    assert secret(given, lines) == (PLANTED.format("vault"), "Vault")


# --- The folder ---


@pytest.mark.parametrize(
    ("setting", "name"),
    [
        ("jwt_secret_key", "AUTH_JWT_SECRET_KEY"),
        ("jwt_secret_key", "jwt_secret_key"),
        ("jwt_secret_key", "jwt-secret-key"),
        ("jwt_secret_key", "jwt-secret"),
        ("jwt_secret_key", "jwt_key"),
        ("encryption_key", "encryption-key"),
        ("encryption_key", "encryption_key"),
        ("postgresql_password", "db-password"),
        ("postgresql_password", "AUTH_POSTGRESQL_PASSWORD"),
    ],
)
def test_names_in_the_folder(setting: str, name: str) -> None:
    value = MASTER_KEY if setting == "encryption_key" else PLANTED.format("x")
    env = folder(**{name: value + "\r\n", "of-another-program": ""})
    settings = load(env | {"AUTH_POSTGRESQL_URL": LOCAL_URL})
    assert getattr(settings, setting).get_secret_value() == value
    assert settings.provenance.origins == {
        setting: "AUTH_SECRETS_DIR",
        "postgresql_url": "the environment",
    }


def test_the_folder_as_kubernetes_mounts_it() -> None:
    held = Path("secrets/..2026_01_01")
    held.mkdir(parents=True)
    (held / "jwt-secret").write_text(PLANTED.format("pod"))
    Path("secrets/..data").symlink_to(held.name)
    Path("secrets/jwt-secret").symlink_to("..data/jwt-secret")
    assert secret({"AUTH_SECRETS_DIR": "secrets"})[0] == PLANTED.format("pod")


def test_folders_that_cannot_be_used() -> None:
    assert "AUTH_SECRETS_DIR: the folder" in refusal({"AUTH_SECRETS_DIR": "planted-absent"})
    two = folder(**{"jwt-secret": PLANTED.format("1"), "jwt_key": PLANTED.format("2")})
    assert "jwt-secret and jwt_key, which are one" in refusal(two)
    Path("secrets/jwt_key").unlink()
    Path("secrets/jwt-secret").write_text("\n")
    assert "jwt-secret in it is empty" in refusal(two)
    Path("secrets/jwt-secret").write_bytes(b"planted\xff")
    assert "not text in UTF-8" in refusal(two)
    Path("secrets/jwt-secret").unlink()
    Path("secrets/jwt-secret").mkdir()
    assert "AUTH_SECRETS_DIR: the folder it names cannot be used" in refusal(two)


def test_no_two_settings_share_a_name() -> None:
    names = [name for setting in Settings.model_fields for name in store_names(setting)]
    assert len(set(names)) == len(names) - sum("_" not in name for name in Settings.model_fields)


# --- Vault ---


def test_vault_with_a_role(vault: Store) -> None:
    env = vault_settings(
        vault,
        AUTH_VAULT_ROLE_ID=ROLE["role_id"],
        AUTH_VAULT_SECRET_ID=ROLE["secret_id"],
        AUTH_VAULT_PATH="/auth/config/",
    )
    assert secret(env) == (PLANTED.format("vault"), "Vault")
    assert vault.asked == [
        ("POST", "/v1/auth/approle/login"),
        ("GET", "/v1/secret/data/auth/config"),
    ]
    vault.secrets = {"jwt_key": PLANTED.format("rotated")}
    assert secret(env) == (PLANTED.format("rotated"), "Vault")


@pytest.mark.parametrize(
    ("more", "broken", "reason"),
    [
        ({"AUTH_VAULT_TOKEN": "planted-wrong"}, "", "403"),
        ({"AUTH_VAULT_TOKEN": "planted-\u00e9"}, "", "ASCII"),
        ({"AUTH_VAULT_NAMESPACE": "other"}, "", "403"),
        ({"AUTH_VAULT_PATH": "planted/none"}, "", "404"),
        ({"AUTH_VAULT_MOUNT": "kv"}, "", "404"),
        ({"AUTH_VAULT_ROLE_ID": "x", "AUTH_VAULT_SECRET_ID": "planted-wrong"}, "", "400"),
        ({"AUTH_VAULT_ROLE_ID": "x"}, "", "needs AUTH_VAULT_TOKEN"),
        ({}, "sealed", "sealed (503)"),
        ({}, "not json", "not Vault's"),
        ({}, "kv1", "not Vault's"),
        ({}, "silent", "ReadTimeout"),
        ({"AUTH_VAULT_CA_FILE": "planted-absent"}, "", "AUTH_VAULT_CA_FILE"),
        ({"AUTH_VAULT_ADDR": "vault.example.com"}, "", "AUTH_VAULT_ADDR"),
    ],
)
def test_vault_in_doubt_stops_the_start(
    vault: Store, monkeypatch: pytest.MonkeyPatch, more: dict[str, str], broken: str, reason: str
) -> None:
    monkeypatch.setattr(secret_stores, "SECONDS", 0.3)
    vault.broken = broken
    assert reason in refusal(vault_settings(vault, **more))


def test_a_vault_that_is_away_stops_the_start(vault: Store) -> None:
    env = vault_settings(vault)
    with serving(Store(), Vault) as gone:
        env["AUTH_VAULT_ADDR"] = gone.url
    assert "does not answer (ConnectError)" in refusal(env)


def test_a_vault_is_who_its_certificate_says(tmp_path: Path) -> None:
    held = Store({"jwt_key": PLANTED.format("vault")})
    with serving(held, Vault, server_context(tmp_path, 90)) as store:
        authority = {"AUTH_VAULT_CA_FILE": str(tmp_path / "certificate.pem")}
        assert secret(vault_settings(store, **authority))[1] == "Vault"
        asked = len(held.asked)
        assert "does not answer (ConnectError)" in refusal(vault_settings(store))
        # Nothing was said to a server that is not known.
        assert len(held.asked) == asked


# --- AWS ---


@pytest.mark.parametrize(
    ("secret_id", "broken", "reason"),
    [
        ("auth/production", "denied", "AccessDeniedException"),
        ("planted/none", "", "ResourceNotFoundException"),
        ("auth/production", "binary", "must be a JSON object"),
        ("auth/production", "list", "must be a JSON object"),
        ("auth/production", "silent", "ReadTimeoutError"),
    ],
)
def test_aws_in_doubt_stops_the_start(
    aws: Store, monkeypatch: pytest.MonkeyPatch, secret_id: str, broken: str, reason: str
) -> None:
    monkeypatch.setattr(secret_stores, "SECONDS", 0.3)
    aws.broken = broken
    message = refusal({"AUTH_AWS_SECRET_ID": secret_id})
    assert message.startswith("AUTH_AWS_SECRET_ID: ")
    assert reason in message


def test_aws_that_is_away_or_not_configured(aws: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(Store(), Aws) as gone:
        monkeypatch.setenv("AWS_ENDPOINT_URL", gone.url)
    assert "EndpointConnectionError" in refusal({"AUTH_AWS_SECRET_ID": "auth/production"})
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "NoRegionError" in refusal({"AUTH_AWS_SECRET_ID": "auth/production"})


def test_a_value_that_is_no_text(aws: Store) -> None:
    aws.secrets["jwt_key"] = 7
    assert "jwt_key in it is empty or not a text" in refusal(
        {"AUTH_AWS_SECRET_ID": "auth/production"}
    )


# --- Without the packages ---


@pytest.mark.parametrize(
    ("package", "env", "said"),
    [
        ("boto3", {"AUTH_AWS_SECRET_ID": "x"}, "authsvc[aws]"),
        ("httpx", {"AUTH_VAULT_ADDR": "https://v", "AUTH_VAULT_TOKEN": "x"}, "authsvc[vault]"),
    ],
)
def test_a_package_that_is_missing_is_named(
    monkeypatch: pytest.MonkeyPatch, package: str, env: dict[str, str], said: str
) -> None:
    real = builtins.__import__

    def without(name: str, *rest: Any, **more: Any) -> Any:
        if name == package:
            raise ImportError(name)
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    assert said in refusal(env)
