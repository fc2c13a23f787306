"""One run's settings as frozen dataclasses, one a TOML table.

Ranges are checked where a field is declared, so settings made in Python are held to the same rules as a file.
Every error is one line that names its field.
"""

import math
import re
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Literal

from relora_lab import methods, schedule, sizes, tasks
from relora_lab.errors import BadInput, require
from relora_lab.methods import full
from relora_lab.methods._options import LEAST_EPS, MOST, LowRankOptions, Options


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


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Everything that decides a run. `name` is the run folder's, if the user wants one."""

    model: Model
    method: Options
    training: Training
    optimizer: Optimizer
    data: Data = field(default_factory=Data)
    divergence: Divergence = field(default_factory=Divergence)
    task: Task | None = None
    name: str | None = None

    def __post_init__(self) -> None:
        if self.name is not None:
            check_name("name", self.name)
        require(
            self.data.batch_size % self.training.micro_batches == 0,
            f"training.micro_batches: {self.training.micro_batches} does not divide "
            f"data.batch_size ({self.data.batch_size})",
        )
        phases = {"training.steps": self.training.steps}
        self._check_rank()
        self._check_task()
        require(
            self.training.warm_start == 0 or bool(self.low_rank) or isinstance(self.method, full.Options),
            f"training.warm_start: {self.method_name} trains at full rank from the start; to measure ΔW from a later "
            "step use training.reference_step",
        )
        if self.low_rank:
            self._check_low_rank(self.low_rank)
            phases["the low-rank phase"] = self.low_rank_steps
        for phase, steps in phases.items():
            warmup = self.optimizer.warmup_steps
            require(warmup < steps, f"optimizer.warmup_steps: {warmup} must be shorter than {phase} ({steps})")

    def _check_rank(self) -> None:
        rank = getattr(self.method, "rank", 0)
        for matrix in sizes.matrices(replace(self.model.shape, layers=1)):  # all blocks are alike
            most = min(matrix.rows, matrix.cols)
            require(
                rank <= most,
                f"method.rank: rank {rank} > min({matrix.rows}, {matrix.cols}) = {most} for {matrix.name}",
            )

    def _check_task(self) -> None:
        require(
            self.data.tokenizer != "model" or self.model.weights is not None,
            "data.tokenizer: 'model' is the one beside model.weights, and none are given",
        )
        if self.task is None:
            require(not self.model.is_t5, f"model.size: {self.model.size} writes text for a task; name it in [task]")
            return
        data = self.data
        unset = {"corpus": "stdlib", "subset": None, "text_field": "text", "streaming": False, "max_tokens": None}
        given = [f"data.{name}" for name, value in unset.items() if getattr(data, name) != value]
        require(not given, f"{', '.join(given)}: is for training on text; the examples are those of task.name")
        embedded = tasks.resolve(self.task.name).embedded
        require(
            not (embedded and data.dataset), f"data.dataset: {self.task.name} is made here, of the standard library"
        )

    def _check_low_rank(self, method: LowRankOptions) -> None:
        require(
            method.base == "random" or self.training.warm_start == 0,
            "method.base: a base of zero would throw the warm start away; set training.warm_start = 0",
        )
        require(
            method.base == "random" or self.model.weights is None,
            "method.base: a base of zero would throw model.weights away; leave one of them out",
        )
        if method.jagged:
            try:
                schedule.check(
                    self.low_rank_steps,
                    self.optimizer.warmup_steps,
                    method.restart_every,
                    method.restart_warmup,
                )
            except ValueError as error:
                raise BadInput(f"optimizer.warmup_steps, method.restart_every: {error}") from None

    @property
    def method_name(self) -> str:
        """The method's name."""
        return methods.name_of(self.method)

    @property
    def low_rank(self) -> LowRankOptions | None:
        """The method's options if it has a low-rank phase."""
        return self.method if isinstance(self.method, LowRankOptions) else None

    @property
    def low_rank_steps(self) -> int:
        """Length of the low-rank phase: its schedule, and its restarts, count from its start."""
        return self.training.steps - self.training.warm_start if self.low_rank else 0

    @property
    def low_rank_lr(self) -> float:
        """Peak learning rate of the low-rank phase."""
        return self.optimizer.low_rank_lr or self.optimizer.lr

    def parameters(self, vocab_size: int) -> tuple[int, int]:
        """How many weights the model has with a vocabulary of that size, and how many of them are trained."""
        shape, head = self.model.shape, 0
        if self.task and not self.model.is_t5:  # a head over labels in place of that over tokens
            head = (max(1, len(tasks.resolve(self.task.name).labels)) - vocab_size) * shape.hidden
        total, _ = sizes.count_parameters(shape, vocab_size=vocab_size)
        return total + head, self.method.trained(shape, vocab_size) + head

    def warnings(self) -> list[str]:
        """What is allowed but seldom meant, a line each."""
        found, training = self.method.warnings(), self.training
        if training.snapshot_every and not training.snapshot_steps:
            found.append(
                f"training.snapshot_every ({training.snapshot_every}) never comes between the reference step or the "
                f"warm start and the end ({training.steps})"
            )
        if self.low_rank:
            if training.compile and self.low_rank.quantise:
                found.append("training.compile: method.quantise breaks the graph at every layer; little is gained")
            every = self.low_rank.restart_every
            if every is not None and every >= self.low_rank_steps:
                found.append(
                    f"method.restart_every ({every}) never comes within the {self.low_rank_steps} low-rank steps"
                )
            total, trainable = sizes.count_parameters(self.model.shape, rank=self.low_rank.rank, vocab_size=0)
            if trainable > total:
                found.append(
                    f"method.rank ({self.low_rank.rank}) trains more parameters than the whole model has "
                    f"({trainable:,} > {total:,} without embeddings)"
                )
        return found
