"""The rules of the house, read off the source: who imports whom, who commits, what is written."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "authsvc"
FILES = sorted(SOURCE.rglob("*.py"))

BASE = {"errors", "records", "sanitizer"}
SETTINGS = {
    "audit_settings", "database_choice", "encryption_settings", "production", "secret_stores",
    "settings", "settings_sources", "vault",
}  # fmt: skip
PURE = {
    "alert_rules", "alerting", "audit_chain", "audit_entries", "audit_lines", "audit_words",
    "change_set", "checkpoints", "clock", "credentials", "cursor", "decision", "decision_cache",
    "encryption",
    "keyring", "network_names", "postgresql_url", "rate_budgets", "replay", "role_graph",
    "secret_strength", "time_ids",
}  # fmt: skip
STORAGE = {"audit_triggers", "column_types", "database", "database_refusals", "models"}
BESIDE = {
    "audit_bundle", "checkpoint_file", "env_file", "host_review", "http_probe", "migrations",
    "revision_gate", "selftest", "shared_counts", "sqlite_file", "tls_review", "token_secret",
    "verify_bundle", "webhook",
}  # fmt: skip
"""Infrastructure that only the composition roots put together (the gate: services too)."""
OBSERVED = {"logs", "metrics"}
FRAMEWORKS = {"fastapi", "pydantic", "starlette", "uvicorn"}
DRIVERS = {"aiosqlite", "alembic", "asyncpg", "sqlalchemy"}

ALLOWED: dict[str, set[str]] = {
    "errors": set(),
    "records": set(),
    "sanitizer": {"errors"},
    "settings": {
        "alert_rules",
        "audit_chain",
        "credentials",
        "encryption",
        "errors",
        "keyring",
        "network_names",
        "postgresql_url",
        "rate_budgets",
        "secret_strength",
    }
    | SETTINGS,
    "pure": BASE | PURE,
    "storage": BASE
    | {
        "audit_chain",
        "audit_triggers",
        "column_types",
        "database_refusals",
        "encryption",
    },
    "beside": BASE | PURE | {"database", "database_refusals", "http_probe", "production"},
    "observed": BASE | PURE | {"metrics"},
    "repositories": BASE | PURE | STORAGE | {"repositories"},
    "services": BASE
    | PURE
    | {
        "audit_bundle",
        "checkpoint_file",
        "database",
        "metrics",
        "repositories",
        "revision_gate",
        "services",
        "shared_counts",
        "webhook",
    },
    "schemas": {"errors", "sanitizer", "schemas"},
    "api": BASE | PURE | {"api", "database", "metrics", "schemas", "services", "settings"},
    "sdk": {"sdk"},
}
"""Layer -> the modules and folders of ours that it may import. The roots may import everything."""

FOREIGN: dict[str, set[str]] = {
    "errors": FRAMEWORKS | DRIVERS,
    "records": FRAMEWORKS | DRIVERS,
    "sanitizer": FRAMEWORKS | DRIVERS,
    "settings": {"fastapi", "starlette"} | DRIVERS,
    "pure": FRAMEWORKS | DRIVERS,
    "storage": FRAMEWORKS,
    "beside": FRAMEWORKS,
    "repositories": FRAMEWORKS,
    "services": FRAMEWORKS | DRIVERS,
    "schemas": {"fastapi", "starlette"} | DRIVERS,
    "api": DRIVERS,
}
"""Layer -> the libraries that it may not know of."""

ROOTS = {"__init__", "app", "audit", "cli", "commands", "connections", "doctor"}
LONGEST = 350
ACCEPTED_LONGER = {"database.py": 395, "postgresql_url.py": 360, "settings.py": 385}
"""Files that are longer for now; they may not grow."""


def name_of(path: Path) -> str:
    """A file as its place in the house: ``api/roles.py``."""
    return str(path.relative_to(SOURCE))


def layer_of(path: Path) -> str:
    """The layer a file belongs to, '' for a composition root."""
    first, *rest = path.relative_to(SOURCE).with_suffix("").parts
    if first in ROOTS:
        return ""
    if rest:
        return first
    for layer, members in (("settings", SETTINGS), ("pure", PURE), ("storage", STORAGE),
                           ("beside", BESIDE), ("observed", OBSERVED)):  # fmt: skip
        if first in members:
            return layer
    return first


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name_of(path))


def imported(tree: ast.AST) -> Iterator[tuple[str, bool]]:
    """(top-level name, whether it is ours): for ours the module or folder inside the package."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, *inside = alias.name.split(".")
                yield (inside[0] if package == "authsvc" and inside else package,
                       package == "authsvc")  # fmt: skip
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            package, *inside = str(node.module).split(".")
            if package == "authsvc" and not inside:
                yield from ((alias.name, True) for alias in node.names)
            else:
                yield (inside[0] if package == "authsvc" else package), package == "authsvc"


def misplaced(path: Path, tree: ast.AST) -> list[str]:
    """The imports that a file's layer does not allow."""
    layer = layer_of(path)
    if not layer:
        return []
    if layer not in ALLOWED:
        return [f"{name_of(path)} belongs to no layer: give it one in tests/test_house.py"]
    wrong = []
    for name, ours in imported(tree):
        # One file reads and writes URLs in SQLAlchemy's own form; no session comes with that.
        if name == "sqlalchemy" and path.name == "postgresql_url.py":
            continue
        refused = name not in ALLOWED[layer] if ours else name in FOREIGN.get(layer, set())
        if refused:
            wrong.append(f"{name_of(path)} ({layer}) imports {name}")
    return wrong


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_layers_import_what_they_may(path: Path) -> None:
    assert misplaced(path, tree_of(path)) == []


