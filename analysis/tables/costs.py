"""Perplexity, memory and throughput of each method (P2 Tables 1 and 3)."""

import pandas as pd

from analysis import measures, paper, throughput
from analysis.measures import PERPLEXITY
from analysis.statistics import standard_error, summarise
from analysis.tables import ablation
from relora_lab.memory import is_350m, plain_activations
from relora_lab.memory.held import GIB, PRECISIONS, STATE_BYTES, largest_tensor, weight_bytes
from relora_lab.runs import RunFolder

ORDER = 15
OPTIONAL = True
DERIVED = "Table 1 (derived)"
PRINTED = [("P2", "Table 1"), ("P2", DERIVED), ("P2", "Table 3")]
CELLS = ("param", "grad", "os", "act", "extra", "total")
NOTE = (
    "Perplexity: mean ± standard error over the n seeds that finished. Memory in GiB, computed as P2 counts it, for "
    "the run's size, rank, vocabulary and the dtypes of its weights and optimizer states: param, all weights; grad, "
    "of what is trained; os, the optimizer's states (without projectors); act, what is saved of one sequence of 256 "
    "tokens in bfloat16 (.30 at 350M, as P2 has it); extra, the largest tensor; total, their sum (P2 adds up rounded "
    "cells). What a run really holds at its peak, relora-lab plan says. examples/s: sequences a second in the phase "
    "that the method trains, the median over updates, mean ± standard error over runs; several runs share a machine, "
    "so these are no benchmarks. P2 columns: 350M on C4, printed in its Table 3 or its text, of the method under P2 "
    "row; P2 derived: not printed, but computed from differences in its text, as P2 derived from shows."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: method, n, perplexity, memory, examples a second, P2's. Empty if all methods are P1's.

    Of tasks too, for P2 has none.
    """
    measured = summarise(runs, "perplexity")
    if set(runs["method"]) <= {*ablation.METHODS, "online_relora"} or measures.of_runs(runs) is not PERPLEXITY:
        return pd.DataFrame()
    first = runs.groupby("label", observed=True).first().loc[measured["label"]]
    speeds = throughput.of_runs(runs).groupby("label", observed=True)["examples"]
    speed = {
        "examples/s": speeds.mean(),
        "examples/s_error": speeds.agg(lambda values: standard_error(values.dropna())),
    }
    memory = pd.DataFrame([_memory(run) for _, run in first.iterrows()], columns=list(CELLS))
    rows = pd.Series([row_of_p2(run) for _, run in first.iterrows()], name="P2 row", dtype=object)
    printed = _printed().reindex(rows).reset_index(drop=True).add_prefix("P2 ")
    derived = paper.table("P2", DERIVED)[["perplexity", "from"]].reindex(rows).reset_index(drop=True)
    parts = [measured[["label"]], first[["method"]].reset_index(drop=True)]
    parts += [measured[["n", "perplexity", "perplexity_error"]], memory]
    parts += [pd.DataFrame(speed).loc[measured["label"]].reset_index(drop=True), rows, printed]
    parts += [derived.add_prefix("P2 derived "), measured["remark"]]
    return pd.concat(parts, axis=1)


def _printed() -> pd.DataFrame:
    """Table 1 as far as the text tells it; of what Table 3 prints, its numbers."""
    told, printed = paper.table("P2", "Table 1"), paper.table("P2", "Table 3")
    told.update(printed.loc[printed.index.isin(told.index), told.columns])
    return told


def row_of_p2(run: pd.Series) -> str | None:
    """The row of P2's Table 1 whose method and schedule a run (a row of load_runs) follows; None where it has none.

    P2's low-rank rows have no warm start unless they say so; "10k" restarts once, the others more often. Any weight
    of GaLore's error feedback, and either form of ReLoQRa, counts as the same row.
    """
    method = run["method"]
    if run["control"] or isinstance(run.get("method.quantise"), str):
        return None
    if method == "galore":
        weight = {False: "galore-ef(0.1)", True: "galore-dynamics-ef(0.2)"}[bool(run["method.dynamic"])]
        return weight if run["method.error_feedback"] else "galore-dynamics" if run["method.dynamic"] else "galore"
    if method == "adam_mini":
        return "adam-mini" if run["method.partition"] == "paper" else None
    if method not in ("relora", "redora", "repissa", "reloqra") or not run["restarts"]:
        return "full" if method == "full" else None
    updates = run["training.steps"] - run["training.warm_start"]
    once = updates <= 2 * run["method.restart_every"]
    name = method + (" 10k" if once else "") + (" + warm start" if run["warm_start"] else "")
    return name if name in paper.table("P2", "Table 1").index else None


def _memory(run: pd.Series) -> dict[str, float]:
    """P2's cells of a run in GiB; none where only a text that is not read yet knows the vocabulary."""
    folder = RunFolder(run["path"])
    settings = folder.config
    shape, method = settings.model.shape, settings.method
    vocabulary = settings.data.vocabulary or folder.environment.get("corpus", {}).get("vocab_size")
    if vocabulary is None:
        return {}
    width = PRECISIONS[settings.training.precision][0]
    cells = {
        "param": weight_bytes(method, shape, vocabulary, width),
        "grad": width * method.trained(shape, vocabulary),
        "os": STATE_BYTES[settings.optimizer.state_dtype] * method.optimizer_entries(shape, vocabulary),
        "act": 0.30 * GIB if is_350m(shape) else plain_activations(shape, vocabulary),
        "extra": width * largest_tensor(shape, vocabulary),
    }
    return {name: value / GIB for name, value in (*cells.items(), ("total", sum(cells.values())))}
