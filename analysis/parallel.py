"""Work on many matrices: several at a time, each by one thread."""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from relora_lab.errors import require

Item = TypeVar("Item")
Result = TypeVar("Result")


def each(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    workers: int | None = None,
    progress: str = "",
    unit: str = "matrix",
) -> list[Result]:
    """function(item) of all items, in their order, by `workers` threads (default: as many as there are cores).

    torch and numpy leave Python's lock while they compute; BLAS has one thread meanwhile. `progress` names a bar
    that is shown if it takes longer than a second.
    """
    require(workers is None or workers >= 1, f"--workers: must be ≥ 1 (got {workers})")
    workers = max(1, min(len(items), workers or len(os.sched_getaffinity(0))))
    with _one_thread(), ThreadPoolExecutor(workers) as pool:
        found = pool.map(function, items) if workers > 1 else map(function, items)
        bar = tqdm(found, desc=progress, total=len(items), unit=unit, disable=not progress, delay=1, leave=False)
        try:
            return list(bar)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@cache  # to find them takes as long as a small matrix
def _libraries() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with _libraries().limit(limits=1):
            yield
    finally:
        torch.set_num_threads(threads)
