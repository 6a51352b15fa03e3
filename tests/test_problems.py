"""Failures and successes as bytes: the two shapes, and what is said about a request."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Annotated, Any, Literal

import httpx
import pytest
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from authsvc import errors
from authsvc.api import field_problems, problems
from authsvc.api.envelope import timestamp
from authsvc.api.field_problems import MAX_PROBLEMS, input_error
from authsvc.api.problems import error_responses, render
from edge_app import NOW, SECRET, Description, assert_failure, connect, edge


@pytest.fixture(scope="module")
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with connect(edge()) as made:
        yield made


async def test_the_envelope(client: httpx.AsyncClient) -> None:
    found = await client.post("/api/changes", json={"changes": [{"op": "add_role", "role": "a"}]})
    assert found.content == (
        b'{"success":true,"code":200,"message":"Done","data":{"applied":1},"result":true,'
        b'"revision":17,"timestamp":"2026-11-23T10:11:12.000005Z"}'
    )
    listed = (await client.get("/api/list?limit=3")).json()
    assert listed["result"] == []
    assert listed["next"] == "3"
    plain = (await client.get("/api/flag")).json()
    assert "result" not in plain
    assert "next" not in plain


def test_timestamps_are_utc_with_microseconds() -> None:
    assert timestamp(datetime(2026, 1, 1, tzinfo=UTC)) == "2026-01-01T00:00:00.000000Z"
    local = datetime.fromisoformat("2026-01-01T00:30:00.5+01:00")
    assert timestamp(local) == "2025-12-31T23:30:00.500000Z"


async def test_failures_say_what_to_do(client: httpx.AsyncClient) -> None:
    challenge = 'Bearer realm="authsvc"'
    bare = await client.get("/api/fail/401")
    assert bare.headers.get_list("www-authenticate") == [challenge]
    sent = await client.get("/api/fail/401-sent")
    assert sent.headers.get_list("www-authenticate") == [f'{challenge}, error="invalid_token"']
    assert (await client.get("/api/fail/503")).headers["retry-after"] == "7"
    for which, field in (("404-field", "changes.3.role"), ("409-field", "changes.0.role")):
        details = (await client.get(f"/api/fail/{which}")).json()["details"]
        assert [one["field"] for one in details] == [field]
        assert details[0]["message"]
    assert (await client.get("/api/fail/404")).json()["details"] == []


async def test_every_problem_is_named(client: httpx.AsyncClient) -> None:
    changes: list[Any] = [
        {"op": "add_role", "role": SECRET + "!"},
        {"op": "add_role", "role": 1},
        {"op": "grant", "role": "a"},
        {"op": "grant", "role": "a", "permission": "b", "tenant_id": SECRET},
        {"op": SECRET, "role": "a"},
        {"role": "a"},
        "grant",
        {"op": "add_role", "role": "a", "description": "too long"},
        {"op": "grant", "role": "a", "permission": "b", "\x1b[0m": 1},
        {"op": "grant", "role": None, "permission": ["b"]},
    ]
    found = await client.post("/api/changes", json={"changes": changes, "dry_run": "yes"})
    body = assert_failure(found, 422, "invalid_input")
    assert [(one["field"], one["message"]) for one in body["details"]] == [
        (
            "changes.0.role",
            "A role is 1 to 64 characters of A-Z a-z 0-9 _ - . : and nothing else.",
        ),
        ("changes.1.role", "This must be a string."),
        ("changes.2.permission", "This field is required."),
        ("changes.3.tenant_id", "This field is not known here."),
        ("changes.4.op", "This must be one of: 'add_role', 'grant'."),
        ("changes.5.op", "This field is required."),
        ("changes.6", "This must be an object."),
        ("changes.7.description", "This must have at most 5 characters."),
        ("changes.8", "This field is not known here."),
        ("changes.9.role", "This must be a string."),
        ("changes.9.permission", "This must be a string."),
        ("dry_run", "This must be true or false."),
    ]


async def test_the_list_of_problems_is_bounded(client: httpx.AsyncClient) -> None:
    found = await client.post("/api/changes", json={"changes": [{}] * 9_999})
    body = assert_failure(found, 422, "invalid_input")
    assert len(body["details"]) == MAX_PROBLEMS
    assert "9999 problems" in body["message"]


def test_plain_unions_and_values_by_hand() -> None:
    adapter: TypeAdapter[Any] = TypeAdapter(dict[str, list[int | Description]])
    value = {"a": [1, {"description": 2}, "x"]}
    with pytest.raises(ValidationError) as raised:
        adapter.validate_python(value, strict=True)
    listed = [one.field for one in input_error(raised.value.errors(), value).details]
    assert set(listed) == {"a.1", "a.1.description", "a.2"}


def test_a_field_may_be_called_like_a_place() -> None:
    class Located(BaseModel):
        body: dict[str, int]

    value = {"body": {"query": "x"}}
    with pytest.raises(ValidationError) as raised:
        Located.model_validate(value)
    assert input_error(raised.value.errors(), value).details[0].field == "body.query"
    assert input_error(raised.value.errors()).details[0].field == "body.query"


def test_every_sentence_is_about_a_kind_pydantic_knows() -> None:
    assert set(field_problems._SENTENCES) <= field_problems._BUILT_IN


def test_details_never_hold_what_was_sent() -> None:
    class Everything(BaseModel):
        model_config = ConfigDict(strict=True, extra="forbid")
        a: int
        b: datetime
        c: Literal["x"]
        d: Annotated[str, Field(pattern="^x$")]
        e: list[int]
        f: bool

    for sent in (SECRET, {SECRET: 1}, [SECRET], 1e300):
        with pytest.raises(ValidationError) as raised:
            Everything.model_validate(dict.fromkeys("abcdef", sent))
        found = input_error(raised.value.errors(), {})
        assert SECRET not in str(found.details) + found.message


def test_the_table_covers_the_tree() -> None:
    def below(kind: type[errors.AuthsvcError]) -> list[type[errors.AuthsvcError]]:
        return [kind, *(one for child in kind.__subclasses__() for one in below(child))]

    at_start = {*below(errors.SettingsError), *below(errors.StartError), errors.AuthsvcError}
    for kind in below(errors.AuthsvcError):
        if kind not in at_start and kind.__module__ == "authsvc.errors":
            assert any(parent in problems.STATUS for parent in kind.__mro__), kind


def test_documented_failures_are_the_real_ones() -> None:
    made = error_responses(*problems._EXAMPLES)
    for status, entry in made.items():
        assert entry["model"] is problems.Problem
        for word, example in entry["content"]["application/json"]["examples"].items():
            assert example["value"]["error"] == word
            assert example["value"]["code"] == status
            problems.Problem.model_validate_json(json.dumps(example["value"]))
    assert error_responses(409) == error_responses("conflict")
    assert list(error_responses(404, "role_not_found")) == [404]


def test_failures_render_the_same_anywhere() -> None:
    status, headers, body = render(errors.BadRequest("no"), "id", NOW)
    assert status == 400
    assert dict(headers)[b"content-length"] == str(len(body)).encode()
    assert json.loads(body)["request_id"] == "id"
