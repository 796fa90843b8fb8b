"""The network between agents and gateway: a TCP relay whose connections can be cut, or fall silent before they are."""

from __future__ import annotations

import asyncio
import random


class Line:
    """Holds: the connections that are up. Use it inside a running loop."""

    def __init__(self, to_port: int) -> None:
        self._to_port = to_port
        self._pairs: list[Pair] = []
        self._server: asyncio.Server | None = None

    async def start(self) -> int:
        """Listen; the port."""
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        return int(self._server.sockets[0].getsockname()[1])

    async def stop(self) -> None:
        if self._server is not None:
            self._server.close()
        while self._pairs:
            for pair in self._pairs:
                pair.cut()
            await asyncio.sleep(0.05)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._to_port)
        except OSError:
            writer.close()
            return
        pair = Pair(writer, far_writer)
        self._pairs.append(pair)
        await asyncio.gather(pair.copy(reader, far_writer), pair.copy(far_reader, writer))
        self._pairs.remove(pair)

    def cut(self, dice: random.Random) -> bool:
        """End a connection at random; False if there is none."""
        if not self._pairs:
            return False
        dice.choice(self._pairs).cut()
        return True

    async def silence(self, dice: random.Random) -> bool:
        """A connection at random carries nothing for a while and is cut then; False if there is none."""
        if not self._pairs:
            return False
        pair = dice.choice(self._pairs)
        pair.flows.clear()
        await asyncio.sleep(dice.uniform(0.2, 2.5))
        pair.cut()
        return True


class Pair:
    """One agent's connection and its other half. `flows` is cleared while nothing is carried."""

    def __init__(self, near: asyncio.StreamWriter, far: asyncio.StreamWriter) -> None:
        self._writers = (near, far)
        self.flows = asyncio.Event()
        self.flows.set()

    async def copy(self, source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(65_536):
                await self.flows.wait()
                target.write(data)
                await target.drain()
        except OSError:
            pass
        self.cut()

    def cut(self) -> None:
        """RST to both ends: what was on its way is lost."""
        self.flows.set()
        for writer in self._writers:
            writer.transport.abort()
