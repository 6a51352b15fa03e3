"""Encryption of names at rest: master keys, data keys and the values under them. Pure.

Each tenant has a random data key, kept wrapped as a Fernet token under a master key of the
settings. Values are encrypted with AES-256-SIV (RFC 5297) under keys that HKDF-SHA256 (RFC 5869)
derives from the data key, one per column. It is deterministic: within one column of one tenant an
equal value has an equal ciphertext, so equality finds rows and unique constraints hold. Tenant,
generation of the data key and column are in the derivation and in the associated data, so that a
ciphertext opens nowhere else.
"""

from __future__ import annotations

import base64
import hmac
import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeVar
from uuid import UUID

import structlog
from cryptography.exceptions import InvalidTag
from cryptography.fernet import Fernet, InvalidToken
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from authsvc.errors import Unavailable

log = structlog.get_logger("authsvc.encryption")

KEY_BYTES = 32
PLAIN = 0
"""The generation of a tenant whose names are stored as they are."""
_FIELD = b"authsvc field v1\x00"
_WRAPPED = b"authsvc data key v1\x00"
_CHECK = b"authsvc master key check v1"
_LONGEST_MEMORY = 1000
K = TypeVar("K")
V = TypeVar("V")
_fernet_key = re.compile(r"[A-Za-z0-9_-]{43}=?").fullmatch
_value = re.compile(r"~([0-9a-f]{1,15})\.([A-Za-z0-9_-]+)").fullmatch


@dataclass(frozen=True, slots=True)
class Field:
    """A column whose values are encrypted, as ``table.column``.

    ``is_name``: it holds names, which never begin with the ``~`` that encrypted values begin with.
    """

    path: str
    is_name: bool = True


MEMBER = Field("membership.user_id")
KEY_USER = Field("api_key.user_id")
KEY_LABEL = Field("api_key.label", is_name=False)
CLIENT_KEY_LABEL = Field("client_key.label", is_name=False)
GRANT = Field("role_permission.permission")
GRANT_USED = Field("grant_use.permission")
DESCRIPTION = Field("role.description", is_name=False)
EVENT_SUBJECT = Field("audit_event.entity_id")
EVENT_PAYLOAD = Field("audit_event.payload")
ACTIVITY_SUBJECT = Field("activity_event.entity_id")
ACTIVITY_DETAILS = Field("activity_event.details")
MESSAGE = Field("outgoing.body")
LIVE = (MEMBER, KEY_USER, KEY_LABEL, CLIENT_KEY_LABEL, GRANT, GRANT_USED, DESCRIPTION)
"""What follows its tenant's current data key; events stay under the one they were written with."""


