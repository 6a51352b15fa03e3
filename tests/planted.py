"""Builds with a guard taken out, to prove that the tests would notice."""

from __future__ import annotations

import sys
from types import ModuleType


def without(module: ModuleType, *replaced: tuple[str, str]) -> ModuleType:
    """A second copy of a module in which pieces of its text are replaced, each found just once."""
    source = module.__spec__.loader.get_source(module.__name__)  # type: ignore[union-attr]
    assert isinstance(source, str)
    for old, new in replaced:
        assert source.count(old) == 1, f"{old!r} stands {source.count(old)} times in {module}"
        source = source.replace(old, new)
    made = ModuleType(f"{module.__name__}_without")
    # Dataclasses look their module up by its name.
    sys.modules[made.__name__] = made
    try:
        exec(compile(source, made.__name__, "exec"), made.__dict__)
    finally:
        del sys.modules[made.__name__]
    return made
