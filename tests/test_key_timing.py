"""How long a refusal takes tells nothing of which keys exist. Long, and so left to the campaign."""

from __future__ import annotations

import random
import time
from bisect import bisect_left, bisect_right

import pytest

from authsvc.credentials import new_client_key
from http_api import Api, bearer

pytest_plugins = ["http_fixtures"]

SAMPLES = 20_000


def delta(one: list[float], other: list[float]) -> float:
    """Cliff's delta: 0 where neither tends to be larger, 1 or -1 where one always is."""
    ordered = sorted(other)
    total = sum(
        bisect_left(ordered, value) - (len(ordered) - bisect_right(ordered, value)) for value in one
    )
    return total / (len(one) * len(other))


def test_the_measure_tells_a_difference() -> None:
    near = [random.Random(1).gauss(1.0, 0.1) for _ in range(2000)]
    assert delta(near, near) == 0
    assert delta([value + 1 for value in near], near) == 1
    assert delta(near, [value + 1 for value in near]) == -1


@pytest.mark.campaign
@pytest.mark.timeout(1200)
async def test_time_tells_nothing_of_keys(api: Api) -> None:
    """Keys that nobody has, half of them with the beginning of one that exists."""
    exists = api.key or ""
    taken: dict[bool, list[float]] = {True: [], False: []}
    order = [sharing for sharing in taken for _ in range(SAMPLES)]
    random.Random(1).shuffle(order)
    for sharing in order:
        fresh = new_client_key()
        headers = bearer(exists[:-4] + fresh[-4:] if sharing else fresh)
        began = time.perf_counter()
        response = await api.http.get("/api/roles", headers=headers)
        taken[sharing].append(time.perf_counter() - began)
        assert response.status_code == 401
    found = delta(taken[True], taken[False])
    assert abs(found) < 0.05, f"Cliff's delta is {found:.3f}"
