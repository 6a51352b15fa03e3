import random, pytest
from conftest import *
from test_repositories import *
from authsvc.decision_cache import DecisionCache
from authsvc.revision_gate import SqliteGate, PostgresGate
from authsvc.services.current_state import CurrentState
from authsvc.services.checks import check_now, explain_now
from authsvc.records import Stamp
@pytest.mark.parametrize("seed", range(4))
async def test_probe(tenant, storage, seed):
    clock=tenant.clock
    gate = SqliteGate(storage.path, clock) if storage.path else PostgresGate(lambda: connect_driver(storage.url), clock)
    cur = CurrentState(tenant.database, gate, DecisionCache(4))
    chance=random.Random(seed)
    await tenant.write(*(Change("add_role", role=n) for n in ROLES))
    for step in range(120):
        clock.advance(0.5)
        batch=[random_change(chance, clock()) for _ in range(chance.randint(1,3))]
        await accepted(tenant, batch)
        caller=await tenant.caller()
        for q in range(2):
            scope=chance.choice([None,"eu","EU"])
            users=chance.sample([*USERS,"nobody"],3)
            asked=[Question(u,p,scope) for u in users for p in PERMISSIONS]
            got, stamp = await check_now(cur, caller, asked, clock())
            why, stamp2 = await explain_now(cur, caller, asked, clock())
            async with tenant.database.read() as tx: pol=await stored_policy(tx, tenant.id)
            assert stamp==stamp2==caller.stamp
            exp=[pol.user_can(x.user,x.permission,x.scope,clock()) for x in asked]
            assert got==exp
            for a,b,c in zip(asked,why,exp): assert_explained(pol,a,b,c,clock())
    await gate.stop()
