"""The pages for people: files, headers, and a real browser under the real policy."""

from __future__ import annotations

import asyncio
import hashlib
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import AsyncIterator
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright
from pydantic import SecretStr
from starlette.types import ASGIApp

from authsvc.api.docs_page import docs_router
from authsvc.api.middleware import Edge
from authsvc.api.problems import exception_handlers
from authsvc.app import create_app, prepare
from authsvc.clock import system_clock
from authsvc.settings import Settings

STATIC = Path(str(files("authsvc") / "static"))
VERSION = (STATIC / "swagger-ui" / "VERSION").read_text().strip()
KEY = "3f0b2a57-9d1c-4b1e-8a55-0c6f6a1f2d11"


def make_app(*, docs_enabled: bool = True) -> ASGIApp:
    app = FastAPI(
        title="authsvc",
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        exception_handlers=exception_handlers(system_clock),
    )

    @app.get("/ping")
    async def ping() -> dict[str, str]:
        return {"message": "PONG"}

    app.include_router(docs_router(title="authsvc", docs_enabled=docs_enabled))
    return Edge(app)


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(app=make_app())
    async with httpx.AsyncClient(transport=transport, base_url="http://authsvc") as made:
        yield made


def test_the_vendored_files_are_the_listed_ones() -> None:
    folder = STATIC / "swagger-ui"
    lines = (folder / "SHA256SUMS").read_text().splitlines()
    listed = {name: digest for digest, name in (line.split("  ") for line in lines)}
    present = {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in (folder / VERSION).iterdir()
    }
    assert present == listed
    assert {f"{VERSION}/LICENSE", f"{VERSION}/NOTICE"} <= set(present)


def test_no_style_sheet_or_page_points_outside() -> None:
    for path in [*STATIC.glob("*.*"), STATIC / "swagger-ui" / VERSION / "swagger-ui.css"]:
        text = path.read_text().replace("http://www.w3.org/2000/svg", "")
        text = text.replace("http://127.0.0.1:5000", "")
        assert not re.search(r"https?:|data:|//[a-z]+\.", text), path.name
        assert not re.search(r"<style|\sstyle=|\son[a-z]+=|javascript:", text), path.name
        assert not re.search(r"<script(?![^>]*\ssrc=)", text), path.name


async def test_pages_carry_the_page_policy(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs"):
        page = await client.get(path)
        assert page.status_code == 200
        assert page.headers["content-type"] == "text/html; charset=utf-8"
        assert page.headers["content-security-policy"] == "default-src 'self'"
        assert "$title" not in page.text
        assert "$swagger" not in page.text


async def test_every_file_a_page_names_is_served(client: httpx.AsyncClient) -> None:
    names = set()
    for path in ("/", "/docs"):
        names |= set(re.findall(r'(?:src|href)="(static/[^"]+)"', (await client.get(path)).text))
    css = await client.get(f"/static/swagger-ui/{VERSION}/swagger-ui.css")
    names |= {
        f"static/swagger-ui/{VERSION}/{name}" for name in re.findall(r'url\("(.+?)"\)', css.text)
    }
    assert len(names) > 15
    for name in names:
        found = await client.get("/" + name)
        assert found.status_code == 200, name
        assert found.headers["x-content-type-options"] == "nosniff"
        immutable = "immutable" in found.headers["cache-control"]
        assert immutable is (VERSION in name)


async def test_a_known_file_is_not_sent_again(client: httpx.AsyncClient) -> None:
    first = await client.get("/static/docs.js")
    again = await client.get("/static/docs.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = await client.get("/static/docs.js", headers={"If-None-Match": '"other"'})
    assert other.status_code == 200


async def test_ranges_are_ignored_at_no_cost(client: httpx.AsyncClient) -> None:
    ranges = "bytes=" + ",".join(f"{i}-{i + 1}" for i in range(10_000))
    path = f"/static/swagger-ui/{VERSION}/swagger-ui-bundle.js"
    whole = await client.get(path)
    began = time.perf_counter()
    asked = await client.get(path, headers={"Range": ranges})
    assert time.perf_counter() - began < 0.5
    assert asked.status_code == 200
    assert len(asked.content) == len(whole.content)
    assert "accept-ranges" not in asked.headers


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/static/", 404),
        ("/static/home.html", 404),
        ("/static/docs.html", 404),
        ("/static/swagger-ui/VERSION", 404),
        ("/static/%2e%2e/settings.py", 400),
        ("/static/..%2fsettings.py", 400),
        ("/static//docs.js", 400),
        ("/static/docs.js%00", 400),
        ("/static/docs.js%0A", 404),
        ("/docs/", 404),
        ("/docs%0A", 404),
        ("/docs?x=1", 422),
    ],
)
async def test_only_exact_names_are_served(
    client: httpx.AsyncClient, path: str, status: int
) -> None:
    found = await client.get(path)
    assert found.status_code == status
    assert found.json()["code"] == status


