"""What to read from a report: sentences that follow from its tables."""

from collections.abc import Iterator, Mapping, Sequence

import pandas as pd

from analysis import measures, tables
from analysis.report.part import Section
from analysis.tables.ablation import HOLM
from relora_lab import tasks

SURE = 0.05
MANY = 4  # sections, from more of which on little is told of each


def about(sizes: Mapping[str, pd.DataFrame]) -> str:
    """What the runs are, and what the numbers are."""
    told = " ".join(_about(runs) for runs in sizes.values())
    if len(sizes) > MANY:
        counts = ", ".join(f"{len(runs)} of {named}" for named, runs in sizes.items())
        told = f"{sum(map(len, sizes.values()))} runs: {counts}."
    return (
        f"{told} ΔW is what the weights changed by from each run's reference step to its end. Numbers of the papers "
        "(P1: ReLoRA, ICLR 2024; P1v1: its first version; P2: Approximations may be all you need) are printed ones, "
        "on their data; the others are measured here."
    )


def _about(runs: pd.DataFrame) -> str:
    first = runs.iloc[0]
    examples = int(first["training.steps"] * first["data.batch_size"])
    named, seeds = ", ".join(dict.fromkeys(runs["size"])), sorted(set(runs["seed"]))
    corpus = next((known[:8] for known in runs["corpus"] if isinstance(known, str)), "unknown")
    seen = f"{examples * int(first['data.sequence_length']):,} tokens of corpus {corpus}"
    if isinstance(first["task"], str):
        seen = f"{examples:,} examples of {tasks.resolve(first['task']).title} ({corpus})"
    return (
        f"{len(runs)} run{'s' * (len(runs) > 1)} of size {named}, seed{'s' * (len(seeds) > 1)} "
        f"{', '.join(map(str, seeds))}, each of {first['training.steps']:,} updates and {seen}."
    )


def findings(sections: Sequence[Section]) -> list[str]:
    """Sentences, of each size those that matter most first: who is best, what is more than noise, ranks of ΔW."""
    told = []
    for section in sections:
        tables_of = [part for part in section.parts if part.kind == "tables"]
        frames = {part.name.removeprefix(f"{section.title}-"): part.frame for part in tables_of}
        if "perplexity" in frames:
            before = f"{section.title}: " if section.title else ""
            several = len(sections) > MANY
            told += [before + sentence for sentence in (_in_short if several else _of_section)(frames)]
    return told


def _in_short(frames: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    yield from _best(frames["perplexity"])
    yield from _significance(frames["ablation"])


def _of_section(frames: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    yield from _in_short(frames)
    yield from _ranks(frames["ranks"])
    yield from _differences(frames["ablation"])
    yield from _remarks(frames["perplexity"])


def _best(measured: pd.DataFrame) -> Iterator[str]:
    measure = measures.of_frame(measured)
    best = measure.best_first(measured).head(3)
    if len(best):
        digits = tables.DIGITS.get(measure.column, 3)
        told = [f"{row['label']} ({tables.show(row[measure.column], digits)})" for _, row in best.iterrows()]
        which = f"Highest {measure.column} (percent)" if measure.more_is_better else f"Lowest {measure.column}"
        yield f"{which}: {', then '.join(told)}."


def _significance(compared: pd.DataFrame) -> Iterator[str]:
    compared = compared.dropna(subset="difference")
    if compared.empty:
        return
    less, tested = compared["less"].iloc[0], compared[HOLM].dropna()
    if tested.empty:
        yield f"No difference to {less} can be told from noise: that needs two seeds that both runs finished."
    else:
        sure = int((tested < SURE).sum())
        yield f"{sure} of {len(tested)} differences to {less} are more than the noise of seeds (p (Holm) < {SURE})."


def _ranks(ranks: pd.DataFrame) -> Iterator[str]:
    """What rank ΔW has, in one sentence for labels of which the same is true."""
    same: dict[str, list[str]] = {}
    for _, row in tables.shown(ranks).iterrows():
        if "rank" not in row or row["rank"] == "–":
            continue
        ceiling = row.get("ceiling", "–")
        if ceiling == "–":
            same.setdefault(f"ΔW has rank {row['rank']} of {row['smaller side']}.", []).append(row["label"])
            continue
        most = "the most that" if row["rank"] == ceiling else f"where {ceiling} is the most that"
        why = "its size" if ceiling == row["smaller side"] else "the sum of its factor pairs"
        sentence = f"ΔW has rank {row['rank']} of {row['smaller side']}, {most} {why} allows."
        same.setdefault(sentence, []).append(row["label"])
    yield from (f"{', '.join(labels)}: {sentence}" for sentence, labels in same.items())


def _differences(compared: pd.DataFrame) -> Iterator[str]:
    measure, compared = measures.of_frame(compared), compared.dropna(subset="difference")
    digits = 4 if measure is measures.PERPLEXITY else 2
    for _, row in compared.iterrows():
        side = "above" if row["difference"] > 0 else "below" if row["difference"] < 0 else "from"
        low, high = (tables.show(row[f"interval_{end}"], digits) for end in ("low", "high"))
        sure = "one seed, so no interval" if low == "–" else f"95 % interval of the difference {low} to {high}"
        if pd.notna(row[HOLM]):
            several = f" adjusted for {compared[HOLM].count()} comparisons" if compared[HOLM].count() > 1 else ""
            sure += f"; p = {tables.show(row[HOLM])}{several}"
        gap = f"{abs(row['difference']):.{digits}f} {measure.unit} {side} that of {row['less']}"
        yield f"{row['label']}: {measure.what} {gap} ({sure})."


def _remarks(measured: pd.DataFrame) -> Iterator[str]:
    for _, row in measured.iterrows():
        if row["remark"] and not row["remark"].startswith("one seed"):
            yield f"{row['label']}: {row['remark']}."
