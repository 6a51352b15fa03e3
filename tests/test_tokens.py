"""Tokens over HTTP, on both engines."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
from collections import Counter
from datetime import timedelta
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import KeySet, OctKey
from sqlalchemy import update

from authsvc import models, records
from authsvc.audit_chain import read_payload
from authsvc.keyring import secret_key
from authsvc.repositories.audit import events_since
from authsvc.repositories.tokens import TokenFamilies
from authsvc.services import authentication, tokens
from authsvc.services.current_state import CurrentState
from conftest import TenantAtWork
from http_api import Api, NewTenant, Serve, announce, bearer, check_headers, check_problem
from test_keyring import EC_PEM, OLD_SECRET, RSA_PEM, SECRET, claims_of, encoded, public_half

pytest_plugins = ["http_fixtures"]

FORM = {"Content-Type": "application/x-www-form-urlencoded"}


async def ask(api: Api, path: str = "/api/token", key: str | None = None, **fields: Any) -> Any:
    """A form to a token endpoint, with a client key as ``client_secret`` if one is given."""
    data = fields | ({} if key is None else {"client_secret": key})
    response = await api.http.post(path, data=data)
    check_headers(response)
    assert response.headers["cache-control"] == "no-store"
    return response


async def issued(api: Api, **more: Any) -> dict[str, Any]:
    """The answer to ``client_credentials`` with the caller's own key."""
    response = await ask(api, key=api.key, grant_type="client_credentials", **more)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    assert list(found) == [
        "access_token", "token_type", "expires_in", "refresh_token", "refresh_expires_in", "scope",
    ]  # fmt: skip
    return found


async def refreshed(api: Api, refresh_token: str) -> Any:
    """The response to ``refresh_token``."""
    return await ask(api, grant_type="refresh_token", refresh_token=refresh_token)


async def alive(api: Api, token: str) -> bool:
    """Whether an access token is accepted, the same by the short way and the ordinary route."""
    statuses = set()
    for path in ("/api/has_permission/alice/deploy", "/api/membership/alice/ops"):
        response = await api.http.get(path, headers=bearer(token))
        statuses.add(response.status_code)
        if response.status_code != 200:
            check_problem(response, 401, "unauthorized")
            expected = 'Bearer realm="authsvc", error="invalid_token"'
            assert response.headers["www-authenticate"] == expected
    assert len(statuses) == 1
    return statuses == {200}


def refused(response: Any, error: str, status: int = 400) -> None:
    """A refusal in the shape of RFC 6749, section 5.2."""
    assert response.status_code == status, response.text
    check_headers(response)
    assert response.headers["cache-control"] == "no-store"
    assert response.headers["pragma"] == "no-cache"
    assert list(response.json()) == ["error", "error_description"]
    assert response.json()["error"] == error
    assert ("www-authenticate" in response.headers) is (status == 401)


async def events_of(owner: TenantAtWork) -> list[str]:
    """What the audit trail says of tokens: the actions."""
    _, events = await events_since(owner.database, owner.id, 0, 1000)
    told = [read_payload(event) for event in events]
    return [one["action"] for one in told if one["entity_type"] == "token"]


def later(owner: TenantAtWork, **by: float) -> Any:
    """Move the clock, and let the loop turn: what SQLite's gate was told is true for one turn."""
    owner.clock.instant += timedelta(**by)
    return asyncio.sleep(0)


# Asking for a token


async def test_a_key_is_presented_in_one_of_three_ways(api: Api) -> None:
    assert api.key is not None
    basic = base64.b64encode(f"anything:{api.key}".encode()).decode()
    grant = {"grant_type": "client_credentials"}
    for response in (
        await api.http.post("/api/token", data=grant, headers=bearer(api.key)),
        await api.http.post("/api/token", data=grant, headers={"Authorization": f"Basic {basic}"}),
        await api.http.post("/api/token", data=grant | {"client_secret": api.key}),
        await api.http.post("/api/token", json=grant | {"client_secret": api.key}),
        await api.http.post("/api/token", json=grant, headers=bearer(api.key.upper())),
    ):
        check_headers(response)
        assert response.status_code == 200, response.text
        found = response.json()
        assert found["token_type"] == "Bearer"
        assert found["expires_in"] == 900
        assert found["refresh_expires_in"] == 7 * 86400
        assert found["scope"] == "check read write audit admin"
        assert await alive(api, found["access_token"])


