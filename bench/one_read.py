"""How long one prepared primary-key read of PostgreSQL takes; milliseconds, the median.

python bench/one_read.py URL CORE TENANT_ID
"""

from __future__ import annotations

import os
import sys
import time
from statistics import median
from uuid import UUID

import asyncpg
import uvloop

_READS = 2000


async def read(url: str, tenant_id: UUID) -> float:
    """The median of many reads one after the other, as the only client."""
    connection = await asyncpg.connect(url)
    statement = await connection.prepare(
        "SELECT revision, head FROM tenant_head WHERE tenant_id = $1"
    )
    taken = []
    for _ in range(_READS):
        began = time.perf_counter()
        await statement.fetch(tenant_id)
        taken.append(time.perf_counter() - began)
    await connection.close()
    return median(taken) * 1e3


if __name__ == "__main__":
    os.sched_setaffinity(0, {int(sys.argv[2])})
    print(uvloop.run(read(sys.argv[1], UUID(sys.argv[3]))))
