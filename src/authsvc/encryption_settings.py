"""What the settings say about encryption at rest: the ring of master keys."""

from __future__ import annotations

from typing import Any

from authsvc.encryption import MasterKey, MasterKeys
from authsvc.errors import SettingsError
from authsvc.keyring import secrets_in

MAKE_KEY = (
    "make one with: python -c"
    " 'from cryptography.fernet import Fernet; print(Fernet.generate_key().decode())'"
)


def read_master_keys(settings: Any) -> MasterKeys:
    """The keys in the settings ``encryption_...``. Raises SettingsError, which names the setting.

    They are read, and open what they wrapped, also where ``enable_encryption`` is off: that only
    tells whether tenants that are made from now on get a data key.
    """
    if settings.encryption_key is None:
        if settings.enable_encryption:
            raise SettingsError(
                f"AUTH_ENCRYPTION_KEY: must be set with AUTH_ENABLE_ENCRYPTION; {MAKE_KEY}"
            )
        key = None
    else:
        key = _key("encryption_key", settings.encryption_key.get_secret_value().strip())
    old = settings.encryption_old_keys
    texts = [] if old is None else secrets_in(old.get_secret_value())
    return MasterKeys(key, tuple(_key("encryption_old_keys", text) for text in texts))


def _key(name: str, text: str) -> MasterKey:
    try:
        return MasterKey(text)
    except ValueError as error:
        problem = f"AUTH_{name.upper()}: {error}: it must be 32 random bytes; {MAKE_KEY}"
    # Outside of the handler, so that no error carries the key along as its context.
    raise SettingsError(problem)
