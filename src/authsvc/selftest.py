"""The authentication flows, walked through as a client would, against tenants lent for it."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from authsvc.http_probe import Answer, Ask

_USER = "selftest"
_PERMISSION = "selftest:run"


@dataclass(frozen=True, slots=True)
class Step:
    """One flow and whether it went as it must; ``seen`` says what did not."""

    name: str
    good: bool
    seen: str = ""


class _Broken(Exception):
    """A flow that did not go as it must."""


def _expect(answer: Answer, status: int, what: str) -> Answer:
    if answer.status != status:
        raise _Broken(f"{what} was answered {answer.status} instead of {status}")
    return answer


async def run(ask: Ask, key: str, other_key: str) -> Sequence[Step]:
    """Walk through the flows with the keys of two tenants, which are left without policy.

    A flow that is broken does not stop the others. Raises what ``ask`` raises.
    """
    flows = _Flows(ask, key, other_key)
    steps = []
    try:
        for name, flow in (
            ("issue a token and use it", flows.issue),
            ("refuse what is no credential", flows.refuse),
            ("refresh", flows.refresh),
            ("end the family of a refresh token that is used twice", flows.reuse),
            ("revoke", flows.revoke),
            ("keep tenants apart", flows.cross),
            ("take a permission away", flows.take_away),
        ):
            steps.append(await _step(name, flow))
    finally:
        await ask("DELETE", f"/api/role/{flows.role}", key)
    return steps


async def _step(name: str, flow: Callable[[], Awaitable[None]]) -> Step:
    try:
        await flow()
    except _Broken as broken:
        return Step(name, good=False, seen=str(broken))
    return Step(name, good=True)


class _Flows:
    def __init__(self, ask: Ask, key: str, other_key: str) -> None:
        self._ask = ask
        self._key = key
        self._other = other_key
        self.role = f"selftest-{secrets.token_hex(6)}"

    async def _token(self, what: str, **fields: str) -> tuple[str, str]:
        """A new pair of access token and refresh token."""
        key = None if "refresh_token" in fields else self._key
        answer = _expect(await self._ask("POST", "/api/token", key, fields), 200, what)
        found = answer.json if isinstance(answer.json, dict) else {}
        pair = (found.get("access_token"), found.get("refresh_token"))
        if not all(isinstance(one, str) and one for one in pair):
            raise _Broken(f"{what} gave no pair of tokens")
        return str(pair[0]), str(pair[1])

    async def _new(self) -> tuple[str, str]:
        return await self._token("asking for a token", grant_type="client_credentials")

    async def _refresh(self, token: str, status: int, what: str) -> Answer:
        fields = {"grant_type": "refresh_token", "refresh_token": token}
        return _expect(await self._ask("POST", "/api/token", None, fields), status, what)

    async def _use(self, token: str, status: int, what: str) -> None:
        _expect(await self._ask("GET", "/api/roles", token), status, what)

    async def _check(self, credential: str, *, allowed: bool, what: str) -> None:
        path = f"/api/has_permission/{_USER}/{_PERMISSION}"
        answer = _expect(await self._ask("GET", path, credential), 200, what)
        found = answer.json
        if not isinstance(found, dict) or found.get("data") != {"has_permission": allowed}:
            raise _Broken(f"{what} was not answered {str(allowed).lower()}")

    async def issue(self) -> None:
        """A token made with a key does what the key may."""
        access, _ = await self._new()
        for path in (
            f"role/{self.role}",
            f"permission/{self.role}/{_PERMISSION}",
            f"membership/{_USER}/{self.role}",
        ):
            _expect(await self._ask("POST", f"/api/{path}", access), 200, f"writing {path}")
        await self._check(access, allowed=True, what="a check of what was granted")
        await self._check(self._key, allowed=True, what="the same check with the key")

    async def refuse(self) -> None:
        """Nothing, and a token with another signature, are no credentials."""
        access, _ = await self._new()
        _expect(await self._ask("GET", "/api/roles"), 401, "a request without a credential")
        head, payload, signature = access.split(".")
        forged = ".".join((head, payload, signature[::-1]))
        await self._use(forged, 401, "a token with another signature")
        unsigned = ".".join((head, payload, ""))
        await self._use(unsigned, 401, "a token without a signature")
        wrong = {"grant_type": "client_credentials"}
        answer = await self._ask("POST", "/api/token", access, wrong)
        _expect(answer, 401, "asking for a token with a token")

    async def refresh(self) -> None:
        """A refresh token gives another pair, of which the access token works."""
        _, token = await self._new()
        renewed, successor = await self._token(
            "a refresh", grant_type="refresh_token", refresh_token=token
        )
        if successor == token:
            raise _Broken("a refresh gave the same refresh token again")
        await self._use(renewed, 200, "a refreshed token")

    async def reuse(self) -> None:
        """A refresh token that is used twice ends all that came of it."""
        access, token = await self._new()
        renewed, successor = await self._token(
            "a refresh", grant_type="refresh_token", refresh_token=token
        )
        await self._refresh(token, 400, "a refresh token that was used before")
        await self._refresh(successor, 400, "the refresh token that came of it")
        await self._use(access, 401, "the first access token after that")
        await self._use(renewed, 401, "the second access token after that")

    async def revoke(self) -> None:
        """A revoked token ends with its family."""
        access, token = await self._new()
        answer = await self._ask("POST", "/api/token/revoke", self._key, {"token": token})
        _expect(answer, 200, "revoking")
        await self._use(access, 401, "an access token after revoking")
        await self._refresh(token, 400, "a revoked refresh token")

    async def cross(self) -> None:
        """What is one tenant's does not exist for another."""
        access, _ = await self._new()
        path = f"/api/role/{self.role}"
        _expect(await self._ask("GET", path, self._other), 404, "another tenant's role")
        await self._check(self._other, allowed=False, what="a check in another tenant")
        body = {"token": access}
        asked = await self._ask("POST", "/api/token/introspect", self._other, body)
        if _expect(asked, 200, "looking into another tenant's token").json != {"active": False}:
            raise _Broken("another tenant can look into a token")
        await self._ask("POST", "/api/token/revoke", self._other, body)
        await self._use(access, 200, "a token that another tenant tried to revoke")

    async def take_away(self) -> None:
        """A check that follows a revocation is answered no."""
        access, _ = await self._new()
        path = f"/api/membership/{_USER}/{self.role}"
        _expect(await self._ask("DELETE", path, self._key), 200, "ending a membership")
        await self._check(access, allowed=False, what="a check of what was taken away")
