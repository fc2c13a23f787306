"""How much memory training takes, as P2 counts it and as a run here will. Numbers only, no torch."""

from dataclasses import asdict, fields
from typing import Any, Literal

from relora_lab import config, methods, sizes
from relora_lab.errors import require
from relora_lab.memory.held import GIB, Cells, largest_tensor, weight_bytes
from relora_lab.memory.phases import peak
from relora_lab.memory.step import Step, saved_in_plain_training
from relora_lab.methods import full
from relora_lab.methods._options import Options
from relora_lab.settings import RunConfig
from relora_lab.sizes import Size

VOCABULARY = 32000  # of P2's models


def estimate(
    size: str | Size,
    method: str | Options,
    *,
    rank: int,
    mode: Literal["paper", "measured"] = "paper",
    trainable_only: bool = False,
    **options: Any,
) -> dict[str, float]:
    """Cells `param`, `grad`, `os`, `act`, `extra` and their `total`, in GiB, for one sequence of 256 tokens.

    `method` is a name, with fields of its Options in `options`, or an Options; `rank` is for methods that have one.
    "paper" is P2's accounting: two bytes a number, a vocabulary of 32000, Act = .30 at 350M (cited; elsewhere what
    autograd saves of the plain model), Extra = the largest tensor, no projectors; total is the sum of the cells
    rounded to two digits. `trainable_only` leaves the frozen weights out of Param. "measured" is the
    peak of that training here, in bf16 throughout (for a run with settings of its own see `phases`). Raises
    BadInput for what is unknown, and for a rank that a matrix cannot have.
    """
    require(mode in ("paper", "measured"), f"mode: unknown '{mode}'; 'paper' or 'measured'")
    run = _run(size, method, rank, options)
    if mode == "measured":
        require(not trainable_only, "trainable_only: is a row of P2's accounting; a run holds its frozen weights")
        return peak(run)[1].in_gib()
    shape, trained = run.model.shape, run.method.trained(run.model.shape, VOCABULARY)
    found = Cells(
        param=2 * trained if trainable_only else weight_bytes(run.method, shape, VOCABULARY, 2),
        grad=2 * trained,
        os=2 * run.method.optimizer_entries(shape, VOCABULARY),
        act=0.30 * GIB if is_350m(shape) else plain_activations(shape, VOCABULARY),
        extra=2 * largest_tensor(shape, VOCABULARY),
    ).in_gib()
    return found | {"total": round(sum(round(value, 2) for name, value in found.items() if name != "total"), 2)}


def plain_activations(size: Size, vocab_size: int) -> int:
    """Bytes that autograd saves of the plain model with an ordinary loss, for one sequence of 256 tokens in bf16."""
    step = Step(method=full.Options(), size=size, rows=1, length=256, precision="bf16")
    return saved_in_plain_training(step, vocab_size)


def is_350m(size: Size) -> bool:
    """Is it the size whose Act P2 prints?"""
    return size == sizes.resolve("350M")


def _run(size: str | Size, method: str | Options, rank: int, options: dict[str, Any]) -> RunConfig:
    """P2's training of that size with that method, one sequence at a time."""
    if isinstance(method, Options):
        name, given = methods.name_of(method), {k: v for k, v in asdict(method).items() if v is not None}
    else:
        name, given = method, {}
    known = {field.name for field in fields(methods.options_class(name))}
    if "restart_every" in known:
        given = {"restart_every": 2500} | given
    if "rank" in known:
        given["rank"] = rank
    return config.parse(
        {
            "model": {"size": size} if isinstance(size, str) else {"size": "350M", **asdict(size)},
            "method": {"name": name, **given, **options},
            "training": {"steps": 20000, "precision": "bf16"},
            "optimizer": {"lr": 1e-3, "state_dtype": "bf16"},
            "data": {"tokenizer": "bpe", "vocab_size": VOCABULARY, "sequence_length": 256, "batch_size": 1},
        }
    )
