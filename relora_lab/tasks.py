"""The tasks that a model is fine-tuned for: GLUE's eight of P1, and one that is made of the standard library.

What a task reads, its labels and how it is measured; names only, for settings and tables read this. Columns and
numbers of labels are those of nyu-mll/glue (Wang et al. 2019), prompts and label texts those of T5 (Raffel et al.
2020, Appendix D). P1 does not say what it prints of the tasks with two metrics: in its Table 3 MRPC's are accuracies
(320 and 314 of 408), so the first of `metrics` is what a table shows.
"""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

from relora_lab.errors import BadInput


@dataclass(frozen=True)
class Task:
    """What is read (`columns`, in the order of T5's prompt), and its label: one of `labels` by its number, or where
    there are none a number from 0 to 5. `title` is how papers write its name."""

    name: str
    title: str
    columns: tuple[str, ...]
    labels: tuple[str, ...]
    metrics: tuple[str, ...] = ("accuracy",)
    held_out: str = "validation"
    embedded: bool = False

    @property
    def is_regression(self) -> bool:
        """Is the label a number?"""
        return not self.labels

    @property
    def targets(self) -> tuple[str, ...]:
        """All that a T5 may write: the labels, or numbers to the nearest fifth."""
        return self.labels or tuple(f"{number / 5:.1f}" for number in range(26))

    def prompt(self, texts: Sequence[str]) -> str:
        """What a T5 reads: "mrpc sentence1: ... sentence2: ..."."""
        return " ".join([self.name, *(f"{name}: {text}" for name, text in zip(self.columns, texts, strict=True))])

    def target_of(self, label: float) -> int:
        """Which of `targets` a T5 is to write for a label."""
        return round(5 * label) if self.is_regression else int(label)

    def label_of(self, target: int) -> float:
        """The label that one of `targets` says."""
        return target / 5 if self.is_regression else target


PAIR = ("sentence1", "sentence2")
ENTAILMENT = ("entailment", "not_entailment")
# Those of the standard library's packages that have most modules of some length.
PACKAGES = ("asyncio", "email", "importlib", "multiprocessing", "unittest", "xml")

# P1's order (Table 8).
GLUE = {
    task.name: task
    for task in (
        Task("sst2", "SST-2", ("sentence",), ("negative", "positive")),
        Task(
            "mnli",
            "MNLI",
            ("hypothesis", "premise"),
            ("entailment", "neutral", "contradiction"),
            held_out="validation_matched",
        ),
        Task("qnli", "QNLI", ("question", "sentence"), ENTAILMENT),
        Task("qqp", "QQP", ("question1", "question2"), ("not_duplicate", "duplicate"), ("accuracy", "f1")),
        Task("rte", "RTE", PAIR, ENTAILMENT),
        Task("stsb", "STS-B", PAIR, (), ("pearson", "spearman")),
        Task("mrpc", "MRPC", PAIR, ("not_equivalent", "equivalent"), ("accuracy", "f1")),
        Task("cola", "CoLA", ("sentence",), ("unacceptable", "acceptable"), ("matthews",)),
    )
}
TASKS = GLUE | {"packages": Task("packages", "packages", ("snippet",), PACKAGES, embedded=True)}


def resolve(name: str) -> Task:
    """The task of that name. Raises BadInput with the nearest name."""
    if name in TASKS:
        return TASKS[name]
    near = difflib.get_close_matches(name.lower().replace("-", ""), TASKS, 1)
    hint = f"did you mean '{near[0]}'?" if near else f"one of {', '.join(TASKS)}"
    raise BadInput(f"task.name: unknown task '{name}'; {hint}")
