"""An event loop whose clock jumps, so that an hour at the microscope takes a minute at the desk.

The controller runs unchanged: it calls `loop.time()`, `asyncio.sleep` and `loop.run_in_executor`
and never imports this file. The composition root chooses the clock once,
`asyncio.Runner(loop_factory=VirtualTimeLoop)` or the ordinary loop; nobody else can tell.

What costs how much on the virtual clock:

- Waiting for the instrument (`asyncio.sleep`, timers) costs what it says and takes no real time:
  when nothing is ready, the clock jumps to the next timer.
- Python on the loop's own thread costs its wall time: the clock runs on with `perf_counter`.
- A job given to `run_in_executor` costs its measured wall time. It starts when it was submitted or
  when a worker of that executor becomes free on the virtual clock, whichever is later, and its
  result is delivered at that start plus its duration, not sooner. While it runs the clock may only
  advance as far as the job has certainly not ended, so a timer that falls inside it fires inside it
  and a 3 s move beside a 50 ms computation ends at 3 s.
- Rendering costs nothing: a real microscope does not render. `run_free` (a thread) and `rendering`
  (on the spot) hold the clock while the simulator draws; `run_free` hands the picture over when it
  is due. Meanwhile the loop's thread stands still: beside a renderer its Python would wait for
  cores and for the interpreter's lock, and be charged for it. Jobs that run already go on.

With `charges_compute=False` neither own Python nor jobs cost anything and results arrive in the
order of submission: then a seeded run is the same to the last bit, whatever the machine does. Jobs
must not wait for the loop, nor the loop for the clock without sleeping.

Limits: sockets and foreign threads wake the loop as usual (`call_soon_threadsafe`), but the loop
cannot know that they are about to, so it does not wait for them when a timer is pending. Wire
emulators run on the ordinary loop. Jobs in a process pool are charged from submission to result.

The rule is that of conservative discrete-event simulation: never advance past the earliest moment
at which something that is still being computed could have an effect (K. M. Chandy, J. Misra, IEEE
Trans. Softw. Eng. SE-5, 440 (1979)).
"""

from __future__ import annotations

import asyncio
import math
import selectors
import sys
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass
from heapq import heapreplace
from typing import Any, TypeVar, TypeVarTuple

T = TypeVar("T")
Args = TypeVarTuple("Args")

_NS_PER_S = 1_000_000_000
# A blocked wait is cut into pieces: on Windows select() does not return for Ctrl-C by itself.
_LONGEST_BLOCK_NS = 250_000_000
_SHORTEST_BLOCK_NS = 50_000


@dataclass(slots=True, eq=False)
class _Job:
    """One executor job under way; `started_ns` and `ended_ns` are written by the worker thread."""

    workers: list[int]  # heap: the virtual moments at which the executor's workers become free
    submitted_ns: int  # virtual
    started_ns: int | None = None  # real; None: still queued
    ended_ns: int | None = None  # real; None: still running

    def earliest_end_ns(self, real_ns: int) -> int:
        """The virtual moment before which the job has certainly not ended."""
        begin_ns = max(self.submitted_ns, self.workers[0])
        if self.started_ns is None:
            return begin_ns
        ended_ns = real_ns if self.ended_ns is None else self.ended_ns
        return begin_ns + ended_ns - self.started_ns


@dataclass(slots=True, eq=False)
class _Drawing:
    """Something that costs no time is being computed; the loop stands still meanwhile."""

    result: Future[Any]
    due_ns: int  # virtual
    outer: asyncio.Future[Any]