async def test_switched_off_there_is_nothing() -> None:
    transport = httpx.ASGITransport(app=make_app(docs_enabled=False))
    async with httpx.AsyncClient(transport=transport, base_url="http://authsvc") as client:
        for path in ("/", "/docs", "/openapi.json", "/static/docs.js"):
            assert (await client.get(path)).status_code == 404
        assert (await client.get("/ping")).status_code == 200


async def test_head_is_not_a_method_of_these_pages(client: httpx.AsyncClient) -> None:
    for path in ("/", "/docs", "/openapi.json", "/static/docs.js"):
        found = await client.head(path)
        assert (found.status_code, found.headers["allow"]) == (405, "GET")


async def test_the_document_is_the_application_s(client: httpx.AsyncClient) -> None:
    found = await client.get("/openapi.json")
    document = found.json()
    assert document["openapi"].startswith("3.1")
    assert list(document["paths"]) == ["/ping"]
    again = await client.get("/openapi.json", headers={"If-None-Match": found.headers["etag"]})
    assert again.status_code == 304


# The browser


@pytest.fixture(scope="module")
async def address(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    """The service on a free port of the loopback interface, with one client key."""
    settings = Settings(
        sqlite_path=tmp_path_factory.mktemp("docs") / "auth.sqlite3",
        client_key=SecretStr(KEY),
        client_registration="closed",
    )
    await prepare(settings)
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        create_app(settings), log_level="error", access_log=False, server_header=False
    )
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        assert thread.is_alive()
        await asyncio.sleep(0.01)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(timeout=10)
    listener.close()


@pytest.fixture(scope="module")
async def browser() -> AsyncIterator[Browser]:
    found = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None)
    if found is None:
        message = "NOT LOOKED AT IN A BROWSER: there is no Chromium (apt-get install chromium)"
        # A browser is not a thing that pip can bring; where it is expected it must be there.
        if os.environ.get("CI"):
            pytest.fail(message)
        pytest.skip(message)
    async with async_playwright() as playwright:
        made = await playwright.chromium.launch(
            executable_path=found,
            args=[
                "--no-sandbox",
                "--disable-gpu",
                "--disable-quic",
                "--no-first-run",
                "--disable-background-networking",
                "--disable-component-update",
                "--disable-sync",
            ],
        )
        yield made
        await made.close()


class Watched:
    """A page, and all it asked for and complained about."""

    def __init__(self, page: Page, address: str) -> None:
        self.page = page
        self.address = address
        self.requests: list[tuple[str, str]] = []
        self.complaints: list[str] = []
        page.on(
            "request",
            lambda one: self.requests.append((one.url, one.headers.get("authorization", ""))),
        )
        page.on("console", self._said)
        page.on("pageerror", lambda one: self.complaints.append(f"error: {one}"))

    def _said(self, one: ConsoleMessage) -> None:
        # "[DOM]": hints on forms to whoever wrote Swagger UI.
        if not one.text.startswith("[DOM]"):
            self.complaints.append(f"{one.type}: {one.text}")

    async def open(self, path: str) -> None:
        await self.page.add_init_script(
            "window.violations = [];"
            "document.addEventListener('securitypolicyviolation',"
            " e => window.violations.push(e.violatedDirective + ' ' + e.blockedURI));"
        )
        await self.page.goto(self.address + path, wait_until="networkidle")

    async def expect_quiet(self) -> None:
        assert await self.page.evaluate("window.violations") == []
        assert self.complaints == []
        assert [url for url, _ in self.requests if not url.startswith(self.address + "/")] == []

    async def picture(self, name: str) -> None:
        if folder := os.environ.get("AUTH_TEST_PICTURES"):
            await self.page.screenshot(path=f"{folder}/{name}.png", full_page=True)


@pytest.fixture
async def watched(browser: Browser, address: str) -> AsyncIterator[Watched]:
    page = await browser.new_page(viewport={"width": 1200, "height": 800})
    page.set_default_timeout(15_000)
    yield Watched(page, address)
    await page.close()


async def test_home_in_a_browser(watched: Watched) -> None:
    await watched.open("/")
    shown = await watched.page.locator("pre").inner_text()
    assert f"URL={watched.address}\n" in shown
    await watched.picture("home")
    await watched.page.get_by_role("link", name="API reference").click()
    await watched.page.wait_for_url("**/docs")
    await watched.page.locator(".opblock").first.wait_for()
    await watched.expect_quiet()


