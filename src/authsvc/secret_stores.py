"""Stores of secrets beside the environment: a folder of files, AWS Secrets Manager, Vault.

A store that is set and does not answer stops the start: what it would have said may be what
replaces a default. No sentence here holds a value, and nothing is kept on disk.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from authsvc.errors import SettingsError
from authsvc.vault import read_vault

SECONDS = 5
"""How long each request to a store may take."""
FOLDER = "AUTH_SECRETS_DIR"
AWS = "AWS Secrets Manager"
VAULT = "Vault"

# The names that the guide's own examples give to secrets in these stores.
_ALSO = {
    "jwt_secret_key": ("jwt-secret", "jwt_secret", "jwt_key", "jwt-key"),
    "postgresql_password": ("db-password", "db_password"),
}


def store_names(setting: str) -> tuple[str, ...]:
    """What the secret of a setting may be called inside a store."""
    spellings = (f"AUTH_{setting.upper()}", setting, setting.replace("_", "-"))
    return (*spellings, *_ALSO.get(setting, ()))


def read_stores(
    env: Mapping[str, str], env_file: Mapping[str, str], secrets: Collection[str]
) -> tuple[dict[str, str], dict[str, str]]:
    """The ``secrets`` that the stores hold, and by setting which store gave it.

    ``env`` and ``env_file`` say, by field name, which stores there are. The folder goes before AWS,
    that before Vault; what is read from one may open the next. Raises SettingsError for a store
    that does not answer, refuses, or holds what cannot be a secret.
    """
    values: dict[str, str] = {}
    origins: dict[str, str] = {}
    given = {**env_file, **env}

    def take(store: str, setting: str, read: Callable[[Mapping[str, str]], dict[str, str]]) -> None:
        if setting not in given:
            return
        found = read({**env_file, **values, **env})
        for name in found.keys() - values.keys():
            values[name], origins[name] = found[name], store

    take(FOLDER, "secrets_dir", lambda all_: read_folder(Path(all_["secrets_dir"]), secrets))
    take(AWS, "aws_secret_id", lambda all_: read_aws(all_["aws_secret_id"], secrets))
    take(VAULT, "vault_addr", lambda all_: pick("AUTH_VAULT_ADDR", _vault(all_), secrets))
    return values, origins


def read_folder(folder: Path, secrets: Collection[str]) -> dict[str, str]:
    """The secrets in a folder with a file for each, as Docker and Kubernetes mount them."""
    try:
        present = {path.name for path in folder.iterdir()}
        texts = {
            name: (folder / name).read_text(encoding="utf-8").rstrip("\r\n")
            for setting in secrets
            for name in store_names(setting)
            if name in present
        }
    except OSError as error:
        reason = error.strerror or "it cannot be opened"
    except ValueError:
        reason = "a file in it is not text in UTF-8"
    else:
        return pick(FOLDER, texts, secrets)
    raise SettingsError(f"{FOLDER}: the folder it names cannot be used: {reason}")


def file_of(folder: Path, setting: str) -> Path:
    """The file of a setting in a folder that ``read_folder`` has read it from."""
    found = (folder / name for name in store_names(setting))
    return next(path for path in found if path.exists())


def read_aws(secret_id: str, secrets: Collection[str]) -> dict[str, str]:
    """The secrets in a JSON object kept by AWS Secrets Manager.

    Region, credentials and address are boto3's own business (AWS_REGION, the machine's role).
    """
    setting = "AUTH_AWS_SECRET_ID"
    try:
        import boto3
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError, ClientError
    except ImportError:
        raise SettingsError(f"{setting}: needs boto3; install authsvc[aws]") from None
    waits = Config(connect_timeout=SECONDS, read_timeout=SECONDS, retries={"total_max_attempts": 2})
    try:
        client = boto3.client("secretsmanager", config=waits)
        try:
            answer = client.get_secret_value(SecretId=secret_id)
        finally:
            client.close()
    except ClientError as error:
        reason = str(error.response.get("Error", {}).get("Code", "an error without a code"))[:80]
    except BotoCoreError as error:
        reason = type(error).__name__
    else:
        return pick(setting, _object(setting, answer.get("SecretString")), secrets)
    raise SettingsError(f"{setting}: AWS Secrets Manager did not give it: {reason}")


def _object(setting: str, text: object) -> Mapping[str, Any]:
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if isinstance(found, dict):
        return found
    raise SettingsError(f"{setting}: what it names must be a JSON object of names and texts")


def _vault(given: Mapping[str, str]) -> Mapping[str, Any]:
    return read_vault(
        given["vault_addr"],
        mount=given.get("vault_mount", "secret"),
        path=given.get("vault_path", "auth/config"),
        token=given.get("vault_token"),
        role_id=given.get("vault_role_id"),
        secret_id=given.get("vault_secret_id"),
        namespace=given.get("vault_namespace"),
        ca_file=given.get("vault_ca_file"),
        seconds=SECONDS,
    )


def pick(store: str, found: Mapping[str, Any], secrets: Collection[str]) -> dict[str, str]:
    """The secrets among what a store holds; what else it holds is nobody's business here."""
    values = {}
    for setting in secrets:
        names = [name for name in store_names(setting) if name in found]
        if len(names) > 1:
            raise SettingsError(f"{store}: holds {' and '.join(names)}, which are one; keep one")
        for name in names:
            value = found[name]
            if not isinstance(value, str) or not value:
                raise SettingsError(f"{store}: {name} in it is empty or not a text")
            values[setting] = value
    return values
