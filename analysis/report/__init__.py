"""The report of a folder of runs: one page that works from disk, and its tables and figures as files.

    out/report.html   figures and tables in one file, nothing to fetch
    out/report.md     the same with links to
    out/figures/      NAME.png, NAME.pdf, and every number drawn as NAME.csv
    out/tables/       NAME.csv (numbers), NAME.tex (booktabs)

Names of runs are foreign text: they are escaped wherever they are shown.
"""

import base64
import io
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files as package_files
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import jinja2
import pandas as pd
from markupsafe import Markup
from tqdm import tqdm

from analysis import figures, output, tables
from analysis.load import load_runs, require_comparable
from analysis.tables.ablation import HOLM
from relora_lab import files
from relora_lab.runs import RunFolder

NOTHING = "Nothing to show: none of these runs has come that far."
LATEX = {"±": r"$\pm$", "−": "$-$", "–": "--", "…": r"\ldots{}", "✓": r"$\checkmark$", "τ": r"$\tau$"}
CSS_PIXELS = 140  # an inch of a figure on the page


@dataclass(frozen=True)
class Part:
    """A table (its text in `shown`) or a figure of the report; both absent where there is nothing to show."""

    kind: Literal["tables", "figures"]  # the folder of its files
    name: str
    title: str
    note: str
    frame: pd.DataFrame
    shown: pd.DataFrame | None = None
    figure: figures.Figure | None = None


def build(runs: pd.DataFrame | str | Path | Iterable[str | Path], out: str | Path, *, progress: bool = False) -> Path:
    """Write the report of `runs` (what load_runs gives or takes) into the folder `out`; returns its report.html.

    Raises BadInput, before anything is written, if the runs are not comparable or `out` cannot be written.
    """
    runs = runs if isinstance(runs, pd.DataFrame) else load_runs(runs)
    out = output.check(out)
    require_comparable(runs)
    jobs = [*tables.available(), *figures.available()]
    found = [(module, _part(module, runs)) for module in tqdm(jobs, desc="report", unit="part", disable=not progress)]
    parts = [part for module, part in found if not (part.frame.empty and getattr(module, "OPTIONAL", False))]
    parts += [_settings(runs), _runs(runs)]
    for folder in ("figures", "tables"):
        (out / folder).mkdir(parents=True, exist_ok=True)
    for part in parts:
        _write_files(part, out)
    about, findings = _about(runs), list(_findings(parts))
    files.write_text(out / "report.md", _markdown(about, findings, parts))
    files.write_text(out / "report.html", _html(about, findings, parts))
    return out / "report.html"


# ---- what it says


def _part(module: ModuleType, runs: pd.DataFrame) -> Part:
    name = module.__name__.rpartition(".")[2]
    title = str(module.__doc__).splitlines()[0].rstrip(".")
    if not hasattr(module, "draw"):
        frame = module.table(runs)
        if frame.empty:
            return Part("tables", name, title, NOTHING, frame)
        note = module.note(frame) if hasattr(module, "note") else module.NOTE
        return Part("tables", name, title, note, frame, tables.shown(frame))
    frame = module.data(runs)
    if frame.empty:
        return Part("figures", name, title, NOTHING, frame)
    return Part("figures", name, title, module.describe(frame), frame, figure=figures.make(module, frame))


def _text(frame: pd.DataFrame) -> pd.DataFrame | None:
    return None if frame.empty else tables.shown(frame)


def _settings(runs: pd.DataFrame) -> Part:
    """The settings in which the runs differ, a row a run."""
    settings = [name for name in runs.columns if "." in name]
    differing = [name for name in settings if runs[name].nunique(dropna=False) > 1]
    frame = runs[["run", *differing]].convert_dtypes().rename(columns=lambda name: str(name).replace("_", " "))
    return Part(
        "tables", "settings", "What the runs differ by", "All other settings are the same.", frame, _text(frame)
    )


def _runs(runs: pd.DataFrame) -> Part:
    """How each run ended and what it was made with."""
    rows = []
    for run in runs.itertuples():
        made = RunFolder(run.path).environment
        versions = {name: made.get(name) for name in ("relora_lab", "torch", "transformers", "python", "device")}
        state = f"{run.state} at step {run.step}" + (f": {run.reason}" if isinstance(run.reason, str) else "")
        rows.append({"run": run.run, "state": state, **versions, "threads": made.get("threads"), "folder": run.path})
    frame = pd.DataFrame(rows)
    return Part("tables", "runs", "Runs", "Each folder holds its settings, logs and weights.", frame, _text(frame))


