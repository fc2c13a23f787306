"""The TOML tables of a run's settings but [method], which is its method's own."""

import math
import re
from dataclasses import asdict, dataclass, fields, replace
from typing import Literal

from relora_lab import sizes, tasks
from relora_lab.errors import require
from relora_lab.methods._options import LEAST_EPS, MOST


def check_name(field_name: str, name: str) -> None:
    """Raise BadInput unless `name` can be a folder's anywhere and is not read as an option or a path."""
    require(
        re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,79}", name) is not None,
        f"{field_name}: {name[:40]!r} is no run name: letters, digits, . _ - (1 to 80), not starting with . or -",
    )


def at_least(lowest: int, table: str, **values: int) -> None:
    """Raise BadInput for the first value below `lowest`."""
    for name, value in values.items():
        require(value >= lowest, f"{table}.{name}: must be ≥ {lowest} (got {value})")


def at_most(highest: int, table: str, **values: int) -> None:
    """Raise BadInput for the first value above `highest`."""
    for name, value in values.items():
        require(value <= highest, f"{table}.{name}: must be ≤ {highest} (got {value})")


DIMENSIONS = [part.name for part in fields(sizes.Size)]


@dataclass(frozen=True, kw_only=True)
class Model:
    """[model]: a size of sizes.py ("control:60M" is the control of 60M); single dimensions can be replaced.

    Training begins with `weights`: those of a run folder's final/, of a Hugging Face folder, or of a name on the hub
    ("google-t5/t5-base"); they have to be of this size. Without, with fresh ones.
    """

    size: str
    weights: str | None = None
    hidden: int | None = None
    intermediate: int | None = None
    heads: int | None = None
    layers: int | None = None
    init_std: float | None = None

    def __post_init__(self) -> None:
        shape = self.shape
        at_least(1, "model", hidden=shape.hidden, intermediate=shape.intermediate)
        at_least(1, "model", heads=shape.heads, layers=shape.layers)
        at_most(2**20, "model", hidden=shape.hidden, intermediate=shape.intermediate)
        at_most(2**12, "model", layers=shape.layers)
        require(self.weights != "", "model.weights: is empty; give a folder or a name, or leave it out")
        if self.is_t5:
            require(self.init_std is None, "model.init_std: is LLaMA's; T5 has its own initialisation")
            at_most(2**20, "model", heads=shape.heads)
            return
        per_head, rest = divmod(shape.hidden, shape.heads)
        require(
            rest == 0 and per_head % 2 == 0,
            f"model.heads: {shape.heads} heads do not divide a width of {shape.hidden} into even parts",
        )
        require(1e-30 <= shape.init_std <= 1, f"model.init_std: must be in [1e-30, 1] (got {shape.init_std})")

    @property
    def shape(self) -> sizes.Size:
        """The preset with the given dimensions in place of its own."""
        given = {name: value for name, value in asdict(self).items() if name in DIMENSIONS and value is not None}
        return replace(sizes.resolve(self.size), **given)

    @property
    def is_t5(self) -> bool:
        """Is it a T5, which reads a text and writes another, and not a LLaMA?"""
        return isinstance(self.shape, sizes.T5Size)


