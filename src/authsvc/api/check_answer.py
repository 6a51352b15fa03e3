"""The body of a plain check's answer: one prebuilt form for each outcome, used by both ways."""

from __future__ import annotations

from datetime import datetime

from authsvc.api.envelope import timestamp

_BODIES = {
    outcome: (
        b'{"success":true,"code":200,"message":"Answered","data":{"has_permission":%s},"revision":'
        % (b"true" if outcome else b"false")
    )
    for outcome in (True, False)
}


_latest: tuple[datetime | None, bytes] = (None, b"")


def check_body(allowed: bool, revision: int, at: datetime) -> bytes:
    """The envelope around ``{"has_permission": allowed}``."""
    return b'%s%d,"timestamp":"%s"}' % (_BODIES[allowed], revision, _written(at))


def _written(at: datetime) -> bytes:
    """The timestamp; written once for all the checks that one gate read serves."""
    global _latest
    known, text = _latest
    if known is not at:
        text = timestamp(at).encode("ascii")
        _latest = (at, text)
    return text
