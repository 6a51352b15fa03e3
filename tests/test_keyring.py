"""Access tokens as texts: what is accepted, and that nothing else is."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import socket
import uuid
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from types import ModuleType
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
)
from hypothesis import given
from hypothesis import strategies as st
from joserfc import jwt
from joserfc.errors import BadSignatureError
from joserfc.jwk import ECKey, OctKey, RSAKey

from authsvc import keyring as module
from authsvc.errors import Unauthorized
from authsvc.keyring import Keyring, Token, private_key, public_key, secret_key
from planted import without

SECRET = "Qk3v8sYc2mJx0pWd7hTz5nRb1fLg9aEu4oKi6yCq"
OLD_SECRET = "Zr8f1wNq6tVb3yHk0sDm9uLc5xGj2eAo7iPv4nTs"
NOW = datetime(2026, 3, 1, 12, 0, 0, 123456, tzinfo=UTC)
ISSUED = int(NOW.timestamp())
TENANT = uuid.UUID("6f1c9b0e-3c55-4a52-9a2c-0d8a7a1f4c11")


def _pem(key: ec.EllipticCurvePrivateKey | rsa.RSAPrivateKey) -> str:
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()


def public_half(pem: str) -> str:
    """The public key of a private one, both as PEM."""
    public = load_pem_private_key(pem.encode(), None).public_key()
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()


EC_PEM = _pem(ec.derive_private_key(7, ec.SECP256R1()))
RSA_PEM = _pem(rsa.generate_private_key(65537, 2048))
KEYS = {
    "HS256": secret_key(SECRET),
    "ES256": private_key(EC_PEM),
    "RS256": private_key(RSA_PEM),
}


def ring(*keys: module.Key, **more: Any) -> Keyring:
    """A keyring for here."""
    named: dict[str, Any] = {
        "issuer": "authsvc",
        "audience": "authsvc",
        "lifetime": timedelta(minutes=15),
    }
    return Keyring(keys or (KEYS["HS256"],), **(named | more))


def issued(by: Keyring, **more: Any) -> tuple[str, Token]:
    """A token as the service issues it."""
    said: dict[str, Any] = {
        "tenant_id": TENANT,
        "key_id": "1",
        "family": "fam_1",
        "generation": 3,
        "scopes": ["read", "check"],
        "now": NOW,
        "until": NOW + timedelta(days=7),
    }
    return by.issue(**(said | more))


def claims_of(text: str) -> dict[str, Any]:
    """The payload of a token, which nothing vouches for."""
    part = text.split(".")[1]
    found: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return found


def encoded(value: bytes | str | dict[str, Any]) -> str:
    """Base64url without padding; a dictionary as JSON."""
    if isinstance(value, dict):
        value = json.dumps(value)
    if isinstance(value, str):
        value = value.encode()
    return base64.urlsafe_b64encode(value).rstrip(b"=").decode()


HEADER = {"alg": "HS256", "kid": KEYS["HS256"].id, "typ": "at+jwt"}
CLAIMS = claims_of(issued(ring())[0])


def forged(
    header: dict[str, Any] | str = HEADER,
    claims: dict[str, Any] | str = CLAIMS,
    secret: str | bytes = SECRET,
) -> str:
    """A token with a correct HMAC of SHA-256 over whatever it says."""
    text = f"{encoded(header)}.{encoded(claims)}"
    key = secret.encode() if isinstance(secret, str) else secret
    return f"{text}.{encoded(hmac.digest(key, text.encode(), 'sha256'))}"


def test_what_is_issued_is_read_again() -> None:
    for key in KEYS.values():
        text, token = issued(ring(key))
        assert ring(key).verify(text) == token
        assert token.tenant_id == TENANT
        assert token.scopes == {"read", "check"}
        assert token.expires_at - token.issued_at == timedelta(minutes=15)
        assert set(claims_of(text)) == {
            "iss", "aud", "sub", "tid", "fam", "gen", "jti", "iat", "nbf", "exp", "scope",
        }  # fmt: skip
    assert forged() != issued(ring())[0]
    assert ring().verify(forged()).family == "fam_1"


def test_a_token_ends_with_its_family() -> None:
    _, token = issued(ring(), until=NOW + timedelta(seconds=90))
    assert token.expires_at <= NOW + timedelta(seconds=90)


@pytest.mark.parametrize("seconds", [-6, -4, 0, 899, 900, 901])
def test_the_bounds_are_exact(seconds: int) -> None:
    token = ring().verify(forged())
    now = datetime.fromtimestamp(ISSUED, UTC) + timedelta(seconds=seconds)
    assert token.in_force(now) is (-5 <= seconds < 900)


@pytest.mark.parametrize("algorithm", KEYS)
def test_another_library_verifies_ours(algorithm: str) -> None:
    text, token = issued(ring(KEYS[algorithm]))
    keys: dict[str, Any] = {
        "HS256": OctKey.import_key(SECRET),
        "ES256": ECKey.import_key(public_half(EC_PEM)),
        "RS256": RSAKey.import_key(public_half(RSA_PEM)),
    }
    read = jwt.decode(text, keys[algorithm], algorithms=[algorithm])
    assert read.claims["jti"] == token.id
    assert read.header == {"alg": algorithm, "kid": KEYS[algorithm].id, "typ": "at+jwt"}
    other: Any = {
        "HS256": OctKey.import_key(OLD_SECRET),
        "ES256": ECKey.generate_key("P-256"),
        "RS256": RSAKey.generate_key(2048),
    }[algorithm]
    with pytest.raises(BadSignatureError):
        jwt.decode(text, other, algorithms=[algorithm])


@pytest.mark.parametrize("algorithm", KEYS)
def test_ours_verifies_another_librarys(algorithm: str) -> None:
    keys: dict[str, Any] = {
        "HS256": OctKey.import_key(SECRET),
        "ES256": ECKey.import_key(EC_PEM),
        "RS256": RSAKey.import_key(RSA_PEM),
    }
    header = {"alg": algorithm, "kid": KEYS[algorithm].id, "typ": "at+jwt"}
    text = jwt.encode(header, CLAIMS, keys[algorithm], algorithms=[algorithm])
    assert ring(KEYS[algorithm]).verify(text).id == CLAIMS["jti"]


def test_the_name_of_a_public_key_is_its_thumbprint() -> None:
    for pem, kind in ((EC_PEM, ECKey), (RSA_PEM, RSAKey)):
        shown = private_key(pem).public
        assert shown is not None
        assert shown["kid"] == kind.import_key(public_half(pem)).thumbprint()
        assert not {"d", "k", "p", "q", "dp", "dq", "qi", "oth"} & shown.keys()


def test_keys_are_told_apart_by_their_ids() -> None:
    old, new = secret_key(OLD_SECRET), KEYS["HS256"]
    before, after = ring(old), ring(new, old, public_key(public_half(EC_PEM)))
    assert after.verify(issued(before)[0])
    assert after.verify(issued(ring(KEYS["ES256"]))[0])
    with pytest.raises(Unauthorized):
        before.verify(issued(after)[0])
    assert SECRET not in repr(new) + repr(after.public)
    assert len(after.public) == 1


def _named(**members: Any) -> dict[str, Any]:
    return HEADER | members


def _said(**claims: Any) -> dict[str, Any]:
    return CLAIMS | claims


def _lacking(name: str) -> dict[str, Any]:
    return {key: value for key, value in CLAIMS.items() if key != name}


def _last_bits_changed(text: str) -> str:
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    # 32 bytes leave two bits of the last character unused.
    return text[:-1] + alphabet[alphabet.index(text[-1]) ^ 1]


DEEP = encoded("[" * 5000 + "]" * 5000)
OTHER_PRODUCT = {"iss": "somebody", "sub": "alice", "exp": ISSUED + 600}
ATTACKS: dict[str, Callable[[], str]] = {
    "another algorithm named, signed with this one": lambda: forged(_named(alg="HS512")),
    "no algorithm, signed": lambda: forged(_named(alg="none")),
    "another type": lambda: forged(_named(typ="JWT")),
    "a critical extension": lambda: forged(_named(crit=["b64"], b64=False)),
    "a key of its own": lambda: forged(_named(jwk={"kty": "oct", "k": encoded(SECRET)})),
    "where to find its key": lambda: forged(_named(jku="https://evil.example/jwks")),
    "an extra claim": lambda: forged(claims=_said(admin=True)),
    "an end that is not whole": lambda: forged(claims=_said(exp=ISSUED + 600.5)),
    "a true generation": lambda: forged(claims=_said(gen=True)),
    "another issuer": lambda: forged(claims=_said(iss="somebody")),
    "another audience": lambda: forged(claims=_said(aud="somebody")),
    "a list of audiences": lambda: forged(claims=_said(aud=["authsvc"])),
    "a life of a year": lambda: forged(claims=_said(exp=ISSUED + 365 * 86400)),
    "valid only after its end": lambda: forged(claims=_said(nbf=ISSUED + 901)),
    "valid long before it was issued": lambda: forged(claims=_said(nbf=ISSUED - 6)),
    "a scope of nobody": lambda: forged(claims=_said(scope="root")),
    "a tenant in capitals": lambda: forged(claims=_said(tid=str(TENANT).upper())),
    "a claim twice": lambda: forged(claims=json.dumps(CLAIMS)[:-1] + ', "scope": "admin"}'),
    "a member of the header twice": lambda: forged(json.dumps(HEADER)[:-1] + ', "typ": "at+jwt"}'),
    "more than 8 KiB": lambda: forged(claims=_said(scope="check " * 1500 + "check")),
    "another spelling of its signature": lambda: _last_bits_changed(forged()),
    "padding": lambda: forged() + "=",
    "a signature of somebody": lambda: forged(secret=OLD_SECRET),
    "claims changed": lambda: ".".join(
        (forged().split(".")[0], encoded(_said(scope="admin")), forged().split(".")[2])
    ),
    "a header without end": lambda: f"{DEEP}.{encoded(CLAIMS)}.AA",
    "claims without end": lambda: forged(claims="[" * 2500 + "]" * 2500),
    "a key id without end": lambda: forged(_named(kid="a" * 5000)),
    "another product's": lambda: forged({"alg": "HS256", "typ": "JWT"}, OTHER_PRODUCT),
    "an encrypted one": lambda: ".".join([encoded(_named(enc="A256GCM", zip="DEF")), *"AAAA"]),
    "a refresh token": lambda: "rft_" + "a" * 65,
} | {f"without {name}": lambda name=name: forged(claims=_lacking(name)) for name in CLAIMS}


def accepts(by: Any, text: str) -> bool:
    """Whether a keyring takes a token; whatever else than its one refusal is raised, is raised."""
    try:
        by.verify(text)
    except Unauthorized:
        return False
    return True


@pytest.mark.parametrize("name", ATTACKS)
def test_what_is_not_as_we_issue_it_is_refused(name: str) -> None:
    assert accepts(ring(), forged())
    assert not accepts(ring(), ATTACKS[name]())


def _ring_of(variant: ModuleType) -> Any:
    return variant.Keyring(
        (variant.secret_key(SECRET),), issuer="authsvc", audience="authsvc",
        lifetime=timedelta(minutes=15),
    )  # fmt: skip


GUARDS: dict[str, tuple[tuple[str, str], ...]] = {
    "another algorithm named, signed with this one": (
        ('if header["alg"] != key.algorithm:', "if False:"),
        ("[key.algorithm])", "None)"),
    ),
    "another type": ((' or header["typ"] != TOKEN_TYPE', ""),),
    "a critical extension": (("header.keys() != _HEADER or ", ""),),
    "where to find its key": (("header.keys() != _HEADER or ", ""),),
    "an extra claim": (("claims.keys() != _CLAIMS", "claims.keys() < _CLAIMS"),),
    "an end that is not whole": (("type(claims[name]) is not int or ", ""),),
    "a true generation": (("type(claims[name]) is not int", "not isinstance(claims[name], int)"),),
    "another issuer": (('claims["iss"] != self.issuer or ', ""),),
    "another audience": ((' or claims["aud"] != self.audience', ""),),
    "a life of a year": (("token.expires_at - token.issued_at > LONGEST_LIFE", "False"),),
    "valid only after its end": (("token.not_before < token.expires_at:", "token.not_before:"),),
    "a scope of nobody": ((" or not token.scopes <= set(SCOPES)", ""),),
    "a tenant in capitals": (('str(token.tenant_id) != claims["tid"] or ', ""),),
    "a claim twice": (("len(made) != len(pairs)", "False"),),
    "more than 8 KiB": (("len(text) > LONGEST_TOKEN or ", ""),),
    "another spelling of its signature": (("_encoded(value) != part", "False"),),
    "a signature of somebody": (("jws.verify(text, key.verifier, [key.algorithm])", "pass"),),
}


@pytest.mark.parametrize("name", GUARDS)
def test_without_its_guard_an_attack_succeeds(name: str) -> None:
    assert accepts(_ring_of(without(module)), forged())
    assert not accepts(_ring_of(without(module)), ATTACKS[name]())
    assert accepts(_ring_of(without(module, *GUARDS[name])), ATTACKS[name]())


def test_without_its_guard_a_token_without_end_is_a_failure_of_ours() -> None:
    unguarded = _ring_of(without(module, ("OverflowError, RecursionError, ", "OverflowError, ")))
    with pytest.raises(RecursionError):
        unguarded.verify(ATTACKS["claims without end"]())


def test_no_way_to_write_none_is_taken() -> None:
    names: list[Any] = [
        "none", "None", "NONE", "nOnE", "noNe", " none", "none ", "none\x00", "", "null", "HS256 ",
        "hs256", "Hs256", "HS1", "HS384", "HS512", "RS256", "RS384", "ES256", "PS256", "EdDSA",
        "dir", "A128KW", None, False, 0, [], ["HS256"], {}, {"alg": "HS256"},
    ]  # fmt: skip
    assert len(names) == 30
    for name in names:
        for signature in (forged(_named(alg=name)).split(".")[2], "", "AA"):
            text = f"{encoded(_named(alg=name))}.{encoded(CLAIMS)}.{signature}"
            assert not accepts(ring(*KEYS.values()), text)
    unnamed = {key: value for key, value in HEADER.items() if key != "alg"}
    assert not accepts(ring(), forged(unnamed))


@pytest.mark.parametrize("algorithm", ["ES256", "RS256"])
def test_a_public_key_is_never_a_secret(algorithm: str) -> None:
    key, pem = KEYS[algorithm], EC_PEM if algorithm == "ES256" else RSA_PEM
    text = public_half(pem)
    public = load_pem_private_key(pem.encode(), None).public_key()
    spellings: list[str | bytes] = [
        text, text.strip(), text.rstrip("\n"), text.replace("\n", ""), text.replace("\n", "\r\n"),
        text + "\n", json.dumps(key.public), json.dumps(key.public, separators=(",", ":")),
        public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo),
        public.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH),
        "".join(text.splitlines()[1:-1]), "",
    ]  # fmt: skip
    for secret in spellings:
        for alg in ("HS256", algorithm):
            header = {"alg": alg, "kid": key.id, "typ": "at+jwt"}
            assert not accepts(ring(*KEYS.values()), forged(header, secret=secret))


def test_a_key_id_is_looked_up_and_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    def touched(*_: Any, **__: Any) -> Any:
        raise AssertionError("something was opened")

    monkeypatch.setattr("builtins.open", touched)
    monkeypatch.setattr(socket, "getaddrinfo", touched)
    monkeypatch.setattr(socket, "create_connection", touched)
    own = KEYS["HS256"].id
    hostile: list[Any] = [
        "../../../../dev/null", "/etc/passwd", "file:///etc/passwd", "https://evil.example/k",
        "' OR 1=1 --", "x' UNION SELECT 'a", "a" * 65, "a" * 100_000, own + "\n", own + "\x00",
        f" {own}", own.upper(), own[:-1], own + own, "", ".", "..", "~", "$(id)", "`id`", "%00",
        None, True, 0, 1.5, [own], {own: 1}, [], {},
    ]  # fmt: skip
    hostile += [f"{own}{chr(code)}" for code in range(1, 128)]
    hostile += [f"unknown-{number}" for number in range(60)]
    assert len(hostile) >= 200
    for kid in hostile:
        for more in ({}, {"jku": "https://evil.example"}, {"x5u": "https://evil.example"}):
            header = _named(kid=kid, **more)
            if kid != own:
                assert not accepts(ring(), forged(header))


@pytest.mark.parametrize("claim", ["exp", "nbf", "iat", "gen"])
def test_numbers_are_whole_numbers(claim: str) -> None:
    written = json.dumps(CLAIMS).replace(f'"{claim}": {CLAIMS[claim]}', f'"{claim}": %s', 1)
    assert accepts(ring(), forged(claims=written % CLAIMS[claim]))
    for value in (
        f'"{CLAIMS[claim]}"', "NaN", "Infinity", "-Infinity", "1e400", "1" + "0" * 400, "null",
        "-1", "[1]", "{}", "true", f"{CLAIMS[claim]}.0", str(2**63), str(2**40),
    ):  # fmt: skip
        assert not accepts(ring(), forged(claims=written % value))


VALID = issued(ring())[0]


@given(st.data())
def test_a_changed_token_is_refused_and_nothing_breaks(data: st.DataObject) -> None:
    text = list(VALID)
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(text) - 1))
        what = data.draw(st.sampled_from(["change", "drop", "add", "swap"]))
        character = data.draw(st.characters())
        if what == "change":
            text[at] = character
        elif what == "drop" and len(text) > 1:
            del text[at]
        elif what == "add":
            text.insert(at, character)
        else:
            other = data.draw(st.integers(0, len(text) - 1))
            text[at], text[other] = text[other], text[at]
    changed = "".join(text)
    assert accepts(ring(), changed) is (changed == VALID)


@given(st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
), st.sampled_from(sorted(CLAIMS)))  # fmt: skip
def test_a_claim_of_any_kind_breaks_nothing(value: Any, name: str) -> None:
    text = forged(claims=_said(**{name: value}))
    if accepts(ring(), text):
        assert type(value) is type(CLAIMS[name])


@pytest.mark.parametrize("text", ["short", "a" * 31])
def test_a_short_secret_is_no_key(text: str) -> None:
    with pytest.raises(ValueError, match="32 characters"):
        secret_key(text)


def test_weak_and_foreign_keys_are_no_keys() -> None:
    weak = _pem(rsa.generate_private_key(65537, 1024))
    other_curve = _pem(ec.generate_private_key(ec.SECP384R1()))
    locked = ec.derive_private_key(7, ec.SECP256R1()).private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"pass")
    )
    for pem in (weak, other_curve, locked.decode(), "no key", public_half(EC_PEM)):
        with pytest.raises(ValueError, match=r"P-256|PEM"):
            private_key(pem)
    for pem in (EC_PEM, "no key"):
        with pytest.raises(ValueError, match="PEM"):
            public_key(pem)


def test_a_key_id_says_nothing_of_its_secret() -> None:
    name = KEYS["HS256"].id
    assert len(name) == 16
    for digest in (hashlib.sha256, hashlib.sha1, hashlib.md5):
        assert not encoded(digest(SECRET.encode()).digest()).startswith(name)