@dataclass(frozen=True, kw_only=True)
class Data:
    """[data]: the text, its tokenizer, and the shape of a batch.

    `corpus` is "stdlib", a text file, a folder of text files, or a list of files. In its place, `dataset` is a
    Hugging Face dataset: a name on the hub ("allenai/c4"), or a folder or file of json (.gz) or parquet shards here.
    `tokenizer` is "bytes" (the ids), "bpe" (a byte-level BPE trained on the training part), "model" (that beside
    model.weights), or a Hugging Face tokenizer: a name on the hub ("google-t5/t5-base"), or a folder here.
    An update sees `batch_size` sequences of `sequence_length` tokens.
    """

    corpus: str | list[str] = "stdlib"
    dataset: str | None = None
    subset: str | None = None  # the dataset's configuration: "en"; of a folder here, a folder in it
    text_field: str = "text"  # the dataset's column
    streaming: bool = False  # take rows as they come instead of downloading the whole dataset first
    max_tokens: int | None = None  # for training, from the dataset's start; None takes all
    tokenizer: str = "bytes"
    vocab_size: int | None = None  # of "bpe" (default 4096); the model's, where it should not be len(tokenizer)
    sequence_length: int = 256
    batch_size: int = 32

    def __post_init__(self) -> None:
        named = [self.corpus] if isinstance(self.corpus, str) else self.corpus
        require(bool(named) and all(named), "data.corpus: is empty; give 'stdlib', a text file or a folder")
        at_least(2, "data", sequence_length=self.sequence_length)
        at_least(1, "data", batch_size=self.batch_size)
        for name in ("dataset", "subset", "text_field", "tokenizer"):
            require(getattr(self, name) != "", f"data.{name}: is empty; give a name or leave it out")
        self._check_dataset()
        self._check_tokenizer()

    def _check_dataset(self) -> None:
        if self.dataset is None:
            unset = {"subset": None, "text_field": "text", "streaming": False, "max_tokens": None}
            given = [f"data.{name}" for name, value in unset.items() if getattr(self, name) != value]
            require(not given, f"{', '.join(given)}: only for a data.dataset, and none is given")
            return
        require(self.corpus == "stdlib", "data.corpus: a dataset is given too (data.dataset); leave one of them out")
        if self.max_tokens is not None:
            at_least(self.sequence_length + 1, "data", max_tokens=self.max_tokens)
        require(
            not self.streaming or self.max_tokens is not None,
            "data.max_tokens: is needed with data.streaming, which reads until there are so many training tokens "
            "and would not end on a large dataset",
        )

    def _check_tokenizer(self) -> None:
        size = self.vocab_size
        if self.tokenizer == "bytes":
            require(
                size in (None, 256), f"data.vocab_size: bytes have a vocabulary of 256 (got {size}); leave it out"
            )
        elif size is not None:
            # The bytes and one special token.
            at_least(257 if self.tokenizer == "bpe" else 1, "data", vocab_size=size)
            require(size <= 2**31, f"data.vocab_size: must be ≤ 2**31 (got {size})")

    @property
    def vocabulary(self) -> int | None:
        """The vocabulary's size if the settings decide it: a Hugging Face tokenizer has its own."""
        return self.vocab_size or {"bytes": 256, "bpe": 4096}.get(self.tokenizer)


@dataclass(frozen=True, kw_only=True)
class Task:
    """[task]: fine-tune for a task of tasks.py, in place of predicting the next token of a text.

    A T5 reads the prompt and writes the label; a LLaMA gets a head over the last token of its input. Of [data],
    `dataset` is a local copy of GLUE (a folder TASK/ of json or parquet with its columns; default: the hub's
    nyu-mll/glue), and inputs are cut at `sequence_length` tokens. `eval_examples` of those held out are used, taken
    evenly (default: all).
    """

    name: str
    eval_examples: int | None = None

    def __post_init__(self) -> None:
        tasks.resolve(self.name)
        if self.eval_examples is not None:
            at_least(1, "task", eval_examples=self.eval_examples)


