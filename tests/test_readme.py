"""README.md says what is so: what it names exists, and its conversation is answered as printed."""

from __future__ import annotations

import json
import re
import shlex
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import httpx
import pytest
import typer
from fastapi import FastAPI
from pydantic import SecretStr

from authsvc import errors
from authsvc.app import create_app, prepare
from authsvc.cli import UNAVAILABLE, _greeting, cli
from authsvc.records import Change
from authsvc.settings import Settings, build_settings
from services import URL_VARIABLE

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text(encoding="utf-8")
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
MARKDOWN = [TOP / "README.md", *sorted((TOP / "docs" / "decisions").glob("*.md"))]

# Different at every run; that the service gives them is checked, not what they are.
VARYING = {"timestamp", "request_id", "created_at"} | {
    "key", "key_id", "new_key", "old_key_expires_at", "api_key", "key_prefix", "created",
}  # fmt: skip
KEY = re.compile(r"KEY=[0-9a-f-]{36}")


def blocks(kind: str) -> list[list[str]]:
    """The fenced blocks of one kind, as lines."""
    found = re.findall(rf"^```{kind}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    return [text.splitlines() for text in found]


def spans() -> list[str]:
    """What stands in backticks in running text."""
    return re.findall(r"`([^`\n]+)`", PROSE)


def first_conversation() -> list[tuple[str, str]]:
    """(command, printed answer) of the first screen."""
    asked = [line.strip() for line in blocks("text")[0] if line.startswith("    ask ")]
    printed = blocks("json")[0]
    return list(zip(asked, printed, strict=True))


def later_conversations() -> Iterator[tuple[str, str]]:
    """(command, printed part of the answer) of the examples that go on from there."""
    for lines in blocks("console"):
        commands, printed = lines[::2], lines[1::2]
        assert all(command.startswith("$ ") for command in commands), lines
        yield from zip((command[2:] for command in commands), printed, strict=True)


async def answer_of(client: httpx.AsyncClient, command: str) -> dict[str, Any]:
    """What ``ask`` or ``send`` of the README would be answered."""
    function, method, path, *body = shlex.split(command)
    assert function == ("send" if body else "ask"), command
    headers = {"Content-Type": "application/json"} if body else {}
    answer = await client.request(
        method, f"/api/{path}", content=body[0] if body else None, headers=headers
    )
    parsed: dict[str, Any] = answer.json()
    return parsed


def without_varying(value: Any) -> Any:
    """The value with what is different at every run blanked out."""
    if isinstance(value, dict):
        return {
            name: None if name in VARYING else without_varying(part) for name, part in value.items()
        }
    return [without_varying(part) for part in value] if isinstance(value, list) else value


@pytest.fixture
async def app(tmp_path: Path) -> AsyncIterator[FastAPI]:
    """The service on a fresh SQLite file."""
    settings = build_settings(sqlite_path=tmp_path / "auth.sqlite3")
    await prepare(settings)
    made = create_app(settings)
    async with made.router.lifespan_context(made):
        yield made


@pytest.fixture
async def client(app: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """A caller with a fresh key."""
    async with httpx.AsyncClient(
        transport=httpx.ASGITransport(app),
        base_url="http://authsvc",
        headers={"Authorization": f"Bearer {uuid.uuid4()}"},
    ) as made:
        yield made


async def test_the_conversations_are_answered_as_printed(client: httpx.AsyncClient) -> None:
    for command, printed in first_conversation():
        answered = await answer_of(client, command)
        assert without_varying(answered) == without_varying(json.loads(printed)), command
    for command, printed in later_conversations():
        answered = await answer_of(client, command)
        shown = json.loads(printed)
        part = {name: answered.get(name) for name in shown}
        assert without_varying(part) == without_varying(shown), command


def test_the_first_screen_is_what_the_service_prints() -> None:
    settings = build_settings(sqlite_path=Path("/home/you/.auth.sqlite3"))
    greeted = KEY.sub("KEY=", _greeting(settings)).strip("\n")
    assert KEY.sub("KEY=", "\n".join(blocks("text")[0])) == greeted


def variables(text: str) -> set[str]:
    return set(re.findall(r"\bAUTH_[A-Z0-9_]+\b", text))


def test_every_setting_exists() -> None:
    known = {f"AUTH_{name.upper()}" for name in Settings.model_fields}
    secrets = {
        f"AUTH_{name.upper()}_FILE"
        for name, field in Settings.model_fields.items()
        if SecretStr.__name__ in str(field.annotation)
    }
    assert variables(README) <= known | secrets | {URL_VARIABLE}


def test_every_default_is_the_one_of_the_settings() -> None:
    rows = re.findall(r"^\| `AUTH_([A-Z0-9_]+)` \| (?:`([^`]+)`|none) \|", README, re.MULTILINE)
    assert len(rows) > 15
    for name, printed in rows:
        default = Settings.model_fields[name.lower()].default
        shown = str(default).lower() if isinstance(default, bool) else str(default or "")
        assert shown == printed or default in (None, ()), name


def test_every_endpoint_exists(app: FastAPI) -> None:
    """A named endpoint is a documented one, or one of the pages for people."""
    paths = app.openapi()["paths"]
    pages = {"/", "/docs", "/openapi.json"}
    matches = [re.fullmatch(r"(?:(GET|POST|PUT|DELETE) )?(/[a-z_/.]*)", span) for span in spans()]
    named = [(it[1], it[2]) for it in matches if it is not None and it[2] != "/api"]
    assert named
    for method, path in named:
        assert path in paths or path in pages, path
        assert method is None or method.lower() in paths[path], (method, path)
    patterns = [
        (method, re.compile(re.sub(r"\{[a-z_]+\}", "[^/]+", path)))
        for path, methods in paths.items()
        for method in methods
    ]
    for command, _ in [*first_conversation(), *later_conversations()]:
        _, method, target, *_ = shlex.split(command)
        path = f"/api/{target.partition('?')[0]}"
        assert any(
            known == method.lower() and pattern.fullmatch(path) for known, pattern in patterns
        ), command


def test_every_operation_exists() -> None:
    listed = re.search(r"^The operations: (.*)\.$", README, re.MULTILINE)
    assert listed is not None
    assert set(re.findall(r"`(\w+)`", listed[1])) == set(get_args(get_type_hints(Change)["op"]))


def test_every_make_target_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (TOP / "Makefile").read_text(), re.MULTILINE))
    in_code = "\n".join("\n".join(lines) for lines in blocks("sh")) + "\n" + "\n".join(spans())
    named = set(re.findall(r"\bmake ([a-z-]+)", in_code))
    assert {"run", "test", "check", "secrets", "image-proof"} <= named
    assert named <= targets


