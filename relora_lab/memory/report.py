"""What `relora-lab plan` prints."""

import json
from dataclasses import dataclass
from typing import Any, Literal

from relora_lab import sizes
from relora_lab.memory import VOCABULARY, estimate, is_350m
from relora_lab.memory.held import GIB
from relora_lab.memory.phases import micro_batch, peak, phases
from relora_lab.settings import RunConfig
from relora_lab.work import run_flops

# The rows of P2's table: label, method, options.
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("full", "full", {}),
    ("relora", "relora", {}),
    ("redora", "redora", {}),
    ("repissa", "repissa", {}),
    ("reloqra", "reloqra", {}),
    ("relora, trainable only", "relora", {"trainable_only": True}),
    ("galore", "galore", {}),
    ("galore + error feedback", "galore", {"error_feedback": 0.2}),
    ("galore + dynamics", "galore", {"dynamic": True}),
    ("adam_mini", "adam_mini", {}),
)


@dataclass(frozen=True)
class Report:
    """Rows of cells in GiB, shown in `unit` with `digits`, and lines to say below them; `facts` are for the JSON."""

    rows: dict[str, dict[str, float]]
    notes: list[str]
    facts: dict[str, Any]
    unit: Literal["GiB", "MiB"] = "GiB"
    digits: int = 2

    def as_text(self) -> str:
        """The table and the notes."""
        first = max(map(len, self.rows))
        names = ["OS" if name == "os" else name.capitalize() for name in next(iter(self.rows.values()))]
        lines = [f"{self.unit:<{first}}" + "".join(f"{name:>9}" for name in names)]
        for label, cells in self.rows.items():
            values = (value * (1024 if self.unit == "MiB" else 1) for value in cells.values())
            lines.append(f"{label:<{first}}" + "".join(f"{value:>9,.{self.digits}f}" for value in values))
        return "\n".join([*lines, "", *self.notes])

    def as_json(self) -> str:
        """Facts and rows, unrounded."""
        return json.dumps({**self.facts, "gib": self.rows}, indent=1)


def of_paper(size: str, rank: int) -> Report:
    """P2's table for a size and a rank: a row for each method that the papers evaluate."""
    rows = {label: estimate(size, method, rank=rank, **options) for label, method, options in ROWS}
    notes = [f"{size}, rank {rank}, bf16, vocabulary {VOCABULARY}, one sequence of 256 tokens; P2's accounting."]
    if is_350m(sizes.resolve(size)):
        notes.append("Act is cited (P2's preset); every other cell is computed.")
    else:
        notes.append("All cells are computed; Act is what autograd saves of transformers' LLaMA.")
    if is_350m(sizes.resolve(size)) and rank == 256:
        notes.append(
            "P2's text has four totals: full 3.11, galore 2.26, galore + error feedback 2.83, adam_mini 2.55; "
            "the rest of its Table 1 is missing there. Ours for galore is 2.27."
        )
    return Report(rows, notes, {"mode": "paper", "size": size, "rank": rank})


def of_run(run: RunConfig, speed: float | None = None) -> Report:
    """What a run holds at each moment that can be its peak, and its work; in GPU-hours at a `speed` in TFLOP/s."""
    moment, cells = peak(run)
    total = cells.total / GIB
    facts = {
        "mode": "measured",
        "peak": moment,
        "micro_batch": micro_batch(run),
        "sequence_length": run.data.sequence_length,
        "vocab_size": run.data.vocabulary,
    }
    said = f"{total:.2f} GiB" if total >= 1 else f"{1024 * total:.1f} MiB"
    notes = [
        f"Peak: {said} ({moment}) with {run.method_name} on micro-batches of "
        f"{facts['micro_batch']} × {facts['sequence_length']} tokens, {run.training.precision}.",
        "All cells are computed: live tensors. The process itself (torch, libraries) comes on top, and on the "
        "CPU what glibc keeps of freed memory.",
    ]
    if run.training.compile:
        notes.append("training.compile: counted as if it were off; compiled code keeps and makes other tensors.")
    work = run_flops(run)
    tokens = run.training.steps * run.data.batch_size * run.data.sequence_length
    notes.append(f"Work: {tokens:,} tokens, {work:.2e} floating-point operations in products{_hours(work, speed)}.")
    facts |= {"tokens": tokens, "flops": work}
    rows = {name: found.in_gib() for name, found in phases(run).items()}
    return Report(rows, notes, facts, *(("GiB", 2) if total >= 1 else ("MiB", 1)))


def _hours(work: float, speed: float | None) -> str:
    if speed is None:
        return "; --tflops says how many GPU-hours that is"
    hours = work / (speed * 1e12) / 3600
    told = f"{hours:,.0f}" if hours >= 100 else f"{hours:.2g}"
    return f": {told} GPU-hours at {speed:g} TFLOP/s"
