"""Fill ./secrets/ with the generated secrets of docker-compose.yml; what is there is kept.

The folder is its owner's alone (0700). The files in it can be read by all (0444), because Compose
mounts each into its container as it is, where a user with another number has to read it.
"""

from __future__ import annotations

import base64
import secrets
import uuid
from collections.abc import Callable
from pathlib import Path

TOP = Path(__file__).parents[1]
FOLDER = TOP / "secrets"


def _password() -> str:
    return secrets.token_urlsafe(32)


def _client_key() -> str:
    return str(uuid.uuid4())


def _encryption_key() -> str:
    """What ``Fernet.generate_key()`` makes, without the library."""
    return base64.urlsafe_b64encode(secrets.token_bytes(32)).decode()


MADE: dict[str, Callable[[], str]] = {
    "postgresql_superuser_password": _password,
    "postgresql_owner_password": _password,
    "postgresql_app_password": _password,
    "client_key": _client_key,
    "jwt_secret_key": _password,
    "audit_key": _password,
    "encryption_key": _encryption_key,
}

# Two ends of one password: made together, or kept together.
REDIS = {
    "redis_config": 'bind * -::*\nrequirepass {0}\nsave ""\n'
    "maxmemory 64mb\nmaxmemory-policy volatile-ttl\n",
    "redis_url": "redis://:{0}@redis:6379/0\n",
}


def contents() -> dict[str, str]:
    """What goes into the files that are not there yet."""
    made = {name: make() + "\n" for name, make in MADE.items() if not (FOLDER / name).exists()}
    if not all((FOLDER / name).exists() for name in REDIS):
        password = _password()
        made |= {name: text.format(password) for name, text in REDIS.items()}
    return made


def main() -> None:
    """Make what is missing; show names, never values."""
    FOLDER.mkdir(mode=0o700, exist_ok=True)
    FOLDER.chmod(0o700)
    made = contents()
    for name in (*MADE, *REDIS):
        path = FOLDER / name
        if name not in made:
            print(f"kept  secrets/{name}")
            continue
        path.unlink(missing_ok=True)
        path.write_text(made[name])
        path.chmod(0o444)
        print(f"made  secrets/{name}")
    print("The client key of the tenant 'default' is in secrets/client_key.")


if __name__ == "__main__":
    main()
