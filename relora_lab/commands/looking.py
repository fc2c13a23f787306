"""Commands that look: at trained runs, at any two models, and at how much memory a run will need."""

import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

from relora_lab.commands import DONE, PARTIAL, default, say


def report(
    runs: Annotated[tuple[Path, ...], tyro.conf.Positional],
    out: Path = Path("report"),
    own: Annotated[Path | None, tyro.conf.arg(name="with")] = None,
) -> int:
    """Write tables and figures of runs: one page for the browser, Markdown, LaTeX, CSV, PNG, PDF and SVG.

    Args:
        runs: Run folders, or folders of them. All of one size must have seen as many tokens of the same text.
        out: The report's folder.
        own: A folder of your own tables and figures, Python files like those of analysis/tables and
            analysis/figures. They are run.
    """
    from analysis import load_runs, spectra
    from analysis.report import build
    from relora_lab.errors import printable

    frame = load_runs(runs)
    page = build(frame, out, own=own, progress=sys.stderr.isatty())
    print(printable(f"The report is {page}."))
    broken = [
        path for path in spectra.with_weights(frame)["path"] if spectra.of_run(path).matrices["nonfinite"].any()
    ]
    for path in broken:
        say(f"{path}: has non-finite weights; those matrices are marked and left out")
    return PARTIAL if broken else DONE


def spectrum(
    start: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="START")],
    finals: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[FINAL ...]")] = (),
    threshold: Annotated[tyro.conf.UseAppendAction[tuple[float, ...]], default("0.1")] = (),
    match: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    role: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    layer: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
    vectors: bool = False,
    tail: bool = False,
    json: bool = False,
    out: Path | None = None,
    method: Literal["auto", "gram", "svd"] = "auto",
    device: str = "cpu",
    workers: Annotated[int | None, default("as many as there are cores")] = None,
    cache: Annotated[bool, default("remember")] = True,
) -> int:
    """Singular values of what two models differ by: counts, ranks, figures. No training stack is loaded.

    Args:
        start: A run folder (its warm_start/), a Hugging Face folder, a safetensors file, or a name on the hub.
        finals: One or more of the same (of a run folder final/), or PEFT LoRA adapters to START. Without one, the
            run folder START is meant twice.
        threshold: Count singular values below and above this. Can be given more than once.
        match: Only matrices whose name matches, like '*.q_proj'. Can be given more than once.
        role: Only matrices of this role: q, k, v, o, gate, up or down in a LLaMA. Can be given more than once.
        layer: Only this layer, or these (0-3). Can be given more than once.
        vectors: Also how ΔW lies to the directions of W, intruder dimensions, and what several ΔW have in common.
        tail: Also the exponent of a power law fitted to the largest values.
        json: Print everything, every singular value too, as JSON.
        out: Write spectra, counts and matrices as parquet (and CSV), and figures, into this folder.
        method: auto takes known factors where that is sooner; gram and svd take the weights.
        device: Where to compute: cpu, cuda.
        workers: Matrices worked on at a time, one thread each.
        cache: Do not remember what was measured, which makes a second look immediate.
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
        say(f"written to {out}")
    broken = [(found.matched.final, found.nonfinite) for found in looks if found.nonfinite]
    for final, counts in broken:
        first, count = next(iter(counts.items()))
        more = f" (and {sum(counts.values()) - count} in {len(counts) - 1} more)" if len(counts) > 1 else ""
        say(f"{final}: {first}: {count} non-finite values{more}; marked nonfinite, the rest analysed")
    return PARTIAL if broken else DONE


def plan(
    config: Annotated[Path | None, tyro.conf.Positional] = None,
    size: Annotated[str | None, default("350M")] = None,
    rank: Annotated[int | None, default("256")] = None,
    overrides: Annotated[tyro.conf.UseAppendAction[list[str]], tyro.conf.arg(name="set")] = [],  # noqa: B006
    tflops: float | None = None,
    json: bool = False,
) -> int:
    """Say how much memory training takes: P2's table of all methods, or with a config file what that run needs here.

    Args:
        config: Settings, a TOML file: print what the run holds at each moment that can be its peak.
        size: Size of the table, without a config file.
        rank: Rank of the table, without a config file.
        overrides: Replace one setting of the file, like method.rank=4. Can be given more than once.
        tflops: TFLOP/s that a GPU really reaches (70, say): print the GPU-hours of the config file's run, too.
        json: Print unrounded numbers as JSON.
    """
    from relora_lab.errors import require
    from relora_lab.memory import report as reports

    if config is None:
        require(not overrides and tflops is None, "--set, --tflops: are for a config file, and none is given")
        found = reports.of_paper(size or "350M", 256 if rank is None else rank)
    else:
        from relora_lab.config import load

        require(size is None and rank is None, f"--size, --rank: {config} has its own; use --set")
        require(tflops is None or tflops > 0, f"--tflops: must be > 0 (got {tflops})")
        found = reports.of_run(load(config, overrides), tflops)
    print(found.as_json() if json else found.as_text())
    return DONE