async def test_reference_in_a_browser(watched: Watched) -> None:
    page = watched.page
    await watched.open("/docs")
    await page.locator(".opblock").first.wait_for()
    async with httpx.AsyncClient() as client:
        document = (await client.get(f"{watched.address}/openapi.json")).json()
    operations = sum(len(item) for item in document["paths"].values())
    assert await page.locator(".opblock").count() == operations > 20
    await watched.picture("docs")

    await page.locator(".btn.authorize").first.click()
    await page.get_by_label("auth-bearer-value").fill(KEY)
    await watched.picture("docs-authorize")
    by_key = page.locator(".auth-container").filter(has=page.get_by_label("auth-bearer-value"))
    await by_key.locator(".btn.authorize").click()
    await page.locator(".close-modal").click()

    operation = page.locator(".opblock-post").filter(
        has=page.locator('[data-path="/api/role/{role}"]')
    )
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".try-out__btn").click()
    await operation.locator("tr[data-param-name=role] input").fill("admin")
    await operation.locator(".btn.execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status")
    await status.first.wait_for()
    await watched.picture("docs-tried")
    assert (await status.first.inner_text()).startswith("200")
    shown = await operation.locator(".live-responses-table").first.inner_text()
    assert "Role 'admin' is in place" in shown
    asked = [sent for url, sent in watched.requests if url.endswith("/api/role/admin")]
    assert asked == [f"Bearer {KEY}"]
    await watched.expect_quiet()

    # The key lives as long as the page: nothing is kept for the next visitor.
    assert await page.evaluate("localStorage.length + sessionStorage.length") == 0
    await page.reload(wait_until="networkidle")
    await page.locator(".btn.authorize").first.click()
    assert await page.get_by_label("auth-bearer-value").input_value() == ""


async def test_the_page_asks_for_a_token(watched: Watched) -> None:
    page = watched.page
    await watched.open("/docs")
    await page.locator(".btn.authorize").first.click()
    secret = page.locator("#client_secret_clientCredentials")
    await page.locator("#client_id_clientCredentials").fill("anything")
    await secret.fill(KEY)
    await page.locator("label[for=check-clientCredentials-checkbox-token] .item").click()
    await watched.picture("docs-authorize-token")
    by_token = page.locator(".auth-container").filter(has=secret)
    await by_token.locator(".btn.authorize").click()
    await page.locator(".auth-container").filter(has_text="******").wait_for()
    await watched.picture("docs-authorized")
    await page.locator(".close-modal").click()

    operation = page.locator(".opblock-get").filter(
        has=page.locator('[data-path="/api/has_permission/{user}/{permission}"]')
    )
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".try-out__btn").click()
    await operation.locator("tr[data-param-name=user] input").fill("alice")
    await operation.locator("tr[data-param-name=permission] input").fill("deploy")
    await operation.locator(".btn.execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status")
    await status.first.wait_for()
    assert (await status.first.inner_text()).startswith("200")
    asked = [sent for url, sent in watched.requests if "/api/has_permission/" in url]
    assert re.fullmatch(r"Bearer [\w-]+\.[\w-]+\.[\w-]+", asked[0] or "")
    await watched.expect_quiet()


PLANTED = [
    f"{start}{what}{end}"
    for start in ("", "'", '"', "\u0022>", "](", "`", "{{", "${", "&lt;", "\\")
    for what in (
        "javascript:window.pwned=1", "<script>window.pwned=1</script>", "onerror=window.pwned=1",
        "<img src=x onerror=window.pwned=1>", "[x](javascript:window.pwned=1)",
        "<svg onload=window.pwned=1>", "constructor.constructor('window.pwned=1')()",
        "data:text/html,<script>window.pwned=1</script>", "&#60;script&#62;", "#/../../",
    )
    for end in ("", "}}")
]  # fmt: skip


async def test_what_was_stored_is_shown_as_text(watched: Watched) -> None:
    assert len(PLANTED) == 200
    page = watched.page
    async with httpx.AsyncClient(
        base_url=watched.address, headers={"Authorization": f"Bearer {KEY}"}
    ) as client:
        accepted = 0
        for number, text in enumerate(PLANTED):
            body = {"description": text}
            answer = await client.post(f"/api/role/planted-{number}", json=body)
            assert answer.status_code in (200, 422)
            accepted += answer.status_code == 200
            assert (await client.get(f"/api/role/{quote(text, safe='')}")).status_code < 500
        assert accepted >= 50
    await watched.open("/docs")
    await page.get_by_role("button", name="Authorize").first.click()
    await page.get_by_label("auth-bearer-value").fill(KEY)
    by_key = page.locator(".auth-container").filter(has=page.get_by_label("auth-bearer-value"))
    await by_key.locator(".btn.authorize").click()
    await page.locator(".close-modal").click()
    operation = page.locator(".opblock-get").filter(has=page.locator('[data-path="/api/roles"]'))
    await operation.locator(".opblock-summary-control").click()
    await operation.locator(".try-out__btn").click()
    await operation.locator(".btn.execute").click()
    await operation.locator(".live-responses-table .response-col_status").first.wait_for()
    shown = await operation.locator(".live-responses-table").first.inner_text()
    assert "window.pwned=1" in shown
    assert await page.evaluate("window.pwned === undefined")
    await watched.expect_quiet()
