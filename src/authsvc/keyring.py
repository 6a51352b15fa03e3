"""Signing keys, and the one verification of access tokens. The only file that knows python-jose.

python-jose accepts much that its caller has to refuse (tokens without an end, any algorithm of a
list, headers of any depth), so everything about a token is checked here first, and the library is
asked one question: is this the signature of that key with that algorithm? RFC 7515, RFC 7519,
RFC 8725, and RFC 9068 for the type.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, NoReturn
from uuid import UUID

from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jose import jwk, jws
from jose.backends import ECKey, RSAKey
from jose.backends.cryptography_backend import CryptographyECKey, CryptographyRSAKey
from jose.exceptions import JOSEError

from authsvc.errors import SettingsError, Unauthorized
from authsvc.records import SCOPES

LONGEST_TOKEN = 8192
LONGEST_HEADER = 1024
SHORTEST_SECRET = 32
"""Bytes of text; the guide's ``openssl rand -base64 32`` makes 44."""
LONGEST_LIFE = timedelta(minutes=60)
"""No token that claims to live longer is accepted, however it is signed."""
LEEWAY = timedelta(seconds=5)
"""How far the clock of the process that issued a token may be ahead."""
TOKEN_TYPE = "at+jwt"  # noqa: S105 - RFC 9068, section 2.1

_three_parts = re.compile(r"[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+\.[A-Za-z0-9_-]+").fullmatch
_key_name = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_name = re.compile(r"[A-Za-z0-9_-]{1,64}").fullmatch
_HEADER = frozenset({"alg", "typ", "kid"})
_TEXTS = ("iss", "aud", "sub", "tid", "fam", "jti", "scope")
_NUMBERS = ("gen", "iat", "nbf", "exp")
_CLAIMS = frozenset({*_TEXTS, *_NUMBERS})
_LARGEST = 2**40


@dataclass(frozen=True, slots=True)
class Token:
    """What a verified access token says. Whether it is in force, the tenant's state says too."""

    tenant_id: UUID
    key_id: str
    family: str
    generation: int
    scopes: frozenset[str]
    id: str
    issued_at: datetime
    not_before: datetime
    expires_at: datetime

    def in_force(self, now: datetime) -> bool:
        """Whether its own bounds include this instant."""
        return self.not_before - LEEWAY <= now < self.expires_at


@dataclass(frozen=True, slots=True)
class Key:
    """A key with the one algorithm it is used with; ``public`` is its JWK, if it has one."""

    id: str
    algorithm: str
    signer: Any = field(repr=False)
    verifier: Any = field(repr=False)
    public: dict[str, str] | None = None


def secret_key(secret: str) -> Key:
    """HS256 (RFC 7518, section 3.2). Raises ValueError for a secret that is too short."""
    material = secret.encode()
    if len(material) < SHORTEST_SECRET:
        raise ValueError(
            f"must have at least {SHORTEST_SECRET} characters;"
            " make one with: openssl rand -base64 32"
        )
    name = hmac.digest(material, b"authsvc key id", "sha256")[:12]
    key = jwk.construct(material, "HS256")
    return Key(_encoded(name), "HS256", key, key)


def private_key(pem: str) -> Key:
    """ES256 for a key on P-256, RS256 for RSA of at least 2048 bits. Raises ValueError."""
    try:
        loaded = load_pem_private_key(pem.encode(), None)
    except (ValueError, TypeError):
        raise ValueError("is not an unencrypted private key in PEM form") from None
    text = loaded.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    return _asymmetric(loaded.public_key(), text)


def public_key(pem: str) -> Key:
    """As ``private_key``, for verifying alone."""
    try:
        loaded = load_pem_public_key(pem.encode())
    except ValueError:
        raise ValueError("is not a public key in PEM form") from None
    text = loaded.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return _asymmetric(loaded, text)


