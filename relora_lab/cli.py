"""The command `relora-lab`. Each command imports what it needs inside, so that --help comes at once."""

import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from relora_lab.errors import BadInput, FolderHeld, Interrupted

if TYPE_CHECKING:
    from relora_lab.runs import RunFolder

Tracker = Literal["tensorboard", "wandb"] | None
DONE, FAILED, BAD_INPUT, PARTIAL, HELD, DIVERGED = 0, 1, 2, 3, 4, 5


def train(
    config: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    resume: bool = False,
    overrides: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(name="set")] = [],  # noqa: B006
    precision: Literal["float32", "bf16-autocast", "bf16"] | None = None,
    compile: tyro.conf.FlagCreatePairsOff[bool] = False,  # noqa: A002
    share: bool = True,
    track: Tracker = None,
) -> int:
    """Train one run into a run folder.

    Args:
        config: Settings, a TOML file (the README has one; every field is in relora_lab/settings.py).
        out: The run folder. Default: runs/METHOD-SIZE-SEED-DIGEST.
        resume: Go on with the run in that folder, from its newest checkpoint.
        overrides: Replace one setting, like method.rank=4. Can be given more than once.
        precision: In place of training.precision.
        compile: Set training.compile: a minute at each start, then faster steps.
        share: Share the full-rank beginning with other runs beside this one, through .stages/.
        track: Show the numbers in TensorBoard (in .tensorboard beside the run) or Weights & Biases too.
    """
    from relora_lab.config import load, run_name

    given = {"precision": precision, "compile": "true" if compile else None}
    run_config = load(config, overrides + [f"training.{name}={value}" for name, value in given.items() if value])
    folder = Path("runs") / run_name(run_config) if out is None else out
    for warning in run_config.warnings():
        _say(f"note: {warning}")

    from relora_lab import train as trainer
    from relora_lab.runs import RunFolder

    run = RunFolder(folder)
    with _followed(track, [run]):
        trainer.run(run_config, folder, resume=resume, share=share, progress=True)
    print(run.summary())
    return DIVERGED if run.state == "diverged" else DONE


def grid(
    declared: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    workers: int = 2,
    seeds: tuple[int, ...] = (),
    profile: str | None = None,
    dry_run: bool = False,
    track: Tracker = None,
) -> int:
    """Train every run of a grid, then report. Done again, the command goes on where it was stopped.

    Args:
        declared: A TOML file of axes, rows and seeds, or the name of one that comes along, like table6.
        out: Folder of the runs and of the report. Default: runs/NAME, or runs/NAME-PROFILE.
        workers: Processes that train at the same time, one thread each.
        seeds: Seeds in place of the grid's own. Compare runs of one seed: they see the same batches.
        profile: Settings for another machine or model, as the grid declares them: cpu, say, for a laptop.
        dry_run: Only say what would be trained, and what that takes in memory and time.
        track: Show the numbers in TensorBoard (in OUT/.tensorboard) or Weights & Biases too.
    """
    from relora_lab import dry_run as dry
    from relora_lab import grid as grids
    from relora_lab import stages, status
    from relora_lab.errors import require
    from relora_lab.runs import RunFolder

    require(workers >= 1, f"--workers: must be ≥ 1 (got {workers})")
    cells = grids.cells(grids.read(declared), seeds, profile)
    title = declared.stem + (f"-{profile}" if profile else "")
    out = Path("runs") / title if out is None else out
    for warning in dict.fromkeys(warning for cell in cells.values() for warning in cell.warnings()):
        _say(f"note: {warning}")
    plan = stages.plan(cells)
    if dry_run:
        from relora_lab.pace import Pace

        print(dry.as_text(cells, plan, out, workers=workers, pace=Pace().of))
        return DONE

    from relora_lab.launch import local

    runs = [RunFolder(out / name) for name in cells]
    with _followed(track, runs):
        failures = local.launch(cells, out, workers=workers, title=title)
    print(status.summary(runs))
    print(f"\nThe runs are in {out}. {dry.saved(plan, cells)}")
    ended = tuple(run.path for run in runs if run.ended)
    reported = report(ended, out / "report") if ended else DONE
    for name, reason in failures.items():
        _say(f"{name}: {reason}")
    return FAILED if failures else reported


