"""Commands about runs: what is in a folder, how two differ, whether all is sound, what can go; one as an adapter."""

from pathlib import Path
from typing import Annotated

import tyro

from relora_lab.commands import DONE, default


def runs(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> int:
    """List the runs in a folder. Also: `runs diff A B`, `runs check FOLDER`, `runs clean FOLDER`.

    Args:
        folder: A folder of run folders.
    """
    from relora_lab.status import summary
    from relora_lab.workspace import run_folders

    print(summary(run_folders(folder)))
    return DONE


def export(
    run: Annotated[Path, tyro.conf.Positional],
    out: Annotated[Path | None, default("RUN-adapter, beside the run")] = None,
) -> int:
    """Write what a low-rank run trained as a PEFT LoRA adapter to its warm_start/: the run's own factors, unmerged.

    Args:
        run: A run folder.
        out: The adapter's folder; not the run's, in which is what the run wrote alone.
    """
    from relora_lab import adapters
    from relora_lab.errors import printable
    from relora_lab.runs import RunFolder

    place = run.resolve().with_name(f"{run.resolve().name}-adapter") if out is None else out
    rank = adapters.export(RunFolder(run), place)
    print(printable(f"{place}: an adapter of rank {rank} to {run / 'warm_start'}"))
    return DONE


def runs_diff(a: Annotated[Path, tyro.conf.Positional], b: Annotated[Path, tyro.conf.Positional]) -> int:
    """Show the settings in which two runs differ, and what each reached.

    Args:
        a: A run folder.
        b: Another one.
    """
    from relora_lab.config import differences
    from relora_lab.errors import printable, require
    from relora_lab.runs import RunFolder
    from relora_lab.status import summary

    folders = [RunFolder(a), RunFolder(b)]
    for folder in folders:
        require(folder.started, f"{folder.path}: is no run folder")
    differing = differences(*(folder.config for folder in folders))
    for field, (old, new) in differing.items():
        print(printable(f"{field:<28} {'–' if old is None else old} → {'–' if new is None else new}"))
    print(("" if differing else "the same settings\n") + "\n" + summary(folders))
    return DONE


def runs_check(folder: Annotated[Path, tyro.conf.Positional] = Path("runs")) -> int:
    """Check that every finished file of runs, stages and token folders is as it was written, by its sha256.

    Args:
        folder: A run folder, or a folder of them.
    """
    from relora_lab import check
    from relora_lab.commands import BAD_INPUT, say
    from relora_lab.errors import printable

    found = list(check.faults(folder))
    faults = [fault for fault in found if fault]
    for fault in faults:
        say(fault)
    print(printable(f"{folder}: {len(found)} checks, {len(faults)} faults"))
    return BAD_INPUT if faults else DONE


def runs_clean(folder: Annotated[Path, tyro.conf.Positional] = Path("runs"), yes: bool = False) -> int:
    """Remove what nothing needs any more: states of ended runs, shared beginnings, token files, leftovers.

    Settings, logs, cycles and weights stay. Asks first.

    Args:
        folder: A folder of run folders.
        yes: Do not ask.
    """
    from relora_lab import clean
    from relora_lab.errors import printable

    found = clean.removable(folder)
    for item in found:
        print(printable(f"{item.size / 2**20:9.1f} MiB  {item.path}: {item.why}"))
    if not found:
        print(printable(f"{folder}: there is nothing to remove"))
    elif yes or _confirmed(f"Remove these ({sum(item.size for item in found) / 2**20:.1f} MiB)? [y/N] "):
        clean.remove(found)
        print("removed")
    return DONE


def _confirmed(question: str) -> bool:
    try:
        return input(question).strip().lower() in ("y", "yes")
    except EOFError:
        return False
