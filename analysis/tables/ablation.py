"""What each ingredient buys (P1 Table 6): restarts, optimizer reset, jagged schedule, warm start."""

from collections.abc import Iterable

import pandas as pd

from analysis import measures, paper
from analysis.load import TOGGLES
from analysis.statistics import holm

ORDER = 2
NOTHING = "Nothing to compare: no run of full training, LoRA, a low-rank network or ReLoRA."
PRINTED = [("P1", "Table 6"), ("P1", "Section 4.2"), ("P1v1", "Table 3")]
COMPARED = ["difference", "less", "interval_low", "interval_high", "bootstrap_low", "bootstrap_high", "signs", "p"]
HOLM = "p (Holm)"
METHODS = ("full", "lora", "low_rank", "relora")  # P1's
DIFFERENCES = (
    "difference: held-out loss (nats) less that of the row under less, paired by seed; interval: its 95 % t "
    "interval; bootstrap: its 95 % percentile bootstrap interval, too narrow with few seeds; signs: seeds in which "
    "it is below / above zero."
)
NOTE = (
    DIFFERENCES
    + " P1: 130M on C4, printed; its row without warm start and restarts has a base of zero (method low_rank)."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label of one size: its ingredients, n, perplexity (a task's score), paired difference, P1's."""
    runs = runs[~runs["control"] & runs["method"].isin(METHODS)]
    if runs.empty:
        return pd.DataFrame(columns=["label", "difference"])
    measure = measures.of_runs(runs)
    measured = measure.summarise(runs)
    first = runs.groupby("label", observed=True).first().loc[measured["label"]].reset_index(drop=True)
    less = reference(runs)
    compared = differences(runs, measured["label"], less)
    columns = ["n", measure.column, f"{measure.column}_error"]
    parts = [measured[["label"]], first[list(TOGGLES)], measured[columns], compared]
    if measure is measures.PERPLEXITY:
        words = [paper.toggles_in_words(run) for _, run in first.iterrows()]
        printed = paper.table("P1", "Table 6")["perplexity"].reindex(words).reset_index(drop=True)
        parts += [printed.rename("P1 perplexity")]
    return pd.concat([*parts, measured["remark"]], axis=1)


def note(frame: pd.DataFrame) -> str:
    """NOTE, and how many comparisons were made."""
    measure = measures.of_frame(frame)
    told = NOTE if measure is measures.PERPLEXITY else measure.told(DIFFERENCES)
    return told + comparisons(frame, "table")


def reference(runs: pd.DataFrame) -> str | None:
    """The label that others are compared with: of P1's methods, one with most ingredients; None if none has any.

    Of several such, one of weights that are not codes, with one mask for both moments.
    """
    runs = runs[(runs["state"] == "finished") & runs["method"].isin(METHODS)]
    ingredients = runs[list(TOGGLES)].sum(axis=1)
    if runs.empty or ingredients.max() == 0:
        return None
    most = runs[ingredients == ingredients.max()]
    if "method.quantise" in most and most["method.quantise"].isna().any():
        most = most[most["method.quantise"].isna()]
    if "method.reset_mask" in most and (most["method.reset_mask"] == "shared").any():
        most = most[most["method.reset_mask"] == "shared"]
    return str(most["label"].iloc[0])


def differences(runs: pd.DataFrame, labels: Iterable[str], less: str | None) -> pd.DataFrame:
    """`difference` of each label, a row each; `p (Holm)` is p adjusted for all of these comparisons (NaN: none)."""
    frame = pd.DataFrame([difference(runs, label, less) for label in labels])
    return frame.assign(**{HOLM: holm(frame["p"])})


def comparisons(frame: pd.DataFrame, what: str) -> str:
    """What the p-values of a table or figure (`what`) are, and how many were looked at; nothing if there are none."""
    made = int(frame[HOLM].count())
    if not made:
        return ""
    several = "1 comparison" if made == 1 else f"{made} comparisons"
    return f" p: two-sided paired t test; {HOLM}: p adjusted for the {several} of this {what} (Holm 1979)."


def difference(runs: pd.DataFrame, label: str, less: str | None) -> dict[str, object]:
    """Loss, or score, of `label` less that of `less`, paired by seed: intervals, signs, p; None for another size."""
    sizes = [set(runs.loc[runs["label"] == one, "parameters"]) for one in (label, less)]
    if less is None or label == less or sizes[0] != sizes[1]:  # another model tells nothing of an ingredient
        return dict.fromkeys(COMPARED)
    found = measures.of_runs(runs).paired_difference(runs, label, less)
    signs = f"{found.signs[0]} / {found.signs[1]}"
    values = (found.mean, less, *found.interval, *found.bootstrap, signs, found.p)
    return dict(zip(COMPARED, values, strict=True))
