"""Threads that work on shares of a batch side by side.

At the sizes of one CPU training step, an operation that is split over two threads gains little (many operations are too small to split, and every one of them waits
for the slower half), while two halves of the batch, each on a thread of its own, hardly wait for each other. Shares are independent until their results are added
up, which the caller does in order, so results depend on the number of workers alone, never on which of them was faster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

Item = TypeVar("Item")
Result = TypeVar("Result")


class Crew:
    """A fixed number of worker threads, each with its own number of threads inside an operation.

    One worker is the calling thread itself. Use as a context manager; gradient mode is a thread's own, so what is given to `map` sets it.

    Args:
        workers: Threads that work side by side, at least 1.
        threads_each: Threads inside an operation of one worker, at least 1.
    """

    def __init__(self, workers: int, threads_each: int = 1) -> None:
        self.workers = workers
        self._threads_each = threads_each
        self._pool: ThreadPoolExecutor | None = None

    def __enter__(self) -> Crew:
        if self.workers > 1:
            self._pool = ThreadPoolExecutor(self.workers, "lorabel-crew", torch.set_num_threads, (self._threads_each,))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
            self._pool = None

    def map(self, work: Callable[[Item], Result], items: Iterable[Item]) -> Iterator[Result]:
        """Results in the order of the items; only a few items are begun ahead of the result that is waited for.

        Args:
            work: What is done with an item; runs on a worker's thread.
            items: The shares.

        Raises:
            Exception: Whatever `work` raised, when its result's turn comes.
        """
        if self._pool is None:
            yield from map(work, items)
            return
        begun: deque[Future[Result]] = deque()
        try:
            for item in items:
                begun.append(self._pool.submit(work, item))
                if len(begun) > 2 * self.workers:
                    yield begun.popleft().result()
            while begun:
                yield begun.popleft().result()
        finally:
            for future in begun:
                future.cancel()


def crew_for_rows(rows: int, device: torch.device, rows_each: int) -> Crew:
    """A crew for batches of a number of rows on a device: one worker off the CPU, and never so many that a share falls below `rows_each` rows.

    Args:
        rows: Rows of a batch.
        device: Where the batches are computed.
        rows_each: Least rows of a worker's share.
    """
    threads = torch.get_num_threads() if device.type == "cpu" else 1
    workers = max(count for count in range(1, threads + 1) if threads % count == 0 and (count == 1 or rows >= count * rows_each))
    return Crew(workers, threads // workers)


def deal(lengths: NDArray[np.int64], workers: int) -> list[NDArray[np.int64]]:
    """Deal rows out so that every worker gets about as many tokens.

    Args:
        lengths: Tokens per row (B,).
        workers: Number of shares.

    Returns:
        The places of each share's rows in `lengths`, ascending; no share is empty.
    """
    order = np.argsort(lengths, kind="stable")
    return [np.sort(order[first::workers]) for first in range(min(workers, len(order)))]
