"""Counting requests against their budgets: in memory, and with others through ``SharedCounts``.

Fixed windows that begin at whole multiples of their length, so that processes agree on them
without a word. Checks are counted in memory alone, because each would pay for a round trip; what
was counted is settled with the others ten times a second, so a budget of checks can be overshot by
what all processes let through in that time.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import TypeVar

from authsvc.rate_budgets import CHECK, Rate, Rates
from authsvc.shared_counts import SharedCounts

K = TypeVar("K")
V = TypeVar("V")
SETTLE_SECONDS = 0.1
_MOST_CELLS = 100_000


@dataclass(frozen=True, slots=True)
class Standing:
    """Where a subject stands in the window that is nearest to its end."""

    budget: str
    rate: Rate
    remaining: int
    """Below zero: this request is one too many."""
    ends_in: float

    @property
    def exceeded(self) -> bool:
        """Whether the request is to be refused."""
        return self.remaining < 0


class _Cell:
    """A window of one subject: when it ends, and what has been counted in it."""

    __slots__ = ("ends", "here", "own", "rate", "room", "settled")

    def __init__(self, rate: Rate) -> None:
        self.rate = rate
        self.ends = 0.0
        self.own = 0
        """By this process."""
        self.here = 0
        """By this process, and not settled yet."""
        self.settled = 0
        """By all processes, when that was last settled."""
        self.room = 0
        """What was left when that was last worked out, without what was counted since."""

    def enter(self, now: float) -> None:
        """Be in the window of now."""
        if now >= self.ends:
            seconds = self.rate.seconds
            self.ends = (now // seconds + 1) * seconds
            self.own = self.here = self.settled = 0

    def add(self, cost: int) -> None:
        """Count."""
        self.own += cost
        self.here += cost
        self.room -= cost


class RateLimits:
    """The budgets of one installation."""

    def __init__(
        self,
        budgets: Mapping[str, Rates],
        *,
        shared: SharedCounts | None = None,
        workers: int = 1,
        wall: Callable[[], float] = time.time,
    ) -> None:
        """``workers``: how many processes count, each for itself, while there is no ``shared``."""
        self._budgets = dict(budgets)
        self._check_rates = self._budgets.get(CHECK, ())
        self._shared = shared
        self._workers = workers
        self._wall = wall
        self._cells: dict[tuple[Hashable, ...], _Cell] = {}
        self._checks: dict[Hashable, list[_Cell]] = {}
        self._settling: asyncio.Task[None] | None = None

    def has(self, budget: str) -> bool:
        """Whether this budget is counted by itself."""
        return budget in self._budgets

    @property
    def reduced(self) -> str | None:
        """Why limits are not counted as they should be; None if they are."""
        if self._shared is not None and self._shared.missed:
            return "Rate limits are counted by each process alone: Redis does not answer"
        return None

    async def start(self) -> None:
        """Connect, and begin to settle."""
        if self._shared is not None:
            await self._shared.open()
            self._settling = asyncio.create_task(self._settle_forever())

    async def stop(self) -> None:
        """Let go of everything."""
        if self._settling is not None:
            self._settling.cancel()
            with suppress(asyncio.CancelledError):
                await self._settling
        if self._shared is not None:
            await self._shared.close()

    async def take(self, budget: str, subject: Hashable, cost: int = 1) -> Standing | None:
        """Count a request; None if it has no limit.

        What a short window refuses is not counted in the longer ones.
        """
        now = self._wall()
        nearest: Standing | None = None
        rates = self._budgets.get(budget, ())
        for position, rate in enumerate(rates):
            if budget == CHECK:
                left = self._take_here(self._check_cells(subject)[position], cost, now)
            else:
                left = await self._take_together(budget, subject, rate, cost, now)
            ends = (now // rate.seconds + 1) * rate.seconds
            standing = Standing(budget, rate, left, ends - now)
            if standing.exceeded:
                return standing
            if nearest is None or left < nearest.remaining:
                nearest = standing
        return nearest

    def take_check(self, subject: Hashable) -> bool:
        """Count a check if there is room for it; if not, nothing is counted."""
        if not self._check_rates:
            return True
        cells = self._checks.get(subject) or self._check_cells(subject)
        now = self._wall()
        for cell in cells:
            # Every check of all comes here: where there is known to be room, nothing is worked out.
            if (cell.room <= 0 or now >= cell.ends) and self._left(cell, now) <= 0:
                return False
        for cell in cells:
            cell.own += 1
            cell.here += 1
            cell.room -= 1
        return True

    def _left(self, cell: _Cell, now: float) -> int:
        """What is left of all processes' amount, or of this one's share while it counts alone."""
        cell.enter(now)
        if self._shared is not None and not self._shared.away:
            cell.room = cell.rate.amount - cell.here - cell.settled
        else:
            cell.room = max(1, cell.rate.amount // self._workers) - cell.own
        return cell.room

    def _check_cells(self, subject: Hashable) -> list[_Cell]:
        cells = self._checks.get(subject)
        if cells is None:
            if len(self._checks) >= _MOST_CELLS:
                now = self._wall()
                _forget(self._checks, lambda cells: all(cell.ends <= now for cell in cells))
            cells = self._checks[subject] = [_Cell(rate) for rate in self._check_rates]
        return cells

    def _take_here(self, cell: _Cell, cost: int, now: float) -> int:
        left = self._left(cell, now) - cost
        if left >= 0:
            cell.add(cost)
        return left

    async def _take_together(
        self, budget: str, subject: Hashable, rate: Rate, cost: int, now: float
    ) -> int:
        place = (budget, subject, rate.seconds)
        cell = self._cells.get(place)
        if self._shared is not None:
            # What was counted alone while Redis was away is told as soon as it is back.
            alone = cell.here if cell is not None and now < cell.ends else 0
            key = f"{budget}:{subject}:{rate.seconds}:{int(now // rate.seconds)}"
            count = await self._shared.add(key, rate.seconds, cost + alone)
            if count is not None:
                if cell is not None:
                    cell.here -= alone
                return rate.amount - count
            cell = self._cells.get(place)
        if cell is None:
            if len(self._cells) >= _MOST_CELLS:
                _forget(self._cells, lambda cell: cell.ends <= now)
            cell = self._cells[place] = _Cell(rate)
        return self._take_here(cell, cost, now)

    async def _settle_forever(self) -> None:
        while True:
            await asyncio.sleep(SETTLE_SECONDS)
            await self._settle()

    async def _settle(self) -> None:
        """Tell the others what was counted here, and learn what was counted there."""
        if self._shared is None:
            return
        counted = [(subject, cell) for subject, cells in self._checks.items() for cell in cells]
        for _, cell in counted:
            # Whether Redis answers may have changed, and with it what there is room for.
            cell.room = 0
        for subject, cell in counted:
            if not cell.here or self._wall() >= cell.ends:
                continue
            here, ends, rate = cell.here, cell.ends, cell.rate
            window = int(ends // rate.seconds) - 1
            key = f"{CHECK}:{subject}:{rate.seconds}:{window}"
            count = await self._shared.add(key, rate.seconds, here)
            if count is None:
                return
            if cell.ends == ends:
                cell.here -= here
                cell.settled = count
                cell.room = 0


def _forget(cells: dict[K, V], ended: Callable[[V], bool]) -> None:
    """Make room: what has ended goes, and if that is little, the older half with it."""
    for key in [key for key, cell in cells.items() if ended(cell)]:
        del cells[key]
    if len(cells) > _MOST_CELLS // 2:
        for key in list(cells)[: len(cells) // 2]:
            del cells[key]