class _AskingSelector(selectors.DefaultSelector):
    """The platform's selector, asking the clock before it waits."""

    stand_still: Callable[[], bool]
    before_wait: Callable[[float | None], float | None]  # timeout -> what to block for; 0: don't
    after_wait: Callable[[], None]

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Return what is ready; let the clock jump instead of waiting for a timer."""
        if self.stand_still():
            return super().select(0)
        events = super().select(0)
        if events or (timeout is not None and timeout <= 0):
            return events
        block_s = self.before_wait(timeout)
        if block_s is not None and block_s <= 0:
            return events
        try:
            return super().select(block_s)
        finally:
            self.after_wait()


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop that skips the waiting; the module's text says what costs how much.

    `time()` is the instrument's time in seconds, starting near 0.
    charges_compute: whether own Python and executor jobs cost their wall time, or nothing.
    """

    def __init__(self, *, charges_compute: bool = True) -> None:
        self._charges_compute = charges_compute
        self._offset_ns = 0
        self._offset_ns = -self._real_ns()
        self._held_from_ns: int | None = None  # real; None: the clock runs
        self._jobs: set[_Job] = set()
        self._drawings: list[_Drawing] = []  # in the order of submission
        self._workers: weakref.WeakKeyDictionary[Executor, list[int]] = weakref.WeakKeyDictionary()
        self._default_workers: list[int] = []
        selector = _AskingSelector()
        selector.stand_still = self._stand_still
        selector.before_wait = self._jump_or_hold
        selector.after_wait = self._release_clock
        super().__init__(selector)
        # asyncio fires timers early by this much; on Windows its own value is 16 ms.
        self._clock_resolution = 1e-9
        if not charges_compute:
            self.set_default_executor(ThreadPoolExecutor(thread_name_prefix="asyncio"))

    def time(self) -> float:
        """Seconds on the instrument's clock; never goes back."""
        return self._now_ns() / _NS_PER_S

    def run_in_executor(
        self,
        executor: Executor | None,
        func: Callable[[*Args], T],
        *args: *Args,
    ) -> asyncio.Future[T]:
        """Run `func` in a worker; its result arrives after its own wall time on this clock."""
        if not self._charges_compute:
            pool = getattr(self, "_default_executor", None) if executor is None else executor
            if isinstance(pool, ThreadPoolExecutor):
                return self.run_free(pool, func, *args)
        job = _Job(workers=[], submitted_ns=self._now_ns())

        def timed() -> T:
            job.started_ns = time.perf_counter_ns()
            try:
                return func(*args)
            finally:
                job.ended_ns = time.perf_counter_ns()

        if executor is None or isinstance(executor, ThreadPoolExecutor):
            inner = super().run_in_executor(executor, timed)
        else:  # a closure does not travel to another process: the queue's time is charged as well
            job.started_ns = time.perf_counter_ns()
            inner = super().run_in_executor(executor, func, *args)
        job.workers = self._workers_of(executor)
        self._jobs.add(job)
        outer: asyncio.Future[T] = self.create_future()

        def ended(inner: asyncio.Future[T]) -> None:
            self._jobs.discard(job)
            end_ns = job.submitted_ns
            if job.started_ns is not None and not inner.cancelled():
                end_ns = job.earliest_end_ns(time.perf_counter_ns())
                heapreplace(job.workers, end_ns)
            self._deliver(inner, outer, end_ns)

        def abandoned(outer: asyncio.Future[T]) -> None:
            # A job that runs cannot be stopped: it keeps its worker and holds the clock to its end.
            if outer.cancelled() and job.started_ns is None:
                inner.cancel()

        inner.add_done_callback(ended)
        outer.add_done_callback(abandoned)
        return outer

    def run_free(
        self,
        executor: ThreadPoolExecutor,
        func: Callable[[*Args], T],
        *args: *Args,
        due_s: float | None = None,
    ) -> asyncio.Future[T]:
        """Run `func` in a worker at no cost; the result arrives at `due_s` (None: at once)."""
        now_ns = self._now_ns()
        due_ns = now_ns if due_s is None else max(now_ns, math.ceil(due_s * _NS_PER_S))
        outer: asyncio.Future[T] = self.create_future()
        self._drawings.append(_Drawing(executor.submit(func, *args), due_ns, outer))
        return outer

    async def shutdown_default_executor(self, timeout: float | None = None) -> None:
        """As asyncio's, whose thread the clock would not see and whose deadline it would jump to.

        timeout: in seconds, known to Python 3.12 and later only.
        """
        job = _Job(self._default_workers or [0], self._now_ns(), time.perf_counter_ns())
        self._jobs.add(job)
        try:
            if sys.version_info >= (3, 12):
                await super().shutdown_default_executor(timeout)
            else:
                await super().shutdown_default_executor()
        finally:
            self._jobs.discard(job)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Hold the clock while the body runs on the loop's own thread."""
        if self._held_from_ns is not None:  # nested: the outermost one decides
            yield
            return
        self._hold_clock()
        try:
            yield
        finally:
            self._release_clock()

    def _now_ns(self) -> int:
        held_from_ns = self._held_from_ns
        return (self._real_ns() if held_from_ns is None else held_from_ns) + self._offset_ns

    def _real_ns(self) -> int:
        """What the clock runs on with while nothing holds it."""
        return time.perf_counter_ns() if self._charges_compute else 0

    def _hold_clock(self) -> None:
        self._held_from_ns = self._real_ns()

    def _release_clock(self) -> None:
        if self._held_from_ns is not None:
            self._offset_ns -= self._real_ns() - self._held_from_ns
            self._held_from_ns = None

    def _workers_of(self, executor: Executor | None) -> list[int]:
        if executor is None:
            if not self._default_workers:
                pool = getattr(self, "_default_executor", None)
                self._default_workers = [0] * getattr(pool, "_max_workers", 1)
            return self._default_workers
        workers = self._workers.get(executor)
        if workers is None:
            workers = [0] * getattr(executor, "_max_workers", 1)
            self._workers[executor] = workers
        return workers

    def _deliver(
        self,
        inner: asyncio.Future[T] | Future[T],
        outer: asyncio.Future[T],
        at_ns: int,
    ) -> None:
        """Pass the outcome on at the virtual moment `at_ns`, or now if that has passed."""

        def pass_on() -> None:
            error = None if inner.cancelled() else inner.exception()
            if outer.done():
                return
            if inner.cancelled():
                outer.cancel()
            elif error is not None:
                outer.set_exception(error)
            else:
                outer.set_result(inner.result())

        if outer.done() or at_ns <= self._now_ns():
            pass_on()
        else:
            self.call_at(at_ns / _NS_PER_S, pass_on)

    def _stand_still(self) -> bool:
        """Wait while something is drawn and deliver what is done; False: nothing is drawn."""
        if not self._drawings:
            return False
        self._hold_clock()
        try:
            wait([each.result for each in self._drawings], timeout=_LONGEST_BLOCK_NS / _NS_PER_S)
        finally:
            self._release_clock()
        drawings, self._drawings = self._drawings, []
        for drawing in drawings:
            if drawing.result.done():
                self._deliver(drawing.result, drawing.outer, drawing.due_ns)
            else:
                self._drawings.append(drawing)
        return True

    def _jump_or_hold(self, timeout_s: float | None) -> float | None:
        """Jump to the next timer (0), or say for how long to block in real time (None: for ever).

        Only called when nothing is ready. If it says to block because something is being computed,
        the clock is held until `_release_clock`.
        """
        if not self._jobs:
            if timeout_s is None:
                return None
            self._offset_ns += math.ceil(timeout_s * _NS_PER_S)
            return 0.0
        now_ns, real_ns = self._now_ns(), time.perf_counter_ns()
        wanted_ns = None if timeout_s is None else math.ceil(timeout_s * _NS_PER_S)
        # Bounds that grow by themselves (running jobs), and those that wait for something to end.
        growing_ns: list[int] = []
        fixed_ns: list[int] = []
        queued: list[_Job] = []
        busy: Counter[int] = Counter()  # workers at work, by executor
        for job in self._jobs:
            if job.started_ns is None:
                queued.append(job)
                continue
            busy[id(job.workers)] += 1
            bounds_ns = growing_ns if job.ended_ns is None else fixed_ns
            bounds_ns.append(job.earliest_end_ns(real_ns))
        fixed_ns += [
            job.submitted_ns for job in queued if busy[id(job.workers)] < len(job.workers)
        ]  # the others cannot begin before one of the busy workers has ended
        room_ns = min(growing_ns + fixed_ns) - now_ns
        if wanted_ns is not None and wanted_ns <= room_ns:
            self._offset_ns += wanted_ns
            return 0.0
        block_ns = _LONGEST_BLOCK_NS
        if wanted_ns is not None and min(fixed_ns, default=math.inf) >= now_ns + wanted_ns:
            block_ns = max(_SHORTEST_BLOCK_NS, min(block_ns, wanted_ns - room_ns))
        self._hold_clock()
        return block_ns / _NS_PER_S


async def run_free(
    executor: ThreadPoolExecutor,
    func: Callable[[*Args], T],
    *args: *Args,
    due_s: float | None = None,
) -> T:
    """Run `func` in a worker of `executor`, at no cost where the clock is virtual.

    Returns at `due_s` on the running loop's clock (None: as soon as it is done); on an ordinary
    loop that takes the longer of both, because there drawing takes what it takes.
    """
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        return await loop.run_free(executor, func, *args, due_s=due_s)
    result = await loop.run_in_executor(executor, func, *args)
    if due_s is not None:
        await asyncio.sleep(max(0.0, due_s - loop.time()))
    return result


@contextmanager
def rendering() -> Iterator[None]:
    """Whatever the body computes on the loop's thread costs no time where the clock is virtual."""
    loop = asyncio.get_running_loop()
    if isinstance(loop, VirtualTimeLoop):
        with loop.held():
            yield
    else:
        yield
