"""Each number of README.md is one that is measured, set or printed, and no other number is in it.

A quote is a piece of the README, made from where its numbers come from. If a measured one is not in it: measure again
(experiments/measured.py has the commands), or let the README say what was measured.
"""

import math
import platform
import re
import signal
import tomllib
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace

import conftest
import pandas as pd
import pytest
from conftest import ROOT, changed, tiny_tables

from experiments import measured
from experiments.benchmarks import roofline, sides, spectrum, step, throughput
from relora_lab import grid, sizes, train
from relora_lab.commands import BAD_INPUT, DIVERGED, DONE, FAILED, HELD, PARTIAL
from relora_lab.runs import RunFolder

MEASURED = ROOT / "docs" / "measured"
IN_WORDS = ("no", "one", "two", "three", "four", "five")
OTHERS = {  # what is no measurement, and is in the README
    r"(?:Tables?|Figures?|Section) \d+(?:(?:, | and )\d+)*": "where the papers have it",
    r"ICLR 2024|arXiv 2307\.05695|\(2024\)": "the papers",
    r"\b(?:60M|350M|1\.3B|7B)\b": "sizes of models",
    r"GPT-2|\b3-D\b|Apache License 2\.0": "names",
    r"\bB = 0\b|\b1 \+ r/T\b|\bd/2\b": "formulas",
    r"within 1e-5 in float32": "promised, and held by tests/test_adapters.py",
    r"20 minutes on two cores": "about how long a command takes",
}


def plain(text: str) -> str:
    """The text, wherever its lines break."""
    return " ".join(text.split())


README = plain((ROOT / "README.md").read_text())


def csv(name: str) -> pd.DataFrame:
    """A CSV of docs/measured/."""
    path = MEASURED / f"{name}.csv"
    assert path.exists(), (
        f"docs/measured/{path.name} is missing; experiments/measured.py has the command that writes it"
    )
    return pd.read_csv(path)


def the(values: pd.Series) -> object:
    """The value that all have."""
    found = list(values.unique())
    assert len(found) == 1, f"{values.name}: {found}"
    return found[0]


def short(version: str) -> str:
    """2.13 of 2.13.0+cpu."""
    return ".".join(version.split(".")[:2])


def power(value: float) -> str:
    """1.6e-8."""
    return f"{value:.1e}".replace("e-0", "e-")


# ---- quotes: what is set, and what the papers print


def of_settings() -> Iterator[str]:
    run = grid.cells(grid.read(Path("demo")))["relora-seed0"]
    rank, start, steps = run.low_rank.rank, run.training.reference, run.training.steps
    yield f"{steps} updates, rank {rank}; ΔW is measured from step {start}."
    yield f"**Does a sequence of rank-{rank} updates have high rank?**"
    yield f"({IN_WORDS[(steps - start) // run.low_rank.restart_every]} cycles of rank {rank})"
    yield f"whose factors were not zero at step {start}"
    yield f"is then {len(grid.cells(grid.read(Path('table6')), profile='cpu'))} runs"
    yield f"all {len(grid.cells(grid.read(Path('table6-all')), [0])) - 1} combinations"  # and full training
    codes = (
        f"{DONE} done · {FAILED} failed · {BAD_INPUT} bad input · {PARTIAL} matrices with non-finite entries left out"
    )
    stopped = f"{128 + signal.SIGINT}, {128 + signal.SIGTERM} stopped by a signal"
    yield f"{codes} · {HELD} another process holds the run folder · {DIVERGED} the run diverged · {stopped}"
    yield f"(exit {PARTIAL})"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    yield f"Python {project['requires-python'].replace('>=', '≥ ')}"


def of_papers() -> Iterator[str]:
    width = sizes.resolve("350M").hidden
    full, relora = (throughput.printed()[throughput.Cell(*cell)] for cell in (("full", None, 24), ("relora", 4, 24)))
    yield f"P2 finds ReLoRA at rank {width // 4}, width {width} slower than full-rank training ({relora / full:.2f}"


# ---- quotes: what is measured


