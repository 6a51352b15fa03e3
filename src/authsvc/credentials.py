"""Client keys and API keys: their form, their making and their digests. Pure."""

from __future__ import annotations

import hashlib
import re
import secrets
import string
import uuid

from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# RFC 9562, section 5.4: version 4, variant 10x; the canonical text form only.
_CLIENT_KEY = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}")

_API_KEY = re.compile(r"rak_[0-9A-Za-z]{43}")
_ALPHABET = string.digits + string.ascii_letters


def new_client_key() -> str:
    """A fresh client key: 122 bits from the operating system's generator."""
    return str(uuid.uuid4())


def parse_client_key(text: str) -> str | None:
    """The key in its one spelling (lower case), or None if it is not a canonical UUID4."""
    lowered = text.lower() if text.isascii() else ""
    return lowered if _CLIENT_KEY.fullmatch(lowered) else None


def new_api_key() -> str:
    """A fresh API key for a tenant's user: 43 characters, 256 bits, from the operating system."""
    return "rak_" + "".join(secrets.choice(_ALPHABET) for _ in range(43))


def parse_api_key(text: str) -> str | None:
    """The key as it stands, or None if it does not have an API key's form."""
    return text if _API_KEY.fullmatch(text) else None


def digest_of(key: str) -> bytes:
    """What is stored of a key: SHA-256, 32 bytes. 122 random bits need no slow hash."""
    return hashlib.sha256(key.encode()).digest()


def new_key_id() -> str:
    """A public name for a key, unrelated to the key itself."""
    return "key_" + uuid.uuid4().hex[:20]


def _sealing_key(key: str) -> AESGCM:
    # Derived from the key itself, never from its digest, which is stored beside what is sealed.
    derived = HKDF(algorithm=SHA256(), length=32, salt=None, info=b"authsvc minted outcome")
    return AESGCM(derived.derive(key.encode()))


def seal(key: str, text: bytes, about: bytes) -> bytes:
    """Encrypt what only the holder of a client key may read again; bound to ``about``."""
    nonce = secrets.token_bytes(12)
    return nonce + _sealing_key(key).encrypt(nonce, text, about)


def unseal(key: str, sealed: bytes, about: bytes) -> bytes:
    """What ``seal`` sealed for this key; raises ``cryptography.exceptions.InvalidTag``."""
    return _sealing_key(key).decrypt(sealed[:12], sealed[12:], about)


def fingerprint(digest: bytes) -> str:
    """16 hexadecimal digits that tell one stored digest from another and tell nothing about it."""
    return hashlib.sha256(b"authsvc fingerprint" + digest).hexdigest()[:16]
