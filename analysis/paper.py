"""The papers' printed numbers, from experiments/papers/*.toml. They stand beside what is measured, never in it."""

import tomllib
from functools import cache
from importlib.resources import files

import pandas as pd

from analysis.load import TOGGLES
from relora_lab.runs import RunFolder


@cache
def numbers() -> pd.DataFrame:
    """Every number: paper, table, row, column, kind, quantity, note, flag, text, value (NaN where it is no number).

    kind: printed (in a table), text (printed elsewhere), derived (from what the text says) or public notebook.
    text has the printed digits (122K is 122e3); flag is what contradicts the number, "" where nothing does.
    """
    found = []
    for path in sorted(files("experiments").joinpath("papers").iterdir(), key=lambda path: path.name):
        if not path.name.endswith(".toml"):
            continue
        paper = tomllib.loads(path.read_text(encoding="utf-8"), parse_float=str)  # 27.30 stays as it is printed
        for table in paper["tables"]:
            about = {key: table[key] for key in ("table", "kind", "quantity", "note")}
            for row, values in table["rows"].items():
                for column, value in zip(table["columns"], values, strict=True):
                    place = {"paper": paper["paper"], "row": row, "column": column}
                    flag = table.get("flags", {}).get(f"{row} / {column}", "")
                    found.append({**place, **about, "flag": flag, "text": str(value)})
    frame = pd.DataFrame(found)
    return frame.assign(value=pd.to_numeric(frame["text"], errors="coerce"))


def table(paper: str, name: str) -> pd.DataFrame:
    """One table, its rows by its columns, as text ("diverged" is a cell). Raises KeyError if it is not there."""
    found = numbers().query("paper == @paper and table == @name")
    if found.empty:
        raise KeyError(f"{paper} {name}")
    wide = found.pivot(index="row", columns="column", values="text")
    return wide.loc[found["row"].unique(), found["column"].unique()]


def flags() -> pd.DataFrame:
    """The numbers that something contradicts: paper, table, row, column, text, flag (what, and where)."""
    return numbers().query("flag != ''")[["paper", "table", "row", "column", "text", "flag"]]


def quantity(paper: str, name: str) -> str:
    """What a table's numbers are, of what kind, and what the paper says of them; one paragraph."""
    first = numbers().set_index(["paper", "table"]).loc[[(paper, name)]].iloc[0]
    return f"{first['quantity']} ({first['kind']}). {first['note']}".strip()


def row_of(run: pd.Series) -> str | None:
    """The row of P1's tables whose recipe a run (a row of load_runs) follows; None where P1 has no such row.

    P1's LoRA has a base of zero (method low_rank); a random base counts as the same row. Those tables are of training
    on text: a run that is fine-tuned for a task is in none of them, but in P1's Tables 3 and 8 (row_of_glue).
    """
    if isinstance(run.get("task"), str):
        return None
    toggles = toggles_in_words(run)
    if run["method"] == "full":
        return "control" if run["control"] else "full"
    named = {"none": "lora", "warm": "lora + warm start", "restarts + reset + jagged + warm": "relora"}
    return named.get(toggles) if run["method"] in ("lora", "low_rank", "relora") else None


def row_of_glue(run: pd.Series) -> tuple[str, str] | None:
    """(table, row) of P1 whose model, weights and method a run that is fine-tuned has; None where P1 has no such row.

    Of a 350M LLaMA (Table 3, fine-tuned by ReLoRA) the row says how `model.weights`, a run folder, was trained.
    """
    method = run["method"]
    if run["size"] in ("t5-base", "t5-large"):
        row = {"full": "full fine-tuning", "lora": "lora", "relora": "relora"}.get(method)
        return None if row is None else ("Table 8", row + " (T5-L)" * (run["size"] == "t5-large"))
    if run["size"] != "350M" or method != "relora":
        return None
    weights = run.get("model.weights")
    if not isinstance(weights, str):
        return "Table 3", "not pretrained"
    before = RunFolder(weights)
    rows = {"full": "full-rank pretrained", "relora": "relora"}
    row = rows.get(before.config.method_name) if before.started else None
    return None if row is None else ("Table 3", row)


def of_fine_tuning(paper: str, name: str) -> bool:
    """Is a table of fine-tuned models?"""
    return "fine-tuned" in quantity(paper, name)


def toggles_in_words(run: pd.Series) -> str:
    """P1's four ingredients that a run has, "restarts + reset + jagged + warm", or "none"; "full" at full rank."""
    if run["method"] == "full":
        return "full"
    return " + ".join(word for column, word in TOGGLES.items() if run[column]) or "none"
