"""What pydantic and FastAPI say about a request, as ``Problem`` items for people.

The field is the path a caller would use (``changes.3.role``); the message never repeats what was
sent, because what was sent may be a secret.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, get_args

from pydantic_core import core_schema

from authsvc.errors import InputError, Problem

MAX_PROBLEMS = 100
"""The most problems one answer lists."""

_BUILT_IN = frozenset(get_args(core_schema.ErrorType))
_KNOWN_NAME = re.compile(r"[A-Za-z0-9_.\-]{1,64}").fullmatch

_SENTENCES = {
    "missing": "This field is required.",
    "extra_forbidden": "This field is not known here.",
    "string_type": "This must be a string.",
    "string_unicode": "This must be valid Unicode text.",
    "string_too_short": "This must have at least {min_length} characters.",
    "string_too_long": "This must have at most {max_length} characters.",
    "string_pattern_mismatch": "This contains characters that are not allowed.",
    "bool_type": "This must be true or false.",
    "bool_parsing": "This must be true or false.",
    "int_type": "This must be an integer.",
    "int_parsing": "This must be an integer.",
    "int_parsing_size": "This integer is too large.",
    "int_from_float": "This must be an integer.",
    "float_type": "This must be a number.",
    "float_parsing": "This must be a number.",
    "finite_number": "This must be a finite number.",
    "greater_than": "This must be greater than {gt}.",
    "greater_than_equal": "This must be at least {ge}.",
    "less_than": "This must be less than {lt}.",
    "less_than_equal": "This must be at most {le}.",
    "multiple_of": "This must be a multiple of {multiple_of}.",
    "list_type": "This must be a list.",
    "tuple_type": "This must be a list.",
    "set_type": "This must be a list.",
    "frozen_set_type": "This must be a list.",
    "too_short": "This must have at least {min_length} items.",
    "too_long": "This must have at most {max_length} items.",
    "dict_type": "This must be an object.",
    "mapping_type": "This must be an object.",
    "model_type": "This must be an object.",
    "model_attributes_type": "This must be an object.",
    "dataclass_type": "This must be an object.",
    "none_required": "This must be null.",
    "literal_error": "This must be one of: {expected}.",
    "enum": "This must be one of: {expected}.",
    "union_tag_not_found": "This field is required.",
    "union_tag_invalid": "This must be one of: {expected_tags}.",
    "timezone_aware": "This time needs an offset, such as 2026-01-31T12:00:00Z.",
    "uuid_type": "This must be a UUID.",
    "uuid_parsing": "This must be a UUID.",
    "uuid_version": "This must be a UUID of version {expected_version}.",
}
_TIME = "This must be a date and time with an offset, such as 2026-01-31T12:00:00Z."


def input_error(
    errors: Sequence[Mapping[str, Any]], body: Any = None, *, placed: bool = False
) -> InputError:
    """One ``InputError`` for the errors of pydantic, or, with ``placed``, of FastAPI.

    ``body`` is the parsed JSON the errors are about: it tells the keys in an error's location
    from the union tags and model names that pydantic mixes into it. FastAPI puts the place
    (body, query, path) in front of each location.
    """
    found = [_problem(error, body, placed=placed) for error in errors[:MAX_PROBLEMS]]
    # The branches of a union each report the same field.
    problems = list(dict.fromkeys(found))
    if len(errors) == 1:
        return InputError.of(problems[0].field, problems[0].message)
    return InputError(f"{len(errors)} problems with the request; see 'details'", problems)


def _problem(error: Mapping[str, Any], body: Any, *, placed: bool) -> Problem:
    kind = error["type"]
    path = list(error["loc"])
    place = path.pop(0) if placed else "body"
    if place == "body" and body is not None:
        path = _keys(path, body, keep_last=kind in ("missing", "extra_forbidden"))
    if kind.startswith("union_tag_"):
        path.append(str(error.get("ctx", {}).get("discriminator", "")).strip("'"))
    # An unknown name is the caller's own text: named only where it looks like a name.
    if kind == "extra_forbidden" and not _KNOWN_NAME(str(path[-1])):
        path.pop()
    field = ".".join(str(step) for step in path) or place
    if kind == "missing" and field == "body":
        return Problem("body", "A JSON body is required.")
    return Problem(field, _sentence(error))


def _keys(path: list[Any], value: Any, *, keep_last: bool) -> list[Any]:
    """The steps of ``path`` that are keys of ``value``; a missing or unknown last one is kept."""
    kept: list[Any] = []
    for index, step in enumerate(path):
        in_object = isinstance(value, dict) and step in value
        in_list = isinstance(value, list) and isinstance(step, int) and step < len(value)
        if in_object or in_list:
            value = value[step]
        elif not (keep_last and index == len(path) - 1):
            continue
        kept.append(step)
    return kept


def _sentence(error: Mapping[str, Any]) -> str:
    kind = error["type"]
    if kind not in _BUILT_IN:
        return str(error["msg"])
    if kind in ("value_error", "assertion_error"):
        return str(error["msg"]).partition(", ")[2]
    if kind.startswith(("datetime_", "date_", "time_")):
        return _TIME
    sentence = _SENTENCES.get(kind, "This is not acceptable here.")
    return sentence.format_map(error.get("ctx", {})) if "{" in sentence else sentence
