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
    """Kills something every `every_s` seconds on average, and starts it again as its supervisor would.

    In rounds: each kind once, in an order of chance, so that none is missing from a run of half a minute.
    """

    def __init__(self, platform: ChaosPlatform, line: Line, every_s: float, dice: random.Random) -> None:
        self._platform = platform
        self._line = line
        self._every_s = every_s
        self._dice = dice
        self._due: list[Kill] = []
        self.kills: Counter[Kill] = Counter()

    async def run(self) -> None:
        while True:
            await asyncio.sleep(self._dice.uniform(0.2, 1.8) * self._every_s)
            await self.once()

    async def once(self) -> None:
        """The next kind that is due; one that cannot be now is tried again after the others."""
        self._due = self._due or self._dice.sample(list(Kill), len(Kill))
        kill = self._due.pop(0)
        if await self._do(kill):
            self.kills[kill] += 1
        else:
            self._due.append(kill)

    async def _do(self, kill: Kill) -> bool:
        if kill is Kill.CUT:
            return self._line.cut(self._dice)
        if kill is Kill.SILENCE:
            return await self._line.silence(self._dice)
        if kill is Kill.WORKER:
            return self._kill_worker()
        unit = self._dice.choice(self._platform.units)
        await asyncio.to_thread(self._platform.restart, f"{unit}-{'agent' if kill is Kill.AGENT else 'service'}")
        return True

    def _kill_worker(self) -> bool:
        """Never the last one: then nobody listens, and every caller sees that in the same way."""
        pids = self._platform.worker_pids()
        if len(pids) < self._platform.workers:
            return False
        os.kill(self._dice.choice(pids), signal.SIGKILL)
        return True