def test_every_command_exists() -> None:
    root = typer.main.get_command(cli)
    in_code = "\n".join("\n".join(lines) for lines in blocks("sh")) + "\n" + "\n".join(spans())
    named = re.findall(r"\bauthsvc ((?:serve|migrate|[a-z]+)(?: [a-z]+)*)(.*)$", in_code, re.M)
    assert {words.split()[0] for words, _ in named} == {
        "audit", "doctor", "encryption", "incident", "init", "keys", "migrate", "selftest", "serve",
        "tenants", "verify",
    }  # fmt: skip
    for words, rest in named:
        command: Any = root
        for word in words.split():
            if not hasattr(command, "commands"):
                break
            assert word in command.commands, words
            command = command.commands[word]
        options = {option for parameter in command.params for option in parameter.opts}
        assert set(re.findall(r"--[a-z-]+", rest)) <= options, words
    assert "--grant-to" in in_code


def test_every_exit_code_is_used() -> None:
    printed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    kinds = (errors.SettingsError, errors.BusyError, errors.DamagedError, errors.StartError)
    assert printed == {kind.exit_code for kind in kinds} | {UNAVAILABLE, 1}


def test_every_refusal_named_exists() -> None:
    printed = set(re.findall(r"^\| `([a-z_]+)` \| [A-Z]", README, re.MULTILINE))
    kinds = (errors.Unavailable, errors.Busy, errors.ReadOnly, errors.OutcomeUnknown)
    assert printed == {kind.code for kind in kinds}


@pytest.mark.parametrize("file", MARKDOWN, ids=lambda file: str(file.relative_to(TOP)))
def test_every_link_leads_to_a_file(file: Path) -> None:
    for target in re.findall(r"\]\(([^)\s]+)\)", file.read_text(encoding="utf-8")):
        assert (file.parent / target).exists(), target


def test_every_path_exists() -> None:
    """Files of the repository that are named without a link, here and in the decisions."""
    named = re.findall(r"\b(?:bench|scripts|requirements|tests)/[\w./-]*\w", README)
    assert named
    for path in named:
        assert (TOP / path).exists(), path
    for file in MARKDOWN[1:]:
        for path in re.findall(
            r"`([a-z_/]+\.(?:py|toml)|requirements/\w+\.lock)`", file.read_text()
        ):
            found = [(TOP / path), TOP / "src" / "authsvc" / path]
            assert any(it.exists() for it in found), f"{file.name}: {path}"


def test_the_index_names_every_decision() -> None:
    index = (TOP / "docs" / "decisions" / "README.md").read_text(encoding="utf-8")
    for file in MARKDOWN[1:]:
        if file.name != "README.md":
            title = file.read_text(encoding="utf-8").splitlines()[0]
            number, _, text = title.removeprefix("# ").partition(" ")
            assert f"[{number}]({file.name}) | {text} |" in index, file.name
