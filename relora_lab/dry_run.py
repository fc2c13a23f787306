"""What a grid would do: its cells, what they share, and what that takes in updates, memory and time."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from relora_lab import status
from relora_lab.errors import printable
from relora_lab.launch import jobs
from relora_lab.memory.phases import peak
from relora_lab.settings import RunConfig
from relora_lab.stages import Stage
from relora_lab.status import duration

COLUMNS = ("cells", "method", "size", "parameters", "trained", "memory", "tokens", "updates", "time")
Seconds = Callable[[RunConfig, int, int], float | None]  # of the updates of a run from one step to another


def as_text(
    cells: Mapping[str, RunConfig], plan: Mapping[str, Stage], out: Path, *, workers: int, seconds: Seconds
) -> str:
    """A line a row of the grid and a line a stage, then the sums.

    Updates are those that a cell makes itself, after what it shares; time is that of all its seeds, one after the
    other. What has been done in `out` counts no more. Raises BadInput if the grid cannot go on there.
    """
    status.check(cells, plan, out)
    left = jobs.of_grid(cells, plan, out)
    times = {job.key: 0.0 if job.kind == "tokens" else seconds(job.config, job.start, job.end) for job in left}
    lines = [COLUMNS, *(_row(group, left, times) for group in _rows(cells).items())]
    total = sum(config.training.steps for config in cells.values())
    ended = len(cells) - sum(job.kind == "cell" for job in left)
    planned = [peak(config)[1].total for config in cells.values() if _is_planned(config)]
    known = [found for found in times.values() if found is not None]
    measured = len(known) == len(times)
    why = "tasks are not timed" if any(config.task for config in cells.values()) else "its device is not here"
    ahead = f"about {duration(sum(known) / workers)}" if measured else f"unknown: {why}"
    said = [
        f"{len(cells)} cells, {total:,} updates; {ended} have ended in {printable(str(out))}.",
        jobs.saved(left),
        f"Memory: at most {_bytes(max(planned))} a worker (live tensors; torch itself comes on top)."
        if planned
        else "",
        f"Time with {workers} workers: {ahead}.",
    ]
    return "\n".join([*_aligned(lines), "", *_stages(left), *filter(None, said)])


def _is_planned(config: RunConfig) -> bool:
    """Is there a plan of the memory it takes?"""
    return config.task is None and config.data.vocabulary is not None


def _rows(cells: Mapping[str, RunConfig]) -> dict[str, list[tuple[str, RunConfig]]]:
    """Cells by what is before the seed in their name."""
    rows: dict[str, list[tuple[str, RunConfig]]] = {}
    for name, config in cells.items():
        rows.setdefault(name.removesuffix(f"-seed{config.training.seed}"), []).append((name, config))
    return rows


def _row(
    group: tuple[str, list[tuple[str, RunConfig]]], left: Sequence[jobs.Job], times: Mapping[str, float | None]
) -> tuple[str, ...]:
    row, cells = group
    config, vocabulary = cells[0][1], cells[0][1].data.vocabulary
    seeds = ",".join(str(config.training.seed) for _, config in cells)
    total, trained, memory = "–", "–", "–"
    if vocabulary:
        total, trained = (f"{count:,}" for count in config.parameters(vocabulary))
    if _is_planned(config):
        memory = _bytes(peak(config)[1].total)
    own = [job for job in left if job.key in dict(cells)]
    tokens = config.training.steps * config.data.batch_size * config.data.sequence_length
    found = [times[job.key] for job in own]
    known = [time for time in found if time is not None]
    return (
        f"{row}-seed{{{seeds}}}" if len(cells) > 1 else cells[0][0],
        config.method_name,
        config.model.size,
        total,
        trained,
        memory,
        f"{tokens:,}",
        f"{own[0].end - own[0].start:,}" if own else "ended",
        duration(sum(known)) if len(known) == len(found) else "–",
    )


def _stages(left: Sequence[jobs.Job]) -> Iterator[str]:
    """A line for stages that differ in the seed alone, with how many cells, or later stages, begin with each."""
    needed = Counter(key for job in left for key in job.needs)
    alike: dict[tuple[str, str, int, int, int], list[int]] = {}
    for job in left:
        if job.kind == "stage":
            model, what = job.config.model.size, job.config.method_name
            seeds = alike.setdefault((what, model, job.start, job.end, needed[job.key]), [])
            seeds.append(job.config.training.seed)
    if alike:
        yield f"{sum(map(len, alike.values()))} stages, each trained once:"
    for (method, model, start, end, count), seeds in alike.items():
        several = len(seeds) // len(set(seeds))
        times = f"{several} times " if several > 1 else ""
        listed = ",".join(map(str, dict.fromkeys(seeds)))
        yield f"  {times}{method} {model} {start:,}–{end:,}, seed {listed}: {count} go on from each"
    if alike:
        yield ""


def _bytes(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.1f} MiB"


def _aligned(lines: Sequence[tuple[str, ...]]) -> Iterator[str]:
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        padded = (
            c.ljust(w) if number < 3 else c.rjust(w) for number, (c, w) in enumerate(zip(line, widths, strict=True))
        )
        yield "  ".join(padded).rstrip()
