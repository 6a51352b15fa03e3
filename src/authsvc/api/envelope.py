"""The envelope around every successful answer under ``/api``.

Routes return ``answer(...)``; the models describe the same bytes for OpenAPI (``response_model=``)
and validate nothing, because a route that returns a ``Response`` is not serialised again.
"""

from __future__ import annotations

from datetime import UTC, datetime
from enum import Enum
from typing import Any, Final, Generic, Literal, TypeVar

from pydantic import BaseModel, Field
from pydantic_core import to_json
from starlette.responses import Response

T = TypeVar("T")
R = TypeVar("R")


class _Absent(Enum):
    ABSENT = 0


ABSENT: Final = _Absent.ABSENT
"""Stands for a field that is left out (``None`` is a value: JSON's ``null``)."""


def timestamp(moment: datetime) -> str:
    """An aware datetime as every answer writes it: UTC, six digits of a second, ``Z``."""
    if moment.tzinfo is not UTC:
        moment = moment.astimezone(UTC)
    return moment.isoformat(timespec="microseconds")[:26] + "Z"


def answer(
    data: Any,
    message: str,
    revision: int,
    now: datetime,
    *,
    result: Any = ABSENT,
    next: str | None = None,
) -> Response:
    """A 200 with the envelope around ``data``.

    ``data`` and ``result`` are plain JSON values; a datetime in them must already have gone
    through ``timestamp``. ``next`` is the cursor of a list with more to come.
    """
    body: dict[str, Any] = {"success": True, "code": 200, "message": message, "data": data}
    if result is not ABSENT:
        body["result"] = result
    body["revision"] = revision
    body["timestamp"] = timestamp(now)
    if next is not None:
        body["next"] = next
    return Response(to_json(body), media_type="application/json")


_MESSAGE = "For people; constant per outcome, never to be parsed."
_RESULT = "The bare answer, for clients of the original Auth API."
_REVISION = "The tenant's revision this answer reflects."
_NEXT = "Cursor of the next page; absent on the last one."


class Envelope(BaseModel, Generic[T]):
    """The answer to a request that succeeded."""

    success: Literal[True]
    code: Literal[200]
    message: str = Field(description=_MESSAGE)
    data: T
    revision: int = Field(ge=0, description=_REVISION)
    timestamp: datetime


class EnvelopeWithResult(BaseModel, Generic[T, R]):
    """The answer to a request that succeeded, with the bare answer beside ``data``."""

    success: Literal[True]
    code: Literal[200]
    message: str = Field(description=_MESSAGE)
    data: T
    result: R = Field(description=_RESULT)
    revision: int = Field(ge=0, description=_REVISION)
    timestamp: datetime


class ListEnvelope(BaseModel, Generic[T]):
    """A list, complete unless ``next`` is there."""

    success: Literal[True]
    code: Literal[200]
    message: str = Field(description=_MESSAGE)
    data: list[T]
    revision: int = Field(ge=0, description=_REVISION)
    timestamp: datetime
    next: str = Field(default="", description=_NEXT)


class ListEnvelopeWithResult(BaseModel, Generic[T]):
    """A list and the same list as ``result``, complete unless ``next`` is there."""

    success: Literal[True]
    code: Literal[200]
    message: str = Field(description=_MESSAGE)
    data: list[T]
    result: list[T] = Field(description=_RESULT)
    revision: int = Field(ge=0, description=_REVISION)
    timestamp: datetime
    next: str = Field(default="", description=_NEXT)