@pytest.mark.parametrize(
    ("place", "line"),
    [
        ("services/roles.py", "from sqlalchemy import select"),
        ("services/roles.py", "from authsvc.schemas.names import RoleName"),
        ("repositories/roles.py", "from authsvc.services import roles"),
        ("repositories/roles.py", "import fastapi"),
        ("api/roles.py", "from authsvc.repositories.roles import Roles"),
        ("api/roles.py", "from sqlalchemy.ext.asyncio import AsyncSession"),
        ("schemas/names.py", "from authsvc import models"),
        ("decision.py", "from authsvc.database import Database"),
        ("decision.py", "import authsvc.database"),
        ("records.py", "from authsvc.errors import InputError"),
        ("errors.py", "from starlette.responses import Response"),
        ("database.py", "from authsvc import services"),
        ("utils.py", "import os"),
    ],
)
def test_layers_notice_a_wrong_import(place: str, line: str) -> None:
    assert misplaced(SOURCE / place, ast.parse(line)) != []


def test_nothing_imports_the_composition_roots() -> None:
    for path in FILES:
        names = {name for name, ours in imported(tree_of(path)) if ours}
        if layer_of(path):
            assert names.isdisjoint(ROOTS - {"__init__"}), name_of(path)
        assert "cli" not in names, name_of(path)


def test_only_the_database_commits() -> None:
    calls = [
        name_of(path)
        for path in FILES
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.Attribute) and node.attr in {"commit", "commit_prepared"}
    ]
    assert calls == ["database.py"]


def test_no_module_holds_an_engine_or_an_application() -> None:
    made = {"create_async_engine", "create_engine", "FastAPI", "Limiter", "Settings", "APIRouter"}
    for path in FILES:
        for node in tree_of(path).body:
            if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Call):
                called = ast.unparse(node.value.func).split(".")[-1]
                allowed = called == "APIRouter" and layer_of(path) == "api"
                assert called not in made or allowed, f"{name_of(path)}: {ast.unparse(node)}"


def test_middleware_is_plain_asgi() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            names = {alias.name for alias in node.names} if isinstance(node, ast.ImportFrom) else ()
            assert "BaseHTTPMiddleware" not in names, name_of(path)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                assert node.func.attr != "middleware", name_of(path)


METHODS = {"delete", "get", "head", "options", "patch", "post", "put", "api_route"}


def test_routes_and_dependencies_never_cost_a_thread() -> None:
    synchronous: dict[str, str] = {}
    used: list[str] = []
    for path in FILES:
        if layer_of(path) not in {"api", ""}:
            continue
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.FunctionDef):
                synchronous[node.name] = name_of(path)
                for decorator in node.decorator_list:
                    called = decorator.func if isinstance(decorator, ast.Call) else decorator
                    is_route = isinstance(called, ast.Attribute) and called.attr in METHODS
                    assert not is_route, f"{name_of(path)}: {node.name} is a sync route"
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Depends":
                used += [arg.id for arg in node.args if isinstance(arg, ast.Name)]
            elif isinstance(node, ast.ClassDef):
                for member in node.body:
                    if isinstance(member, ast.FunctionDef) and member.name == "__call__":
                        used.append(member.name)
    wrong = {name: synchronous[name] for name in used if name in synchronous}
    assert wrong == {}


def test_instants_have_a_time_zone() -> None:
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
                continue
            where = f"{name_of(path)}:{node.lineno}"
            assert node.func.attr not in {"utcnow", "utcfromtimestamp", "today"}, where
            if node.func.attr in {"now", "fromtimestamp"} and "datetime" in ast.unparse(node.func):
                wanted = 1 if node.func.attr == "now" else 2
                assert len(node.args) + len(node.keywords) >= wanted, where


def undocumented(tree: ast.Module) -> Iterator[str]:
    """Public functions, classes and their own methods without a docstring.

    A class with a base answers to that base's contract: its methods need none.
    """
    for node in tree.body:
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            continue
        if node.name.startswith("_"):
            continue
        if not ast.get_docstring(node):
            yield node.name
        if isinstance(node, ast.ClassDef) and not node.bases:
            for member in node.body:
                if (
                    isinstance(member, ast.FunctionDef | ast.AsyncFunctionDef)
                    and not member.name.startswith("_")
                    and not ast.get_docstring(member)
                ):
                    yield f"{node.name}.{member.name}"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_what_is_public_says_what_it_is(path: Path) -> None:
    tree = tree_of(path)
    assert not tree.body or ast.get_docstring(tree), "a file says what it is"
    if name_of(path) != "schemas/answers.py":
        assert list(undocumented(tree)) == []


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_files_stay_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= ACCEPTED_LONGER.get(name_of(path), LONGEST)


def test_no_file_is_named_after_nothing() -> None:
    names = {part for path in FILES for part in path.relative_to(SOURCE).with_suffix("").parts}
    assert names.isdisjoint({"utils", "helpers", "common", "core", "managers", "misc"})


def test_the_layers_know_the_standard_library_apart() -> None:
    """No module of ours hides one of Python's at the top of the package."""
    ours = {path.stem for path in FILES if path.parent == SOURCE}
    assert ours.isdisjoint(sys.stdlib_module_names)
