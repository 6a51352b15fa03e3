"""``/.well-known/``: what a client of the token endpoints may want to know beforehand."""

from __future__ import annotations

from fastapi import APIRouter
from fastapi.responses import JSONResponse

from authsvc.api.problems import error_responses
from authsvc.api.route import ContractRoute
from authsvc.keyring import Keyring
from authsvc.records import SCOPES
from authsvc.schemas.tokens import Jwks

_ERRORS = error_responses(400, 422, 500)


def well_known_router(keyring: Keyring, public_url: str | None) -> APIRouter:
    """Only what exists: no keys where there are no public ones, no document without an address."""
    router = APIRouter(prefix="/.well-known", tags=["Tokens"], route_class=ContractRoute)
    if keyring.public:

        @router.get(
            "/jwks.json",
            summary="The public keys of access tokens",
            response_model=Jwks,
            responses=_ERRORS,
        )
        async def jwks() -> JSONResponse:
            """RFC 7517. A key is named by its thumbprint (RFC 7638)."""
            return JSONResponse({"keys": keyring.public})

    if public_url is not None:
        base = public_url.rstrip("/")
        document = {
            "issuer": keyring.issuer,
            "token_endpoint": f"{base}/api/token",
            "revocation_endpoint": f"{base}/api/token/revoke",
            "introspection_endpoint": f"{base}/api/token/introspect",
            "grant_types_supported": ["client_credentials", "refresh_token"],
            "response_types_supported": [],
            "scopes_supported": list(SCOPES),
        }
        for endpoint in ("token", "revocation", "introspection"):
            document[f"{endpoint}_endpoint_auth_methods_supported"] = [
                "client_secret_basic",
                "client_secret_post",
            ]
        if keyring.public:
            document["jwks_uri"] = f"{base}/.well-known/jwks.json"

        @router.get(
            "/oauth-authorization-server",
            summary="Where the token endpoints are",
            responses=_ERRORS,
        )
        async def metadata() -> JSONResponse:
            """RFC 8414."""
            return JSONResponse(document)

    return router
