"""Write the lock files, or tell whether they still belong to pyproject.toml.

A lock begins with a digest of the dependency tables it was made from, so that the question "is it
up to date?" needs no network and no new release anywhere can change the answer.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tomllib
from pathlib import Path

TOP = Path(__file__).parents[1]
LOCKS = {
    "run": [],
    "dev": ["--extra", "test", "--extra", "dev", "--extra", "aws", "--extra", "vault"],
}
"""Each lock's name, and what it holds beside the run-time dependencies."""


def digest(name: str) -> str:
    """What a lock depends on, as one line."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())
    tables = {
        "build": project["build-system"]["requires"],
        "dependencies": project["project"]["dependencies"],
        "python": project["project"]["requires-python"],
    }
    if name == "dev":
        tables["extras"] = project["project"]["optional-dependencies"]
    text = json.dumps(tables, sort_keys=True)
    return f"# dependencies of pyproject.toml: sha256 {hashlib.sha256(text.encode()).hexdigest()}"


def path_of(name: str) -> Path:
    """Where a lock is kept."""
    return TOP / "requirements" / f"{name}.lock"


def write(name: str) -> None:
    """Resolve one lock anew, keeping the pins that still fit."""
    target = path_of(name)
    build = TOP / "requirements" / "build.in"
    build.write_text("hatchling\neditables\n")
    try:
        subprocess.run(
            [
                *("uv", "pip", "compile", "pyproject.toml", str(build), *LOCKS[name]),
                *("--universal", "--python-version", "3.11", "--generate-hashes", "--quiet"),
                *("--no-header", "--no-annotate", "--no-emit-index-url", "-o", str(target)),
            ],
            cwd=TOP,
            check=True,
        )
    finally:
        build.unlink()
    target.write_text(digest(name) + "\n" + target.read_text())
    print(f"wrote {target.relative_to(TOP)}")


def write_bootstrap() -> None:
    """Pin uv itself, which installs the rest."""
    pin = next(
        line.split(" ")[0] for line in path_of("dev").read_text().splitlines() if line[:4] == "uv=="
    )
    subprocess.run(
        [
            *("uv", "pip", "compile", "-", "--universal", "--python-version", "3.11"),
            *("--generate-hashes", "--quiet", "--no-header", "--no-annotate"),
            *("--no-emit-index-url", "-o", str(path_of("uv"))),
        ],
        cwd=TOP,
        check=True,
        input=pin.encode(),
    )


def main() -> int:
    """``lock.py`` writes, ``lock.py --check`` only looks; 1 if a lock is out of date."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="only look, change nothing")
    if not parser.parse_args().check:
        for name in LOCKS:
            write(name)
        write_bootstrap()
        return 0
    stale = [name for name in LOCKS if path_of(name).read_text().partition("\n")[0] != digest(name)]
    for name in stale:
        print(f"requirements/{name}.lock is older than pyproject.toml: run 'make lock'")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
