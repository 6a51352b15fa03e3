"""Column types that mean the same on SQLite and on PostgreSQL."""

from __future__ import annotations

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from sqlalchemy import (
    BigInteger,
    Boolean,
    ColumnElement,
    DateTime,
    Dialect,
    LargeBinary,
    String,
    Text,
    Uuid,
)
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeDecorator, TypeEngine


class TenantId(TypeDecorator[UUID]):
    """A UUID: native on PostgreSQL, 16 bytes on SQLite (it leads every key, so its size counts)."""

    impl = LargeBinary(16)
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        native: TypeEngine[Any] = Uuid() if dialect.name == "postgresql" else LargeBinary(16)
        return dialect.type_descriptor(native)

    def process_bind_param(self, value: UUID | None, dialect: Dialect) -> Any:
        return value if value is None or dialect.name == "postgresql" else value.bytes

    def process_result_value(self, value: Any | None, dialect: Dialect) -> UUID | None:
        return UUID(bytes=bytes(value)) if isinstance(value, bytes) else value


class UtcDateTime(TypeDecorator[datetime]):
    """An aware instant in UTC. A naive one is a bug and raises TypeError."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_bind_param(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        if value.tzinfo is None:
            raise TypeError("an instant without a time zone reached the database")
        value = value.astimezone(UTC)
        return value if dialect.name == "postgresql" else value.replace(tzinfo=None)

    def process_result_value(self, value: datetime | None, dialect: Dialect) -> datetime | None:
        if value is None:
            return None
        return value.replace(tzinfo=UTC) if value.tzinfo is None else value.astimezone(UTC)


def name_type(length: int) -> String:
    """Text compared byte by byte: collation "C" on PostgreSQL, BINARY (the default) on SQLite."""
    return String(length).with_variant(String(length, collation="C"), "postgresql")


def encrypted_type(plain: int, encrypted: int) -> String:
    """As ``name_type``, with room for the encrypted form; SQLite keeps to no length."""
    return String(plain).with_variant(String(encrypted, collation="C"), "postgresql")


class _ListParameter(TypeDecorator[list[Any]]):
    """A list as one bound parameter: an array on PostgreSQL, JSON text on SQLite.

    One parameter however long the list is, so a statement keeps one prepared form and no engine's
    limit on the number of parameters is met.
    """

    impl = Text
    cache_ok = True
    item: TypeEngine[Any] = Text()

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        if dialect.name == "postgresql":
            return dialect.type_descriptor(ARRAY(self.item))
        return dialect.type_descriptor(Text())

    def process_bind_param(self, value: Iterable[Any] | None, dialect: Dialect) -> Any:
        items = list(value or ())
        return items if dialect.name == "postgresql" else json.dumps(items)


class TextList(_ListParameter):
    """A list of names as one parameter, for ``one_of``."""

    cache_ok = True
    item = Text()


class IdList(_ListParameter):
    """A list of role ids as one parameter, for ``one_of``."""

    cache_ok = True
    item = BigInteger()


class one_of(FunctionElement[bool]):
    """``one_of(column, list parameter)``: the column's value is in the list."""

    type = Boolean()
    inherit_cache = True
    name = "one_of"

    def __init__(self, column: ColumnElement[Any], values: ColumnElement[Any]) -> None:
        super().__init__(column, values)

    def self_group(self, against: Any = None) -> Any:
        """As it is: SQLAlchemy would add ``= 1``, which keeps SQLite off its indexes."""
        return self


@compiles(one_of, "postgresql")
def _one_of_postgresql(element: one_of, compiler: Any, **kw: Any) -> str:
    column, values = element.clauses
    return f"{compiler.process(column, **kw)} = ANY({compiler.process(values, **kw)})"


@compiles(one_of, "sqlite")
def _one_of_sqlite(element: one_of, compiler: Any, **kw: Any) -> str:
    column, values = element.clauses
    # The two parts are SQLAlchemy's own rendering; values stay bound parameters.
    listed = f"SELECT value FROM json_each({compiler.process(values, **kw)})"  # noqa: S608
    return f"{compiler.process(column, **kw)} IN ({listed})"


class also_one_of(one_of):
    """As ``one_of``, for a second list: it tests rows that were found, and finds none itself.

    Given two lists and an index over both columns, SQLite looks for every pair, which is a hundred
    million of them for two lists of ten thousand.
    """

    inherit_cache = True


@compiles(also_one_of, "sqlite")
def _also_one_of_sqlite(element: also_one_of, compiler: Any, **kw: Any) -> str:
    # A unary plus changes no value, and keeps the column from being looked up in an index.
    return f"+{_one_of_sqlite(element, compiler, **kw)}"


MANY_PAIRS = 10_000
"""Up to so many pairs of two lists, looking for each is quicker than reading past the others."""
