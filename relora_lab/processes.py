"""One run in several processes: torch.distributed as the trainer uses it. A process alone goes the same ways.

Each process holds the whole model, takes its rows of every batch, and makes the same optimizer step with the sum of
all gradients. Gradients of what is trained are all that is sent: in a low-rank phase those of the factors, not of W,
which is what ReLoRA saves here. Process 0 leads: it alone touches the run folder. Words go through the store by which
the processes met, so the leader can say that it failed whatever the others are waiting for.
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from functools import wraps
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
import torch.distributed.nn  # before there is a group: else its defaults keep it, and its threads, past the end
from torch import Tensor

from relora_lab import torchrun
from relora_lab.errors import BadInput, FolderHeld, require, why

P = ParamSpec("P")
T = TypeVar("T")
State = tuple[Mapping[str, Mapping[str, Tensor]], dict[str, Any]]  # tensors by group and name, facts

BUCKET_BYTES = 64 * 2**20
# As long as the leader may leave the others waiting: for a stage that another run trains, or a text to be tokenised.
PATIENCE = timedelta(days=1)


def count() -> int:
    """How many processes train together."""
    return dist.get_world_size() if dist.is_initialized() else 1


def rank() -> int:
    """The number of this process."""
    return dist.get_rank() if dist.is_initialized() else 0


def leads() -> bool:
    """Is it this process that reads and writes the run folder?"""
    return rank() == 0


def by_the_leader(function: Callable[P, T]) -> Callable[P, T | None]:
    """The function as the leader calls it; in other processes it does nothing, and returns None."""

    @wraps(function)
    def called(*arguments: P.args, **options: P.kwargs) -> T | None:
        return function(*arguments, **options) if leads() else None

    return called


@contextmanager
def joined() -> Iterator[None]:
    """Train together with the other processes of torchrun inside the block.

    If the leader's block fails the others raise that where they next listen to it; if any fails, those that wait for
    its numbers raise a RuntimeError that says why.
    """
    global _messages
    if torchrun.count() == 1:
        yield
        return
    store, number, size = next(dist.rendezvous("env://", timeout=PATIENCE))
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=number, world_size=size, timeout=PATIENCE)
    _messages = _Messages(dist.PrefixStore("words", store))
    try:
        yield
        largest(0)  # a barrier: nobody leaves while another is still listening
    except Exception as error:
        _messages.fail(f"process {rank()} failed: {why(error)}")
        if leads():
            _messages.say(failed=[type(error).__name__, str(error), why(error)])
        if backend == "gloo":  # nccl would wait for the others, who may wait for this process
            dist.destroy_process_group()
        raise
    dist.destroy_process_group()


# ---- what each process takes of a batch


def check_batch(rows: int) -> None:
    """Raise BadInput for a batch that cannot be shared out."""
    require(rows % count() == 0, f"data.batch_size: {rows} sequences cannot be shared out to {count()} processes")


def parts(batch: Any, micro_batches: int) -> tuple[Any, ...]:
    """This process's rows of a batch, in parts that are no larger than the micro-batches of a process alone."""
    share = len(batch) // count()
    return batch[rank() * share : (rank() + 1) * share].split(most_rows(len(batch), micro_batches))


