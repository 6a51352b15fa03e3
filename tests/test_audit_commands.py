"""``authsvc audit`` as people run it, beside a server."""

from __future__ import annotations

import csv
import io
import json
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Collection, Iterator
from pathlib import Path

import httpx
import pytest

from authsvc.audit_entries import OPERATORS_FIELDS
from test_cli import COMMAND, PATIENCE_SECONDS, Finished, Home, Serving, eventually

pytestmark = pytest.mark.timeout(400)

_TIME = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ"


_ONE_BY_ONE = """
import contextlib, io, json, sys
from authsvc.cli import main
done = []
for arguments in json.load(sys.stdin):
    sys.argv = ["authsvc", *arguments]
    out, err, status = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as ended:
            status = ended.code or 0
    done.append((status, out.getvalue(), err.getvalue()))
print(json.dumps(done))
"""


def one_by_one(home: Home, commands: Collection[tuple[str, ...]]) -> list[Finished]:
    """Run commands in one process, which starts only once."""
    done = subprocess.run(
        [sys.executable, "-c", _ONE_BY_ONE],
        cwd=home.path,
        env=home.environment({}),
        input=json.dumps([("audit", *one) for one in commands]),
        capture_output=True,
        text=True,
        check=True,
        timeout=PATIENCE_SECONDS,
    )
    return [Finished(*one) for one in json.loads(done.stdout)]


class Scene:
    """A server, and a tenant in which mallory was given a role."""

    def __init__(self, home: Home, server: Serving) -> None:
        self.home = home
        self.server = server
        self.key = home.json("tenants", "create", "acme")["key"]
        home.json("tenants", "create", "other")
        self.ok("POST", "role/admin")
        minted = self.server.http.post(
            f"{server.url}/api/keys",
            headers={"Authorization": f"Bearer {self.key}"},
            json={"label": "night shift", "scopes": ["write"]},
        )
        self.thief, self.thief_id = minted.json()["data"]["key"], minted.json()["data"]["key_id"]
        self.ok("POST", "membership/mallory/admin", self.thief)

    def ok(self, method: str, path: str, key: str | None = None) -> httpx.Response:
        """A request that succeeds."""
        answered = self.server.ask_until_known(f"/api/{path}", key or self.key, method)
        assert answered.status_code == 200, answered.text
        return answered


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """The scene that all of these look at."""
    home = Home(tmp_path_factory.mktemp("audited"))
    with home.serving() as server:
        yield Scene(home, server)


def test_who_gave_mallory_admin_when_and_from_where_is_one_command(scene: Scene) -> None:
    question = ("audit", "query", "--entity-type", "membership", "--entity-id", "mallory")
    done = scene.home.run(*question)
    assert (done.status, done.err) == (0, "")
    header, line = done.out.splitlines()
    assert header.split() == ["TIME", "TENANT", "ACTOR", "FROM", "ACTION", "ENTITY", "WHAT"]
    assert re.fullmatch(
        rf"{_TIME}  acme    {scene.thief_id}  127\.0\.0\.1  add     membership mallory"
        r"  added mallory to role admin",
        line,
    )
    [told] = scene.home.json(*question)
    assert list(told) == list(OPERATORS_FIELDS)
    assert (told["tenant"], told["actor"], told["ip_address"], told["details"]["role"]) == (
        "acme", scene.thief_id, "127.0.0.1", "admin",
    )  # fmt: skip
    assert told["user_agent"].startswith("python-httpx/")


def test_the_history_of_a_role(scene: Scene) -> None:
    question = ("audit", "query", "--entity-type", "role", "--entity-id", "admin")
    assert [told["action"] for told in scene.home.json(*question, "--oldest-first")] == ["create"]
    done = scene.home.run(*question, "--tenant", "other")
    assert (done.status, done.out, done.err) == (0, "Nothing matches.\n", "")


def test_every_option_narrows(scene: Scene) -> None:
    expected = {
        ("--tenant", "other"): {"made tenant other"},
        ("--action", "create", "--entity-type", "role"): {"made role admin"},
        ("--actor", scene.thief_id): {"added mallory to role admin"},
        ("--ip", "127.0.0.1", "--entity-type", "role"): {"made role admin"},
        ("--hours", "1", "--entity-type", "role"): {"made role admin"},
        ("--since", "2026-01-01", "--until", "2026-01-02T12:00Z"): set(),
        ("--outcome", "failure", "--stream", "policy"): set(),
    }
    *asked, limited = one_by_one(
        scene.home, [("query", *given) for given in (*expected, ("--limit", "2"))]
    )
    for done, (given, words) in zip(asked, expected.items(), strict=True):
        assert (done.status, done.err) == (0, ""), given
        found = {line.split("  ")[-1] for line in done.out.splitlines()[1:]}
        assert {one for one in found if "client key" not in one} == words, given
    assert len(limited.out.splitlines()) == 3
    assert "--limit" in limited.err


