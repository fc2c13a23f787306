"""FINDINGS.md: what is claimed, what was measured, and the verdict, all from the CSV files and claims.toml."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from typing import Any

import pandas as pd

from experiments.findings import quotes
from experiments.findings.verdicts import DOES_NOT, SHOWS, UNTOLD, Claim

SECTIONS = {
    "P1": "ReLoRA (P1)",
    "P2": "Approximations may be all you need (P2)",
    "code": "The public code, and what the papers do not say",
}
VALUES = {  # what a contrast is of
    "loss": "held-out loss",
    "score": "accuracy",
    "diverged": "share of seeds that diverge",
    "early": "mean training loss of updates 1 to 50",
    "rise": "largest rise of the held-out loss by a restart itself",
    "orphans": "most orphaned entries at a restart",
    "overlap": "overlap of successive cycles' subspaces, less chance",
    "rank": "numerical rank of ΔW, mean over matrices",
    "gap": "rank that ΔW could have and has not, at most",
    "effective": "effective rank of ΔW, mean over matrices",
    "below": "percent of ΔW's singular values below 0.1",
    "high": "percent of ΔW's singular values ≥ 1.5",
    "drawn_high": "percent of singular values ≥ 1.5, as P1 draws them",
    "largest": "largest singular value of ΔW",
    "to_full": "distance of ΔW's spectrum to full training's",
    "W_drop": "largest share of its norm that a merged W loses at a restart",
    "sBA_drop": "largest share of its norm that s·B·A loses at a restart",
}


def render(claims: Sequence[Claim], verdicts: pd.DataFrame, runs: pd.DataFrame, rates: pd.DataFrame) -> str:
    """FINDINGS.md. Raises ValueError for a number that prose names and no file has."""
    quoted = quotes.of(runs, verdicts)
    by_claim = {row["claim"]: row for _, row in verdicts.iterrows()}
    grids = _grids(runs)
    parts = [_template("head.md").format_map(quoted | _counts(claims, verdicts, runs, rates))]
    parts += ["\n## Every claim\n\n", *_summary(claims, by_claim)]
    for paper, title in SECTIONS.items():
        parts.append(f"\n## {title}\n")
        for claim in claims:
            if claim.paper == paper:
                parts += _section(claim, by_claim[claim.id], quoted, grids)
    parts += [_template("tail.md").format_map(quoted), "\n## Every row\n\n", *_rows(runs)]
    parts += ["\n## The learning rates\n\n", *_rates(rates)]
    return "".join(parts)


def _template(name: str) -> str:
    return files("experiments").joinpath("findings", name).read_text(encoding="utf-8")


def _counts(
    claims: Sequence[Claim], verdicts: pd.DataFrame, runs: pd.DataFrame, rates: pd.DataFrame
) -> dict[str, Any]:
    """The numbers of the whole: claims, verdicts of each kind, those that hold after Holm, runs, what a run took."""
    given = verdicts["verdict"].value_counts()
    told = verdicts["p_holm"].notna() & verdicts["verdict"].ne(UNTOLD)
    text = runs[runs["score"].isna()]
    return {
        "claims": len(claims),
        "shows": given.get(SHOWS, 0),
        "does_not": given.get(DOES_NOT, 0),
        "untold": given.get(UNTOLD, 0),
        "tests": int(verdicts["p_holm"].notna().sum()),
        "told": int(told.sum()),
        "sure": int((told & verdicts["p_holm"].le(0.05)).sum()),
        "runs": len(runs) + len(rates),
        "rows": runs["label"].nunique(),
        "seconds": f"{text['seconds'].median():.0f}",
        "torch": ", ".join(sorted(set(runs["torch"]))),
        "python": ", ".join(sorted(set(runs["python"]))),
    }


def _grids(runs: pd.DataFrame) -> dict[str, str]:
    """The grid of each row; a grid and its profile as they are typed."""
    return dict(zip(runs["label"], runs["grid"].str.replace("-cpu", " --profile cpu"), strict=True))


def _summary(claims: Sequence[Claim], by_claim: dict[str, Any]) -> Iterator[str]:
    yield "| | claim | measured | n | p (Holm) | verdict |\n| --- | --- | --- | ---: | ---: | --- |\n"
    for claim in claims:
        found = by_claim[claim.id]
        where = f"{claim.paper} {claim.where}" if claim.paper != "code" else claim.where
        told = quotes.difference(found) if found["n"] else "–"
        p = f"{found['p_holm']:.3f}" if found["p_holm"] == found["p_holm"] else "–"
        yield f"| {where} | [{claim.title}](#{claim.id}) | {told} | {found['n']} | {p} | **{found['verdict']}** |\n"


def _section(claim: Claim, found: Any, quoted: dict[str, Any], grids: dict[str, str]) -> Iterator[str]:
    value = VALUES[claim.value]
    commands = ", ".join(f"`relora-lab grid {grid}`" for grid in dict.fromkeys(grids[row] for row in claim.contrast))
    where = f"{claim.paper}, {claim.where}" if claim.paper != "code" else claim.where
    yield f'\n### <a id="{claim.id}"></a>{claim.title}: {found["verdict"]}\n\n'
    yield f"{where}: {claim.says.format_map(quoted)}\n\n"
    expected = {"below": "expected below 0", "above": "expected above 0", "same": "expected within"}[claim.expect]
    expected += f" ±{found['margin']:g}" if claim.expect == "same" else ""
    yield f"Measured: {value}, {found['contrast']} ({expected}): {quotes.difference(found)}, n = {found['n']}"
    yield (f", p = {found['p']:.2g}" if found["p"] == found["p"] else "") + f". {commands}\n"
    if claim.finding:
        yield f"\n{claim.finding.strip().format_map(quoted)}\n"


def _rows(runs: pd.DataFrame) -> Iterator[str]:
    yield "| row | grid | peak rate | n | loss | rank of ΔW (at most) | effective rank | σ < 0.1, % | largest σ |\n"
    yield "| --- | --- | ---: | ---: | --- | --- | ---: | ---: | ---: |\n"
    for label, mine in runs[runs["score"].isna()].groupby("label", sort=False):
        done = mine[mine["state"] == "finished"]
        if done.empty:
            steps = ", ".join(map(str, sorted(mine["step"])))
            yield f"| {label} | {mine['grid'].iloc[0]} | {mine['lr'].iloc[0]:g} | 0 | diverged at {steps} | | | | |\n"
            continue
        cells = [quotes.mean(runs, value, str(label)) for value in ("loss", "rank", "effective", "below", "largest")]
        cells[1] += f" ({done['ceiling'].mean():.0f})"
        diverged = f", {len(mine) - len(done)} diverged" if len(done) < len(mine) else ""
        about = f"| {label} | {mine['grid'].iloc[0]} | {mine['lr'].iloc[0]:g} | {len(done)}{diverged} "
        yield about + "".join(f"| {cell} " for cell in cells) + "|\n"


def _rates(rates: pd.DataFrame) -> Iterator[str]:
    columns = sorted(set(rates["lr"]))
    yield "| row | " + " | ".join(f"{lr:g}" for lr in columns) + " |\n| --- |" + " ---: |" * len(columns) + "\n"
    for row, mine in rates.groupby("row", sort=False):
        cells = {tried["lr"]: _rate(tried) for _, tried in mine.iterrows()}
        yield f"| {row} | " + " | ".join(cells.get(lr, "") for lr in columns) + " |\n"


def _rate(tried: Any) -> str:
    told = quotes.number(tried["loss"], 4) if tried["state"] == "finished" else str(tried["state"])
    return f"**{told}**" if tried["chosen"] else told
