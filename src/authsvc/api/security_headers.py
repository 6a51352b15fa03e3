"""The headers every answer carries (api.md, section 5), prebuilt."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import Message, Scope, Send

Pairs = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class HeaderSets:
    """What is added to pages and their files, to ``/api`` and ``/access``, and to the rest."""

    page: Pairs
    data: Pairs
    other: Pairs


_PAGE_CSP = (b"content-security-policy", b"default-src 'self'")
_DATA_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")
_OURS = frozenset(
    {
        b"content-security-policy",
        b"referrer-policy",
        b"server",
        b"strict-transport-security",
        b"x-content-type-options",
        b"x-frame-options",
        b"x-request-id",
        b"x-xss-protection",
    }
)
_OURS_AND_CACHE = _OURS | {b"cache-control"}


def header_sets(xss_protection: str) -> HeaderSets:
    """The three sets, with the given value of ``X-XSS-Protection``."""
    base = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"x-xss-protection", xss_protection.encode("latin-1")),
        (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
        (b"referrer-policy", b"no-referrer"),
    )
    return HeaderSets(
        page=(*base, _PAGE_CSP), data=(*base, _DATA_CSP, _NO_STORE), other=(*base, _DATA_CSP)
    )


class Answer:
    """``send`` with the headers every answer carries; remembers how far the answer got.

    ``more`` is what this request's answer carries beside them.
    """

    __slots__ = (
        "_headers",
        "_more",
        "_path",
        "_request_id",
        "_scope",
        "_send",
        "finished",
        "status",
    )

    def __init__(
        self,
        send: Send,
        scope: Scope,
        path: str,
        request_id: str,
        headers: HeaderSets,
        more: Pairs = (),
    ) -> None:
        self._send = send
        self._scope = scope
        self._path = path
        self._request_id = request_id
        self._headers = headers
        self._more = more
        self.status = 0
        self.finished = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            message = self._start(message)
        elif not message.get("more_body", False):
            self.finished = True
        await self._send(message)

    def _start(self, message: Message) -> Message:
        status: int = message["status"]
        self.status = status
        if self._path[:5] == "/api/" or self._path[:8] == "/access/":
            kept = [pair for pair in message.get("headers", ()) if pair[0] not in _OURS_AND_CACHE]
            kept += self._headers.data
        else:
            kept = [pair for pair in message.get("headers", ()) if pair[0] not in _OURS]
            page = self._path.startswith(("/docs", "/static/")) or any(
                pair[0] == b"content-type" and pair[1].startswith(b"text/html") for pair in kept
            )
            kept += self._headers.page if page else self._headers.other
        kept += self._more
        # As the rate limits say, if one counted this request.
        kept += self._scope["state"].get("rate_limit", ())
        kept.append((b"x-request-id", self._request_id.encode("ascii")))
        # The rest of a body that is too large is not worth reading, so the connection ends here.
        if status == 413 and self._scope["http_version"] in ("1.1", "1.0"):
            kept.append((b"connection", b"close"))
        return {"type": "http.response.start", "status": status, "headers": kept}
