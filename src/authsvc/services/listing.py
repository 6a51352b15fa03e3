"""The rule every list follows: complete or refused, or a page with a cursor."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import TypeVar

from authsvc.cursor import decode_cursor, encode_cursor
from authsvc.errors import LimitRequired, Problem
from authsvc.records import LIST_MAX, Listing, Page, Stamp

Item = TypeVar("Item")
Position = tuple[int | str, ...]


async def list_page(
    question: Sequence[str],
    page: Page,
    start: Position,
    stamp: Stamp,
    fetch: Callable[[Position, int], Awaitable[Sequence[tuple[Position, Item]]]],
) -> Listing[Item]:
    """One answer of a list.

    ``fetch(position, most)`` gives at most ``most`` items that follow a position, each with its
    own. Raises LimitRequired when a list asked for without a limit is too long for one answer.
    """
    position = decode_cursor(question, page.cursor, start)
    most = LIST_MAX if page.limit is None else page.limit
    found = await fetch(position, most + 1)
    if len(found) <= most:
        return Listing([item for _, item in found], stamp)
    if page.limit is None:
        sentence = f"more than {LIST_MAX} items: ask with ?limit= and follow 'next'"
        raise LimitRequired(f"limit: {sentence}", [Problem("limit", sentence)])
    kept = found[:most]
    return Listing([item for _, item in kept], stamp, encode_cursor(question, kept[-1][0]))
