"""Prove the Dockerfile and docker-compose.yml without an engine, as far as that goes.

The Dockerfile's instructions are carried out one by one, its folders standing in a temporary one
and this machine's Python for the base image's: what cannot be done outside a container is named.
Then its start command and its health check run, first alone with SQLite, then with the environments
that docker-compose.yml gives its services, against a private PostgreSQL. Takes about a minute.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from check_stack import find_compose

TOP = Path(__file__).parents[1]
USER = 10001
# The base image's Python is this one, not a virtual environment made from it.
BASE_PYTHON: str = getattr(sys, "_base_executable", sys.executable)
FOLDERS = ("/opt/authsvc", "/build", "/data", "/run/secrets")


def say(text: str) -> None:
    """One line of progress."""
    print(text, flush=True)


def instructions(text: str) -> Iterator[tuple[str, str]]:
    """The instructions of a Dockerfile, each on one line."""
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    for line in "\n".join(lines).replace("\\\n", " ").splitlines():
        word, _, rest = line.strip().partition(" ")
        yield word, " ".join(rest.split())


class Image:
    """What the Dockerfile makes, in a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {"PATH": os.defpath}
        self.command: list[str] = []
        self.health: list[str] = []
        self.account: dict[str, Any] = {}
        """The user of the image, where this machine lets us be another one."""
        if os.getuid() == 0 and _open_to_all(Path(BASE_PYTHON)):
            self.account = {"user": USER, "group": USER, "extra_groups": []}
        self._at = "/"

    def inside(self, text: str) -> str:
        """The same with the image's folders replaced by those that stand for them."""
        for place in FOLDERS:
            text = re.sub(rf"(?<![\w.-]){place}(?![\w-])", f"{self.folder}{place}", text)
        return text

    def path(self, place: str) -> Path:
        """Where a path of the image is."""
        absolute = place if place.startswith("/") else f"{self._at.rstrip('/')}/{place}"
        return Path(self.inside(absolute))

    def carry_out(self, word: str, rest: str) -> None:
        """One instruction."""
        match word:
            case "FROM":
                self.environment = {"PATH": os.defpath}
            case "WORKDIR":
                self._at = rest
                self.path(rest).mkdir(parents=True, exist_ok=True)
            case "ENV":
                for name, value in (pair.split("=", 1) for pair in shlex.split(rest)):
                    value = value.replace("$PATH", self.environment["PATH"])
                    self.environment[name] = self.inside(value)
            case "COPY" if not rest.startswith("--from"):
                *sources, target = rest.split()
                for source in sources:
                    self._copy(source, target)
            case "RUN" if "useradd" in rest:
                say(f"  not done outside a container: {word} {rest}")
                data = self.path("/data")
                data.mkdir(mode=0o700)
                if self.account:
                    os.chown(data, USER, USER)
            case "RUN":
                self._run(rest)
            case "HEALTHCHECK":
                self.health = json.loads(self.inside(rest.partition("CMD ")[2]))
            case "ENTRYPOINT":
                self.command = json.loads(rest)
            case "CMD":
                self.command += json.loads(rest)
            case _:
                # A COPY between stages has nothing to do: both stand in the same folder.
                pass

    def _copy(self, source: str, target: str) -> None:
        if f"!{source}" not in (TOP / ".dockerignore").read_text().splitlines():
            raise SystemExit(f".dockerignore keeps {source} out of the build")
        found, there = TOP / source, self.path(target)
        if found.is_dir():
            ignore = shutil.ignore_patterns("__pycache__")
            shutil.copytree(found, there, ignore=ignore, dirs_exist_ok=True)
            return
        if target.endswith("/"):
            there = there / found.name
        there.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(found, there)

    def _run(self, script: str) -> None:
        done = subprocess.run(
            [
                "sh",
                "-ec",
                f'python() {{ {shlex.quote(BASE_PYTHON)} "$@"; }}; {self.inside(script)}',
            ],
            cwd=self.path(self._at),
            env={**_outside(), **self.environment, "HOME": str(self.folder)},
        )
        if done.returncode:
            raise SystemExit(f"this step failed: {script}")

    def start(
        self, environment: dict[str, str], *command: str, silent: bool = False
    ) -> subprocess.Popen[bytes]:
        """The start command with nothing but the image's environment and this one."""
        everything = {**self.environment, **environment}
        executable, *arguments = command or self.command
        found = shutil.which(executable, path=everything["PATH"])
        if found is None:
            raise SystemExit(f"{executable} is not in the image")
        return subprocess.Popen(
            [found, *arguments],
            cwd=self.path("/data"),
            env=everything,
            stdout=subprocess.DEVNULL if silent else None,
            **self.account,
        )


