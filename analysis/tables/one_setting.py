"""One setting at a time (P1 Table 9, Section 4.1 and Figure 13)."""

import pandas as pd

from analysis import measures, sweeps

ORDER = 14
OPTIONAL = True
NOTE = (
    "Labels that differ in one numeric setting alone. recipe: what they have in common. Mean ± standard error over "
    "the n seeds that finished. difference: held-out loss (nats) less that of the row under less, the recipe's "
    "smallest value (not its best, which noise would help to choose), paired by seed; interval: its 95 % t interval. "
    "gap: the same less that of the row under gap less, LoRA without restarts that is else like it, paired by seed; "
    "gap interval: its 95 % t interval."
)
PRINTED = [("P1", name) for name in ("Section 4.1", "Table 9 (rank)", "Table 9 (pruning)", "Table 9 (reset rate)")]
PRINTED += [("P1", "Figure 13")]


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """The rows of sweeps.one_setting; whole values as whole numbers. Empty where no setting varies alone."""
    frame = sweeps.one_setting(runs)
    whole = [int(value) if value.is_integer() else value for value in frame["value"]]
    return frame.assign(value=pd.Series(whole, dtype=object))


def note(frame: pd.DataFrame) -> str:
    """NOTE, of what is compared."""
    return measures.of_frame(frame).told(NOTE)
