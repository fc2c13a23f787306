"""The papers' printed numbers, from experiments/papers/*.toml. They stand beside what is measured, never in it."""

import tomllib
from functools import cache
from importlib.resources import files

import pandas as pd

from analysis.load import TOGGLES


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

    P1's LoRA has a base of zero (method low_rank); a random base counts as the same row.
    """
    toggles = toggles_in_words(run)
    if run["method"] == "full":
        return "control" if run["control"] else "full"
    named = {"none": "lora", "warm": "lora + warm start", "restarts + reset + jagged + warm": "relora"}
    return named.get(toggles) if run["method"] in ("lora", "low_rank", "relora") else None


def toggles_in_words(run: pd.Series) -> str:
    """P1's four ingredients that a run has, "restarts + reset + jagged + warm", or "none"; "full" at full rank."""
    if run["method"] == "full":
        return "full"
    return " + ".join(word for column, word in TOGGLES.items() if run[column]) or "none"