def _open_to_all(path: Path) -> bool:
    """Whether any user can reach it."""
    return all(folder.stat().st_mode & 0o001 for folder in path.resolve().parents)


def _outside() -> dict[str, str]:
    """Of this shell's environment, what leads to packages: proxies, certificates, pip's settings.

    A container gets the same at its build.
    """
    kept = re.compile(r"(?i)pip_\w+|\w+_proxy|ssl_cert_\w+|requests_ca_bundle")
    return {name: value for name, value in os.environ.items() if kept.fullmatch(name)}


def build(folder: Path) -> Image:
    """Carry out the Dockerfile."""
    image = Image(folder)
    for word, rest in instructions((TOP / "Dockerfile").read_text()):
        say(f"{word} {rest}")
        image.carry_out(word, rest)
    return image


@contextmanager
def serving(image: Image, environment: dict[str, str]) -> Iterator[str]:
    """The service, once its health check is content; its base URL. Then stopped as by an engine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    environment = {**environment, "AUTH_SERVER_HOST": "127.0.0.1", "AUTH_SERVER_PORT": port}
    process = image.start(environment)
    try:
        for _ in range(100):
            if process.poll() is not None:
                raise SystemExit(f"the service ended with status {process.returncode}")
            if image.start(environment, *image.health, silent=True).wait() == 0:
                say(f"the health check is content: {image.health[-1]}")
                break
            time.sleep(0.2)
        else:
            raise SystemExit("the health check was never content")
        yield f"http://127.0.0.1:{port}"
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            status = process.wait(25)
        except subprocess.TimeoutExpired:
            process.kill()
            raise SystemExit("SIGTERM did not end the service") from None
    say(f"stopped by SIGTERM, status {status}")


def ask(method: str, url: str, key: str | None = None) -> Any:
    """A request's JSON."""
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    request = urllib.request.Request(url, method=method, headers=headers)
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.load(answer)


def prove_alone(image: Image) -> None:
    """The image without any setting."""
    say("\nalone, with SQLite in /data")
    with serving(image, {}) as base:
        say(f"ready: {ask('GET', f'{base}/health/ready')}")


def prove_stack(image: Image) -> None:
    """The environments of docker-compose.yml, its roles and its secrets, with PostgreSQL."""
    compose, psql = find_compose(), shutil.which("psql")
    if compose is None or psql is None:
        say("\nthe stack is not proven: this needs Compose (extra 'dev') and psql")
        return
    say("\nas in docker-compose.yml, with PostgreSQL")
    sys.path.insert(0, str(TOP / "tests"))
    import make_secrets
    from services import PostgresServer

    make_secrets.FOLDER = image.path("/run/secrets")
    make_secrets.FOLDER.parent.mkdir()
    make_secrets.main()
    # The engine mounts the files one by one; here the folder around them has to let them through.
    make_secrets.FOLDER.chmod(0o755)
    configured = subprocess.run(
        [compose, "--env-file", os.devnull, "config", "--format", "json"],
        cwd=TOP,
        capture_output=True,
        check=True,
    )
    services = json.loads(configured.stdout)["services"]
    server = PostgresServer(private=True)
    server.start()
    try:
        server.create_database(services["postgres"]["environment"]["POSTGRES_DB"])
        roles = image.inside((TOP / "docker" / "create-roles.sql").read_text())
        subprocess.run(
            [psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", server.url("authsvc")],
            input=roles.encode(),
            check=True,
        )

        def environment(service: str) -> dict[str, str]:
            given: dict[str, str] = services[service]["environment"]
            return {
                name: image.inside(value).replace("postgres:5432", f"{server.host}:{server.port}")
                for name, value in given.items()
            }

        for _ in range(2):
            command = [image.command[0], *services["migrate"]["command"]]
            if image.start(environment("migrate"), *command).wait():
                raise SystemExit("the service 'migrate' failed")
        image.health = [
            image.inside(part) for part in services["authsvc"]["healthcheck"]["test"][1:]
        ]
        key = (make_secrets.FOLDER / "client_key").read_text().strip()
        with serving(image, environment("authsvc")) as base:
            for request in ("role/admin", "permission/admin/deploy", "membership/alice/admin"):
                ask("POST", f"{base}/api/{request}", key)
            for user in ("alice", "bob"):
                say(f"{user}: {ask('GET', f'{base}/api/has_permission/{user}/deploy', key)}")
    finally:
        server.stop()


def main() -> None:
    """Build, then prove; whatever goes wrong ends it with a sentence and status 1."""
    with tempfile.TemporaryDirectory(prefix="authsvc-image-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        image = build(folder)
        prove_alone(image)
        prove_stack(image)
        user = "" if image.account else " the user,"
    say(f"\nproven, except for what only an engine does: the base image,{user} the networks")


if __name__ == "__main__":
    main()
