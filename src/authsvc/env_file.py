"""A good ``.env`` to begin with, and the lines that keep it out of git."""

from __future__ import annotations

import os
import secrets
import uuid
from base64 import b64encode
from pathlib import Path

from cryptography.fernet import Fernet

from authsvc.errors import StartError

IGNORED = (".env", ".env.local", ".env.production", "*.key", "secrets/")
"""The security guide's lines for ``.gitignore``."""

_TEXT = """\
# Settings of authsvc for this folder, made by `authsvc init`. Every secret here was generated now
# and is nowhere else. Keep this file to yourself (it has mode 0600) and out of git.
# All settings: .env.example. In production secrets come from a manager: docs/secrets.md.

# production refuses to start on what is only fit for trying out: see `authsvc doctor`.
AUTH_ENVIRONMENT=local

# The credential of the tenant "default": sent as `Authorization: Bearer ...`.
AUTH_CLIENT_KEY={client_key}

# A key nobody made opens nothing. Other tenants: `authsvc tenants create NAME`.
AUTH_CLIENT_REGISTRATION=closed

# Signs access tokens.
AUTH_JWT_SECRET_KEY={jwt_secret}
AUTH_JWT_ACCESS_TOKEN_EXPIRE_MINUTES=15
AUTH_JWT_REFRESH_TOKEN_EXPIRE_DAYS=7

# Seals the audit trail: keep a copy where the database's keepers cannot read it.
AUTH_AUDIT_KEY={audit_key}

# Names are encrypted with it before they are stored: without it they cannot be read.
AUTH_ENABLE_ENCRYPTION=true
AUTH_ENCRYPTION_KEY={encryption_key}

# The database: this file, or a server in its place.
AUTH_SQLITE_PATH=~/.auth.sqlite3
# AUTH_POSTGRESQL_URL=postgresql://authsvc@db.example.com/auth?sslmode=verify-full
# AUTH_POSTGRESQL_PASSWORD_FILE=/run/secrets/postgresql_password
"""


def write_env_file(path: Path) -> None:
    """Make ``.env`` with fresh secrets, mode 0600. Raises StartError if there is one already."""
    text = _TEXT.format(
        client_key=uuid.uuid4(),
        jwt_secret=_secret(),
        audit_key=_secret(),
        encryption_key=Fernet.generate_key().decode(),
    )
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        descriptor = os.open(path, flags, 0o600)
    except FileExistsError:
        raise StartError(f"{path} is there already and was left as it is") from None
    except OSError as error:
        raise StartError(f"{path} cannot be made ({error.strerror})") from None
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(descriptor)


def _secret() -> str:
    """What ``openssl rand -base64 32`` makes."""
    return b64encode(secrets.token_bytes(32)).decode()


def ignore_in_git(folder: Path) -> list[str]:
    """Add the guide's lines that ``.gitignore`` lacks, in a folder under git; those added."""
    if not any((place / ".git").exists() for place in (folder, *folder.parents)):
        return []
    path = folder / ".gitignore"
    try:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        present = {line.strip() for line in text.splitlines()}
        missing = [line for line in IGNORED if line not in present]
        if missing:
            begun = "\n" if text and not text.endswith("\n") else ""
            with path.open("a", encoding="utf-8") as file:
                file.write(begun + "".join(f"{line}\n" for line in missing))
    except (OSError, UnicodeError):
        raise StartError(f"{path} cannot be read or written: add {', '.join(IGNORED)}") from None
    return missing
