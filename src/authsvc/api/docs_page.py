"""The pages for people: ``/``, ``/docs`` and the OpenAPI document behind them.

Everything is served from memory by exact name: there is no path to traverse, no Range to answer
and no other host to ask, so the pages work offline and under ``default-src 'self'``. Links are
relative, which keeps them right behind any prefix.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from string import Template

from fastapi import APIRouter, Request, Response
from pydantic_core import to_json
from starlette.exceptions import HTTPException

from authsvc.api.route import ContractRoute

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "jpg": "image/jpeg",
    "js": "text/javascript; charset=utf-8",
    "png": "image/png",
    "svg": "image/svg+xml",
    "txt": "text/plain; charset=utf-8",
}
_FOREVER = "public, max-age=31536000, immutable"
_ASK_FIRST = "no-cache"


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    media_type: str
    cache_control: str
    etag: str

    @classmethod
    def of(cls, content: bytes, media_type: str, cache_control: str = _ASK_FIRST) -> _File:
        digest = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, media_type, cache_control, f'"{digest}"')

    def answer(self, request: Request) -> Response:
        headers = {"etag": self.etag, "cache-control": self.cache_control}
        known = request.headers.get("if-none-match", "")
        if known.strip() == "*" or self.etag in known:
            return Response(status_code=304, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def docs_router(*, title: str, docs_enabled: bool = True) -> APIRouter:
    """``/``, ``/docs``, ``/openapi.json`` and ``/static/...``; empty when switched off.

    For a ``FastAPI(openapi_url=None, docs_url=None, redoc_url=None)``: the document is that
    application's ``openapi()``, made when it is first asked for.
    """
    router = APIRouter(route_class=ContractRoute, include_in_schema=False)
    if not docs_enabled:
        return router
    folder = files("authsvc") / "static"
    version = (folder / "swagger-ui" / "VERSION").read_text("ascii").strip()
    found = dict(_static_files(folder, version))
    values = {"title": escape(title), "swagger": version}
    home, docs = (
        _File.of(Template(found.pop(name).content.decode()).substitute(values).encode(), html)
        for name, html in (("home.html", _MEDIA_TYPES["html"]), ("docs.html", _MEDIA_TYPES["html"]))
    )
    document: _File | None = None

    @router.get("/")
    async def home_page(request: Request) -> Response:
        return home.answer(request)

    @router.get("/docs")
    async def docs_page(request: Request) -> Response:
        return docs.answer(request)

    @router.get("/openapi.json")
    async def openapi_document(request: Request) -> Response:
        nonlocal document
        if document is None:
            document = _File.of(to_json(request.app.openapi()), "application/json")
        return document.answer(request)

    @router.get("/static/{name:path}")
    async def static_file(request: Request, name: str) -> Response:
        if (file := found.get(name)) is None:
            raise HTTPException(404)
        return file.answer(request)

    return router


def _static_files(folder: Traversable, version: str) -> Iterator[tuple[str, _File]]:
    """Name below ``/static/`` and content; what has its version in its path never changes."""
    for prefix, place, cache_control in (
        ("", folder, _ASK_FIRST),
        (f"swagger-ui/{version}/", folder / "swagger-ui" / version, _FOREVER),
    ):
        for entry in place.iterdir():
            media_type = _MEDIA_TYPES.get(entry.name.rpartition(".")[2])
            if media_type is not None and entry.is_file():
                yield prefix + entry.name, _File.of(entry.read_bytes(), media_type, cache_control)
