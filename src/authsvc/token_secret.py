"""The secret that signs tokens where nobody set one, in a file of its owner alone."""

from __future__ import annotations

import base64
import os
import secrets
from pathlib import Path

from authsvc.errors import StartError

_PRIVATE = 0o600
_LONGEST = 4096


def local_secret(path: Path) -> str:
    """The secret in a file, which is made if it is not there. Raises StartError."""
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        _make(path, flags)
        descriptor = os.open(path, os.O_RDONLY | flags)
    except OSError as error:
        raise StartError(
            f"The file {path} cannot be used ({error.strerror}): set AUTH_JWT_SECRET_KEY"
        ) from None
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if found.st_uid != os.geteuid() or found.st_mode & 0o077:
            raise StartError(
                f"The file {path} holds a secret that others have access to: remove it, or set"
                " AUTH_JWT_SECRET_KEY"
            )
        secret = file.read(_LONGEST).decode("ascii", "replace").strip()
    if len(secret) < 32:
        raise StartError(f"The file {path} holds no secret: remove it, and another is made")
    return secret


def _make(path: Path, flags: int) -> None:
    """Another process may be making it too: whoever links its own first has made it."""
    if os.path.lexists(path):
        return
    ready = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}")
    descriptor = os.open(ready, os.O_CREAT | os.O_EXCL | os.O_WRONLY | flags, _PRIVATE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(base64.b64encode(secrets.token_bytes(32)) + b"\n")
        file.flush()
        os.fsync(descriptor)
    try:
        os.link(ready, path)
    except FileExistsError:
        pass
    finally:
        os.unlink(ready)
