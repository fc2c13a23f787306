"""Online ReLoRA against ReLoRA (P1 Table 5)."""

import pandas as pd

from analysis import measures, paper
from analysis.statistics import holm
from analysis.tables import ablation
from relora_lab.runs import RunFolder

ORDER = 12
OPTIONAL = True
PRINTED = [("P1", "Table 5")]
DIFFERENCES = (
    "merges: times that s·B·A went into W, in a run. Each Online ReLoRA is compared with the ReLoRA of the same size "
    "and warm start from which it differs in fewest settings; difference: its held-out loss (nats) less that of the "
    "row under less, paired by seed; interval: its 95 % t interval; bootstrap: its 95 % percentile bootstrap "
    "interval, too narrow with few seeds; signs: seeds in which it is below / above zero."
)
NOTE = DIFFERENCES + " P1 columns: printed, on C4."


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label: n, perplexity (or score), merges, paired difference, P1's. Empty without a finished pair."""
    measure = measures.of_runs(runs)
    measured = measure.summarise(runs).set_index("label")
    done = runs[runs["state"] == "finished"].drop_duplicates("label").set_index("label")
    online = done.index[done["method"] == "online_relora"]
    partners = {label: _partner(done, label) for label in online}
    shown = [
        label for label in measured.index if label in {*partners.values(), *(k for k, v in partners.items() if v)}
    ]
    if not shown:
        return pd.DataFrame()
    compared = pd.DataFrame([ablation.difference(runs, label, partners.get(label)) for label in shown])
    merges = pd.Series([_merges(runs[runs["label"] == label]) for label in shown], name="merges", dtype="Int64")
    known = measured.loc[shown].reset_index()
    compared = compared.assign(**{ablation.HOLM: holm(compared["p"])})
    parts = [known[["label", "n", measure.column, f"{measure.column}_error"]], merges, compared]
    if measure is measures.PERPLEXITY:
        rows = [{"online_relora": "online relora"}.get(name, name) for name in done.loc[shown, "method"]]
        parts += [paper.table("P1", "Table 5").reindex(rows).reset_index(drop=True).add_prefix("P1 ")]
    return pd.concat([*parts, known["remark"]], axis=1)


def note(frame: pd.DataFrame) -> str:
    """NOTE, and how many comparisons were made."""
    measure = measures.of_frame(frame)
    told = NOTE if measure is measures.PERPLEXITY else measure.told(DIFFERENCES)
    return told + ablation.comparisons(frame, "table")


def _partner(done: pd.DataFrame, online: str) -> str | None:
    """The ReLoRA most like it, of the same size and warm start."""
    mine = done.loc[online]
    alike = (done[["size", "training.warm_start"]] == mine[["size", "training.warm_start"]]).all(axis=1)
    others = done[(done["method"] == "relora") & alike]
    settings = [name for name in done.columns if "." in name]
    differing = (others[settings].astype(str) != mine[settings].astype(str)).sum(axis=1)
    return None if others.empty else str(differing.idxmin())


def _merges(runs: pd.DataFrame) -> int | None:
    """How often a run merged, at most; None where no run has come to the end of a cycle."""
    facts = [RunFolder(path).cycle_facts() for path in runs["path"]]
    return max((sum(bool(cycle.get("merged")) for cycle in run) for run in facts if run), default=None)
