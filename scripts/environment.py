"""Make the virtual environment for running (`run`) or for developing (`dev`) from its lock.

Needs Python 3.11 or later and pip, nothing else. Packages are installed by their hashes: with uv
where it can be had, which takes seconds, with pip otherwise or when INSTALLER=pip is set. Called
again, it finds the stamp it left and returns at once.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[1]
FOLDERS = {"run": TOP / ".venv", "dev": TOP / ".venv-dev"}


def say(text: str) -> None:
    """One line of progress."""
    print(f"authsvc: {text}", file=sys.stderr, flush=True)


def stamp_of(kind: str) -> str:
    """What the environment is made from: another stamp, another environment."""
    made_from = hashlib.sha256(str(TOP).encode() + sys.version.encode())
    for name in (f"requirements/{kind}.lock", "pyproject.toml"):
        made_from.update((TOP / name).read_bytes())
    return made_from.hexdigest()


def fails(*command: str) -> str:
    """Run a command; what it said if it failed, else nothing."""
    done = subprocess.run(command, cwd=TOP, capture_output=True, text=True)
    return f"{done.stdout}{done.stderr}" or "no word" if done.returncode else ""


def quiet(*command: str) -> None:
    """Run a command; show what it said only when it fails."""
    if said := fails(*command):
        sys.stderr.write(said)
        raise SystemExit(f"authsvc: '{Path(command[0]).name}' failed; see above")


def find_uv(python: str) -> list[str] | None:
    """How to call uv: the one on the path, else one installed into the environment."""
    if os.environ.get("INSTALLER") == "pip":
        return None
    if found := shutil.which("uv"):
        return [found]
    lock = str(TOP / "requirements" / "uv.lock")
    if fails(*pip(python), "--require-hashes", "-r", lock):
        return None
    return [str(Path(python).with_name("uv"))]


def pip(python: str) -> list[str]:
    """How to install with pip."""
    return [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]


def install(python: str, kind: str) -> None:
    """Install the locked packages, then the project as it stands in this folder."""
    packages = ["--require-hashes", "-r", str(TOP / "requirements" / f"{kind}.lock")]
    project = ["--no-deps", "--no-build-isolation", "-e", "."]
    if uv := find_uv(python):
        say(f"installing the packages of requirements/{kind}.lock with uv")
        command = [*uv, "pip", "install", "--python", python]
        if not fails(*command, *packages) and not fails(*command, *project):
            return
        # It may know less than pip of how this machine reaches packages.
        say("uv could not; trying pip")
    say(
        f"installing the packages of requirements/{kind}.lock with pip, which takes a minute or two"
    )
    quiet(*pip(python), *packages)
    quiet(*pip(python), *project)


def make(kind: str) -> None:
    """Make the environment unless it is there and up to date."""
    folder = FOLDERS[kind]
    stamp_file = folder / "made-from"
    if stamp_file.is_file() and stamp_file.read_text() == stamp_of(kind):
        return
    shutil.rmtree(folder, ignore_errors=True)
    say(f"making {folder.name} (once; the next time takes no time)")
    quiet(sys.executable, "-m", "venv", str(folder))
    install(str(folder / "bin" / "python"), kind)
    stamp_file.write_text(stamp_of(kind))


if __name__ == "__main__":
    if sys.version_info < (3, 11):  # noqa: UP036 - this file is what says so
        raise SystemExit(f"authsvc needs Python 3.11 or later; this is {sys.version.split()[0]}")
    if len(sys.argv) != 2 or sys.argv[1] not in FOLDERS:
        raise SystemExit(f"usage: {sys.argv[0]} {'|'.join(FOLDERS)}")
    make(sys.argv[1])
