"""One run's settings as frozen dataclasses, one a TOML table (tables.py), and what has to fit between tables.

Ranges are checked where a field is declared, so settings made in Python are held to the same rules as a file.
Every error is one line that names its field.
"""

from dataclasses import dataclass, field, replace

from relora_lab import methods, schedule, sizes, tasks
from relora_lab.errors import BadInput, require
from relora_lab.methods import full
from relora_lab.methods._options import LowRankOptions, Options
from relora_lab.settings.tables import Data, Divergence, Model, Optimizer, Task, Training, check_name

__all__ = ["Data", "Divergence", "Model", "Optimizer", "RunConfig", "Task", "Training", "check_name"]


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
        require(
            self.training.eval_tokens == Training.eval_tokens,
            "training.eval_tokens: is of text; how many examples are held out is task.eval_examples",
        )
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
