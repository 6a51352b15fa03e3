"""What authsvc is measured against: three ASGI applications that say yes.

``bare`` is what a server costs without any application, ``fastapi`` what the framework adds, and
``textbook`` the check as tutorials write it: FastAPI, a SQLAlchemy session for each request and a
query over three joined tables. The textbook's SQLite file is named by BENCH_TEXTBOOK.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Annotated, Any

from fastapi import Depends, FastAPI
from sqlalchemy import ForeignKey, create_engine, event, select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship
from starlette.types import Receive, Scope, Send

_BODY = b'{"has_permission":true}'
_HEADERS = [
    (b"content-type", b"application/json"),
    (b"content-length", str(len(_BODY)).encode()),
]


async def bare(scope: Scope, _receive: Receive, send: Send) -> None:
    """A constant answer from nothing but ASGI."""
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
        await send({"type": "http.response.body", "body": _BODY})


fastapi = FastAPI(openapi_url=None)


@fastapi.get("/api/has_permission/{user}/{permission}")
async def constant(user: str, permission: str) -> dict[str, bool]:
    """A constant answer from a route."""
    return {"has_permission": True}


class Base(DeclarativeBase):
    """The textbook's tables."""


class Role(Base):
    """A role with its grants."""

    __tablename__ = "role"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    grants: Mapped[list[Grant]] = relationship()


class Grant(Base):
    """A permission of a role."""

    __tablename__ = "grants"
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id"), primary_key=True)
    permission: Mapped[str] = mapped_column(primary_key=True)


class Member(Base):
    """A user in a role."""

    __tablename__ = "member"
    user: Mapped[str] = mapped_column(primary_key=True)
    role_id: Mapped[int] = mapped_column(ForeignKey("role.id"), primary_key=True)


def fill_textbook(file: Path, users: list[str], roles: int, permission: str) -> None:
    """Give every user some roles, one of which has the permission."""
    engine = create_engine(f"sqlite:///{file}")
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        for number in range(1, roles + 1):
            name = permission if number == 1 else f"other:{number}"
            session.add(Role(id=number, name=f"role-{number}", grants=[Grant(permission=name)]))
        session.flush()
        session.add_all(
            Member(user=user, role_id=number) for user in users for number in range(1, roles + 1)
        )
        session.commit()
    engine.dispose()


_engine = create_async_engine(f"sqlite+aiosqlite:///{os.environ.get('BENCH_TEXTBOOK', '')}")
_sessions = async_sessionmaker(_engine, expire_on_commit=False)


@event.listens_for(_engine.sync_engine, "connect")
def _configure(connection: Any, _record: Any) -> None:
    connection.execute("PRAGMA journal_mode=WAL")


async def session_of_request() -> AsyncIterator[AsyncSession]:
    """A session for this request."""
    async with _sessions() as session:
        yield session


textbook = FastAPI(openapi_url=None)


@textbook.get("/api/has_permission/{user}/{permission}")
async def has_permission(
    user: str, permission: str, session: Annotated[AsyncSession, Depends(session_of_request)]
) -> dict[str, bool]:
    """The check by a query over three tables."""
    query = (
        select(Member)
        .join(Role, Role.id == Member.role_id)
        .join(Grant, Grant.role_id == Role.id)
        .where(Member.user == user, Grant.permission == permission)
        .limit(1)
    )
    return {"has_permission": (await session.scalars(query)).first() is not None}
