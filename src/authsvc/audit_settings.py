"""What the settings say about the audit trail: keys that seal and sign, rules of alerts."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from authsvc.alert_rules import NO_RULES, AlertRules, parse_rules
from authsvc.audit_chain import NO_KEYS, AuditKeys
from authsvc.errors import SettingsError
from authsvc.keyring import secrets_in

SHORTEST_KEY = 32
"""Characters of an audit key; ``openssl rand -base64 32`` makes 44."""
_MAKE_KEY = "make one with: openssl rand -base64 32"
_MAKE_PAIR = "make one with: openssl genpkey -algorithm ed25519"
_LARGEST_RULES = 64 * 1024


@dataclass(frozen=True, slots=True)
class AuditSettings:
    """``signs`` is the private key of checkpoints, None where none are made."""

    keys: AuditKeys = NO_KEYS
    signs: Ed25519PrivateKey | None = field(default=None, repr=False)
    rules: AlertRules = NO_RULES


def read_audit_settings(settings: Any) -> AuditSettings:
    """The audit settings, checked. Raises SettingsError, which names the setting."""
    if settings.webhook_url is not None:
        _check_webhook(settings)
    if settings.checkpoint_file is not None and settings.checkpoint_private_key is None:
        raise SettingsError(
            f"AUTH_CHECKPOINT_PRIVATE_KEY: must be set with AUTH_CHECKPOINT_FILE; {_MAKE_PAIR}"
        )
    rules = NO_RULES
    if settings.alert_rules is not None:
        rules = _rules(settings.alert_rules)
    return AuditSettings(_keys(settings), _signing_key(settings.checkpoint_private_key), rules)


def _check_webhook(settings: Any) -> None:
    if settings.webhook_secret is None:
        raise SettingsError(f"AUTH_WEBHOOK_SECRET: must be set with AUTH_WEBHOOK_URL; {_MAKE_KEY}")
    url = settings.webhook_url.get_secret_value()
    if re.fullmatch(r"https?://[^\s/?#@]+(/[^\s#]*)?", url) is None:
        raise SettingsError(
            "AUTH_WEBHOOK_URL: must be an address such as https://hooks.example.com/authsvc"
        )
    if not url.startswith("https://") and not settings.webhook_allow_private:
        raise SettingsError(
            "AUTH_WEBHOOK_URL: must begin with https://; http:// is only for a receiver in your own"
            " network, with AUTH_WEBHOOK_ALLOW_PRIVATE=true"
        )


def _keys(settings: Any) -> AuditKeys:
    keys: dict[str, list[bytes]] = {"audit_key": [], "audit_old_keys": []}
    for name, found in keys.items():
        value = getattr(settings, name)
        text = "" if value is None else value.get_secret_value()
        for one in [text] * bool(text) if name == "audit_key" else secrets_in(text):
            if len(one) < SHORTEST_KEY:
                raise SettingsError(
                    f"AUTH_{name.upper()}: has fewer than {SHORTEST_KEY} characters; {_MAKE_KEY}"
                )
            found.append(one.encode())
    return AuditKeys(next(iter(keys["audit_key"]), None), tuple(keys["audit_old_keys"]))


def _signing_key(value: Any) -> Ed25519PrivateKey | None:
    if value is None:
        return None
    try:
        key = load_pem_private_key(value.get_secret_value().encode(), password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise SettingsError(
            f"AUTH_CHECKPOINT_PRIVATE_KEY: is not a private Ed25519 key in PEM form; {_MAKE_PAIR}"
        )
    return key


def _rules(path: Path) -> AlertRules:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_LARGEST_RULES)
        return parse_rules(json.loads(text))
    except OSError as error:
        problem = f"{path} cannot be read ({error.strerror})"
    except (ValueError, RecursionError) as error:
        problem = f"{path}: {error}"
    raise SettingsError(f"AUTH_ALERT_RULES: {problem}; docs/audit.md shows a file of rules")