async def test_a_token_works_like_its_key(api: Api) -> None:
    with_token = api.with_key((await issued(api))["access_token"])
    await with_token.ok("POST", "/api/role/ops")
    await with_token.ok("POST", "/api/permission/ops/deploy")
    await with_token.ok("POST", "/api/membership/alice/ops")
    assert await with_token.can("alice", "deploy")
    assert await api.can("alice", "deploy")
    assert (await with_token.data("POST", "/api/keys", {"label": "made with a token"}))["key"]
    await with_token.refused(
        403, "insufficient_scope", "POST", "/api/keys/rotate", {"overlap_seconds": 60}
    )


async def test_a_scope_is_narrowed_and_never_widened(api: Api) -> None:
    found = await issued(api, scope="check")
    assert found["scope"] == "check"
    narrow = api.with_key(found["access_token"])
    assert not await narrow.can("alice", "deploy")
    await narrow.refused(403, "insufficient_scope", "GET", "/api/roles")
    await narrow.refused(403, "insufficient_scope", "POST", "/api/role/ops")
    reader = (await api.data("POST", "/api/keys", {"label": "r", "scopes": ["read"]}))["key"]
    wider = await ask(api, key=reader, grant_type="client_credentials", scope="write")
    refused(wider, "invalid_scope")
    assert (await issued(api.with_key(reader), scope="check"))["scope"] == "check"
    after = (await refreshed(api, found["refresh_token"])).json()
    assert after["scope"] == "check"


