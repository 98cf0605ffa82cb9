"""The road between a site and the centre: a relay of TCP connections that delays, stalls, resets or is cut.

It stands in for ``tc netem`` where the kernel has no such discipline. What TCP makes of loss is done to the stream: a
lost segment holds up everything behind it for a retransmission timeout, which is what an application sees of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import threading
from collections.abc import Coroutine
from dataclasses import dataclass
from typing import Any, Final, Self

__all__ = ["Road", "Weather"]

_SEGMENT: Final = 1448
"""Bytes of one segment on an Ethernet path."""
_START_S: Final = 10.0


@dataclass(frozen=True, slots=True)
class Weather:
    """What happens on the road.

    Attributes:
        delay_s: from end to end, each way.
        loss: probability that a segment is lost and sent again.
        resets: probability that a connection is reset in place of a loss.
    """

    delay_s: float = 0.0
    loss: float = 0.0
    resets: float = 0.0

    @property
    def again_s(self) -> float:
        """How long a lost segment takes to come the second time: a round trip, and 200 ms, Linux's least timeout."""
        return 2 * self.delay_s + 0.2


class Road:
    """A relay on a free loopback port, in a thread of its own, as a context manager.

    Args:
        weather: what happens to every connection.
        seed: of the losses; they are drawn for each connection apart, in the order in which connections come.
    """

    def __init__(self, weather: Weather, *, seed: int = 1) -> None:
        self._weather, self._draw = weather, random.Random(seed)  # noqa: S311  (a plan, no secret)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="road", daemon=True)
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._cut = False
        self._target = ("", 0)
        self.segments = self.lost = self.connections = self.refused = self.reset = 0

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._await(self._leave())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def to(self, address: str) -> str:
        """Lead to ``host:port`` from now on; return the host:port where the road begins."""
        host, _, port = address.rpartition(":")
        self._target = (host, int(port))
        self._server = self._await(self._listen())
        return f"127.0.0.1:{self._server.sockets[0].getsockname()[1]}"

    def cut(self) -> None:
        """End every connection and let none through."""
        self._cut = True
        self._await(self._drop())

    def mend(self) -> None:
        """Let connections through again."""
        self._cut = False

    def _await(self, work: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(_START_S)

    async def _listen(self) -> asyncio.Server:
        return await asyncio.start_server(self._answer, "127.0.0.1", 0)

    async def _drop(self) -> None:
        for writer in self._open:
            writer.transport.abort()

    async def _leave(self) -> None:
        self._server.close()
        await self._drop()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        self.connections += 1
        if self._cut:
            self.refused += 1
            writer.transport.abort()
            return
        draw = random.Random(self._draw.random())  # noqa: S311
        with contextlib.suppress(OSError, asyncio.CancelledError):
            upstream, sink = await asyncio.open_connection(*self._target)
            ends = {writer, sink}
            self._open |= ends
            try:
                await asyncio.gather(self._pump(reader, sink, draw), self._pump(upstream, writer, draw))
            finally:
                self._open -= ends
                for end in ends:
                    end.transport.abort()

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, draw: random.Random) -> None:
        """Carry bytes one way: each arrives `delay_s` after it left, and none before those ahead of it."""
        queue: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()
        async with asyncio.TaskGroup() as both:
            both.create_task(self._receive(source, queue, draw))
            both.create_task(self._deliver(sink, queue))

    async def _receive(
        self, source: asyncio.StreamReader, queue: asyncio.Queue[tuple[float, bytes]], draw: random.Random
    ) -> None:
        free, data = 0.0, b"-"
        while data:
            try:
                data = await source.read(65536)
            except OSError:
                data = b""
            due = self._loop.time() + self._weather.delay_s
            for _ in range(0, max(1, len(data)), _SEGMENT):
                self.segments += 1
                if data and draw.random() < self._weather.loss:
                    self.lost += 1
                    due += self._weather.again_s
                    if draw.random() < self._weather.resets:
                        self.reset += 1
                        data = b""
            free = max(free, due)
            queue.put_nowait((free, data))

    async def _deliver(self, sink: asyncio.StreamWriter, queue: asyncio.Queue[tuple[float, bytes]]) -> None:
        while True:
            due, data = await queue.get()
            await asyncio.sleep(max(0.0, due - self._loop.time()))
            if not data:
                sink.close()
                return
            sink.write(data)
            with contextlib.suppress(OSError):
                await sink.drain()
