"""Encryption of names: the algorithms, and what opens where. No database."""

from __future__ import annotations

import random
import uuid
from typing import Any
from uuid import UUID

import pytest
from cryptography.fernet import Fernet
from cryptography.hazmat.primitives.ciphers.aead import AESSIV
from cryptography.hazmat.primitives.hashes import SHA1, SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

import encrypted
from authsvc.encryption import (
    LIVE,
    MEMBER,
    DataKeys,
    Field,
    FieldCipher,
    KeyMissing,
    MasterKey,
    MasterKeys,
    Unreadable,
    new_data_key,
)

TENANT, OTHER = uuid.UUID(int=1), uuid.UUID(int=2)
RING = MasterKeys(MasterKey(encrypted.KEY))


# --- The algorithms ---


@pytest.mark.parametrize(
    ("key", "data", "plain", "sealed"),
    [
        # RFC 5297, A.1 and A.2.
        (
            "fffefdfcfbfaf9f8f7f6f5f4f3f2f1f0f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff",
            ["101112131415161718191a1b1c1d1e1f2021222324252627"],
            "112233445566778899aabbccddee",
            "85632d07c6e8f37f950acd320a2ecc9340c02b9690c4dc04daef7f6afe5c",
        ),
        (
            "7f7e7d7c7b7a79787776757473727170404142434445464748494a4b4c4d4e4f",
            [
                "00112233445566778899aabbccddeeffdeaddadadeaddadaffeeddccbbaa99887766554433221100",
                "102030405060708090a0",
                "09f911029d74e35bd84156c5635688c0",
            ],
            "7468697320697320736f6d6520706c61696e7465787420746f20656e6372797074207573696e6720534956"
            "2d414553",
            "7bdb6e3b432667eb06f4d14bff2fbd0fcb900f2fddbe404326601965c889bf17dba77ceb094fa663b7a3f7"
            "48ba8af829ea64ad544a272e9c485b62a3fd5c0d",
        ),
    ],
)
def test_rfc_5297(key: str, data: list[str], plain: str, sealed: str) -> None:
    made = AESSIV(bytes.fromhex(key)).encrypt(
        bytes.fromhex(plain), [bytes.fromhex(one) for one in data]
    )
    assert made.hex() == sealed


@pytest.mark.parametrize(
    ("algorithm", "secret", "salt", "info", "length", "derived"),
    [
        # RFC 5869, A.1, A.3 and A.4.
        (
            SHA256(), "0b" * 22, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", 42,
            "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf34007208d5b887185865",
        ),
        (
            SHA256(), "0b" * 22, "", "", 42,
            "8da4e775a563c18f715f802a063c5a31b8a11f5c5ee1879ec3454e5f3c738d2d9d201395faa4b61a96c8",
        ),
        (
            SHA1(), "0b" * 11, "000102030405060708090a0b0c", "f0f1f2f3f4f5f6f7f8f9", 42,
            "085a01ea1b10f36933068b56efa5ad81a4f14b822f5b091568a9cdd4f155fda2c22e422478d305f3f896",
        ),
    ],
)  # fmt: skip
def test_rfc_5869(
    algorithm: Any, secret: str, salt: str, info: str, length: int, derived: str
) -> None:
    made = HKDF(algorithm, length, bytes.fromhex(salt) or None, bytes.fromhex(info))
    assert made.derive(bytes.fromhex(secret)).hex() == derived


def test_a_value_as_the_documentation_describes_it() -> None:
    key = bytes(range(32))
    wrapped, _name = RING.wrap(TENANT, 0x1A2B, key)
    assert Fernet(encrypted.KEY).decrypt(wrapped) == (
        b"authsvc data key v1\x00" + TENANT.bytes + (0x1A2B).to_bytes(8, "big") + key
    )
    stored = FieldCipher(TENANT, 0x1A2B, key).seal(MEMBER, "alice")
    assert stored.startswith("~1a2b.")
    opener = encrypted.Opener(TENANT, {0x1A2B: wrapped})
    assert opener.text("membership.user_id", stored) == "alice"