def _asymmetric(public: object, pem: bytes) -> Key:
    members: tuple[str, ...]
    if isinstance(public, ec.EllipticCurvePublicKey) and isinstance(public.curve, ec.SECP256R1):
        algorithm, members = "ES256", ("crv", "kty", "x", "y")
    elif isinstance(public, rsa.RSAPublicKey) and public.key_size >= 2048:
        algorithm, members = "RS256", ("e", "kty", "n")
    else:
        raise ValueError("must be a key on the curve P-256, or RSA of at least 2048 bits")
    signer = jwk.construct(pem, algorithm)
    verifier = signer.public_key()
    described = verifier.to_dict()
    shown = {name: _text(described[name]) for name in members}
    # RFC 7638, section 3: the required members alone, in this order, without blanks.
    canonical = json.dumps(shown, sort_keys=True, separators=(",", ":")).encode()
    name = _encoded(hashlib.sha256(canonical).digest())
    shown |= {"kid": name, "use": "sig", "alg": algorithm}
    return Key(name, algorithm, signer, verifier, shown)


def _text(value: bytes | str) -> str:
    return value.decode("ascii") if isinstance(value, bytes) else value


def read_keys(settings: Any) -> tuple[Key, ...]:
    """The keys in the settings ``jwt_...``, the one that signs first: a private key, or the secret
    where there is none. Raises SettingsError, which names the setting.
    """
    keys = []
    for name, split, read in (
        ("jwt_private_key", lambda text: [text], private_key),
        ("jwt_secret_key", lambda text: [text], secret_key),
        ("jwt_old_secret_keys", secrets_in, secret_key),
        ("jwt_old_public_keys", public_pems, public_key),
    ):
        value = getattr(settings, name)
        for one in [] if value is None else split(value.get_secret_value()):
            try:
                keys.append(read(one))
            except ValueError as error:
                raise SettingsError(f"AUTH_{name.upper()}: {error}") from None
    return tuple(keys)


