"""What a run asks of its process: a number of threads, word of signals, and how much memory it took."""

import resource
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def threads(count: int) -> Iterator[None]:
    """Let torch compute with `count` threads inside the block."""
    import torch  # here and below: who starts workers does not wait for it

    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def signals() -> Iterator[list[int]]:
    """A list that SIGINT, SIGTERM and SIGHUP are added to inside the block, instead of stopping the process.

    What is ignored stays ignored. Outside the main thread, where Python takes no handlers, the list stays empty.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return
    heard = [s for s in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP) if signal.getsignal(s) != signal.SIG_IGN]
    before = {s: signal.signal(s, lambda n, _: received.append(n)) for s in heard}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def reset_peak(device: str) -> None:
    """Count the peak from here. On a CPU outside Linux it counts from the start of the process all the same."""
    import torch

    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: str) -> int:
    """The most memory since `reset_peak`: a GPU's tensors, or on the CPU all that the process had resident.

    On the CPU, what training took is the difference to before it; glibc keeps freed memory (a quarter to a half
    more) unless the environment has MALLOC_MMAP_THRESHOLD_=65536 when Python starts.
    """
    import torch

    if torch.device(device).type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
