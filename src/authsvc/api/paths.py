"""Which request paths are refused before any route sees them.

A path is decoded exactly once, by the server. Everything that could be read differently by a
proxy in front, by the router or by a second decoding is refused instead of interpreted.
"""

from __future__ import annotations

import re
from collections.abc import MutableMapping
from typing import Any
from urllib.parse import quote, unquote_to_bytes

_plain = re.compile(
    rb"(?:/[A-Za-z0-9_~:@+|!$&'()*,;=\-][A-Za-z0-9_~:@+|!$&'()*,;=.\-]*)++/?+"
).fullmatch
_bad_escape = re.compile(rb"%(?![0-9A-Fa-f]{2})").search
_not_visible_ascii = re.compile(rb"[^!-~]").search


def path_refused(scope: MutableMapping[str, Any]) -> str | None:
    """Why the scope's path is ambiguous, as a sentence; None for an ordinary one.

    An escaped control character or letter is not ambiguous: it reaches the validation of names.
    """
    raw: bytes | None = scope.get("raw_path")
    if raw is None:
        raw = quote(scope["path"]).encode("ascii")
    if _plain(raw):
        return None
    if _not_visible_ascii(raw) or b"\\" in raw or _bad_escape(raw):
        return "The path must be percent-encoded UTF-8"
    decoded = unquote_to_bytes(raw)
    if b"\0" in decoded or b"\\" in decoded or decoded.count(b"/") != raw.count(b"/"):
        return "The path holds an encoded slash, a backslash or NUL; such names go into a body"
    if b"//" in raw or not raw.startswith(b"/"):
        return "The path holds an empty segment"
    if any(segment in (b".", b"..") for segment in decoded.split(b"/")):
        return "The path holds '.' or '..' as a segment"
    try:
        same = decoded.decode("utf-8") == scope["path"]
    except UnicodeDecodeError:
        same = False
    return None if same else "The path must be percent-encoded UTF-8"