async def test_a_token_holds_no_more_than_its_key_does_now(
    api: Api, owner: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = await api.data("POST", "/api/keys", {"label": "r", "scopes": ["write"]})
    token = (await issued(api.with_key(made["key"])))["access_token"]
    with_token = api.with_key(token)
    await with_token.ok("POST", "/api/role/ops")
    narrower = (
        update(models.client_key)
        .where(models.client_key.c.id == made["key_id"])
        .values(scopes=["check"])
    )
    await announce(owner, narrower)
    await with_token.refused(403, "insufficient_scope", "POST", "/api/role/dev")
    monkeypatch.setattr(authentication, "covered", lambda wanted, _: wanted)
    assert (await with_token.send("GET", "/api/roles")).status_code == 200


@pytest.mark.parametrize(
    ("fields", "error"),
    [
        ({}, "invalid_request"),
        ({"grant_type": "password"}, "unsupported_grant_type"),
        ({"grant_type": ""}, "unsupported_grant_type"),
        ({"grant_type": "refresh_token"}, "invalid_request"),
        ({"grant_type": "refresh_token", "refresh_token": "rft_" + "a" * 65}, "invalid_grant"),
        ({"grant_type": "refresh_token", "refresh_token": "é"}, "invalid_grant"),
        ({"grant_type": "client_credentials", "scope": "root"}, "invalid_scope"),
        ({"grant_type": "client_credentials", "scope": ""}, "invalid_scope"),
        ({"grant_type": "client_credentials", "scope": "check  read"}, "invalid_scope"),
    ],
)
async def test_each_error_has_its_code(api: Api, fields: dict[str, str], error: str) -> None:
    refused(await ask(api, key=api.key, **fields), error)


async def test_what_is_no_key_in_force_is_invalid_client(api: Api, owner: TenantAtWork) -> None:
    grant = {"grant_type": "client_credentials"}
    rotated = await api.data("POST", "/api/keys/rotate", {"overlap_seconds": 60})
    await later(owner, seconds=61)
    token = (await issued(api.with_key(rotated["new_key"])))["access_token"]
    unknown = "0b9a2e8e-0d0e-4c57-9a6e-3f6c8a5b1c2d"
    for key in (None, "", "x", unknown, api.key, token, "rak_" + "a" * 43):
        refused(await ask(api, key=key, **grant), "invalid_client", 401)
        if key:
            response = await api.http.post("/api/token", data=grant, headers=bearer(key))
            refused(response, "invalid_client", 401)
            assert response.headers["www-authenticate"] == 'Bearer realm="authsvc"'
    for credential in ("!", base64.b64encode(b"\xff").decode(), ""):
        header = {"Authorization": f"Basic {credential}"}
        response = await api.http.post("/api/token", data=grant, headers=header)
        refused(response, "invalid_client", 401)
        assert response.headers["www-authenticate"] == 'Basic realm="authsvc"'


async def test_a_body_is_read_strictly(api: Api, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    assert api.key is not None
    grant = f"grant_type=client_credentials&client_secret={api.key}"

    async def form(content: str | bytes, **headers: str) -> Any:
        return await api.http.post("/api/token", content=content, headers=FORM | headers)

    assert (await form(grant + "&unknown=ignored&another=")).status_code == 200
    assert (await form(grant.replace("_", "%5F", 1))).status_code == 200
    refused(await form(grant + "&grant_type=client_credentials"), "invalid_request")
    refused(await form(grant + "&grant%5Ftype=x"), "invalid_request")
    refused(await form(grant + "".join(f"&f{n}=1" for n in range(19))), "invalid_request")
    refused(await form(grant + "&x=%ff"), "invalid_request")
    refused(await form(b"\xff"), "invalid_request")
    refused(await form(grant, Authorization=f"Bearer {api.key}"), "invalid_request")
    check_problem(await form("x=" + "a" * 8192), 413, "body_too_large")
    for body in ("[]", '"x"', "{", '{"grant_type": 1}', '{"grant_type": "a", "grant_type": "a"}'):
        json_type = {"Content-Type": "application/json"}
        response = await api.http.post("/api/token", content=body, headers=json_type)
        refused(response, "invalid_request")
    for kind in ("multipart/form-data; boundary=x", "text/plain", ""):
        response = await api.http.post("/api/token", content=grant, headers={"Content-Type": kind})
        check_problem(response, 415, "unsupported_media_type")
    two = [("Authorization", f"Bearer {api.key}"), ("Authorization", f"Bearer {api.key}")]
    response = await api.http.post("/api/token", content=grant, headers=[*FORM.items(), *two])
    refused(response, "invalid_request")
    in_query = await api.http.post(f"/api/token?client_secret={api.key}", data={})
    check_problem(in_query, 422, "invalid_input")
    token = (await issued(api))["access_token"]
    response = await api.http.get(f"/api/roles?access_token={token}")
    check_problem(response, 401, "unauthorized")
    # The client of this test logs what it asks for.
    said = [one.getMessage() for one in caplog.records if not one.name.startswith("httpx")]
    assert not any(api.key in line or token.split(".")[2] in line for line in said)


# The life of a token


async def test_the_bounds_of_a_life_are_exact(api: Api, owner: TenantAtWork) -> None:
    found = await issued(api)
    await later(owner, minutes=14, seconds=59)
    assert await alive(api, found["access_token"])
    await later(owner, seconds=2)
    assert not await alive(api, found["access_token"])
    await later(owner, days=7, minutes=-15, seconds=-2)
    last = await refreshed(api, found["refresh_token"])
    assert last.status_code == 200
    assert last.json()["expires_in"] <= 1
    await later(owner, seconds=2)
    refused(await refreshed(api, last.json()["refresh_token"]), "invalid_grant")
    assert not await alive(api, last.json()["access_token"])


async def test_a_refresh_token_is_spent_once(api: Api, owner: TenantAtWork) -> None:
    first = await issued(api)
    second = (await refreshed(api, first["refresh_token"])).json()
    assert second["refresh_token"] != first["refresh_token"]
    assert second["refresh_expires_in"] <= first["refresh_expires_in"]
    assert await alive(api, first["access_token"])
    refused(await refreshed(api, first["refresh_token"]), "invalid_grant")
    for token in (first, second):
        assert not await alive(api, token["access_token"])
        refused(await refreshed(api, token["refresh_token"]), "invalid_grant")
    assert await events_of(owner) == ["reuse_detected"]
    assert await alive(api, (await issued(api))["access_token"])
    assert await owner.violations() == []


async def test_of_many_refreshes_at_once_one_wins_at_most(
    api: Api, serve: Serve, owner: TenantAtWork
) -> None:
    for _ in range(3):
        found = await issued(api)
        async with serve() as second, serve() as third, serve() as fourth:
            processes = [api, second, third, fourth]
            sent = [refreshed(processes[n % 4], found["refresh_token"]) for n in range(50)]
            responses = await asyncio.gather(*sent)
            statuses = Counter(response.status_code for response in responses)
            assert statuses[200] <= 1
            # On a busy machine some may be told to ask again.
            assert statuses[200] + statuses[400] + statuses[503] == 50
            assert statuses[400] >= 10
            live = [found, *(r.json() for r in responses if r.status_code == 200)]
            for token in live:
                for process in processes:
                    assert not await alive(process, token["access_token"])
                refused(await refreshed(api, token["refresh_token"]), "invalid_grant")
    assert await events_of(owner) == ["reuse_detected"] * 3
    assert await owner.violations() == []


async def test_what_takes_a_key_or_a_tenant_away_takes_its_tokens(
    api: Api, serve: Serve, owner: TenantAtWork
) -> None:
    key = await api.data("POST", "/api/keys", {"label": "web"})
    web = api.with_key(key["key"])
    async with serve() as elsewhere:
        found = await issued(web)
        assert await alive(api, found["access_token"])
        assert await alive(elsewhere, found["access_token"])
        await api.ok("DELETE", f"/api/keys/{key['key_id']}")
        assert not await alive(elsewhere, found["access_token"])
        assert not await alive(api, found["access_token"])
        refused(await refreshed(elsewhere, found["refresh_token"]), "invalid_grant")

        found = await issued(api)
        assert await alive(elsewhere, found["access_token"])
        a_generation = update(models.tenant).where(models.tenant.c.id == owner.id)
        await announce(owner, a_generation.values(token_generation=1))
        assert not await alive(elsewhere, found["access_token"])
        assert not await alive(api, found["access_token"])
        again = (await refreshed(api, found["refresh_token"])).json()
        assert await alive(elsewhere, again["access_token"])

        await announce(owner, a_generation.values(disabled_at=owner.clock()))
        for process in (api, elsewhere):
            with_token = process.with_key(again["access_token"])
            await with_token.refused(403, "tenant_disabled", "GET", "/api/has_permission/a/b")
            await with_token.refused(403, "tenant_disabled", "GET", "/api/roles")
        refused(await refreshed(api, again["refresh_token"]), "invalid_grant")
        told = await ask(api, "/api/token/introspect", api.key, token=again["access_token"])
        refused(told, "invalid_client", 401)


async def test_a_key_that_ends_ends_its_tokens(api: Api, owner: TenantAtWork) -> None:
    begun = await issued(api)
    await api.data("POST", "/api/keys/rotate", {"overlap_seconds": 60})
    after = await issued(api)
    assert after["refresh_expires_in"] <= 60
    await later(owner, seconds=59)
    assert await alive(api, begun["access_token"])
    await later(owner, seconds=2)
    assert not await alive(api, begun["access_token"])
    assert not await alive(api, after["access_token"])
    refused(await refreshed(api, begun["refresh_token"]), "invalid_grant")


async def test_a_clock_that_went_back_is_not_believed(api: Api, owner: TenantAtWork) -> None:
    found = await issued(api)
    await later(owner, seconds=60)
    assert await alive(api, found["access_token"])
    await later(owner, seconds=-30)
    assert await alive(api, found["access_token"])
    await later(owner, seconds=-3600)
    with_token = api.with_key(found["access_token"])
    await with_token.refused(503, "storage_unavailable", "GET", "/api/has_permission/alice/deploy")
    await with_token.refused(503, "storage_unavailable", "GET", "/api/roles")
    for answer in (
        await ask(api, key=api.key, grant_type="client_credentials"),
        await refreshed(api, found["refresh_token"]),
    ):
        check_problem(answer, 503, "storage_unavailable")
    assert not await api.can("alice", "deploy")
    ready = await api.http.get("/health/ready")
    assert ready.status_code == 503
    assert "clock" in ready.json()["reasons"][0]
    await later(owner, seconds=3600)
    assert await alive(api, found["access_token"])
    assert (await api.http.get("/health/ready")).status_code == 200


# One kind of credential is never another


async def test_kinds_of_credentials_are_not_exchanged(api: Api) -> None:
    found = await issued(api)
    access, refresh = found["access_token"], found["refresh_token"]
    assert not await alive(api, refresh)
    refused(await refreshed(api, access), "invalid_grant")
    assert api.key is not None
    refused(await refreshed(api, api.key), "invalid_grant")
    both = [("Authorization", f"Bearer {api.key}"), ("Authorization", f"Bearer {access}")]
    check_problem(await api.http.get("/api/roles", headers=both), 401, "unauthorized")
    secret = "a secret of the tests, long enough to be one"
    own = {"alg": "HS256", "kid": secret_key(secret).id, "typ": "at+jwt"}
    said = claims_of(access)
    assert await alive(api, jwt.encode(own, said, OctKey.import_key(secret)))
    for header in (own | {"typ": "JWT"}, {"alg": "HS256"}):
        assert not await alive(api, jwt.encode(header, said, OctKey.import_key(secret)))
    bent = access.split(".")
    bent[1] = encoded(json.dumps(said | {"scope": "admin"}))
    assert not await alive(api, ".".join(bent))
    for sent_as in (f"Basic {access}", f"Token {access}", access, f"Bearer {access},{access}"):
        sent = {"Authorization": sent_as}
        check_problem(await api.http.get("/api/roles", headers=sent), 401, "unauthorized")


async def test_a_token_is_of_one_tenant(api: Api, new_tenant: NewTenant) -> None:
    tenants = [api, *[api.with_key((await new_tenant()).key) for _ in range(2)]]
    paths = [
        path
        for path, item in (await api.http.get("/openapi.json")).json()["paths"].items()
        if path.startswith("/api/") and "get" in item and "keys" not in path
    ]
    assert len(paths) >= 13
    found = [await issued(one) for one in tenants]
    for number, one in enumerate(tenants):
        mine = f"mine{number}"
        await one.ok("POST", f"/api/role/{mine}")
        await one.ok("POST", f"/api/permission/{mine}/{mine}")
        await one.ok("POST", f"/api/membership/{mine}/{mine}")
    for number in range(3):
        for other in range(3):
            named = f"mine{other}"
            for path in paths:
                asked = path
                for name in ("role", "permission", "user", "workflow"):
                    asked = asked.replace(f"{{{name}}}", named)
                token = found[number]["access_token"]
                response = await api.http.get(asked, headers=bearer(token))
                if "{" not in path:
                    continue
                seen = json.dumps(response.json().get("data"))
                if number != other:
                    assert "true" not in seen
                    assert response.status_code == 404 or seen.count("mine") == 0
                else:
                    assert response.status_code == 200
                    assert "true" in seen or "mine" in seen
        told = await ask(
            api, "/api/token/introspect", tenants[number - 1].key,
            token=found[number]["access_token"],
        )  # fmt: skip
        assert told.json() == {"active": False}


# Revoking and looking into


async def test_revoking_ends_a_family_and_tells_nobody_more(
    api: Api, serve: Serve, owner: TenantAtWork, new_tenant: NewTenant
) -> None:
    revoke = "/api/token/revoke"
    foreign = api.with_key((await new_tenant()).key)
    web = api.with_key((await api.data("POST", "/api/keys", {"scopes": ["check"]}))["key"])
    async with serve() as elsewhere:
        by_refresh, by_access, others, admins = [await issued(api) for _ in range(4)]
        webs = await issued(web)
        answers = [
            await ask(api, revoke, api.key, token=by_refresh["refresh_token"]),
            await ask(api, revoke, api.key, token=by_access["access_token"]),
            await ask(api, revoke, api.key, token=by_access["access_token"]),
            await ask(api, revoke, foreign.key, token=others["access_token"]),
            await ask(api, revoke, foreign.key, token=others["refresh_token"]),
            await ask(api, revoke, web.key, token=admins["refresh_token"]),
            await ask(api, revoke, api.key, token="rft_" + "a" * 65),
            await ask(api, revoke, api.key, token="anything", token_type_hint="unknown"),
        ]
        assert {(one.status_code, one.content) for one in answers} == {(200, b"{}")}
        for token in (by_refresh, by_access):
            assert not await alive(elsewhere, token["access_token"])
            refused(await refreshed(elsewhere, token["refresh_token"]), "invalid_grant")
        for token in (others, admins, webs):
            assert await alive(elsewhere, token["access_token"])
        # An admin key ends what another key of its tenant began.
        await ask(api, revoke, api.key, token=webs["refresh_token"])
        assert not await alive(elsewhere, webs["access_token"])
    refused(await ask(api, revoke, token=others["access_token"]), "invalid_client", 401)
    refused(await ask(api, revoke, api.key), "invalid_request")
    assert await events_of(owner) == ["revoke"] * 3
    assert await owner.violations() == []


async def test_looking_into_a_token(api: Api, owner: TenantAtWork, new_tenant: NewTenant) -> None:
    introspect = "/api/token/introspect"
    foreign = (await new_tenant()).key
    found = await issued(api, scope="read")
    token, refresh = found["access_token"], found["refresh_token"]

    async def told(text: str, key: str | None = None) -> Any:
        response = await ask(api, introspect, key or api.key, token=text)
        assert response.status_code == 200
        return response.json()

    said = claims_of(token)
    assert await told(token) == {
        "active": True, "scope": "read", "client_id": said["sub"], "token_type": "Bearer",
        "exp": said["exp"], "iat": said["iat"], "nbf": said["nbf"], "sub": said["sub"],
        "aud": said["aud"], "iss": said["iss"], "jti": said["jti"],
    }  # fmt: skip
    about = await told(refresh)
    assert about["active"] is True
    assert about["client_id"] == said["sub"]
    inactive = {"active": False}
    assert await told(token, foreign) == inactive
    assert await told(refresh, foreign) == inactive
    for text in ("", "x", "a.b.c", token + "x", "rft_" + "a" * 65, api.key or ""):
        assert await told(text) == inactive
    after = (await refreshed(api, refresh)).json()
    assert await told(refresh) == inactive
    assert (await told(after["refresh_token"]))["active"] is True
    await later(owner, seconds=901)
    assert await told(token) == inactive
    await ask(api, "/api/token/revoke", api.key, token=after["refresh_token"])
    assert await told(after["refresh_token"]) == inactive
    refused(await ask(api, introspect, token=token), "invalid_client", 401)


# Keys that sign


async def test_a_secret_is_rotated_without_dropping_anybody(serve: Serve, api: Api) -> None:
    async with (
        serve(jwt_secret_key=OLD_SECRET) as before,
        serve(jwt_secret_key=OLD_SECRET, jwt_old_secret_keys=SECRET) as prepared,
        serve(jwt_secret_key=SECRET, jwt_old_secret_keys=OLD_SECRET) as promoted,
        serve(jwt_secret_key=SECRET) as after,
    ):
        old = (await issued(before.with_key(api.key)))["access_token"]
        new = (await issued(promoted.with_key(api.key)))["access_token"]
        for process in (before, prepared, promoted):
            assert await alive(process, old)
        for process in (prepared, promoted, after):
            assert await alive(process, new)
        assert not await alive(after, old)
        assert not await alive(before, new)
        # What is opaque needs no secret at all.
        found = await issued(before.with_key(api.key))
        assert (await refreshed(after, found["refresh_token"])).status_code == 200


@pytest.mark.parametrize(("pem", "algorithm"), [(EC_PEM, "ES256"), (RSA_PEM, "RS256")])
async def test_a_third_party_verifies_with_the_published_keys(
    serve: Serve, api: Api, pem: str, algorithm: str
) -> None:
    public = "https://auth.example.com/base"
    async with (
        serve(jwt_private_key=pem, jwt_secret_key=None, public_url=public) as signing,
        serve(
            jwt_secret_key=SECRET, jwt_old_public_keys=public_half(pem), public_url=public
        ) as reading,
    ):
        token = (await issued(signing.with_key(api.key)))["access_token"]
        assert await alive(signing, token)
        assert await alive(reading, token)
        for process in (signing, reading):
            published = await process.http.get("/.well-known/jwks.json")
            assert published.status_code == 200
            check_headers(published)
            keys = published.json()["keys"]
            assert not any({"d", "k", "p", "q"} & key.keys() for key in keys)
            read = jwt.decode(token, KeySet.import_key_set({"keys": keys}), algorithms=[algorithm])
            assert read.claims["iss"] == public
        document = (await signing.http.get("/.well-known/oauth-authorization-server")).json()
        assert document["issuer"] == public
        assert document["jwks_uri"] == f"{public}/.well-known/jwks.json"
        for name in ("token", "revocation", "introspection"):
            assert document[f"{name}_endpoint"].startswith(f"{public}/api/token")
        assert document["scopes_supported"] == list(records.SCOPES)


async def test_only_what_exists_is_published(api: Api) -> None:
    for path in ("jwks.json", "oauth-authorization-server"):
        response = await api.http.get(f"/.well-known/{path}")
        check_problem(response, 404, "not_found")


# That the tests above can fail


async def test_without_single_use_a_reuse_goes_unseen(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always(*_: Any) -> bool:
        return True

    monkeypatch.setattr(TokenFamilies, "spend", always)
    first = await issued(api)
    assert (await refreshed(api, first["refresh_token"])).status_code == 200
    assert (await refreshed(api, first["refresh_token"])).status_code == 200


async def test_without_the_look_at_its_state_a_revoked_token_lives(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    def bounds_alone(_session: Any, token: Any, now: Any) -> bool:
        return bool(token.in_force(now))

    found = await issued(api)
    await ask(api, "/api/token/revoke", api.key, token=found["access_token"])
    assert not await alive(api, found["access_token"])
    monkeypatch.setattr(authentication, "is_in_force", bounds_alone)
    assert await alive(api, found["access_token"])


async def test_without_memory_being_told_a_revoked_token_lives(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    from authsvc.decision_cache import TenantState

    found = await issued(api)
    assert await alive(api, found["access_token"])

    def deaf(self: TenantState, _tenant: Any, _events: Any, to: Any, read: int) -> None:
        self.stamp, self.known_at = to, read

    monkeypatch.setattr(TenantState, "follow", deaf)
    await ask(api, "/api/token/revoke", api.key, token=found["access_token"])
    assert await alive(api, found["access_token"])


async def test_without_the_mark_a_clock_that_went_back_revives_a_token(
    api: Api, owner: TenantAtWork, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = await issued(api)
    await later(owner, seconds=901)
    assert not await alive(api, found["access_token"])
    await later(owner, seconds=-601)
    refusal = await api.http.get("/api/roles", headers=bearer(found["access_token"]))
    assert refusal.status_code == 503
    monkeypatch.setattr(CurrentState, "clock_went_back", lambda *_: False)
    assert await alive(api, found["access_token"])


async def test_without_the_question_whose_it_is_a_stranger_revokes(
    api: Api, new_tenant: NewTenant, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def whoever(self: Any, text: str, _by: Any) -> Any:
        return await self._family(text)

    stranger = (await new_tenant()).key
    found = await issued(api)
    await ask(api, "/api/token/revoke", stranger, token=found["refresh_token"])
    assert await alive(api, found["access_token"])
    monkeypatch.setattr(tokens.Tokens, "_owned", whoever)
    await ask(api, "/api/token/revoke", stranger, token=found["refresh_token"])
    assert not await alive(api, found["access_token"])