def most_rows(batch_size: int, micro_batches: int) -> int:
    """The rows of a process's largest part."""
    return math.ceil(batch_size // count() / math.ceil(micro_batches / count()))


def own_device(device: str) -> str:
    """The device of this process. Raises BadInput if all would have the same GPU."""
    if count() == 1 or device == "cpu":
        return device
    alike = f"training.device: '{device}' would be that of all {count()} processes; 'cuda' gives each one its own"
    require(device == "cuda", alike)
    return f"cuda:{torchrun.local_rank()}"


def take_device(device: str) -> None:
    """Let 'cuda' be the GPU of this process, if there are several."""
    if count() > 1 and device != "cpu":
        torch.cuda.set_device(own_device(device))


# ---- numbers


def add_up(tensors: Iterable[Tensor]) -> None:
    """Add up each tensor over all processes, in place. They are sent in buckets of ≤ 64 MiB, or one larger tensor."""
    if count() == 1:
        return
    for bucket in _buckets(tensors):
        flat = torch.cat([tensor.flatten() for tensor in bucket])
        _all_reduce(flat)
        for tensor, total in zip(bucket, flat.split([tensor.numel() for tensor in bucket]), strict=True):
            tensor.copy_(total.view_as(tensor))


def _buckets(tensors: Iterable[Tensor]) -> Iterator[list[Tensor]]:
    bucket, size = list[Tensor](), 0
    for tensor in tensors:
        if bucket and (size + tensor.nbytes > BUCKET_BYTES or tensor.dtype != bucket[0].dtype):
            yield bucket
            bucket, size = [], 0
        bucket.append(tensor)
        size += tensor.nbytes
    yield bucket


def totals(*numbers: float) -> list[float]:
    """Each number's total over all processes."""
    if count() == 1:
        return list(numbers)
    found = torch.tensor(numbers, dtype=torch.float64)
    _all_reduce(found)
    return found.tolist()


def largest(number: int) -> int:
    """The largest of all processes' numbers."""
    if count() == 1:
        return number
    found = torch.tensor(number)
    _all_reduce(found, dist.ReduceOp.MAX)
    return int(found)


def require_same_weights(weights: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError, naming the first that differs, unless all processes hold the same (sums of bytes)."""
    if count() == 1:
        return
    flat = [weight.detach().flatten().view(torch.uint8) for weight in weights.values()]
    sums = torch.stack([weight.sum(dtype=torch.int64) for weight in flat]).cpu()
    highest = torch.stack([sums, -sums])
    _all_reduce(highest, dist.ReduceOp.MAX)
    for name, most, least in zip(weights, highest[0], -highest[1], strict=True):
        if most != least:
            raise RuntimeError(f"{name} is no longer the same in all {count()} processes")


def _all_reduce(tensor: Tensor, how: Any = dist.ReduceOp.SUM) -> None:
    try:
        dist.all_reduce(tensor, how)
    except RuntimeError as error:  # of a connection that is gone, with its process
        raise _messages.failure() or error from None


# ---- words


class _Messages:
    """Plain data that each process says, word after word, for the others to hear; or what it failed by."""

    def __init__(self, store: dist.Store) -> None:
        self._store, self._said, self._heard = store, 0, Counter[int]()

    def say(self, **word: Any) -> None:
        self._store.set(f"{rank()} {self._said}", json.dumps(word))
        self._said += 1

    def fail(self, reason: str) -> None:
        """Note why a process failed, unless another one was first: what comes later comes of that."""
        self._store.compare_set("failed", "", reason)

    def failure(self) -> RuntimeError | None:
        """What `fail` noted, if it soon has."""
        with suppress(RuntimeError):
            self._store.wait(["failed"], timedelta(seconds=5))
            return RuntimeError(self._store.get("failed").decode())
        return None

    def hear(self, speaker: int) -> Any:
        word = json.loads(self._store.get(f"{speaker} {self._heard[speaker]}"))
        self._heard[speaker] += 1
        if "failed" in word:
            kind, message, reason = word["failed"]
            known: dict[str, type[Exception]] = {"BadInput": BadInput, "FolderHeld": FolderHeld}
            raise known[kind](message) if kind in known else RuntimeError(f"the leader failed: {reason}")
        return word["said"]


_messages: _Messages  # of the processes that have joined


def tell(said: Any) -> None:
    """Say plain data to the others, who `hear` it."""
    if count() > 1:
        _messages.say(said=said)


def hear() -> Any:
    """What the leader tells next. Raises what it failed by."""
    return _messages.hear(0)


def from_leader(make: Callable[[], T]) -> T:
    """In all processes, the plain data that `make` gives in the leader. It is called there alone."""
    if not leads():
        return hear()
    made = make()
    tell(made)
    return made


def state_from_leader(make: Callable[[], State]) -> State:
    """As `from_leader`, with tensors; one of them is on its way at a time."""
    if count() == 1:
        return make()
    tensors, facts = make() if leads() else ({}, {})
    kinds = {group: {n: (t.shape, str(t.dtype)) for n, t in named.items()} for group, named in tensors.items()}
    kinds, facts = from_leader(lambda: [kinds, facts])
    if not leads():
        tensors = {group: {n: _empty(*kind) for n, kind in named.items()} for group, named in kinds.items()}
    for named in tensors.values():
        for tensor in named.values():
            dist.broadcast(tensor.view(-1).view(torch.uint8), src=0)
    return tensors, facts


def _empty(shape: Sequence[int], dtype: str) -> Tensor:
    return torch.empty(shape, dtype=getattr(torch, dtype.removeprefix("torch.")))


def of_all(value: T) -> list[T]:
    """The plain data of every process, by rank."""
    if count() == 1:
        return [value]
    _messages.say(said=value)
    return [value if number == rank() else _messages.hear(number) for number in range(count())]


@contextmanager
def together() -> Iterator[None]:
    """What is bad input to one process inside the block is bad input to all."""
    refused = None
    try:
        yield
    except BadInput as error:
        if count() == 1:
            raise
        refused = str(error) if leads() else f"process {rank()}: {error}"
    for reason in of_all(refused):
        if reason:
            raise BadInput(reason)


def require_same(facts: Mapping[str, str]) -> None:
    """Raise BadInput, naming the first that differs, unless all processes have the same facts."""
    first, *others = of_all(facts)
    for number, other in enumerate(others, 1):
        for name in {**first, **other}:
            here, there = first.get(name), other.get(name)
            require(here == there, f"{name}: is {here} in process 0 and {there} in process {number} of the same run")
