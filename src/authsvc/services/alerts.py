"""Alerts while the service runs: new events are looked at every few seconds, by one process.

An alert is an activity event and, if there is a webhook, a message for it, in the transaction that
remembers how far the events have been looked at: each comes once, whoever dies meanwhile.
"""

from __future__ import annotations

import asyncio
from datetime import timedelta
from functools import partial
from uuid import UUID

import structlog

from authsvc.alert_rules import AlertRules
from authsvc.alerting import FAILED_AUTHENTICATION, Alert, evaluate
from authsvc.audit_chain import canonical
from authsvc.clock import Clock
from authsvc.database import Database, Transaction
from authsvc.encryption import KeyMissing, Unreadable
from authsvc.errors import AuthsvcError, Unavailable
from authsvc.records import Happening
from authsvc.repositories.activity import ActivityEvents
from authsvc.repositories.alerts import AlertSources, Behind
from authsvc.repositories.outgoing import Outgoing
from authsvc.repositories.single_flight import first_here
from authsvc.services.activity import WINDOW_SECONDS

log = structlog.get_logger("authsvc.alerts")

EVERY_SECONDS = 5.0
_TENANTS = 20
_EVENTS = 500
_ROW = timedelta(seconds=WINDOW_SECONDS)


class Alerts:
    """Looks at what happens by the rules that are set. ``raised`` counts alerts."""

    def __init__(
        self, database: Database, rules: AlertRules, clock: Clock, *, send: bool = False
    ) -> None:
        """``send``: put them down for the webhook as well."""
        self._database = database
        self._rules = rules
        self._clock = clock
        self._send = send
        self._task: asyncio.Task[None] | None = None
        self.problem: str | None = None
        self.raised = 0

    def start(self) -> None:
        """Look from now on until ``stop``."""
        self._task = asyncio.get_running_loop().create_task(self._go_on())

    async def stop(self) -> None:
        """Stop; what happens meanwhile is looked at by the next process."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
            self._task = None

    async def round(self) -> int:
        """Look at everything that is new; how many alerts that gave.

        Raises Unavailable; KeyMissing or Unreadable, if the events of some tenant do not open,
        after all others have been looked at.
        """
        count = 0
        refused: dict[UUID, Unavailable] = {}
        while True:
            look = partial(self._look, refused=refused)
            found, more = await self._database.write("alerts", look)
            for _, alert in found:
                log.warning("alert", rule=alert.rule, actor=alert.actor, address=alert.address)
            count += len(found)
            self.raised += len(found)
            if not more:
                break
        for error in refused.values():
            raise error
        return count

    async def _look(
        self, tx: Transaction, refused: dict[UUID, Unavailable]
    ) -> tuple[list[tuple[str | None, Alert]], bool]:
        """One portion: the alerts with the tenants' names, and whether there is more.

        Tenants in ``refused`` are passed over; those that cannot be looked at are put there.
        """
        if not await first_here(tx, "alerts"):
            tx.abandon()
            return [], False
        sources = AlertSources(tx)
        if await sources.begin(self._clock()):
            return [], False
        behind = await sources.behind(_TENANTS, refused)
        found: list[tuple[UUID | None, str | None, Alert]] = []
        for tenant in behind:
            try:
                alerts = await self._of_tenant(sources, tenant)
            except (KeyMissing, Unreadable) as error:
                refused[tenant.tenant_id] = error
                continue
            found += [(tenant.tenant_id, tenant.name, alert) for alert in alerts]
        found += [(None, None, alert) for alert in await self._of_addresses(sources)]
        if found:
            await self._tell(tx, found)
        elif not behind:
            tx.abandon()
        return [(name, alert) for _, name, alert in found], bool(behind)

    async def _of_tenant(self, sources: AlertSources, tenant: Behind) -> list[Alert]:
        events = await sources.events(tenant.tenant_id, tenant.watched, _EVENTS)
        if not events:
            # Pruned before anybody looked.
            await sources.set_watched(tenant.tenant_id, tenant.revision)
            return []
        first, before = events[0], []
        if (many := self._rules.many_grants) is not None:
            since = first.at - 2 * many.window
            before = await sources.giving_before(tenant.tenant_id, first.seq, since)
        actors = {event.actor for event in events}
        known = await sources.known_before(tenant.tenant_id, first.seq, actors)
        await sources.set_watched(tenant.tenant_id, events[-1].seq)
        return evaluate(self._rules, events, before, known)

    async def _of_addresses(self, sources: AlertSources) -> list[Alert]:
        threshold = self._rules.failed_authentication
        if threshold is None:
            return []
        now = self._clock()
        # A row is dated by the beginning of its ten seconds, and counts if any of them does.
        counts = await sources.failures(now - threshold.window - _ROW)
        over = {a: n for a, n in sorted(counts.items()) if n > threshold.more_than}
        if not over:
            return []
        told = await sources.alerted(FAILED_AUTHENTICATION, list(over), now - threshold.window)
        seconds = int(threshold.window.total_seconds())
        return [
            Alert(FAILED_AUTHENTICATION, now, None, address, {"count": n, "seconds": seconds})
            for address, n in over.items()
            if address not in told
        ]

    async def _tell(
        self, tx: Transaction, found: list[tuple[UUID | None, str | None, Alert]]
    ) -> None:
        now = self._clock()
        await ActivityEvents(tx).add(
            [
                Happening(
                    now, tenant_id, "alert", "rule", alert.rule, alert.actor, alert.address,
                    None, None, True, alert.details,
                )
                for tenant_id, _, alert in found
            ]
        )  # fmt: skip
        if not self._send:
            return
        outgoing = Outgoing(tx)
        for tenant_id, name, alert in found:
            message = {
                "type": "alert",
                "rule": alert.rule,
                "at": alert.at.isoformat(),
                "tenant": None if tenant_id is None else str(tenant_id),
                "tenant_name": name,
                "actor": alert.actor,
                "ip_address": alert.address,
                "details": alert.details,
            }
            await outgoing.put("alert", canonical(message), now, tenant_id)

    async def _go_on(self) -> None:
        while True:
            try:
                await self.round()
                self.problem = None
            except AuthsvcError as error:
                # Nothing is lost: the next round begins where this one did.
                self.problem = f"alerts wait: {error.message}"
                log.warning("alerts_delayed", reason=error.message)
            await asyncio.sleep(EVERY_SECONDS)