@given(st.text(max_size=60), st.sampled_from(LIVE))
def test_what_is_sealed_opens_where_it_was_sealed_and_nowhere_else(said: str, place: Field) -> None:
    key = bytes(range(32))
    cipher = FieldCipher(TENANT, 7, key)
    stored = cipher.seal(place, said)
    assert stored == cipher.seal(place, said)
    assert cipher.open(place, stored) == said
    strangers = [
        FieldCipher(OTHER, 7, key),
        FieldCipher(TENANT, 8, key),
        FieldCipher(TENANT, 7, bytes(32)),
    ]
    for other in strangers:
        with pytest.raises(Unreadable):
            other.open(place, stored)
        # The generation in the text is not what it is trusted for.
        with pytest.raises(Unreadable):
            other.open(place, stored.replace("~7.", f"~{other.generation:x}."))
    for elsewhere in LIVE:
        if elsewhere is not place:
            with pytest.raises(Unreadable):
                cipher.open(elsewhere, stored)


def test_what_is_not_a_sealed_value_does_not_open() -> None:
    cipher = FieldCipher(TENANT, 7, bytes(range(32)))
    stored = cipher.seal(MEMBER, "alice")
    flipped = stored[:-3] + ("A" if stored[-3] != "A" else "B") + stored[-2:]
    # 21 bytes are 28 characters; one byte more leaves bits over in the last one.
    longer = cipher.seal(MEMBER, "alice1")
    respelt = longer[:-1] + chr(ord(longer[-1]) + 1)
    assert cipher.open(MEMBER, longer) == "alice1"
    for wrong in (
        "alice",
        "",
        "~",
        "~7.",
        "~7.!",
        stored[:-4],
        stored + "AAAA",
        flipped,
        "~7.A",
        respelt,
    ):
        with pytest.raises(Unreadable):
            cipher.open(MEMBER, wrong)
    with pytest.raises(Unreadable):
        FieldCipher(TENANT).open(MEMBER, stored)


def test_equal_only_where_tenant_column_and_text_are() -> None:
    """A million random (tenant, column, text): equal ones are equal, and no others."""
    dice = random.Random(5297)
    ciphers = [FieldCipher(UUID(int=n), 1, dice.randbytes(32)) for n in range(8)]
    seen: dict[str, tuple[int, str, str]] = {}
    asked = set()
    for _ in range(1_000_000):
        whose, place = dice.randrange(8), dice.choice(LIVE)
        said = f"u{dice.randrange(200_000)}"
        what = (whose, place.path, said)
        stored = ciphers[whose].seal(place, said)
        assert seen.setdefault(stored, what) == what
        asked.add(what)
    assert len(seen) == len(asked) > 500_000


def test_a_wrapped_key_opens_for_its_tenant_and_generation_alone() -> None:
    wrapped, _name = RING.wrap(TENANT, 5, new_data_key())
    RING.unwrap(TENANT, 5, wrapped)
    for tenant_id, generation in ((OTHER, 5), (TENANT, 6)):
        with pytest.raises(Unreadable):
            RING.unwrap(tenant_id, generation, wrapped)
    for not_one in ("", "x", wrapped[:-2], Fernet(encrypted.KEY).encrypt(b"x" * 76).decode()):
        with pytest.raises((Unreadable, KeyMissing)):
            RING.unwrap(TENANT, 5, not_one)
    with pytest.raises(KeyMissing):
        MasterKeys(MasterKey(encrypted.NEXT_KEY)).unwrap(TENANT, 5, wrapped)


def test_keys_are_in_no_repr() -> None:
    made = DataKeys(RING)
    wrapped, _name = RING.wrap(TENANT, 5, b"k" * 32)
    made.cipher(TENANT, 5, wrapped)
    shown = "".join(map(repr, (made, RING, made.latest(TENANT), RING.key)))
    assert encrypted.KEY not in shown
    assert wrapped not in shown
    assert "kkkk" not in shown
