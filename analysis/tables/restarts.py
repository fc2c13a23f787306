"""What the restarts did: jump of the loss, optimizer state zeroed, orphans, size of what was merged."""

import pandas as pd

from analysis.load import require_comparable
from relora_lab.runs import RunFolder

ORDER = 6
NOTHING = "No run has been restarted."
NOTE = (
    "restarts: events at which the optimizer is reset, in a run; merges: those at which s·B·A went into W. jump: "
    "loss after less loss before (nats, one fixed held-out batch), the range over restarts and seeds, merges between "
    "restarts included; wrap_jump: the same when the factors were put in. zeroed: share of the optimizer "
    "state of B and A that is 0 afterwards. orphans: the most weights that a restart left with a first moment alone. "
    "sBA: Frobenius norm over all matrices just before. quantisation error: ‖stored W − W‖ / ‖W‖ of the worst matrix."
)


def table(runs: pd.DataFrame) -> pd.DataFrame:
    """A row a label that restarts: n runs, restarts and merges a run, jumps, zeroed share, orphans, ‖sBA‖."""
    require_comparable(runs)
    rows = []
    for label, group in runs.groupby("label", observed=True):
        cycles = pd.DataFrame(
            {"run": run, **facts}
            for run in group["path"]
            for facts in RunFolder(run).cycle_facts()
            if "event" in facts
        )
        if cycles.empty:
            continue
        full, by_run = cycles[cycles["event"] == "restart"], cycles.groupby("run")
        wraps = cycles["wrap_jump"].dropna() if "wrap_jump" in cycles else pd.Series(dtype=float)
        rows.append(
            {
                "label": label,
                "n": by_run.ngroups,
                "restarts": int((cycles["event"] == "restart").groupby(cycles["run"]).sum().max()),
                "merges": int(by_run["merged"].sum().max()),
                "wrap_jump_low": wraps.min(),
                "wrap_jump_high": wraps.max(),
                "jump_low": cycles["function_jump"].min(),
                "jump_high": cycles["function_jump"].max(),
                "zeroed_percent": 100 * full["zeroed"].sum() / full["entries"].sum() if len(full) else None,
                "orphans": int(full["orphans"].max()) if len(full) else None,
                "sBA_low": cycles["sBA"].min(),
                "sBA_high": cycles["sBA"].max(),
                "quantisation_error": cycles["quantisation_error"].max() or None,
            }
        )
    return pd.DataFrame(rows)