def demo(out: Path = Path("runs/demo"), workers: int = 2, seeds: tuple[int, ...] = ()) -> int:
    """Train full, LoRA, LoRA + warm start and ReLoRA on real text, and report what rank their updates had.

    Takes about 3 minutes on two cores. Ends with a table and the path of a report that a browser opens.

    Args:
        out: Folder of the four runs. Done again, the command goes on where it was stopped.
        workers: Processes that train at the same time, one thread each.
        seeds: Train the four with each of these seeds (default: 0).
    """
    return grid(Path("demo"), out, workers, seeds)


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


def report(runs: Annotated[tuple[Path, ...], tyro.conf.Positional], out: Path = Path("report")) -> int:
    """Write tables and figures of runs: one page for the browser, Markdown, CSV, LaTeX, PNG and PDF.

    Args:
        runs: Run folders, or folders of them. All must have seen as many tokens of the same text.
        out: The report's folder.
    """
    from analysis import load_runs, spectra
    from analysis.report import build

    frame = load_runs(runs)
    page = build(frame, out, progress=sys.stderr.isatty())
    print(f"The report is {page}.")
    broken = [
        path for path in spectra.with_weights(frame)["path"] if spectra.of_run(path).matrices["nonfinite"].any()
    ]
    for path in broken:
        _say(f"{path}: has non-finite weights; those matrices are marked and left out")
    return PARTIAL if broken else DONE


def spectrum(
    start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")],
    finals: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FINAL ...]")] = (),
    threshold: tyro.conf.UseAppendAction[tuple[float, ...]] = (),
    match: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    role: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    vectors: bool = False,
    tail: bool = False,
    json: bool = False,
    out: Path | None = None,
    method: Literal["auto", "gram", "svd"] = "auto",
    device: str = "cpu",
    workers: int | None = None,
    cache: bool = True,
) -> int:
    """Singular values of what two models differ by: counts, ranks, figures. No training stack is loaded.

    Args:
        start: A run folder (its warm_start/), a Hugging Face folder, a safetensors file, or a name on the hub.
        finals: One or more of the same (of a run folder final/), or PEFT LoRA adapters to START. Without one, the
            run folder START is meant twice.
        threshold: Count singular values below and above this. Can be given more than once. Default: 0.1.
        match: Only matrices whose name fits, like '*.q_proj'. Can be given more than once.
        role: Only matrices of this role, like q. Can be given more than once.
        layer: Only this layer, or these (0-3). Can be given more than once.
        vectors: Also how ΔW lies to the directions of W, intruder dimensions, and what several ΔW have in common.
        tail: Also the exponent of a power law fitted to the largest values.
        json: Print everything, every singular value too, as JSON.
        out: Write spectra, counts and matrices as parquet (and CSV), and figures, into this folder.
        method: auto takes known factors where that is sooner; gram and svd take the weights.
        device: Where to compute: cpu, cuda.
        workers: Matrices worked on at a time, one thread each. Default: as many as there are cores.
        cache: Remember what was measured, so that a second look is immediate.
    """
    from analysis import look, output
    from analysis.naming import Selection, layers_of

    if out is not None:
        output.check(out)
    looks = look.several(
        start,
        finals,
        threshold or (0.1,),
        Selection(match, role, tuple(layers_of(layer))),
        vectors=vectors,
        tail=tail,
        method=method,
        device=device,
        workers=workers,
        cache=cache,
    )
    common = look.overlaps(looks, workers) if vectors and len(looks) > 1 else None
    print(look.as_json(looks, common) if json else look.as_text(looks, common))
    if out is not None:
        look.write(looks, out, common)
        _say(f"written to {out}")
    broken = {(found.label, name): count for found in looks for name, count in found.nonfinite.items()}
    for (label, name), count in broken.items():
        which = f"{label}: {name}" if len(looks) > 1 else name
        _say(f"{which}: {count} non-finite values; marked and left out")
    return PARTIAL if broken else DONE