def _about(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    seen = int(first["training.steps"] * first["data.batch_size"] * first["data.sequence_length"])
    sizes, seeds = ", ".join(dict.fromkeys(runs["size"])), sorted(set(runs["seed"]))
    corpus = first["corpus"][:8] if isinstance(first["corpus"], str) else "unknown"
    return (
        f"{len(runs)} runs of size {sizes}, seeds {', '.join(map(str, seeds))}; {first['training.steps']:,} updates, "
        f"{seen:,} tokens each, corpus {corpus}. ΔW is what the weights changed by from each run's reference step "
        "to its end. Numbers of the papers are printed ones, on their data; the others are measured here."
    )


def _findings(parts: list[Part]) -> Iterator[str]:
    """Sentences that follow from the tables."""
    frames = {part.name: part.frame for part in parts if part.kind == "tables"}
    for _, row in tables.shown(frames["ranks"]).iterrows():
        if "rank" not in row or row["rank"] == "–":
            continue
        most = (
            "the most that"
            if row["rank"] == row.get("ceiling")
            else f"where {row.get('ceiling', '–')} is the most that"
        )
        why = "its size" if row.get("ceiling") == row["smaller side"] else "the sum of its factor pairs"
        yield f"{row['label']}: ΔW has rank {row['rank']} of {row['smaller side']}, {most} {why} allows."
    compared = frames["ablation"].dropna(subset=["difference"])
    for _, row in compared.iterrows():
        side = "above" if row["difference"] > 0 else "below" if row["difference"] < 0 else "from"
        low, high = (tables.show(row[f"interval_{end}"], 4) for end in ("low", "high"))
        sure = "one seed, so no interval" if low == "–" else f"95 % interval of the difference {low} to {high}"
        if pd.notna(row[HOLM]):
            several = f" adjusted for {compared[HOLM].count()} comparisons" if compared[HOLM].count() > 1 else ""
            sure += f"; p = {tables.show(row[HOLM])}{several}"
        gap = f"{abs(row['difference']):.4f} nats {side} that of {row['less']}"
        yield f"{row['label']}: held-out loss {gap} ({sure})."
    for _, row in frames["perplexity"].iterrows():
        if row["remark"] and not row["remark"].startswith("one seed"):
            yield f"{row['label']}: {row['remark']}."


# ---- as files


def _write_files(part: Part, out: Path) -> None:
    """The numbers as CSV, the table as LaTeX, the figure as PNG and PDF."""
    if part.frame.empty:
        return
    folder = out / part.kind
    output.write_csv(folder / f"{part.name}.csv", part.frame)
    if part.shown is not None:
        files.write_text(folder / f"{part.name}.tex", _latex(part.shown))
    if part.figure:
        for suffix in ("png", "pdf"):
            figures.save(part.figure, folder / f"{part.name}.{suffix}")


def _latex(shown: pd.DataFrame) -> str:
    named = shown.rename(columns=lambda name: re.sub(r"([&%$#_{}])", r"\\\1", str(name)))
    text = str(named.style.hide(axis="index").format(escape="latex").to_latex(hrules=True))
    for sign, command in LATEX.items():
        text = text.replace(sign, command)
    return text


def _markdown(about: str, findings: list[str], parts: list[Part]) -> str:
    lines = ["# Report", "", _plain(about), "", *(f"- {_plain(finding)}" for finding in findings), ""]
    for part in parts:
        lines += [f"## {part.title}", ""]
        if part.figure:
            lines += [f"![{_plain(part.title)}](figures/{part.name}.png)", ""]
        elif part.shown is not None:
            columns = [_plain(name) for name in part.shown.columns]
            lines += [_row(columns), _row(["---"] * len(columns))]
            lines += [_row([_plain(cell) for cell in row]) for row in part.shown.itertuples(index=False)]
            lines += [""]
        lines += [_plain(part.note), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _plain(text: object) -> str:
    """Text that Markdown shows as it is, on one line."""
    return re.sub(r"([\\`*_\[\]<>|#])", r"\\\1", " ".join(str(text).split()))


def _html(about: str, findings: list[str], parts: list[Part]) -> str:
    text = package_files("analysis").joinpath("report.html").read_text(encoding="utf-8")
    page = jinja2.Environment(autoescape=True, trim_blocks=True, undefined=jinja2.StrictUndefined).from_string(text)
    shown = [_for_page(part) for part in parts]
    return page.render(title="What rank did the updates have?", about=about, findings=findings, parts=shown)


def _for_page(part: Part) -> dict[str, Any]:
    about: dict[str, Any] = {
        "kind": part.kind,
        "name": part.name,
        "title": part.title,
        "note": part.note,
        "svg": "",
        "columns": [],
    }
    if part.figure:
        buffer = io.BytesIO()
        figures.save(part.figure, buffer, "svg")
        svg = base64.b64encode(buffer.getvalue()).decode()
        return about | {"svg": svg, "width": round(part.figure.get_figwidth() * CSS_PIXELS)}
    if part.shown is None:
        return about
    columns = [{"name": name, "class": _class(name, part.shown[name])} for name in part.shown.columns]
    return about | {"columns": columns, "rows": part.shown.to_numpy().tolist()}


def _class(name: str, cells: pd.Series) -> Markup:
    """A paper's printed numbers are set apart; text stands left."""
    if name.startswith(("P1", "P2")):
        return Markup(' class="printed"')
    is_text = not cells.str.match(r"[−\d–✓]|$").all()
    return Markup(' class="text"') if is_text else Markup("")
