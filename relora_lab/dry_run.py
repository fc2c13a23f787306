"""What a grid would do: its cells, what they share, and what that takes in updates, memory and time."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from relora_lab.launch import jobs
from relora_lab.memory.phases import peak
from relora_lab.settings import RunConfig
from relora_lab.stages import Stage
from relora_lab.status import duration

COLUMNS = ("cells", "method", "size", "parameters", "trained", "memory", "tokens", "updates", "time")


def as_text(
    cells: Mapping[str, RunConfig],
    plan: Mapping[str, Stage],
    out: Path,
    *,
    workers: int,
    pace: Callable[[RunConfig], float | None],
) -> str:
    """A line a row of the grid and a line a stage, then the sums. `pace` gives the seconds that an update takes.

    Updates are those that the cell makes itself, after what it shares; time is that of all its seeds, one after the
    other. What has ended in `out` counts no more.
    """
    left = jobs.of_grid(cells, plan, out)
    seconds = {job.key: _seconds(job, pace) for job in left}
    lines = [COLUMNS, *(_row(group, left, seconds) for group in _rows(cells).items())]
    total = sum(config.training.steps for config in cells.values())
    alone = sum(cells[job.key].training.steps for job in left if job.kind == "cell")
    shared = sum(job.end - job.start for job in left)
    ended = len(cells) - sum(job.kind == "cell" for job in left)
    most = max((peak(config)[1].total for config in cells.values() if config.data.vocabulary), default=0.0)
    known = [found for found in seconds.values() if found is not None]
    ahead = (
        f"about {duration(sum(known) / workers)}" if len(known) == len(seconds) else "unknown: its device is not here"
    )
    return "\n".join(
        [
            *_aligned(lines),
            "",
            *_stages(plan, left),
            f"{len(cells)} cells, {total:,} updates; {ended} have ended in {out}.",
            _saved(alone - shared, alone).replace("saved", "saves"),
            f"Memory: at most {_bytes(most)} a worker (live tensors; torch itself comes on top).",
            f"Time with {workers} workers: {ahead}.",
        ]
    )


def saved(plan: Mapping[str, Stage], cells: Mapping[str, RunConfig]) -> str:
    """What sharing saves, in a sentence."""
    alone = sum(config.training.steps for config in cells.values())
    saves = sum((len(stage.cells) - 1) * stage.updates for stage in plan.values())
    return _saved(saves, alone)


def _saved(saves: int, alone: int) -> str:
    return f"Sharing saved {saves:,} of {alone:,} updates ({100 * saves / max(1, alone):.0f} %)."


def _rows(cells: Mapping[str, RunConfig]) -> dict[str, list[tuple[str, RunConfig]]]:
    """Cells by what is before the seed in their name."""
    rows: dict[str, list[tuple[str, RunConfig]]] = {}
    for name, config in cells.items():
        rows.setdefault(name.removesuffix(f"-seed{config.training.seed}"), []).append((name, config))
    return rows


def _row(
    group: tuple[str, list[tuple[str, RunConfig]]], left: Sequence[jobs.Job], seconds: Mapping[str, float | None]
) -> tuple[str, ...]:
    row, cells = group
    config, vocabulary = cells[0][1], cells[0][1].data.vocabulary
    seeds = ",".join(str(config.training.seed) for _, config in cells)
    total, trained, memory = "–", "–", "–"
    if vocabulary:
        from relora_lab import sizes

        total = f"{sizes.count_parameters(config.model.shape, vocab_size=vocabulary)[0]:,}"
        trained, memory = f"{config.method.trained(config.model.shape, vocabulary):,}", _bytes(peak(config)[1].total)
    own = [job for job in left if job.key in dict(cells)]
    tokens = config.training.steps * config.data.batch_size * config.data.sequence_length
    times = [seconds[job.key] for job in own]
    known = [time for time in times if time is not None]
    return (
        f"{row}-seed{{{seeds}}}" if len(cells) > 1 else cells[0][0],
        config.method_name,
        config.model.size,
        total,
        trained,
        memory,
        f"{tokens:,}",
        f"{own[0].end - own[0].start:,}" if own else "ended",
        duration(sum(known)) if len(known) == len(times) else "–",
    )


def _seconds(job: jobs.Job, pace: Callable[[RunConfig], float | None]) -> float | None:
    if job.kind == "tokens":
        return 0.0
    found = pace(job.config)
    return None if found is None else found * (job.end - job.start)


def _stages(plan: Mapping[str, Stage], left: Sequence[jobs.Job]) -> Iterator[str]:
    keys = {job.key for job in left if job.kind == "stage"}
    alike: dict[tuple[str, int, int, int], list[int]] = {}
    for key, stage in plan.items():
        if key in keys:
            what = stage.config.method_name, stage.start, stage.cuts[-1], len(stage.cells)
            alike.setdefault(what, []).append(stage.config.training.seed)
    if alike:
        yield f"{len(keys)} stages, each trained once and then shared:"
    for (method, start, end, cells), seeds in alike.items():
        yield f"  {method} {start:,}–{end:,}, seed {','.join(map(str, seeds))}: for {cells} cells each"
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