def plan(
    config: Annotated[Path | None, tyro.conf.Positional] = None,
    size: str | None = None,
    rank: int | None = None,
    overrides: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(name="set")] = [],  # noqa: B006
    json: bool = False,
) -> int:
    """Say how much memory training takes: P2's table of all methods, or with a config file what that run needs here.

    Args:
        config: Settings, a TOML file: print what the run holds at each moment that can be its peak.
        size: Size of the table, without a config file. Default: 350M.
        rank: Rank of the table, without a config file. Default: 256.
        overrides: Replace one setting of the file, like method.rank=4. Can be given more than once.
        json: Print unrounded numbers as JSON.
    """
    from relora_lab.errors import require
    from relora_lab.memory import report as reports

    if config is None:
        require(not overrides, "--set: is for a config file, and none is given")
        found = reports.of_paper(size or "350M", 256 if rank is None else rank)
    else:
        from relora_lab.config import load

        require(size is None and rank is None, f"--size, --rank: {config} has its own; use --set")
        found = reports.of_run(load(config, overrides))
    print(found.as_json() if json else found.as_text())
    return DONE


def runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> int:
    """List the runs in a folder. Also: `runs diff A B`, `runs clean FOLDER`.

    Args:
        folder: A folder of run folders.
    """
    from relora_lab.status import summary
    from relora_lab.workspace import run_folders

    print(summary(run_folders(folder)))
    return DONE


def runs_diff(a: Annotated[Path, tyro.conf.Positional], b: Annotated[Path, tyro.conf.Positional]) -> int:
    """Show the settings in which two runs differ, and what each reached.

    Args:
        a: A run folder.
        b: Another one.
    """
    from relora_lab.config import differences
    from relora_lab.errors import require
    from relora_lab.runs import RunFolder
    from relora_lab.status import summary

    folders = [RunFolder(a), RunFolder(b)]
    for folder in folders:
        require(folder.started, f"{folder.path}: is no run folder")
    differing = differences(*(folder.config for folder in folders))
    for field, (old, new) in differing.items():
        print(f"{field:<28} {'–' if old is None else old} → {'–' if new is None else new}")
    print(("" if differing else "the same settings\n") + "\n" + summary(folders))
    return DONE


def runs_clean(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), yes: bool = False) -> int:
    """Remove what nothing needs any more: states of ended runs, shared beginnings, token files, leftovers.

    Settings, logs, cycles and weights stay. Asks first.

    Args:
        folder: A folder of run folders.
        yes: Do not ask.
    """
    from relora_lab import clean

    found = clean.removable(folder)
    for item in found:
        print(f"{item.size / 2**20:9.1f} MiB  {item.path}: {item.why}")
    if not found:
        print(f"{folder}: there is nothing to remove")
    elif yes or _confirmed(f"Remove these ({sum(item.size for item in found) / 2**20:.1f} MiB)? [y/N] "):
        clean.remove(found)
        print("removed")
    return DONE


def _followed(track: Tracker, runs: "Sequence[RunFolder]") -> AbstractContextManager[None]:
    """The numbers of the runs go to the tracker inside the block, if there is one."""
    if track is None:
        return nullcontext()
    from relora_lab import track as trackers

    trackers.require_library(track)
    return trackers.following(track, runs)


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False


Commands = dict[str, Callable[..., int]]
COMMANDS: Commands = {
    "train": train,
    "grid": grid,
    "demo": demo,
    "plan": plan,
    "status": status,
    "report": report,
    "spectrum": spectrum,
    "runs": runs,
}
RUNS_COMMANDS: Commands = {"diff": runs_diff, "clean": runs_clean}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is one line on stderr (all of it with --debug)."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    about = "Train by low-rank updates, then look at the rank of what was learned."
    commands, program = COMMANDS, "relora-lab"
    if arguments[:1] == ["runs"] and arguments[1:2] and arguments[1] in RUNS_COMMANDS:
        commands, program, arguments = RUNS_COMMANDS, "relora-lab runs", arguments[1:]
    try:
        return tyro.extras.subcommand_cli_from_dict(commands, args=arguments, prog=program, description=about)
    except BrokenPipeError:  # who reads our output, head say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return DONE
    except (Exception, KeyboardInterrupt) as error:
        if debug:
            traceback.print_exc()
        code, message = _explain(error)
        _say(message)
        return code


def _explain(error: BaseException) -> tuple[int, str]:
    """Exit code and message."""
    match error:
        case BadInput():
            return BAD_INPUT, str(error)
        case FolderHeld():
            return HELD, str(error)
        case Interrupted():
            return 128 + error.signum, str(error)
        case KeyboardInterrupt():
            return 128 + signal.SIGINT, "interrupted"
        case _:
            return FAILED, f"{type(error).__name__}: {error} (--debug shows where)"


def _say(message: str) -> None:
    print("relora-lab: " + " ".join(message.split()), file=sys.stderr)