def secrets_in(text: str) -> list[str]:
    """The secrets in a text, which has commas between them."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


def public_pems(text: str) -> list[str]:
    """The PEM blocks in a text, one after the other; the text itself where there is none."""
    blocks = re.findall(r"-----BEGIN [A-Z ]+-----.+?-----END [A-Z ]+-----", text, re.DOTALL)
    return blocks or [text]


class Keyring:
    """The keys of one installation: the first one signs, all of them verify, each by its id."""

    def __init__(
        self, keys: Sequence[Key], *, issuer: str, audience: str, lifetime: timedelta
    ) -> None:
        """``lifetime``: of the tokens that are issued, at most ``LONGEST_LIFE``."""
        if ECKey is not CryptographyECKey or RSAKey is not CryptographyRSAKey:
            # The pure Python implementation leaks its key through timing (CVE-2024-23342).
            raise SettingsError("python-jose must be installed as python-jose[cryptography]")
        self._signs = keys[0]
        self._keys = {key.id: key for key in keys}
        self.issuer = issuer
        self.audience = audience
        self.lifetime = lifetime

    @property
    def public(self) -> list[dict[str, str]]:
        """The public keys, as JWKs (RFC 7517, section 4)."""
        return [key.public for key in self._keys.values() if key.public is not None]

    def issue(
        self,
        *,
        tenant_id: UUID,
        key_id: str,
        family: str,
        generation: int,
        scopes: Sequence[str],
        now: datetime,
        until: datetime,
    ) -> tuple[str, Token]:
        """A signed token that ends after ``lifetime``, or at ``until`` if that is sooner."""
        begun = int(now.timestamp())
        ends = min(begun + int(self.lifetime.total_seconds()), int(until.timestamp()))
        claims = {
            "iss": self.issuer,
            "aud": self.audience,
            "sub": key_id,
            "tid": str(tenant_id),
            "fam": family,
            "gen": generation,
            "jti": uuid.uuid4().hex,
            "iat": begun,
            "nbf": begun,
            "exp": ends,
            "scope": " ".join(scopes),
        }
        signs = self._signs
        text: str = jws.sign(
            claims, signs.signer, {"kid": signs.id, "typ": TOKEN_TYPE}, signs.algorithm
        )
        return text, _token(claims)

    def verify(self, text: str) -> Token:
        """What a token says, if one of these keys signed it here for here. Not whether it is still
        in force. Raises Unauthorized for everything else, whatever is wrong with it.
        """
        try:
            return self._verified(text)
        except (JOSEError, ValueError, TypeError, OverflowError, RecursionError, KeyError):
            pass
        # Outside of the handler, so that no error carries the token along as its context.
        raise Unauthorized(sent=True)

    def _verified(self, text: str) -> Token:
        if len(text) > LONGEST_TOKEN or not text.isascii() or _three_parts(text) is None:
            _refuse("form")
        header, payload, signature = text.split(".")
        if len(header) > LONGEST_HEADER * 4 // 3:
            _refuse("header")
        key = self._named(_object(_decoded(header)))
        _decoded(signature)
        claims = _object(_decoded(payload))
        jws.verify(text, key.verifier, [key.algorithm])
        return self._checked(claims)

    def _named(self, header: dict[str, Any]) -> Key:
        """The key a header names. What the header says of the algorithm must be what the key says;
        it never chooses one.
        """
        if header.keys() != _HEADER or header["typ"] != TOKEN_TYPE:
            _refuse("header")
        name = header["kid"]
        if not isinstance(name, str) or _key_name(name) is None:
            _refuse("kid")
        key = self._keys[name]
        if header["alg"] != key.algorithm:
            _refuse("alg")
        return key

    def _checked(self, claims: dict[str, Any]) -> Token:
        """The claims as a record; exactly ours, each of its own type, for this audience."""
        if claims.keys() != _CLAIMS:
            _refuse("claims")
        for name in _TEXTS:
            if not isinstance(claims[name], str):
                _refuse(name)
        for name in _NUMBERS:
            if type(claims[name]) is not int or not 0 <= claims[name] < _LARGEST:
                _refuse(name)
        if claims["iss"] != self.issuer or claims["aud"] != self.audience:
            _refuse("audience")
        if any(_name(claims[name]) is None for name in ("sub", "fam", "jti")):
            _refuse("names")
        token = _token(claims)
        if str(token.tenant_id) != claims["tid"] or not token.scopes <= set(SCOPES):
            _refuse("tenant or scope")
        if token.expires_at - token.issued_at > LONGEST_LIFE:
            _refuse("lifetime")
        if not token.issued_at - LEEWAY <= token.not_before < token.expires_at:
            _refuse("bounds")
        return token


def _token(claims: dict[str, Any]) -> Token:
    return Token(
        tenant_id=UUID(claims["tid"]),
        key_id=claims["sub"],
        family=claims["fam"],
        generation=claims["gen"],
        scopes=frozenset(claims["scope"].split(" ")),
        id=claims["jti"],
        issued_at=datetime.fromtimestamp(claims["iat"], UTC),
        not_before=datetime.fromtimestamp(claims["nbf"], UTC),
        expires_at=datetime.fromtimestamp(claims["exp"], UTC),
    )


def _encoded(value: bytes) -> str:
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode("ascii")


def _decoded(part: str) -> bytes:
    """Base64url without padding in its one spelling (RFC 7515, section 2)."""
    value = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if _encoded(value) != part:
        _refuse("base64url")
    return value


def _object(text: bytes) -> dict[str, Any]:
    """A JSON object with each name once and no numbers that are none (RFC 8725, section 3.10)."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) != len(pairs):
            _refuse("duplicate")
        return made

    value = json.loads(text, object_pairs_hook=unique, parse_constant=_refuse)
    if not isinstance(value, dict):
        _refuse("object")
    return value


def _refuse(what: str) -> NoReturn:
    raise ValueError(what)