@dataclass(frozen=True, kw_only=True)
class Training:
    """[training]: `warm_start` of the `steps` updates are full-rank, whatever the method.

    ΔW is measured from the merged weights at `reference_step` (default: the end of the warm start).
    One thread by default, so that results do not depend on the machine's number of cores. `precision` "bf16-autocast"
    computes in bfloat16 on float32 weights; "bf16" holds the weights in it too.
    """

    steps: int
    warm_start: int = 0
    reference_step: int | None = None
    seed: int = 0
    threads: int = 1
    device: str = "cpu"
    precision: Literal["float32", "bf16-autocast", "bf16"] = "float32"
    compile: bool = False  # torch.compile: a minute at each start, faster steps; a resumed run may differ in rounding
    rebuild_weights: bool = False  # keep no W + s·B·A for the backward pass: less memory, slower
    gradient_checkpointing: bool = False  # keep only each block's input, compute the rest again in the backward pass
    micro_batches: int = 1  # gradient accumulation: the batch is split into so many parts
    eval_every: int = 1000
    eval_tokens: int = 65536  # taken evenly from the held-out text; the same tokens at every evaluation
    norms_every: int = 100
    checkpoint_every: int = 1000
    snapshot_every: int | None = None  # keep merged weights, each a whole model; see snapshot_steps

    def __post_init__(self) -> None:
        at_least(1, "training", steps=self.steps, threads=self.threads, micro_batches=self.micro_batches)
        at_least(0, "training", warm_start=self.warm_start, seed=self.seed)
        named = re.fullmatch(r"cpu|cuda(:\d+)?", self.device)
        require(named is not None, f"training.device: {self.device!r} is no device; 'cpu', 'cuda' or 'cuda:1'")
        require(self.seed < 2**63, f"training.seed: must be < 2**63 (got {self.seed})")
        require(self.threads <= 1024, f"training.threads: must be ≤ 1024 (got {self.threads})")
        at_least(1, "training", eval_every=self.eval_every, eval_tokens=self.eval_tokens)
        at_least(1, "training", norms_every=self.norms_every, checkpoint_every=self.checkpoint_every)
        every = self.snapshot_every
        require(
            every is None or every >= 1,
            f"training.snapshot_every: must be ≥ 1 (got {every}); to keep no snapshots leave it out",
        )
        require(
            self.warm_start < self.steps,
            f"training.warm_start: the warm start ({self.warm_start}) must be shorter than training ({self.steps})",
        )
        require(
            0 <= self.reference <= self.steps,
            f"training.reference_step: {self.reference} lies outside the run's {self.steps} steps",
        )

    @property
    def reference(self) -> int:
        """The step whose merged weights ΔW starts from."""
        return self.warm_start if self.reference_step is None else self.reference_step

    @property
    def snapshot_steps(self) -> range:
        """Multiples of `snapshot_every` after reference step and warm start, before the end (that is final/)."""
        every, begun = self.snapshot_every, max(self.reference, self.warm_start)
        return range(0) if every is None else range((begun // every + 1) * every, self.steps, every)


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """[optimizer]: AdamW without weight decay. `lr` is the peak; low-rank phases use `low_rank_lr` (default: lr).

    With `state_dtype` "bf16" and betas[1] = 0.999 the second moment never decays (x·0.999 rounds to x): P2's
    "bf16 weights and states" rows are precision = "bf16" with that.
    """

    lr: float
    low_rank_lr: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    state_dtype: Literal["float32", "bf16"] = "float32"
    warmup_steps: int = 0
    min_ratio: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        for name in ("lr", "low_rank_lr", "eps"):
            value = getattr(self, name)
            require(
                value is None or 0 < value < math.inf,
                f"optimizer.{name}: expected a positive number, got {value}",
            )
            require(value is None or value <= MOST, f"optimizer.{name}: must be ≤ {MOST:g} (got {value})")
        require(self.eps >= LEAST_EPS, f"optimizer.eps: must be ≥ {LEAST_EPS:g}, float32's least (got {self.eps:g})")
        require(self.clip > 0, f"optimizer.clip: expected a positive number (inf clips nothing), got {self.clip}")
        for beta in self.betas:
            require(0 <= beta < 1, f"optimizer.betas: must be in [0, 1) (got {beta})")
        require(0 <= self.min_ratio <= 1, f"optimizer.min_ratio: must be in [0, 1] (got {self.min_ratio})")
        at_least(0, "optimizer", warmup_steps=self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Divergence:
    """[divergence]: when a run counts as diverged, in nats of mean training loss over `window` updates.

    `rise` above the start; `restart_rise` (or half the way to chance, if that is less) across a restart.
    """

    window: int = 20
    rise: float = 1.0
    restart_rise: float = 1.0

    def __post_init__(self) -> None:
        at_least(1, "divergence", window=self.window)
        for name in ("rise", "restart_rise"):
            require(getattr(self, name) > 0, f"divergence.{name}: must be > 0 (got {getattr(self, name)})")
