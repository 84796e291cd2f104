"""Threads that each do whole pieces of work in torch, instead of sharing every operation among them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager


@contextmanager
def one_thread_each(enter: Callable[[], object] = lambda: None) -> Iterator[ThreadPoolExecutor]:
    """A pool of as many threads as torch uses, in which every operation of torch runs on its caller's thread alone.

    Threads inside an operation wait for each other at its end, thousands of times in a forward or a ranking; on a
    machine that is not idle that takes several times as long. `enter` is called first in each thread. Leaving the
    context drops the work that has not begun.
    """
    import torch

    threads = torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(1)
        enter()

    pool = ThreadPoolExecutor(threads, initializer=begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
        torch.set_num_threads(threads)  # the setting is each thread's own, but new threads start with the last one
