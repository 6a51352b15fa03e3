"""docs/attacks.md names tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

TESTS = Path(__file__).parent
PAGE = (TESTS.parent / "docs" / "attacks.md").read_text()


def test_every_attack_has_its_test() -> None:
    rows = re.findall(r"^\| (\d+)(?: to (\d+))? \|", PAGE, re.MULTILINE)
    numbers = {n for first, last in rows for n in range(int(first), int(last or first) + 1)}
    assert numbers == set(range(1, 42)) | {47, 48, 49}
    named = re.findall(r"`(test_\w+)\.(test_\w+)`", PAGE)
    assert len(named) > 50
    for module, test in named:
        text = (TESTS / f"{module}.py").read_text()
        assert re.search(rf"def {test}\(", text), f"{module}.{test}"
