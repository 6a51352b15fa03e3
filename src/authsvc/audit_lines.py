"""Entries as lines of a file: JSON Lines, and CSV that no spreadsheet takes for formulas. Pure."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

Format = Literal["jsonl", "csv"]

# OWASP, CSV Injection: what a spreadsheet calculates. It may skip blanks and invisible characters
# in front, and takes the full-width forms for the characters themselves.
_formula = re.compile(
    r"[\s\x00-\x20\x7f-\xa0\u200b-\u200f\u2060\ufeff]*"
    r"[=+\-@\uff1d\uff0b\uff0d\uff20\u2212\ufe62\ufe63\ufe66\ufe6b]|[\t\r\n]"
).match


def formula_safe(text: str) -> str:
    """Text for a cell: with an apostrophe in front where a spreadsheet would calculate."""
    return f"'{text}" if _formula(text) else text


def csv_line(cells: Sequence[str]) -> str:
    """One record (RFC 4180), every cell quoted and none of them a formula."""
    safe = (formula_safe(cell).replace('"', '""') for cell in cells)
    return ",".join(f'"{cell}"' for cell in safe) + "\r\n"


def header(fields: Sequence[str], form: Format) -> str:
    """The first line of a file; JSON Lines have none."""
    return csv_line(fields) if form == "csv" else ""


def line(entry: Mapping[str, Any], fields: Sequence[str], form: Format) -> str:
    """An entry that is shown with these fields."""
    if form == "csv":
        return csv_line([_cell(entry[name]) for name in fields])
    kept = {name: entry[name] for name in fields}
    return json.dumps(kept, separators=(",", ":"), ensure_ascii=False) + "\n"


def _cell(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
