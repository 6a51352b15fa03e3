"""Hostile text in every field: it never becomes SQL, and never a second line of the log."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from collections import Counter
from typing import Any

from http_api import Api, NewTenant, bearer
from replay import stored_policy, stored_stamp

pytest_plugins = ["http_fixtures"]

_STARTS = ("", "'", '"', "')", "'))", "`", "admin'", "1", "0x27", "\\'", "%27", "'||'", "$$")
_MIDDLES = (
    " OR 1=1", " UNION SELECT NULL,NULL", "; DROP TABLE role", "; DELETE FROM membership",
    " AND SLEEP(5)", " || pg_sleep(5)", "; UPDATE client_key SET revoked_at=NULL",
    " ORDER BY 99", "; PRAGMA writable_schema=1", "; ATTACH DATABASE 'x' AS y",
    " LIKE '%'", " COLLATE NOCASE", "::text", " AS JSON", "->>'$.a'", "; COPY role TO '/tmp/x'",
    " IN (SELECT digest FROM client_key)", " GROUP BY 1 HAVING 1=1", " LIMIT 1 OFFSET 1",
    "; BEGIN; COMMIT",
)  # fmt: skip
_ENDS = ("", "--", "#", "/*", ";", "'", "\x00", "\n--")
PAYLOADS = ["".join(parts) for parts in itertools.product(_STARTS, _MIDDLES, _ENDS)][::8]


def requests_with(text: str) -> list[tuple[str, str, Any]]:
    """(method, path, body) for every field that takes a text; paths are escaped by the client."""
    from urllib.parse import quote

    name = quote(text, safe="")
    return [
        ("POST", f"/api/role/{name}", None),
        ("GET", f"/api/role/{name}", None),
        ("POST", f"/api/permission/staff/{name}", None),
        ("POST", f"/api/membership/{name}/staff", None),
        ("GET", f"/api/has_permission/{name}/deploy", None),
        ("GET", f"/api/has_permission/bob/deploy?scope={name}", None),
        ("GET", f"/api/roles?limit={name}", None),
        ("GET", f"/api/roles?limit=1&cursor={name}", None),
        ("GET", f"/api/roles?{name}=1", None),
        ("GET", f"/api/which_users_can/{name}", None),
        ("DELETE", f"/api/user/{name}", None),
        ("DELETE", f"/api/keys/{name}", None),
        ("POST", "/api/role/staff", {"description": text}),
        ("POST", "/api/membership/bob/staff", {"scope": text}),
        ("POST", "/api/membership/bob/staff", {"expires_at": text}),
        ("POST", "/api/check", {"user": text, "permissions": [text]}),
        ("POST", "/api/check", {"checks": [{"user": "a", "permission": "b", "scope": text}]}),
        ("POST", "/api/changes", {"changes": [{"op": text, "role": text}]}),
        ("POST", "/api/apikeys/validate", {"api_key": text}),
        ("POST", "/api/keys", {"label": text, "scopes": [text]}),
    ]


async def test_no_text_becomes_sql(api: Api, new_tenant: NewTenant) -> None:
    bystander = await new_tenant()
    other = api.with_key(bystander.key)
    for one in (other, api):
        await one.apply(
            {"op": "add_role", "role": "staff"},
            {"op": "grant", "role": "staff", "permission": "deploy"},
            {"op": "add_member", "user": "bob", "role": "staff"},
        )
    async with bystander.database.read() as tx:
        before = await stored_policy(tx, bystander.id), await stored_stamp(tx, bystander.id)
    found: Counter[int] = Counter()
    for text in PAYLOADS:
        for method, path, body in requests_with(text):
            more = {} if body is None else {"json": body}
            response = await api.http.request(method, path, headers=bearer(api.key or ""), **more)
            assert response.status_code in (200, 400, 404, 422), (method, path, body)
            found[response.status_code] += 1
    assert found.total() >= 5000
    async with bystander.database.read() as tx:
        after = await stored_policy(tx, bystander.id), await stored_stamp(tx, bystander.id)
    assert after == before
    # What was accepted is a text as it was sent, and nothing else has changed.
    roles = {one["role"] for one in await api.data("GET", "/api/roles")}
    assert "staff" in roles
    assert roles - {"staff"} <= set(PAYLOADS)
    assert await api.can("bob", "deploy")
    assert not await api.can("bob", "anything")


_LOGGING = """
import json, logging, sys
from authsvc.logs import configure_logs

configure_logs()
for text in json.load(sys.stdin):
    logging.getLogger("authsvc.edge").error("a failure of %s", text, extra={"path": text})
    try:
        raise RuntimeError(text)
    except RuntimeError:
        logging.getLogger(text.replace(".", "")[:40] or "x").exception(text)
"""


def test_an_event_is_one_line_of_the_log() -> None:
    texts = [
        "a\nb", "a\r\nb", "\r", "\x1b[31mred\x1b[0m", "\x1b]0;title\x07", "a\x00b", "\x7f",
        "\x9b1m", "\u2028", "\u2029", "\u0085", "\x0b\x0c", '{"level": "a"}\n{"level": "b"}', '"',
        "\\n", "%s %d %(name)s", "{0} {path}", "\ud800", "\u202ereversed", "\ufeff",
    ]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", _LOGGING],
        input=json.dumps(texts).encode(),
        capture_output=True,
        check=True,
    )
    printed = (done.stdout + done.stderr).decode()
    lines = printed.split("\n")
    assert lines.pop() == ""
    assert len(lines) == 2 * len(texts)
    for line in lines:
        assert isinstance(json.loads(line), dict)
        assert all(character.isprintable() for character in line), line
