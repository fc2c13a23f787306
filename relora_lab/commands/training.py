"""Commands that train: one run, or a grid of them; and how far a grid is."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relora_lab.commands import DIVERGED, DONE, FAILED, default, say
from relora_lab.commands.looking import report

if TYPE_CHECKING:
    from relora_lab.runs import RunFolder
    from relora_lab.settings import RunConfig

Tracker = Literal["tensorboard", "wandb"] | None
Where = Literal["local", "ray", "slurm"]


def train(
    config: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path | None, default("runs/METHOD-SIZE-SEED-DIGEST")] = None,
    resume: bool = False,
    overrides: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(name="set")] = [],  # noqa: B006
    precision: Literal["float32", "bf16-autocast", "bf16"] | None = None,
    compile: tyro.conf.FlagCreatePairsOff[bool] = False,  # noqa: A002
    share: Annotated[bool, default("share")] = True,
    track: Tracker = None,
) -> int:
    """Train one run into a run folder.

    Args:
        config: Settings, a TOML file (the README has one; every field is in relora_lab/settings).
        out: The run folder.
        resume: Go on with the run in that folder, from its newest checkpoint; begin if there is none.
        overrides: Replace one setting, like method.rank=4. Can be given more than once.
        precision: In place of training.precision.
        compile: Set training.compile: a minute at each start, then faster steps.
        share: Do not share the full-rank beginning with other runs beside this one, through .stages/.
        track: Show the numbers in TensorBoard (in .tensorboard beside the run) or Weights & Biases too.
    """
    from relora_lab import torchrun
    from relora_lab.config import load, run_name
    from relora_lab.errors import printable

    given = {"precision": precision, "compile": "true" if compile else None}
    run_config = load(config, overrides + [f"training.{name}={value}" for name, value in given.items() if value])
    folder = Path("runs") / run_name(run_config) if out is None else out
    leads = torchrun.rank() == 0
    for warning in run_config.warnings() if leads else ():
        say(f"note: {warning}")

    from relora_lab import processes
    from relora_lab import train as trainer
    from relora_lab.runs import RunFolder

    run = RunFolder(folder)
    with processes.joined(), _followed(track if leads else None, [run]):
        trainer.run(run_config, folder, resume=resume, cuts=None if share else (), progress=True)
        state = processes.from_leader(lambda: run.state)
    if leads:
        print(printable(run.summary()))
    return DIVERGED if state == "diverged" else DONE


def grid(
    declared: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path | None, default("runs/NAME, or runs/NAME-PROFILE")] = None,
    on: Where = "local",
    workers: Annotated[int | None, default("2 here, 100 elsewhere")] = None,
    seeds: Annotated[tuple[int, ...], default("the grid's own")] = (),
    profile: str | None = None,
    dry_run: bool = False,
    track: Tracker = None,
    slurm: tyro.conf.UseAppendAction[list[str]] = [],  # noqa: B006
) -> int:
    """Train every run of a grid, then report. Done again, the command goes on where it was stopped.

    Args:
        declared: A TOML file of axes, rows and seeds, or the name of one that comes along, like table6 (the README
            lists them).
        out: Folder of the runs and of the report.
        on: Who trains: processes of this machine, a Ray cluster, or a SLURM queue (docs/scaling.md).
        workers: Runs that are trained at the same time, or are in the queue.
        seeds: Seeds in place of the grid's own. Compare runs of one seed: they see the same batches.
        profile: Settings for another machine or model, as the grid declares them: cpu, say, for a laptop.
        dry_run: Only say what would be trained, and what that takes in memory and time.
        track: Show the numbers in TensorBoard (in OUT/.tensorboard) or Weights & Biases too.
        slurm: An option for sbatch, like partition=long, time=10:00:00 or exclusive. Can be given more than once.
    """
    from relora_lab import grid as grids
    from relora_lab import stages, torchrun
    from relora_lab.errors import BadInput, require

    torchrun.require_alone("grid")
    workers = workers if workers is not None else 2 if on == "local" else 100
    require(workers >= 1, f"--workers: must be ≥ 1 (got {workers})")
    require(not slurm or on == "slurm", "--slurm: is for --on slurm")
    text = grids.read(declared)
    try:
        cells = grids.cells(text, seeds, profile)
    except BadInput as error:
        raise BadInput(f"{declared}: {error}") from None
    title = declared.stem + (f"-{profile}" if profile else "")
    out = Path("runs") / title if out is None else out
    for warning in dict.fromkeys(warning for cell in cells.values() for warning in cell.warnings()):
        say(f"note: {warning}")
    for note in grids.notes(cells):
        say(f"note: {note}")
    if dry_run:
        from relora_lab.dry_run import as_text
        from relora_lab.pace import Pace

        print(as_text(cells, stages.plan(cells), out, workers=workers, seconds=Pace().seconds))
        return DONE
    launch = partial(_engine(on, cells, slurm), workers=workers, title=title)
    return _trained_and_reported(cells, out, launch, track)


def _engine(on: Where, cells: "dict[str, RunConfig]", options: list[str]) -> Callable[..., dict[str, str]]:
    """What launches the cells; checked is what they need of this machine, if they are trained here."""
    match on:
        case "ray":
            from relora_lab.launch import ray

            return ray.launch
        case "slurm":
            from relora_lab.launch import slurm

            given = (option.partition("=") for option in options)
            return partial(slurm.launch, options={name: value if equals else True for name, equals, value in given})
    from relora_lab import environment
    from relora_lab.launch import local

    for config in {environment.needs(cell): cell for cell in cells.values()}.values():
        environment.check(config)
    return local.launch


def _trained_and_reported(
    cells: "dict[str, RunConfig]", out: Path, launch: Callable[..., dict[str, str]], track: Tracker
) -> int:
    from relora_lab import status
    from relora_lab.errors import BadInput, printable
    from relora_lab.runs import RunFolder

    runs = [RunFolder(out / name) for name in cells]
    with _followed(track, runs):
        failures = launch(cells, out)
    reached = [cell for cell in status.of_folder(out).cells if cell.name in cells and cell.state != "damaged"]
    print(status.summary(RunFolder(out / cell.name) for cell in reached), end="\n\n")
    print(printable(f"The runs are in {out}."))
    if failures:
        say(f"{len(failures)} of {len(cells)} cells failed; the same command tries them again")
    ended = tuple(out / cell.name for cell in reached if cell.ended)
    try:
        reported = report(ended, out / "report") if ended else DONE
    except BadInput as error:
        say(f"no report: {error}")
        reported = DONE
    return FAILED if failures else reported


def demo(
    out: Path = Path("runs/demo"),
    workers: int = 2,
    seeds: Annotated[tuple[int, ...], default("0")] = (),
) -> int:
    """Train full, LoRA, LoRA + warm start and ReLoRA on real text, and report what rank their updates had.

    Takes about 3 minutes on two cores. Ends with a table and the path of a report that a browser opens.

    Args:
        out: Folder of the four runs. Done again, the command goes on where it was stopped.
        workers: Processes that train at the same time, one thread each.
        seeds: Train the four with each of these seeds.
    """
    return grid(Path("demo"), out, workers=workers, seeds=seeds)


def status(
    folder: Annotated[Path, tyro.conf.Positional] = Path("runs"),
    watch: bool = False,
    every: Annotated[bool, tyro.conf.arg(name="all")] = False,
) -> int:
    """Say how far the cells of a grid are, what failed and why, and how long the rest will take.

    Args:
        folder: The grid's folder (--out), or any folder of runs.
        watch: Renew it until all is done.
        every: List every cell of a large grid, not only those that run or did not finish.
    """
    from relora_lab import status as statuses

    if watch:
        statuses.watch(folder, every=every)
    else:
        print(statuses.as_text(statuses.of_folder(folder), every=every))
    return DONE


def _followed(track: Tracker, runs: "Sequence[RunFolder]") -> AbstractContextManager[None]:
    """The numbers of the runs go to the tracker inside the block, if there is one."""
    if track is None:
        return nullcontext()
    from relora_lab import track as trackers

    trackers.require_library(track)
    return trackers.following(track, runs)
