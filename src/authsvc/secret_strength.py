"""How hard a secret is to guess, estimated from below. Pure.

What people type is worth little per character, what a generator gives is worth what its alphabet
is: repeats and runs count nothing, known words and letters in a row count little. The estimate is
for refusing what is plainly weak, not for praising what is left.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from collections import Counter
from collections.abc import Iterator

# Values that stand in documentation, and so in every attacker's list.
_PUBLISHED = frozenset(
    {
        "veryStr0ng&SecureP@ssw0rd!",
        "dev-secret-key",
        "dev-encryption-key",
        "abc-123-def",
        "09d25e094faa6ca2556c818166b7a9563b93f7099f6f0f4caa6cf63b88e8d3e7",
        "a-string-secret-at-least-256-bits-long",
        "your-256-bit-secret",
        "AyM1SysPpbyDfgZld3umj1qzKObwVMkoqQ-EstJQLr_T-1qS0gZH75aKtMN3Yj0iPS4hcgUuTwjAzZr1Z9CAow",
        "0123456789abcdef0123456789abcdef",
    }
)
_WORDS = re.compile(
    r"p[a@4]ss(?:w[o0]rd|phrase)?|s[e3]cr[e3]t|change[-_ ]?(?:me|this|it)?|admin|default|example"
    r"|test(?:ing)?|auth(?:svc)?|token|jwt|key|your?|please|prod(?:uction)?|dev(?:elopment)?|local"
    r"|postgres(?:ql)?|qwerty|letmein|welcome|generated?|insert|here|super|strong|secure"
    r"|minimum|very|long|characters?|random|value|must|replace|dummy|placeholder|demo",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"[A-Z]?[a-z]{3,}|[A-Z]{4,}")
_WORD_BITS = 6.0
_LETTER_BITS = 2.0
_BETWEEN_WORDS_BITS = 1.0


def is_published(secret: str) -> bool:
    """Whether this stands in documentation as an example."""
    return secret.strip() in _PUBLISHED or secret.strip().startswith("<")


def estimated_bits(secret: str) -> float:
    """How many bits of chance there are in a secret, at least in the eyes of a guesser."""
    return min(map(_bits, _readings(secret)))


def _readings(secret: str) -> Iterator[str]:
    """The text, and what it is the base64 or hexadecimal form of, if that is text as well."""
    yield secret
    for decode in (base64.b64decode, bytes.fromhex):
        try:
            inner = decode(secret).decode("ascii")
        except (binascii.Error, ValueError):
            continue
        if inner.isprintable() and inner:
            yield inner


def _bits(text: str) -> float:
    unit = _unit(text)
    counts = Counter(unit)
    spread = -sum(n / len(unit) * math.log2(n / len(unit)) for n in counts.values())
    # Chance gives letters of one case in a row, too, but not for most of a text.
    in_runs = sum(len(run) for run in _LETTERS.findall(unit))
    words = in_runs > len(unit) * 0.6
    bits, place = 0.0, 0
    while place < len(unit):
        word = _WORDS.match(unit, place)
        if word and (words or len(word[0]) > 3):
            bits += _WORD_BITS
            place = word.end()
            continue
        if not _follows(unit, place):
            one = unit[place]
            bits += (
                spread
                if not words or one.isdigit()
                else _LETTER_BITS
                if one.isalpha()
                else _BETWEEN_WORDS_BITS
            )
        place += 1
    return bits


def _unit(text: str) -> str:
    """What a text is a repetition of; itself if it is none."""
    again = (text + text).find(text, 1)
    return text[:again] if again < len(text) else text


def _follows(text: str, place: int) -> bool:
    """Whether a character goes on as the two before it did: ``aaa``, ``abc``, ``321``."""
    if place < 2:
        return False
    first, second, third = map(ord, text[place - 2 : place + 1])
    return third - second == second - first and abs(third - second) <= 1
