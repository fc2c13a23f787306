"""How good runs are: perplexity of those that were trained on text, of fine-tuned ones the score of their task.

The only place that knows which column of load_runs that is, what it is called, and whether more of it is better.
"""

from dataclasses import dataclass

import pandas as pd

from analysis import statistics
from analysis.load import METRICS
from analysis.statistics import Paired
from relora_lab import tasks


@dataclass(frozen=True)
class Measure:
    """A column of load_runs and of tables, in which it stands times `factor`; runs are compared, paired by seed, by
    their `compared`, in `unit`."""

    column: str
    compared: str
    unit: str
    factor: float = 100.0
    more_is_better: bool = True

    @property
    def difference(self) -> str:
        """What differences are of: "held-out loss (nats)", "accuracy (percentage points)"."""
        return f"{self.what} ({self.unit})"

    @property
    def what(self) -> str:
        """What is compared, in words."""
        return "held-out loss" if self.compared == "loss" else self.compared

    @property
    def title(self) -> str:
        """As a heading has it: "Accuracy"."""
        return self.column.capitalize()

    @property
    def shown(self) -> str:
        """As an axis has it: "held-out accuracy (%)"."""
        return f"held-out {self.column}" + (" (%)" if self.factor == 100 else "")

    def told(self, note: str) -> str:
        """A note on differences of held-out loss as one on those of this measure."""
        return note.replace(PERPLEXITY.difference, self.difference)

    def values(self, runs: pd.DataFrame) -> pd.DataFrame:
        """The runs (of load_runs), or lines of their eval log, with this column in the unit of tables."""
        return runs if self is PERPLEXITY else runs.assign(**{self.column: self.factor * _floats(runs, self.column)})

    def summarise(self, runs: pd.DataFrame, *others: str) -> pd.DataFrame:
        """statistics.summarise of this column and others; remarks also say of which seeds a score is undefined."""
        found = statistics.summarise(self.values(runs), self.column, *others).set_index("label", drop=False)
        done = runs[runs["state"] == "finished"]
        without = done[_floats(done, self.column).isna() & (self is not PERPLEXITY)]
        for label, seeds in without.groupby("label", observed=True)["seed"]:
            told = [found.loc[label, "remark"], f"{self.column} is undefined ({statistics.seeds_in_words(seeds)})"]
            found.loc[label, "remark"] = "; ".join(filter(None, told))
        return found.reset_index(drop=True)

    def paired_difference(self, runs: pd.DataFrame, a: str, b: str) -> Paired:
        """statistics.paired_difference of what is compared."""
        return statistics.paired_difference(self.values(runs), a, b, value=self.compared)

    def pairs(self, runs: pd.DataFrame, a: str, b: str) -> pd.DataFrame:
        """statistics.pairs of what is compared."""
        return statistics.pairs(self.values(runs), a, b, value=self.compared)

    def best_label(self, runs: pd.DataFrame) -> str | None:
        """The label of the best mean of what is compared, of runs that finished; None where none has."""
        done = self.values(runs)[lambda rows: rows["state"] == "finished"]
        means = done.groupby("label", observed=True)[self.compared].mean().dropna()
        return None if means.empty else str(means.idxmax() if self.more_is_better else means.idxmin())

    def best_first(self, frame: pd.DataFrame) -> pd.DataFrame:
        """The rows of a table that have a value, the best one first."""
        known = frame.dropna(subset=self.column)
        return known.sort_values(self.column, ascending=not self.more_is_better, kind="stable")


PERPLEXITY = Measure("perplexity", "loss", "nats", 1.0, more_is_better=False)


def of_metric(metric: str) -> Measure:
    """The measure that a metric of a task is."""
    return Measure(metric, metric, "percentage points")


def named(column: str) -> Measure:
    """The measure whose column has that name."""
    return PERPLEXITY if column == PERPLEXITY.column else of_metric(column)


def of_runs(runs: pd.DataFrame) -> Measure:
    """How good these runs (of load_runs) are told to be; of one task, for others are not comparable."""
    found = runs["task"].dropna() if "task" in runs else pd.Series(dtype=object)
    return PERPLEXITY if found.empty else of_metric(tasks.resolve(found.iloc[0]).metrics[0])


def of_frame(frame: pd.DataFrame) -> Measure:
    """The measure of a table's frame: the first metric that it has a column of, or one "METRIC @STEP"."""
    heads = {str(name).partition(" @")[0] for name in frame.columns}
    return next((of_metric(metric) for metric in METRICS if metric in heads), PERPLEXITY)


def _floats(runs: pd.DataFrame, column: str) -> pd.Series:
    return runs[column].astype(float) if column in runs else pd.Series(float("nan"), runs.index)
