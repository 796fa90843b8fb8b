"""What can be killed, and who does it."""

from __future__ import annotations

import asyncio
import enum
import os
import random
import signal
from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from loadtests.chaos.line import Line
    from loadtests.chaos.rig import ChaosPlatform


class Kill(enum.Enum):
    AGENT = "agent"
    WORKER = "worker"
    SERVICE = "local service"
    CUT = "socket cut"
    SILENCE = "socket silent, then cut"


class Killer:
    """Kills something every `every_s` seconds on average, and starts it again as its supervisor would."""

    def __init__(self, platform: ChaosPlatform, line: Line, every_s: float, dice: random.Random) -> None:
        self._platform = platform
        self._line = line
        self._every_s = every_s
        self._dice = dice
        self.kills: Counter[Kill] = Counter()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.2, 1.8) * self._every_s)
            killed = await self._once()
            if killed is not None:
                self.kills[killed] += 1

    async def _once(self) -> Kill | None:
        what = self._dice.choice(["line", "line", "agent", "worker", "service"])
        if what == "line":
            return await self._line.hurt(self._dice)
        if what == "worker":
            return self._kill_worker()
        unit = self._dice.choice(self._platform.units)
        await asyncio.to_thread(self._platform.restart, f"{unit}-{what}")
        return Kill.AGENT if what == "agent" else Kill.SERVICE

    def _kill_worker(self) -> Kill | None:
        """Never the last one: then nobody listens, and every caller sees that in the same way."""
        pids = self._platform.worker_pids()
        if len(pids) < self._platform.workers:
            return None
        os.kill(self._dice.choice(pids), signal.SIGKILL)
        return Kill.WORKER