def of_demo() -> Iterator[str]:
    runs = csv("demo").set_index("run")
    full, relora, warm, lora = four = [runs.loc[f"{row}-seed0"] for row in ("full", "relora", "lora-warm", "lora")]
    for run in four:
        yield f"{run.name} {run.trained:,} {run.perplexity:.3f} {run.loss:.4f} {run.step} {run.state}"
        assert run.rank_low == run.rank_high == run.ceiling_low == run.ceiling_high
    assert full.loss < relora.loss < warm.loss < lora.loss
    yield f"A LLaMA of {full.parameters:,} parameters on the bytes"
    yield f"(torch {short(the(runs.torch))}, Python {the(runs.python)}, one thread a run;"
    yield f"Of {full.side} singular values of each ΔW, those that are not zero: {full.rank_low} for full training,"
    yield f"{relora.rank_low} for ReLoRA ("
    yield f"{warm.rank_low} for LoRA after the same warm start, {lora.rank_low} for LoRA from scratch"
    yield f"{relora.below_percent:.0f} % of ReLoRA's singular values are below 0.1;"
    yield f"{relora.zero_percent:.0f} % have to be, since they are zero"
    yield f"ReLoRA has a few up to {max(relora[f'largest_{role}'] for role in ('q', 'k', 'v', 'down')):.1f}"


def of_controls() -> Iterator[str]:
    low_rank = grid.cells(grid.read(Path("demo")))["relora-seed0"]
    controls = csv("demo").query("control").set_index("optimizer.lr")
    yield f"a full-rank model of {the(controls.parameters):,} parameters"
    found = [controls.perplexity[rate] for rate in (low_rank.optimizer.lr, low_rank.low_rank_lr)]
    yield "{:.3f} at the full runs' learning rate, {:.3f} at the low-rank runs'".format(*found)


def of_seeds() -> Iterator[str]:
    runs = csv("demo").query("not control")
    loss = runs.pivot_table(index="seed", columns="label", values="loss")
    less = (loss["lora-warm"] - loss["relora"]).to_dict()
    assert less.keys() >= {0, 1, 2}, f"demo.csv has seeds {list(less)}"
    by_seed = [f"{less[seed]:.3f}" for seed in (0, 1, 2)]
    yield f"ReLoRA's loss was {', '.join(by_seed[:2])} and {by_seed[2]} nat below that of LoRA with the warm start"
    assert (loss.max() - loss.min() > less[0]).to_dict() == {  # seeds move all but the last by more
        "full": True,
        "relora": True,
        "lora-warm": True,
        "lora": False,
    }


def of_step() -> Iterator[str]:
    table = csv("step")
    rows = table[table["quantity"].isin(["ratio", "ms"])].set_index(["case", "precision", "side", "peer"])

    def of(case: str, ours: str, peer: str, precision: str = "bf16-autocast") -> pd.Series:
        return rows.loc[(case, precision, ours, peer)]

    def both(ours: str, peer: str) -> str:
        return " | ".join(cell(of("step", ours, peer, precision)) for precision in ("bf16-autocast", "float32"))

    yield f"| full rank, beside transformers' plain loop | {both('full', 'transformers')} |"
    for rank, share in ((128, "d/8"), (256, "d/4"), (512, "d/2")):
        ours, label = f"relora {rank}", f"ReLoRA, rank {rank} ({share}), beside"
        yield f"| {label} full rank | {both(ours, 'full')} |"
        yield f"| {label} PEFT | {both(ours, f'peft {rank}')} |"
        if rank < 512:
            yield f"| {label} the textbook layer | {both(ours, f'textbook {rank}')} |"

    (model, vocabulary), batch, length = step.BLOCKS, step.MICRO_BATCH, step.SEQUENCE
    blocks, width = IN_WORDS[model["layers"]].capitalize(), sizes.resolve(model["size"]).hidden
    yield f"({blocks} blocks of width {width}, {batch} × {length} tokens, vocabulary {vocabulary};"
    yield f"{made_on(table)}, medians of {the(table['repeats'])} rounds.)"
    over = int((rows["found"] > rows["limit"]).sum())
    yield f"{IN_WORDS[over].capitalize()} limit{'s are' if over != 1 else ' is'} not held."
    near = of("step", "relora 128", "peft 128")
    yield f"In bfloat16 rank 128 beats PEFT by {100 - 100 * near.found:.0f} %, not {100 - 100 * near.limit:.0f}:"
    yield f"its products are {products('relora', 128) / products('peft', 128):.2f} of PEFT's"
    yield f"takes {products('relora', 512) / products('full'):.2f} of full rank's products"
    yield f"with T = {batch * length} tokens a step"

    low, high = (of("memory", f"relora {rank}", "full").found for rank in (128, 256))
    yield f"Peak memory in bfloat16 is {low:.2f} (rank 128) and {high:.2f} (rank 256) of full rank's,"
    low, high = (of("memory", f"relora {rank}", f"peft {rank}").found for rank in (128, 256))
    yield f"{low:.2f} and {high:.2f} of PEFT's,"
    yield f"and at full rank {of('memory', 'full', 'transformers').found:.2f} of transformers'."
    model, vocabulary = step.SHAPES["vocabulary"]
    found = of("vocabulary", "full", "transformers").found
    yield f"With {vocabulary} tokens ({model['size']}) full rank takes {found:.2f} of transformers' time."
    yield f"The loop adds {of('loop', 'trainer', 'bare loop', 'float32').found:.1f} ms to a step."


