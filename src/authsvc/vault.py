"""Secrets out of HashiCorp Vault (or OpenBao): a login with AppRole, one read of a KV v2 path.

https://developer.hashicorp.com/vault/api-docs/auth/approle#login-with-approle and
https://developer.hashicorp.com/vault/api-docs/secret/kv/kv-v2#read-secret-version
"""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

from authsvc.errors import SettingsError

_WORDS = {
    400: "it refuses the login (400)",
    403: "it refuses access (403)",
    404: "there is nothing at that path (404)",
    429: "it is a standby (429)",
    472: "it is a standby (472)",
    473: "it is a standby (473)",
    501: "it is not initialised (501)",
    503: "it is sealed (503)",
}


def read_vault(
    address: str,
    *,
    mount: str,
    path: str,
    token: str | None,
    role_id: str | None,
    secret_id: str | None,
    namespace: str | None,
    ca_file: str | None,
    seconds: float,
) -> Mapping[str, Any]:
    """The newest version of what stands at ``path``, by name.

    Opened with ``token``, or with AppRole's ``role_id`` and ``secret_id``. Raises SettingsError
    for everything but an answer: it is never taken for an empty one.
    """
    if token is None and (role_id is None or secret_id is None):
        raise SettingsError(
            "AUTH_VAULT_ADDR: needs AUTH_VAULT_TOKEN, or AUTH_VAULT_ROLE_ID and"
            " AUTH_VAULT_SECRET_ID"
        )
    try:
        import httpx
    except ImportError:
        raise SettingsError("AUTH_VAULT_ADDR: needs httpx; install authsvc[vault]") from None
    headers = {"X-Vault-Request": "true"} | ({"X-Vault-Namespace": namespace} if namespace else {})
    try:
        # Neither a proxy nor a netrc of the environment comes between: the address is all.
        with httpx.Client(
            base_url=f"{address.rstrip('/')}/v1/",
            headers=headers,
            timeout=seconds,
            verify=_trusted(ca_file),
            trust_env=False,
        ) as client:
            if token is None:
                login = {"role_id": role_id, "secret_id": secret_id}
                answer = client.post("auth/approle/login", json=login)
                token = str(_part(answer, "auth", "client_token"))
            where = f"{quote(mount.strip('/'))}/data/{quote(path.strip('/'))}"
            answer = client.get(where, headers={"X-Vault-Token": token})
            found = _part(answer, "data", "data")
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        reason = f"it does not answer ({type(error).__name__})"
    except UnicodeError:
        reason = "a token or a namespace is ASCII"
    else:
        if isinstance(found, dict):
            return found
        reason = "its answer is not that of a KV version 2 path"
    raise SettingsError(f"AUTH_VAULT_ADDR: Vault did not give the secrets: {reason}")


def _trusted(ca_file: str | None) -> ssl.SSLContext:
    context = ssl.create_default_context()
    try:
        if ca_file is not None:
            context = ssl.create_default_context(cafile=ca_file)
    except OSError:
        pass
    else:
        return context
    raise SettingsError("AUTH_VAULT_CA_FILE: is not a file of certificates in PEM form")


def _part(answer: Any, *names: str) -> object:
    """One part of a good answer's JSON."""
    status = answer.status_code
    found: object = None
    if status == 200:
        try:
            found = answer.json()
            for name in names:
                found = found[name] if isinstance(found, dict) else None
        except (ValueError, KeyError):
            found = None
        if found is None:
            status = "an answer that is not Vault's"
    if found is None:
        reason = _WORDS.get(status, f"it answers {status}")
        raise SettingsError(f"AUTH_VAULT_ADDR: Vault did not give the secrets: {reason}")
    return found
