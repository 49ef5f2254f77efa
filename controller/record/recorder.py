"""The only writer of a run: facts and frames in one order, on one thread.

The search posts facts and goes on; the journal follows within milliseconds. The order on the disk
is the order of posting, and a frame's `Saved` is written only after its pixels are: so what the
journal says is true at every instant, also at the instant of a `kill -9`.

The queue of frames is bounded: when the disk cannot keep up, `save` waits, the search waits with
it, and nothing is dropped. A write that fails (disk full, folder gone) ends `run` with its error;
what was acknowledged stays.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass

from controller.messages import Exposed, Fact, Point, Saved
from controller.record.frames import FrameStore
from controller.record.journal import Journal
from drivers.api import Frame

MAX_FRAMES = 6  # 40 MB of 1920 x 1200 RGB


@dataclass(frozen=True, slots=True, eq=False)
class _Picture:
    exposed: Exposed
    frame: Frame
    centre_um: Point


class Recorder:
    """Feed it with `post` and `save` while `run` runs in the same task group."""

    def __init__(
        self, learn: Callable[[Fact], None], journal: Journal, frames: FrameStore, thread: Executor
    ) -> None:
        """learn: told every fact at once; thread: an executor with one worker, ours alone."""
        self._learn = learn
        self._journal = journal
        self._frames = frames
        self._thread = thread
        self._queue: asyncio.Queue[Fact | _Picture | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(MAX_FRAMES)
        self._is_broken = False  # the disk refused; what is still queued would be refused too
        self.stalled_s = 0.0  # time that `save` had to wait for room

    def post(self, fact: Fact) -> None:
        """Make a fact known now, and durable soon."""
        self._learn(fact)
        self._queue.put_nowait(fact)

    async def save(self, exposed: Exposed, frame: Frame, centre_um: Point) -> None:
        """Post `exposed` and have the frame written; waits only when the disk is behind.

        centre_um: the sample point in the middle of the image.
        """
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        await self._room.acquire()
        self.stalled_s += loop.time() - began_s
        self.post(exposed)
        self._queue.put_nowait(_Picture(exposed, frame, centre_um))

    async def run(self) -> None:
        """Write until `close`; raises DiskFull or BadRecord when the disk refuses."""
        loop = asyncio.get_running_loop()
        is_open = True
        while is_open:
            batch = [await self._queue.get()]
            while not self._queue.empty():
                batch.append(self._queue.get_nowait())
            items = [item for item in batch if item is not None]
            is_open = len(items) == len(batch)
            for saved in await loop.run_in_executor(self._thread, self._write, items):
                self._learn(saved)
                self._room.release()
            for _ in batch:
                self._queue.task_done()

    async def flush(self) -> None:
        """Return when all that was posted so far is on the disk."""
        await self._queue.join()

    def write_rest(self) -> None:
        """After `run` was broken off and the thread is idle: write what is queued, here and now.

        Raises DiskFull or BadRecord; does nothing when that is what broke `run` off.
        """
        items = []
        while not self._queue.empty():
            item = self._queue.get_nowait()
            if item is not None:
                items.append(item)
        if not self._is_broken:
            self._write(items)

    def close(self) -> None:
        """Let `run` end when it has written what is queued."""
        self._queue.put_nowait(None)

    def _write(self, items: list[Fact | _Picture]) -> list[Saved]:
        try:
            return self._written(items)
        except BaseException:
            self._is_broken = True
            raise

    def _written(self, items: list[Fact | _Picture]) -> list[Saved]:
        """On the writer's thread: in order, facts that follow one another in one transaction."""
        facts: list[Fact] = []
        done: list[Saved] = []
        for item in items:
            if not isinstance(item, _Picture):
                facts.append(item)
                continue
            self._journal.append(facts)
            facts.clear()
            exposed = item.exposed
            path, checksum = self._frames.save(
                exposed.shot, exposed.index, item.frame, centre_um=item.centre_um
            )
            saved = Saved(exposed.shot, exposed.index, path, checksum)
            self._journal.append([saved])
            done.append(saved)
        self._journal.append(facts)
        return done
