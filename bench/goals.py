"""The goals of the service, what was reached, and the page that says so."""

from __future__ import annotations

import datetime
import os
import platform
import sqlite3
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

DUTIES = (
    "A check carries these duties: the credential with its scopes, the revision gate, the count "
    "against the rate limit, the security headers, the request id. Metrics are not in this "
    "version, so no figure includes them."
)
_BEGIN, _END = "<!-- measured: begin -->", "<!-- measured: end -->"
_PACKAGES = ("fastapi", "starlette", "pydantic", "uvicorn", "uvloop", "httptools", "sqlalchemy",
             "asyncpg", "aiosqlite")  # fmt: skip


@dataclass(frozen=True, slots=True)
class Goal:
    """One row: what is wanted, and the value where it was measured.

    ``most``: the value must not be above ``wanted``; otherwise not below it. ``gated``: a ratio of
    CPU per request, steady enough to fail a build that falls under half of it.
    """

    name: str
    wanted: float
    value: float | None
    unit: str = ""
    most: bool = False
    gated: bool = False
    note: str = ""

    @property
    def share(self) -> float | None:
        """How much of the goal was reached: 1 is just met, more is better."""
        if self.value is None:
            return None
        return self.wanted / max(self.value, 1e-9) if self.most else self.value / self.wanted

    @property
    def failed(self) -> bool:
        """Whether a gated goal was missed by more than half."""
        return self.gated and self.share is not None and self.share < 0.5

    def cells(self) -> list[str]:
        """The row of the table."""
        sign = "≤" if self.most else "≥"
        wanted = f"{sign} {number(self.wanted)}{self.unit}"
        if self.value is None or self.share is None:
            return [self.name, wanted, "", "", "not measured", self.note]
        met = "yes" if self.share >= 1 else "**no**"
        value = f"{number(self.value)}{self.unit}"
        return [self.name, wanted, value, f"{self.share:.2f}", met, self.note]


def number(value: float) -> str:
    """Three significant digits, thousands apart."""
    if value >= 1000:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """A Markdown table that is also readable as it is."""
    every = [list(head), *map(list, lines)]
    widths = [max(len(line[column]) for line in every) for column in range(len(head))]
    padded = [
        "| " + " | ".join(cell.ljust(w) for cell, w in zip(line, widths, strict=True)) + " |"
        for line in every
    ]
    padded.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(padded)


def goal_table(goals: Iterable[Goal]) -> str:
    """All goals; ``of the goal`` is 1 where a goal is just met, and more is better."""
    head = ["goal", "wanted", "reached", "of the goal", "met", "remarks"]
    return table(head, (goal.cells() for goal in goals))


def machine(postgresql: str, command: str) -> str:
    """Where, with what and how it was measured."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in Path("/proc/cpuinfo").read_text().splitlines()
            if line.startswith("model name")
        ),
        platform.machine(),
    )
    packages = ", ".join(f"{name} {version(name)}" for name in _PACKAGES)
    return "\n".join(
        [
            f"- {model}, {os.cpu_count()} cores, Linux {platform.release()}",
            f"- Python {platform.python_version()}, {packages}",
            f"- SQLite {sqlite3.sqlite_version}, PostgreSQL {postgresql}",
            f"- `{command}`, {datetime.datetime.now(datetime.UTC).date().isoformat()}",
        ]
    )


def write_page(file: Path, measured: str) -> None:
    """Put what was measured between the marks of a page, or into a new page."""
    block = f"{_BEGIN}\n\n{measured}\n\n{_END}"
    if file.exists() and _BEGIN in (text := file.read_text(encoding="utf-8")):
        before, _, rest = text.partition(_BEGIN)
        text = before + block + rest.partition(_END)[2]
    else:
        text = f"# Performance\n\n{block}\n"
    file.write_text(text, encoding="utf-8")
