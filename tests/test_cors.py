"""Calls from web pages of other origins: off, for some origins exactly, or for all when local."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from authsvc.api.cors import MAX_AGE_SECONDS, Cors
from authsvc.errors import SettingsError, Unavailable
from authsvc.services.current_state import CurrentState
from authsvc.settings import build_settings
from http_api import Api, Serve, check_headers

pytest_plugins = ["http_fixtures"]

APP, ADMIN = "https://app.example.com", "https://admin.example.com:8443"
ORIGINS: dict[str, Any] = {"allow_cors": True, "cors_origins": f"{APP},{ADMIN}"}
HOSTILE = [
    "https://app.example.com.evil.example", "https://evil.example", "null", "", "*",
    "http://app.example.com", "https://app.example.com:443", "https://app.example.com:8443",
    "https://app.example.com/", "https://App.example.com", "HTTPS://app.example.com",
    "https://evil.app.example.com", "https://evilapp.example.com", "https://app.example.comevil",
    "https://app.example.com@evil.example", "https://evil.example#https://app.example.com",
    "https://app.example.com%00.evil.example", "https://app.example.com evil",
    "https://app.example.com,https://evil.example", "https://app-example.com",
    "https://admin.example.com", "https://admin.example.com:84430", "file://app.example.com",
    "//app.example.com", "app.example.com",
]  # fmt: skip
PATH = "/api/has_permission/alice/deploy"


def allowed(response: httpx.Response) -> str | None:
    """The origin whose page may read this answer."""
    check_headers(response)
    assert "access-control-allow-credentials" not in response.headers
    found = response.headers.get_list("access-control-allow-origin")
    assert len(found) <= 1
    return found[0] if found else None


def preflight(origin: str, method: str = "POST", headers: str = "Authorization") -> dict[str, str]:
    """What a browser asks before it lets a page ask."""
    return {
        "Origin": origin,
        "Access-Control-Request-Method": method,
        "Access-Control-Request-Headers": headers,
    }


async def test_off_by_default(api: Api) -> None:
    asked = await api.send("GET", PATH, headers={"Origin": APP})
    assert asked.status_code == 200
    assert not [name for name in asked.headers if name.startswith("access-control-")]
    assert "vary" not in asked.headers
    before = await api.http.options(PATH, headers=preflight(APP))
    assert before.status_code == 405
    assert allowed(before) is None


async def test_exactly_the_listed_origins(serve: Serve, api: Api) -> None:
    assert len(HOSTILE) == 25
    async with serve(**ORIGINS) as service:
        known = service.with_key(api.key)
        for origin in (APP, ADMIN):
            for _ in range(2):
                answer = await known.send("GET", PATH, headers={"Origin": origin})
                assert allowed(answer) == origin
                assert answer.headers["vary"] == "Origin"
                exposed = answer.headers["access-control-expose-headers"].split(", ")
                assert {"X-Request-ID", "Retry-After"} <= set(exposed)
        for origin in HOSTILE:
            for headers in ({"Origin": origin}, preflight(origin)):
                for method in ("GET", "OPTIONS"):
                    answer = await known.send(method, PATH, headers=headers)
                    assert allowed(answer) is None, origin
                    assert answer.headers["vary"] == "Origin"
        two = [("Origin", APP), ("Origin", "https://evil.example")]
        assert allowed(await service.http.get(PATH, headers=two)) is None
        without = await known.send("GET", PATH)
        assert allowed(without) is None
        assert without.headers["vary"] == "Origin"


async def test_a_suffix_match_would_be_noticed(
    serve: Serve, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def by_suffix(self: Cors, _scope: Any, origin: bytes | None) -> bool:
        return origin is not None and origin.endswith(b"example.com")

    monkeypatch.setattr(Cors, "_allows", by_suffix)
    async with serve(**ORIGINS) as service:
        answers = [
            await service.http.get("/ping", headers={"Origin": origin}) for origin in HOSTILE
        ]
        assert any(allowed(answer) for answer in answers)


async def test_refusals_can_be_read_too(
    serve: Serve, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    origin = {"Origin": APP}
    async with serve(**ORIGINS) as service:
        known = service.with_key(api.key)
        answers = {
            200: await known.send("GET", "/api/roles", headers=origin),
            400: await known.send("GET", "/api/role/%00", headers=origin),
            401: await service.http.get("/api/roles", headers=origin),
            404: await known.send("GET", "/api/nowhere", headers=origin),
            405: await known.send("PATCH", "/api/roles", headers=origin),
            413: await known.send("POST", "/api/keys", {"label": "a" * 70_000}, headers=origin),
            415: await known.send("POST", "/api/check", headers=origin, data={"a": "b"}),
            422: await known.send("GET", "/api/roles?x=1", headers=origin),
        }

        async def away(*_: Any) -> Any:
            raise Unavailable

        async def broken(*_: Any) -> Any:
            raise RuntimeError

        monkeypatch.setattr(CurrentState, "credential", away)
        answers[503] = await known.send("GET", "/api/roles", headers=origin)
        monkeypatch.setattr(CurrentState, "credential", broken)
        answers[500] = await known.send("GET", "/api/roles", headers=origin)
    for status, answer in answers.items():
        assert answer.status_code == status
        assert allowed(answer) == APP


@pytest.mark.parametrize("path", [PATH, "/api/keys", "/api/settings", "/api/nowhere", "/health"])
async def test_preflights(serve: Serve, path: str) -> None:
    async with serve(**ORIGINS) as service:
        for method in ("GET", "POST", "PUT", "DELETE", "PATCH"):
            asked = preflight(APP, method, "authorization, content-type, idempotency-key")
            answer = await service.http.options(path, headers=asked)
            assert answer.status_code == 204
            assert answer.content == b""
            assert allowed(answer) == APP
            assert answer.headers["access-control-allow-methods"] == "GET, POST, PUT, DELETE"
            permitted = answer.headers["access-control-allow-headers"].lower().split(", ")
            assert {"authorization", "content-type", "idempotency-key"} <= set(permitted)
            assert int(answer.headers["access-control-max-age"]) == MAX_AGE_SECONDS <= 600
        # Not a browser's question about a method: an ordinary request.
        plain = await service.http.options(path, headers={"Origin": APP})
        assert plain.status_code in (404, 405)
        assert allowed(plain) == APP


async def test_any_origin_when_trying_out(serve: Serve, api: Api) -> None:
    async with serve(allow_cors=True, cors_origins="*") as service:
        for headers in ({"Origin": "https://anything.example"}, {}, {"Origin": "null"}):
            answer = await service.with_key(api.key).send("GET", PATH, headers=headers)
            assert answer.status_code == 200
            assert allowed(answer) == "*"
        asked = await service.http.options(PATH, headers=preflight("https://anything.example"))
        assert (asked.status_code, allowed(asked)) == (204, "*")


@pytest.mark.parametrize("origin", [
    "app.example.com", "https://app.example.com/", "https://*.example.com", "null", "https://",
    "https://App.example.com", "https://app.example.com:443", "http://app.example.com:80",
    "ftp://app.example.com", "https://app.example.com/path", "https://u@app.example.com",
    f"*,{APP}", "https://app.example.com:", "https://app.example.com\n",
])  # fmt: skip
def test_origins_are_written_as_browsers_send_them(origin: str) -> None:
    with pytest.raises(SettingsError, match="AUTH_CORS_ORIGINS"):
        build_settings(allow_cors=True, cors_origins=(origin,) if "," not in origin else origin)


def test_any_origin_is_refused_in_production() -> None:
    values: dict[str, Any] = {
        "environment": "production",
        "jwt_secret_key": "Qk3v8sYc2mJx0pWd7hTz5nRb1fLg9aEu4oKi6yCq",
        "allow_cors": True,
    }
    with pytest.raises(SettingsError, match=r"AUTH_CORS_ORIGINS: .*name the origins"):
        build_settings(**values, cors_origins="*")
    assert build_settings(**values, cors_origins=APP).cors_origins == (APP,)
    with pytest.raises(SettingsError, match="AUTH_CORS_ORIGINS"):
        build_settings(allow_cors=True)
