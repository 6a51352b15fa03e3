"""Cursors: where a list goes on, as an opaque word that belongs to one question. Pure."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence

from authsvc.errors import InputError

_BIGGEST_ID = 2**63 - 1
_LONGEST = 2048


def _question_mark(question: Sequence[str]) -> str:
    return hashlib.sha256(json.dumps(list(question)).encode()).hexdigest()[:16]


def encode_cursor(question: Sequence[str], position: Sequence[int | str]) -> str:
    """The cursor for a position in the answer to a question."""
    text = json.dumps([_question_mark(question), *position], separators=(",", ":"))
    return base64.urlsafe_b64encode(text.encode()).rstrip(b"=").decode()


def decode_cursor(
    question: Sequence[str], cursor: str | None, start: Sequence[int | str]
) -> tuple[int | str, ...]:
    """The position a cursor stands for; ``start`` for none, which also gives the parts' types.

    Raises InputError naming ``cursor`` if it is not one of this question's.
    """
    if cursor is None:
        return tuple(start)
    if len(cursor) > _LONGEST:
        raise _not_ours()
    try:
        padded = cursor.encode("ascii") + b"=" * (-len(cursor) % 4)
        parts = json.loads(base64.b64decode(padded, altchars=b"-_", validate=True))
        mark, *position = parts
    except (ValueError, TypeError, RecursionError, binascii.Error):
        raise _not_ours() from None
    fits = (
        mark == _question_mark(question)
        and len(position) == len(start)
        and all(_like(part, example) for part, example in zip(position, start, strict=True))
    )
    if not fits:
        raise _not_ours()
    return tuple(position)


def _like(part: object, example: int | str) -> bool:
    if isinstance(example, str):
        # A NUL or a lone surrogate cannot be a name, and some databases refuse them as a value.
        return isinstance(part, str) and part.isascii() and part.isprintable()
    return type(part) is int and 0 <= part <= _BIGGEST_ID


def _not_ours() -> InputError:
    return InputError.of(
        "cursor", "not a cursor of this list: take it unchanged from 'next' of the page before"
    )