def test_what_cannot_be_asked_says_what_to_do(scene: Scene, tmp_path: Path) -> None:
    there = tmp_path / "there"
    there.write_text("kept")
    table = {
        ("query", "--tenant", "none"): (1, "authsvc tenants list"),
        ("query", "--since", "yesterday"): (78, "--since"),
        ("query", "--stream", "all"): (78, "policy, activity"),
        ("query", "--outcome", "maybe"): (78, "success, failure"),
        ("query", "--hours", "1", "--since", "2026-01-01"): (1, "hours"),
        ("export", "--format", "xlsx"): (78, "jsonl, csv"),
        ("export", "--output", str(there)): (78, "exists already"),
        ("export", "--output", str(tmp_path / "no" / "such")): (78, "cannot be made"),
        ("export", "--output", str(tmp_path / "new"), "--tenant", "none"): (1, "does not exist"),
    }
    done = one_by_one(scene.home, table)
    for one, (given, (status, words)) in zip(done, table.items(), strict=True):
        assert one.status == status, (given, one.err)
        assert words in one.sentence, given
    assert there.read_text() == "kept"
    assert [path.name for path in tmp_path.iterdir()] == ["there"]


def test_an_export_is_a_new_file_for_its_owner(scene: Scene, tmp_path: Path) -> None:
    sheet = tmp_path / "audit.csv"
    done = scene.home.run("audit", "export", "--format", "csv", "--output", str(sheet))
    assert (done.status, done.out) == (0, "")
    assert sheet.stat().st_mode & 0o777 == 0o600
    header, *records = csv.reader(io.StringIO(sheet.read_text(), newline=""))
    assert header == list(OPERATORS_FIELDS)
    assert done.err == f"{len(records)} entries are in {sheet}.\n"
    printed = scene.home.run("audit", "export")
    entries = [json.loads(line) for line in printed.out.splitlines()]
    assert [(told["tenant"], str(told["seq"])) for told in entries if told["seq"]] == [
        (record[0], record[2]) for record in records if record[2]
    ]
    # Oldest first, tenant by tenant.
    acme = [told["seq"] for told in entries if told["tenant"] == "acme" and told["seq"]]
    assert acme == sorted(acme)


def test_a_reader_who_has_seen_enough_is_no_failure_of_the_database(scene: Scene) -> None:
    process = scene.home.begin("audit", "export")
    assert process.stdout is not None
    process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == b""
    assert process.wait(PATIENCE_SECONDS) == 1


@pytest.mark.parametrize("more", [(), ("--json",)])
def test_the_tail_goes_on_until_it_is_stopped(scene: Scene, more: tuple[str, ...]) -> None:
    [ended] = one_by_one(scene.home, [("tail", "--limit", "3", *more)])
    assert (ended.status, len(ended.out.splitlines())) == (0, 3)
    process = subprocess.Popen(
        [COMMAND, "audit", "tail", "--follow", "--limit", "1", "--entity-type", "role", *more],
        cwd=scene.home.path,
        env=scene.home.environment({}),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lines.extend, args=(iter(process.stdout.readline, ""),))
    reading.start()
    try:
        eventually(lambda: lines, "the newest entry is shown")
        role = f"watched{len(more)}"
        scene.ok("POST", f"role/{role}")
        eventually(lambda: len(lines) > 1, "what comes is shown")
        scene.ok("DELETE", f"role/{role}")
        eventually(lambda: len(lines) > 2, "what comes next is shown")
        process.send_signal(signal.SIGINT)
        assert process.wait(PATIENCE_SECONDS) == 0
    finally:
        process.kill()
        reading.join(PATIENCE_SECONDS)
        process.stdout.close()
    assert process.stderr is not None
    with process.stderr:
        assert process.stderr.read() == ""
    assert len(lines) == 3
    if more:
        told = [json.loads(line) for line in lines]
        assert [(one["action"], one["entity_id"]) for one in told[1:]] == [
            ("create", role), ("delete", role),
        ]  # fmt: skip
    else:
        assert lines[1].endswith(f"made role {role}\n")
        assert lines[2].endswith(f"removed role {role}\n")
