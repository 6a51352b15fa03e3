"""The headers every answer carries (api.md, section 5), prebuilt."""

from __future__ import annotations

from typing import Any

from starlette.types import Message, Scope, Send

HeaderSets = dict[tuple[bool, bool], tuple[tuple[bytes, bytes], ...]]
"""(is a page, must not be stored) -> headers."""

_PAGE_CSP = (b"content-security-policy", b"default-src 'self'")
_DATA_CSP = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
_NO_STORE = (b"cache-control", b"no-store")
_PAGE_PATHS = ("/docs", "/static/")
_NO_STORE_PATHS = ("/api/", "/access/")
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


def header_sets(xss_protection: str) -> HeaderSets:
    """Every combination, with the given value of ``X-XSS-Protection``."""
    base = (
        (b"x-content-type-options", b"nosniff"),
        (b"x-frame-options", b"DENY"),
        (b"x-xss-protection", xss_protection.encode("latin-1")),
        (b"strict-transport-security", b"max-age=31536000; includeSubDomains"),
        (b"referrer-policy", b"no-referrer"),
    )
    return {
        (page, no_store): (
            *base,
            _PAGE_CSP if page else _DATA_CSP,
            *((_NO_STORE,) if no_store else ()),
        )
        for page in (True, False)
        for no_store in (True, False)
    }


class Answer:
    """``send`` with the headers every answer carries; remembers how far the answer got."""

    __slots__ = ("_headers", "_path", "_request_id", "_scope", "_send", "finished", "status")

    def __init__(
        self, send: Send, scope: Scope, path: str, request_id: str, headers: HeaderSets
    ) -> None:
        self._send = send
        self._scope = scope
        self._path = path
        self._request_id = request_id
        self._headers = headers
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
        no_store = self._path.startswith(_NO_STORE_PATHS)
        page = self._path.startswith(_PAGE_PATHS)
        kept: list[Any] = []
        for pair in message.get("headers", ()):
            name = pair[0]
            if name in _OURS or (no_store and name == b"cache-control"):
                continue
            if name == b"content-type" and pair[1].startswith(b"text/html"):
                page = True
            kept.append(pair)
        kept += self._headers[page, no_store]
        kept.append((b"x-request-id", self._request_id.encode("ascii")))
        # The rest of a body that is too large is not worth reading, so the connection ends here.
        if status == 413 and self._scope["http_version"] in ("1.1", "1.0"):
            kept.append((b"connection", b"close"))
        return {**message, "headers": kept}