class Unreadable(Unavailable):
    """A stored value is not one that this service wrote in that place. Never an answer."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"{what} does not open: it was changed or moved in the database."
            " Run 'authsvc verify' to see what else was",
            retry_after=30,
        )


class KeyMissing(Unavailable):
    """A data key is wrapped under a master key that this process does not have."""

    def __init__(self) -> None:
        super().__init__(
            "The key of this tenant's names is not here: the operator has to add the missing key"
            " to AUTH_ENCRYPTION_OLD_KEYS",
            retry_after=30,
        )


class MasterKey:
    """One key as ``Fernet.generate_key()`` makes it: 32 bytes in URL-safe base64."""

    __slots__ = ("_fernet", "id")

    def __init__(self, text: str) -> None:
        """Raises ValueError for what is not 32 bytes of key material."""
        if _fernet_key(text) is None:
            raise ValueError("is not a Fernet key")
        raw = base64.urlsafe_b64decode(text.rstrip("=") + "=")
        if len(set(raw)) < KEY_BYTES // 4:
            raise ValueError("is not random")
        self._fernet = Fernet(base64.urlsafe_b64encode(raw))
        self.id = hmac.digest(raw, _CHECK, "sha256").hex()[:32]

    def __repr__(self) -> str:
        return f"MasterKey({self.id[:8]})"

    def encrypt(self, text: bytes) -> str:
        """A Fernet token."""
        return self._fernet.encrypt(text).decode("ascii")

    def decrypt(self, token: str) -> bytes | None:
        """What is in a token; None if another key made it."""
        try:
            return self._fernet.decrypt(token)
        except (InvalidToken, ValueError):
            return None


@dataclass(frozen=True, slots=True)
class MasterKeys:
    """The ring: the key that wraps, and those of before, which only unwrap.

    ``id`` of a key is its check value: an HMAC that tells which key it is and nothing about it.
    """

    key: MasterKey | None = None
    old: tuple[MasterKey, ...] = ()

    @property
    def all(self) -> tuple[MasterKey, ...]:
        """Every key, the one that wraps first."""
        return self.old if self.key is None else (self.key, *self.old)

    @property
    def ids(self) -> frozenset[str]:
        """The check values of all keys."""
        return frozenset(key.id for key in self.all)

    def wrap(self, tenant_id: UUID, generation: int, data_key: bytes) -> tuple[str, str]:
        """A data key as it is stored, and the id of the master key it is under.

        Raises ValueError without a key that wraps.
        """
        if self.key is None:
            raise ValueError("no master key")
        return self.key.encrypt(_about(tenant_id, generation) + data_key), self.key.id

    def unwrap(self, tenant_id: UUID, generation: int, wrapped: str) -> bytes:
        """The data key. Raises KeyMissing, and Unreadable for the key of another tenant or
        generation.
        """
        if not wrapped:
            raise Unreadable("The data key of a tenant, which is gone,")
        for key in self.all:
            found = key.decrypt(wrapped)
            if found is not None:
                about = _about(tenant_id, generation)
                if not found.startswith(about) or len(found) != len(about) + KEY_BYTES:
                    raise Unreadable("The wrapped key of a tenant")
                return found[len(about) :]
        raise KeyMissing


NO_MASTER_KEYS = MasterKeys()


def _about(tenant_id: UUID, generation: int) -> bytes:
    return _WRAPPED + tenant_id.bytes + generation.to_bytes(8, "big")


def new_data_key() -> bytes:
    """A fresh random data key."""
    return secrets.token_bytes(KEY_BYTES)


class FieldCipher:
    """What encrypts and opens the values of one tenant under one generation of its data key.

    Without a data key (generation ``PLAIN``) values are stored as they are.
    """

    __slots__ = ("_ciphers", "_data_key", "generation", "tenant_id")

    def __init__(
        self, tenant_id: UUID, generation: int = PLAIN, data_key: bytes | None = None
    ) -> None:
        self.tenant_id = tenant_id
        self.generation = generation
        self._data_key = data_key
        self._ciphers: dict[Field, tuple[AESSIV, list[bytes | bytearray | memoryview]]] = {}

    def __repr__(self) -> str:
        return f"FieldCipher({self.tenant_id}, {self.generation})"

    @property
    def is_plain(self) -> bool:
        """Whether nothing is encrypted."""
        return self._data_key is None

    def seal(self, place: Field, text: str) -> str:
        """The text as it is stored in a place."""
        if self._data_key is None:
            return text
        return f"~{self.generation:x}.{_text(self.seal_bytes(place, text.encode()))}"

    def seal_all(self, place: Field, texts: Iterable[str]) -> list[str]:
        """As ``seal``, for many, in their order."""
        if self._data_key is None:
            return list(texts)
        return [self.seal(place, text) for text in texts]

    def open(self, place: Field, stored: str) -> str:
        """The text that was sealed for this place. Raises Unreadable for anything else."""
        if self._data_key is None:
            if place.is_name and stored.startswith("~"):
                raise self._refused(place)
            return stored
        found = _value(stored)
        if found is None or int(found[1], 16) != self.generation:
            raise self._refused(place)
        body = found[2]
        try:
            raw = base64.urlsafe_b64decode(body + "=" * (-len(body) % 4))
        except ValueError:
            raise self._refused(place) from None
        if _text(raw) != body:
            # Another spelling of the same bytes.
            raise self._refused(place)
        return self.open_bytes(place, raw).decode()

    def holds(self, stored: str) -> bool:
        """Whether this is the stored form of a name under this generation, by its looks."""
        return stored.startswith("~") != self.is_plain and (
            self.is_plain or stored.startswith(f"~{self.generation:x}.")
        )

    def seal_bytes(self, place: Field, data: bytes) -> bytes:
        """Bytes as they are stored."""
        if self._data_key is None:
            return data
        cipher, about = self._cipher(place)
        return cipher.encrypt(data, about)

    def open_bytes(self, place: Field, stored: bytes) -> bytes:
        """As ``open``, for bytes."""
        if self._data_key is None:
            return stored
        cipher, about = self._cipher(place)
        try:
            return cipher.decrypt(stored, about)
        except (InvalidTag, ValueError):
            raise self._refused(place) from None

    def _cipher(self, place: Field) -> tuple[AESSIV, list[bytes | bytearray | memoryview]]:
        found = self._ciphers.get(place)
        if found is None:
            # The last part alone has no fixed length.
            about = (
                _FIELD
                + self.tenant_id.bytes
                + self.generation.to_bytes(8, "big")
                + place.path.encode()
            )
            key = HKDF(SHA256(), 64, None, about).derive(self._data_key or b"")
            found = self._ciphers[place] = (AESSIV(key), [about])
        return found

    def _refused(self, place: Field) -> Unreadable:
        log.error(
            "stored_value_refused",
            tenant=str(self.tenant_id),
            generation=self.generation,
            column=place.path,
        )
        return Unreadable(f"A value of {place.path}")


@dataclass(slots=True)
class DataKeys:
    """The data keys that one process has unwrapped, of the tenants it met last.

    A data key never changes under its generation, so memory is always right about it; which
    generation is a tenant's current one is never taken from here, only guessed (``latest``).
    ``unreadable`` are the tenants whose key could not be unwrapped when it was last tried.
    ``for_new``: tenants that are made from now on get a data key.
    """

    master: MasterKeys = NO_MASTER_KEYS
    for_new: bool = False
    unreadable: dict[UUID, str] = field(default_factory=dict)
    _known: dict[tuple[UUID, int], FieldCipher] = field(default_factory=dict, repr=False)
    _latest: dict[UUID, int] = field(default_factory=dict, repr=False)

    def latest(self, tenant_id: UUID) -> FieldCipher:
        """The cipher of the generation that was met last: what a read may begin with."""
        generation = self._latest.get(tenant_id, PLAIN)
        found = None if generation == PLAIN else self._known.get((tenant_id, generation))
        return found or FieldCipher(tenant_id)

    def known(self, tenant_id: UUID, generation: int) -> FieldCipher | None:
        """The cipher of a generation, if its key is in memory or is not needed."""
        if generation == PLAIN:
            return FieldCipher(tenant_id)
        return self._known.get((tenant_id, generation))

    def cipher(
        self, tenant_id: UUID, generation: int, wrapped: str | None, *, current: bool = True
    ) -> FieldCipher:
        """The cipher of a generation with this wrapped key. Raises KeyMissing, Unreadable."""
        if current:
            _remember(self._latest, tenant_id, generation)
        found = self.known(tenant_id, generation)
        if found is not None:
            return found
        try:
            key = self.master.unwrap(tenant_id, generation, wrapped or "")
        except (KeyMissing, Unreadable) as error:
            _remember(self.unreadable, tenant_id, error.message)
            log.error(  # noqa: TRY400 - the message says it all
                "data_key_refused",
                tenant=str(tenant_id),
                generation=generation,
                reason=type(error).__name__,
            )
            raise
        self.unreadable.pop(tenant_id, None)
        made = FieldCipher(tenant_id, generation, key)
        _remember(self._known, (tenant_id, generation), made)
        return made


def _text(raw: bytes) -> str:
    return base64.urlsafe_b64encode(raw).rstrip(b"=").decode("ascii")


def _remember(memory: dict[K, V], key: K, value: V) -> None:
    """Put something into a bounded memory in which the oldest makes room."""
    memory.pop(key, None)
    memory[key] = value
    if len(memory) > _LONGEST_MEMORY:
        del memory[next(iter(memory))]
