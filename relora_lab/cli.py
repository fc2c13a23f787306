"""The command `relora-lab`. Each command imports what it needs inside, so that --help comes at once."""

import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import tyro

from relora_lab.errors import BadInput, FolderHeld, Interrupted

DONE, FAILED, BAD_INPUT, HELD, DIVERGED = 0, 1, 2, 4, 5


def train(
    config: Annotated[Path, tyro.conf.Positional],
    out: Path | None = None,
    resume: bool = False,
    overrides: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(name="set")] = [],  # noqa: B006
    share: bool = True,
) -> int:
    """Train one run into a run folder.

    Args:
        config: Settings, a TOML file (the README has one; every field is in relora_lab/settings.py).
        out: The run folder. Default: runs/METHOD-SIZE-SEED-DIGEST.
        resume: Go on with the run in that folder, from its newest checkpoint.
        overrides: Replace one setting, like method.rank=4. Can be given more than once.
        share: Share the full-rank beginning with other runs beside this one, through .stages/.
    """
    from relora_lab.config import load, run_name

    run_config = load(config, overrides)
    folder = Path("runs") / run_name(run_config) if out is None else out
    for warning in run_config.warnings():
        _say(f"note: {warning}")

    from relora_lab import train as trainer
    from relora_lab.runs import RunFolder

    run = RunFolder(trainer.run(run_config, folder, resume=resume, share=share, progress=True))
    print(run.summary())
    return DIVERGED if run.state == "diverged" else DONE


def demo(out: Path = Path("runs/demo"), workers: int = 2, seeds: tuple[int, ...] = (0,)) -> int:
    """Train full, LoRA, LoRA + warm start and ReLoRA on real text, in about 2½ minutes on two cores.

    Args:
        out: Folder of the four runs. Done again, the command goes on where it was stopped.
        workers: Processes that train at the same time, one thread each.
        seeds: Train the four with each of these seeds. Compare runs of one seed: they see the same batches.
    """
    from importlib.resources import files

    from relora_lab import grid
    from relora_lab.errors import require
    from relora_lab.launch import local

    require(workers >= 1, f"--workers: must be ≥ 1 (got {workers})")
    cells = grid.cells(files("experiments").joinpath("grids/demo.toml").read_text(encoding="utf-8"), seeds)
    failures = local.launch(cells, out, workers=workers)
    for name, reason in failures.items():
        _say(f"{name}: {reason}")
    print(grid.summary(cells, out))
    print(f"\nThe runs are in {out}.")
    return FAILED if failures else DONE


COMMANDS: dict[str, Callable[..., int]] = {"train": train, "demo": demo}


def main(arguments: list[str] | None = None) -> None:
    """Run a command and exit with its code; an error is one line on stderr (all of it with --debug)."""
    given = sys.argv[1:] if arguments is None else arguments
    debug = "--debug" in given
    sys.exit(_run([argument for argument in given if argument != "--debug"], debug))


def _run(arguments: list[str], debug: bool) -> int:
    about = "Train by low-rank updates, then look at the rank of what was learned."
    try:
        return tyro.extras.subcommand_cli_from_dict(COMMANDS, args=arguments, prog="relora-lab", description=about)
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