def products(method: str, rank: int | None = None) -> int:
    """Operations of a step of that benchmark."""
    model, vocabulary = step.BLOCKS
    side = sides.Side(method, rank)
    return roofline.step_flops(side, sides.settings(side, step.parse([]), model, "float32"), vocabulary)


def of_spectrum() -> Iterator[str]:
    table = csv("spectrum")
    rows = table.set_index("case")

    def line(case: str, what: str, digits: int = 2) -> str:
        over = " **over**" if rows.ratio[case] > rows.limit[case] else ""
        return f"| {what} | {rows.ratio[case]:.{digits}f}{over} | {rows.limit[case]:.2f} |"

    own, size = spectrum.OWN_SIZE, sizes.resolve(spectrum.OWN_SIZE["factored"])
    way = f"the dense way, {size.hidden}×{size.intermediate}, total rank {size.hidden // 24 * spectrum.CYCLES}"
    loop = "a plain loop of `torch.linalg.svdvals`, float32"
    yield line("svdvals", f"{loop}: a pair of {own['pair']}'s shapes, files included")
    yield line("weightwatcher", f"{rows.against['weightwatcher']} on the same pair (it fits power laws too)")
    yield line("notebook", "a loop of full `np.linalg.svd`")
    yield line("torch-svd", "a loop of full `torch.linalg.svd`")
    yield line("shapes", f"`svdvals`, the shapes of {own['shapes']}'s blocks")
    yield line("factored", f"`factored_singular_values` beside {way}", 3)
    found, limit = rows.ours["memory"], rows.limit["memory"]
    yield f"Comparing two bfloat16 models of {own['memory']}'s shapes takes {found:.0f} MB beside the libraries"
    yield f"(one worker; limit {limit:.0f})"
    ours, theirs = map(power, table.dropna(subset="error").set_index("against")["error"][["ours", "svdvals float32"]])
    yield f"exactly zero is {ours} of σ1, of `svdvals` in float32 {theirs}."
    yield f"({made_on(table)}"


def of_grid() -> Iterator[str]:
    rows = csv("grid").set_index("case")
    idle, status = rows.loc["no-op"], rows.loc["status"]
    yield f"a cell costs {1000 * idle.seconds:.0f} ms ({idle.cells:,} no-op cells),"
    yield f"`status` of {status.cells:,} cells {status.seconds:.1f} s"


def of_faults() -> Iterator[str]:
    table = csv("faults")
    rows = [("experiment", "tries", "survived"), ("---", "---:", "---:"), *table.itertuples(index=False)]
    rows.append(("**all**", table["tries"].sum(), table["survived"].sum()))
    yield " ".join(f"| {name} | {tries} | {survived} |" for name, tries, survived in rows)


