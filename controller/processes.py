"""Worker processes of one core each.

Numerical libraries read how many threads they may start when they load, so that is said before the
processes are there. They are spawned, not forked: a fork of a process with threads may hang.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import get_context
from typing import Final, TypeVar

Task = TypeVar("Task")
Result = TypeVar("Result")

_THREADS: Final = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@contextmanager
def processes(workers: int) -> Iterator[ProcessPoolExecutor]:
    """So many processes, each on a core of its own; they end with the block."""
    before = {name: os.environ.get(name) for name in _THREADS}
    os.environ.update(dict.fromkeys(_THREADS, "1"))
    try:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            yield pool
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def mapped(work: Callable[[Task], Result], tasks: Sequence[Task], jobs: int) -> Iterator[Result]:
    """Each task's result, in order; jobs 0: one process a core; 1: this one."""
    if jobs == 1:
        yield from map(work, tasks)
        return
    with processes(jobs or os.cpu_count() or 1) as pool:
        yield from pool.map(work, tasks, chunksize=4)