def cell(row: pd.Series) -> str:
    """A ratio, and its limit where there is one."""
    limit = "" if pd.isna(row.limit) else f" (limit {row.limit:.2f})"
    return f"{row.found:.2f}{limit}" + " **over**" * bool(row.found > row.limit)


def made_on(table: pd.DataFrame) -> str:
    """Processor and torch."""
    return f"{the(table['processor'])}, torch {short(the(table['torch']))}"


# ---- the README and the CSVs


SOURCES = [of_settings, of_papers, of_demo, of_controls, of_seeds, of_step, of_spectrum, of_grid, of_faults]


@pytest.mark.parametrize("source", SOURCES, ids=lambda source: source.__name__)
def test_the_numbers_are_those_of_their_source(source):
    missing = [quote for quote in source() if README.count(quote) != 1]
    assert not missing, "README.md should have, once each:\n" + "\n".join(missing)


def test_no_other_number_is_in_the_readme():
    quotes = [quote for source in SOURCES for quote in source()]
    assert without_source(README, quotes) == []
    assert len(without_source(f"{README} It takes 0.12 s, half of it in float32 (`rank = 3`).", quotes)) == 1


def test_what_is_no_measurement_is_in_the_readme():
    assert [pattern for pattern in OTHERS if not re.search(pattern, README)] == []


def test_every_csv_is_quoted():
    assert {path.stem for path in MEASURED.glob("*.csv")} <= {"demo", "step", "spectrum", "grid", "faults"}


def without_source(text: str, quotes: Iterable[str]) -> list[str]:
    """The numbers that are in no quote, no code and no address, and none of OTHERS; each with what is around it."""
    rest = text
    for quote in quotes:
        for found in re.finditer(re.escape(quote), text):
            rest = rest[: found.start()] + " " * len(quote) + rest[found.end() :]
    for pattern in ["```.*?```", "`[^`]*`", r"\]\([^)]*\)", *OTHERS]:
        rest = re.sub(pattern, " ", rest)
    return [
        rest[max(0, found.start() - 40) : found.end() + 20] for found in re.finditer(r"(?<![\w.,])\d[\d.,]*", rest)
    ]


def test_a_run_is_measured(tmp_path):
    run = train.run(changed(tiny_tables(), training={"reference_step": 20}), tmp_path / "relora-seed0")
    measured.main([str(tmp_path), "--csv", str(tmp_path / "found.csv")])
    (row,) = pd.read_csv(tmp_path / "found.csv").itertuples()
    assert (row.run, row.state, row.step, row.side) == ("relora-seed0", "finished", 60, 16)
    assert row.loss == RunFolder(run).final_evaluation["loss"]
    assert row.rank_low <= row.rank_high == row.ceiling_high == 6  # three cycles of rank 2
    assert row.zero_percent == pytest.approx(100 * 10 / 16)
    assert row.zero_percent <= row.below_percent <= 100


def test_a_benchmark_leaves_its_numbers(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(spectrum, "LIMITS", {"factored": math.inf})
    path = tmp_path / "found.csv"
    spectrum.main(["--size", "demo", "--repeats", "1", "--only", "factored", "--csv", str(path)])
    found = pd.read_csv(path)
    assert f"{found['ratio'][0]:.3f}" in capsys.readouterr().out
    assert list(found["case"]) == ["factored", "zeros", "zeros"]
    assert the(found["repeats"]) == 1
    assert the(found["python"]) == platform.python_version()


def test_faults_leave_their_table(tmp_path):
    noted = [("experiment", "a file is cut, twice"), ("tries", 3), ("survived", 2)]
    reports = {"passed": [SimpleNamespace(user_properties=noted, when="call")]}
    reporter = SimpleNamespace(getreports=lambda of: reports.get(of, []), section=str, write=str)
    option = SimpleNamespace(markexpr="faults or not faults", faults_csv=str(tmp_path / "faults.csv"))
    conftest.pytest_terminal_summary(reporter, SimpleNamespace(option=option))
    assert pd.read_csv(tmp_path / "faults.csv").to_numpy().tolist() == [["a file is cut, twice", 3, 2]]
