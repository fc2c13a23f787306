"""The papers' tables of one's own runs: every number is recomputed from the logs that were written."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import changed, tiny_tables
from scipy import stats

from analysis import load_runs, paper, sweeps, tables, throughput
from analysis.tables import costs
from relora_lab import config, grid

NEW = ["models", "during_training", "online", "throughput", "one_setting", "costs", "rank_throughput"]
LORA = {"name": "lora", "rank": 2}


def write(path, settings, loss=1.5, state="finished", speeds=None, evaluated=None, merges=()):
    """A run folder as a run leaves it: tokens a second, and held-out losses, by step."""
    path.mkdir(parents=True)
    (path / "config.toml").write_text(config.dumps(settings))
    if state == "waiting":
        return
    steps, corpus = settings.training.steps, {"text_sha256": "ab" * 32, "vocab_size": 256}
    environment = {"corpus": corpus, "parameters": {"total": 1000, "trained": 100}}
    (path / "environment.json").write_text(json.dumps(environment))
    (path / "status.json").write_text(json.dumps({"state": state, "step": steps, "steps": steps}))
    each = settings.data.batch_size * settings.data.sequence_length
    lines = [
        {"step": step, "loss": loss, "tokens": number * each, "tokens_per_second": speed}
        for number, (step, speed) in enumerate((speeds or {}).items(), 1)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    at = (evaluated or {steps: loss}).items()
    lines = [{"step": step, "loss": found, "perplexity": math.exp(found)} for step, found in at]
    (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (path / "cycles").mkdir()
    for cycle, merged in enumerate(merges, 1):
        facts = {"cycle": cycle, "end": steps, "merged": merged}
        (path / "cycles" / f"{cycle:04}.json").write_text(json.dumps(facts))


def loss_of(cell, seed):
    """A loss that no two labels or seeds share."""
    return 1.5 + 0.1 * seed + 0.01 * (sum(map(ord, cell.rpartition("-seed")[0])) % 17) + 0.003 * seed * len(cell)


def declared(name, out, profile="cpu", **diverged):
    """The runs of a shipped grid, two seeds, without training."""
    cells = grid.cells(grid.read(Path(name)), [0, 1], profile)
    for cell, settings in cells.items():
        state = "diverged" if cell.startswith(tuple(diverged.get("diverged", ("?",)))) else "finished"
        write(out / cell, settings, loss_of(cell, settings.training.seed), state)
    return load_runs(out)


def paired(one, other):
    """Mean difference and its t interval, two seeds."""
    differences = [loss_of(f"{one}-seed{seed}", seed) - loss_of(f"{other}-seed{seed}", seed) for seed in (0, 1)]
    half = stats.t.ppf(0.975, 1) * np.std(differences, ddof=1) / math.sqrt(2)
    return np.mean(differences), np.mean(differences) - half, np.mean(differences) + half


def assert_compared(row, other, names=("difference", "less", "interval")):
    difference, less, interval = names
    assert row[less] == other
    found = [row[difference], row[f"{interval}_low"], row[f"{interval}_high"]]
    assert found == pytest.approx(paired(row["label"], other))


GAP = ("gap", "gap_less", "gap_interval")


def test_the_grid_of_ranks_is_two_recipes_and_their_gap_at_every_rank(tmp_path):
    frame = sweeps.one_setting(declared("rank", tmp_path))
    assert set(frame["setting"]) == {"method.rank"}
    assert list(frame.columns) == sweeps.COLUMNS
    assert [(row.recipe, row.value) for row in frame.itertuples()] == [
        (recipe, rank) for recipe in ("relora", "lora") for rank in (1, 2, 4, 8)
    ]
    for row in frame.to_dict("records"):
        losses = [loss_of(f"{row['label']}-seed{seed}", seed) for seed in (0, 1)]
        assert row["label"] == f"{row['recipe']}-rank{row['value']:.0f}"
        assert (row["n"], row["loss"]) == (2, pytest.approx(np.mean(losses)))
        assert row["perplexity"] == pytest.approx(np.mean(np.exp(losses)))
        assert row["perplexity_error"] == pytest.approx(stats.sem(np.exp(losses)))
        if row["value"] > 1:
            assert_compared(row, f"{row['recipe']}-rank1")
        if row["recipe"] == "relora":
            assert_compared(row, f"lora-rank{row['value']:.0f}", GAP)
    assert frame.loc[frame["value"] == 1, "difference"].isna().all()
    assert frame.loc[frame["recipe"] == "lora", "gap"].isna().all()
    table = tables.load("one_setting").table(load_runs(tmp_path))
    assert tables.shown(table)["value"].tolist() == ["1", "2", "4", "8"] * 2


def test_the_grid_of_restarts_begins_where_a_run_finished_and_has_lora_to_compare_with(tmp_path):
    frame = sweeps.one_setting(declared("reset-rate", tmp_path, diverged=("relora-restart_every500-",)))
    assert frame["setting"].unique().tolist() == ["method.restart_every"]
    assert frame["recipe"].unique().tolist() == ["relora"]
    assert frame["value"].tolist() == [500, 1000, 1250, 1667, 2500]
    assert frame["n"].tolist() == [0, 2, 2, 2, 2]
    assert frame["remark"].iloc[0] == "diverged at step 6000 (seed 0, 1)"
    assert math.isnan(frame["difference"].iloc[0])
    assert math.isnan(frame["gap"].iloc[0])
    for row in frame.iloc[2:].to_dict("records"):
        assert_compared(row, "relora-restart_every1000")
        assert_compared(row, "lora", GAP)


def test_the_grid_of_pruning_is_a_recipe_a_mask(tmp_path):
    frame = sweeps.one_setting(declared("pruning", tmp_path))
    assert frame["setting"].unique().tolist() == ["method.reset_ratio"]
    by_recipe = frame.groupby("recipe")["value"].agg(list).to_dict()
    ratios = [0.85, 0.92, 0.95, 0.99]
    assert by_recipe == {"relora, reset mask shared": ratios, "relora, reset mask separate": ratios}
    assert frame["gap"].isna().all()


def test_the_grid_of_warm_starts_has_the_gap_of_figure_13_at_every_length(tmp_path):
    runs = declared("warm-start", tmp_path)
    frame = sweeps.one_setting(runs)
    assert frame["setting"].unique().tolist() == ["training.warm_start"]
    lengths = [0, 250, 500, 1000, 2000]
    assert frame.groupby("recipe")["value"].agg(list).to_dict() == {"relora": lengths, "lora": lengths}
    for row in frame[frame["recipe"] == "relora"].to_dict("records"):
        assert_compared(row, f"lora-warm_start{row['value']:.0f}", GAP)


def test_settings_that_follow_are_no_second_difference_and_those_that_do_not_are(tmp_path):
    def found(**cells):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        for name, parts in cells.items():
            parts = {"method": LORA, **parts}
            write(out / f"{name}-seed0", changed(tiny_tables(), **parts))
        frame = sweeps.one_setting(load_runs(out))
        return {(row.setting, row.recipe, row.label, row.value) for row in frame.itertuples()}

    alpha = {"a": {"method": {**LORA, "alpha": 8.0}}, "b": {"method": {**LORA, "rank": 4, "alpha": 8.0}}}
    assert found(**alpha) == {("method.rank", "lora", "a", 2), ("method.rank", "lora", "b", 4)}
    alpha["b"]["method"]["alpha"] = 16.0
    assert found(**alpha) == {("method.rank", "lora", "a", 2), ("method.rank", "lora", "b", 4)}
    alpha["b"]["method"]["alpha"] = 9.0
    assert found(**alpha) == set()
    rates = {name: {"optimizer": {"lr": lr, "low_rank_lr": 2 * lr}} for name, lr in (("a", 0.001), ("b", 0.003))}
    assert found(**rates) == {("optimizer.lr", "lora", "a", 0.001), ("optimizer.lr", "lora", "b", 0.003)}
    watched = {"a": {}, "b": {"training": {"norms_every": 7, "threads": 2, "reference_step": 30, "seed": 0}}}
    assert found(**watched) == set()
    sizes = {
        f"{size}{rank}": {"model": {"layers": size}, "method": {**LORA, "rank": rank}}
        for size in (1, 2)
        for rank in (1, 2)
    }
    assert {(one[0], one[1]) for one in found(**sizes)} == {
        ("method.rank", "lora, layers 1"),
        ("method.rank", "lora, layers 2"),
        ("model.layers", "lora, rank 1"),
        ("model.layers", "lora, rank 2"),
    }


# ---- speed


@pytest.fixture(scope="module")
def sped(tmp_path_factory):
    """Runs of 60 updates of sequences of 32 tokens, 20 of them warm start, whose speeds differ by update and seed."""
    out = tmp_path_factory.mktemp("sped")
    cells = {
        "full": {"method": {"name": "full"}, "training": {"warm_start": 0}},
        "galore": {"method": {"name": "galore", "rank": 4}, "training": {"warm_start": 0}},
        "relora": {},
        "lora": {"method": LORA, "training": {"warm_start": 0}},
        "relora-8": {"method": {"rank": 8}, "training": {"micro_batches": 2}},
    }
    for seed in (0, 1):
        for label, parts in cells.items():
            training = {**parts.get("training", {}), "seed": seed}
            write(
                out / f"{label}-seed{seed}",
                changed(tiny_tables(), **{**parts, "training": training}),
                speeds=SPEEDS[label, seed],
            )
    write(out / "waiting-seed0", changed(tiny_tables(), method={"rank": 3}), state="waiting")
    return load_runs(out)


RANDOM = np.random.default_rng(0).integers(20_000, 40_000, (10, 61))
LABELS = ["full", "galore", "relora", "lora", "relora-8"]
SPEEDS = {  # the first of twenty is slow
    (label, seed): {step: int(RANDOM[2 * number + seed][step]) if step % 20 != 1 else 3 for step in range(1, 61)}
    for number, label in enumerate(LABELS)
    for seed in (0, 1)
}


def median(label, seed, first, last):
    """Sequences of 32 tokens a second after a tenth of the updates first … last."""
    steps = range(first + (last - first + 1) // 10, last + 1)
    return np.median([SPEEDS[label, seed][step] / 32 for step in steps])


def test_examples_a_second_are_the_median_of_a_phase_without_its_first_updates(sped):
    found = throughput.of_runs(sped).set_index("run")
    for seed in (0, 1):
        for label, begins in {"full": 1, "galore": 1, "relora": 21, "lora": 1, "relora-8": 21}.items():
            assert found.loc[f"{label}-seed{seed}", "examples"] == median(label, seed, begins, 60)
        for label in ("relora", "relora-8"):
            assert found.loc[f"{label}-seed{seed}", "full_rank"] == median(label, seed, 1, 20)
        alike = np.mean([median("full", one, 1, 60) for one in (0, 1)])
        assert found.loc[[f"lora-seed{seed}", f"galore-seed{seed}"], "full_rank"].tolist() == [alike, alike]
        assert found.loc[f"full-seed{seed}", "full_rank"] == median("full", seed, 1, 60)
    assert found.loc["waiting-seed0", ["examples", "full_rank"]].isna().all()
    assert found["share"].to_dict()["relora-seed0"] == 20 / 60
    assert set(found.index[found["low_rank"]]) == {
        f"{label}-seed{seed}" for label in ("relora", "relora-8", "lora") for seed in (0, 1)
    } | {"waiting-seed0"}


def test_long_phases_leave_out_ten_updates(tmp_path):
    settings = changed(tiny_tables(), training={"steps": 200}, method={"restart_every": 90})
    speeds = {step: 32 * (1000 if step <= 30 else 10 + step % 2) for step in range(1, 201)}
    write(tmp_path / "x", settings, speeds=speeds)
    assert throughput.of_runs(load_runs(tmp_path))["examples"].tolist() == [10.5]


def test_throughput_is_adjusted_as_a_time_is(sped):
    module = tables.load("throughput")
    frame = module.table(sped).set_index("label")
    assert set(frame.index) == {"full", "relora", "relora-8", "lora", "waiting"}
    full = [median("relora", seed, 1, 20) for seed in (0, 1)]
    low = [median("relora", seed, 21, 60) for seed in (0, 1)]
    row = frame.loc["relora"]
    for share, end in ((1 / 3, ""), (0.33, "_33")):
        times = [share / f + (1 - share) / slow for f, slow in zip(full, low, strict=True)]
        assert row[f"adjusted{end}"] == pytest.approx(np.mean([1 / one for one in times]))
        gains = [100 * (1 / (one * f) - 1) for one, f in zip(times, full, strict=True)]
        assert row[f"total_percent{end}"] == pytest.approx(np.mean(gains))
        assert row[f"total_percent{end}_error"] == pytest.approx(stats.sem(gains))
    assert row["immediate_percent"] == pytest.approx(
        np.mean([100 * (b / a - 1) for a, b in zip(full, low, strict=True)])
    )
    assert (row["n"], frame.loc["waiting", "n"]) == (2, 0)
    assert frame.loc["lora", "adjusted"] == pytest.approx(frame.loc["lora", "low_rank"])
    assert frame.loc["full", ["low_rank", "adjusted"]].isna().all()
    assert "no benchmarks" in module.NOTE
    assert "±" in tables.shown(frame.reset_index()).set_index("label").loc["relora", "low rank"]


def test_throughput_by_rank_stands_beside_p2s_at_the_same_ratio(sped):
    module = tables.load("rank_throughput")
    frame = module.table(sped).set_index("label")
    assert frame["d/r"].drop("full").to_dict() == {
        "relora": 8,
        "relora-8": 2,
        "lora": 8,
        "galore": 4,
        "waiting": 16 / 3,
    }
    assert frame["micro-batch"].to_dict() == dict.fromkeys(frame.index, 4) | {"relora-8": 2}
    ratios = [100 * median("relora", s, 21, 60) / median("relora", s, 1, 20) for s in (0, 1)]
    assert frame.loc["relora", "of_full_rank_percent"] == pytest.approx(np.mean(ratios))
    assert frame.loc["galore", "examples/s"] == pytest.approx(np.mean([median("galore", s, 1, 60) for s in (0, 1)]))
    columns = ["P2 examples/s at 24", "P2 examples/s at 48"]
    assert frame.loc[["relora", "lora"], columns].to_numpy().tolist() == [["129.0", "133.6"]] * 2
    assert frame.loc[["galore", "full"], columns[0]].tolist() == ["136.5", "137.3"]
    assert frame.loc[["galore", "full"], columns[1]].isna().all()
    assert frame.loc["relora-8", columns].isna().all()
    assert module.table(sped[sped["label"].isin(["full", "relora", "lora"])]).empty


# ---- perplexity


def test_during_training_takes_the_steps_that_all_finished_runs_have(tmp_path):
    module = tables.load("during_training")
    at = {
        "full-seed0": {10: 3.0, 29: 2.0, 41: 1.8, 60: 1.5},
        "full-seed1": {10: 3.1, 29: 2.2, 40: 1.9, 41: 1.7, 60: 1.4},
        "control-seed0": {10: 3.2, 29: 2.4, 30: 9.0, 41: 2.0, 60: 1.9},
        "gone-seed0": {10: 9.0},
    }
    methods = {"control": {"model": {"size": "control:demo"}}, "gone": {"training": {"warm_start": 0}}}
    for name, evaluated in at.items():
        label, seed = name.rpartition("-seed")[::2]
        parts = methods.get(label, {})
        training = {"seed": int(seed), "warm_start": 0, "micro_batches": 2 if label == "gone" else 1}
        settings = changed(tiny_tables(), **{**parts, "method": {"name": "full"}, "training": training})
        write(tmp_path / name, settings, state="diverged" if label == "gone" else "finished", evaluated=evaluated)
    runs = load_runs(tmp_path)
    frame = module.table(runs).set_index("label")
    assert [name for name in frame if "@" in name and "error" not in name] == [
        f"perplexity @{s}" for s in (29, 41, 60)
    ]
    for step in (29, 41, 60):
        values = [math.exp(at[f"full-seed{seed}"][step]) for seed in (0, 1)]
        assert frame.loc["full", f"perplexity @{step}"] == pytest.approx(np.mean(values))
        assert frame.loc["full", f"perplexity @{step}_error"] == pytest.approx(stats.sem(values))
    assert math.isnan(frame.loc["gone", "perplexity @60"])
    assert frame.loc["full", ["P1 15K", "P1 20K", "P1 30K"]].tolist() == ["17.67", "17.00", "16.83"]
    assert frame.loc["control", "P1 30K"] == "21.73"
    note = module.note(frame.reset_index())
    assert f"after {29 * 128:,} tokens, {41 * 128:,} tokens, {60 * 128:,} tokens" in note
    assert "11.8, 15.7, 23.1 billion" in note
    last = runs[runs["run"] == "full-seed0"]
    (tmp_path / "full-seed0" / "eval.jsonl").write_text('{"step": 60, "loss": 1.5, "perplexity": 4.5}\n')
    assert module.table(last).empty


def test_online_relora_is_compared_with_the_relora_most_like_it(tmp_path):
    module = tables.load("online")
    cells = {
        "online": {
            "method": {"name": "online_relora", "rank": 2, "restart_every": 14, "restart_warmup": 3, "merge_every": 4}
        },
        "relora": {"method": {"optimizer_reset": "magnitude"}},
        "often": {"method": {"restart_every": 7, "optimizer_reset": "magnitude"}},
        "cold": {"method": {"optimizer_reset": "magnitude"}, "training": {"warm_start": 0}},
    }
    losses = {
        label: [1.5 + 0.1 * n + 0.03 * n * seed + 0.2 * seed for seed in (0, 1)] for n, label in enumerate(cells)
    }
    for label, parts in cells.items():
        for seed, loss in enumerate(losses[label]):
            training = {**parts.get("training", {}), "seed": seed}
            merges = [True] * 9 + [False] if label == "online" else [True, True, False]
            write(
                tmp_path / f"{label}-seed{seed}",
                changed(tiny_tables(), **{**parts, "training": training}),
                loss,
                merges=merges,
            )
    runs = load_runs(tmp_path)
    frame = module.table(runs).set_index("label")
    assert set(frame.index) == {"relora", "online"}
    assert frame["merges"].to_dict() == {"relora": 2, "online": 9}
    assert frame.loc["online", "less"] == "relora"
    differences = np.subtract(losses["online"], losses["relora"])
    assert frame.loc["online", "difference"] == pytest.approx(differences.mean())
    assert frame.loc["online", "p"] == pytest.approx(stats.ttest_rel(losses["online"], losses["relora"]).pvalue)
    assert frame.loc["online", ["P1 250M @15K", "P1 1.3B @25K"]].tolist() == ["29.31", "17.80"]
    assert frame.loc["relora", "P1 1.3B @25K"] == "17.36"
    for left in (["online"], ["relora", "often"], ["online", "cold"]):
        assert module.table(runs[runs["label"].isin(left)]).empty
    unfinished = runs.assign(state=runs["state"].mask(runs["label"] == "online", "diverged"))
    assert module.table(unfinished).empty


def test_models_are_a_row_a_shape_beside_p1s_of_that_name(tmp_path):
    module = tables.load("models")
    tiny = tiny_tables()
    real = {**tiny, "model": {"size": "1.3B"}}
    cells = {
        "whole": changed(real, method={"name": "full"}, training={"warm_start": 0}, optimizer={"lr": 4e-4}),
        "relora": changed(real, optimizer={"lr": 5e-4, "low_rank_lr": 1e-3}),
        "small": changed(
            {**tiny, "model": {"size": "control:1.3B"}}, method={"name": "full"}, training={"warm_start": 0}
        ),
        "cold": changed(real, model={"layers": 2}, method=LORA, training={"warm_start": 0}),
    }
    for name, settings in cells.items():
        write(tmp_path / f"{name}-seed0", settings)
    write(tmp_path / "waits-seed0", changed({**tiny, "model": {"size": "60M"}}), state="waiting")
    frame = module.table(load_runs(tmp_path))
    rows = {(row["size"], row["layers"]): row for row in frame.to_dict("records")}
    assert set(rows) == {("1.3B", 24), ("1.3B", 2), ("control:1.3B", 24), ("60M", 8)}
    row = rows["1.3B", 24]
    assert [row[name] for name in ("runs", "parameters", "hidden", "intermediate", "heads")] == [
        2,
        1000,
        2048,
        5461,
        32,
    ]
    assert [row[name] for name in ("lr_low", "lr_high", "low_rank_lr_low", "low_rank_lr_high")] == [
        4e-4,
        5e-4,
        1e-3,
        1e-3,
    ]
    assert [row[name] for name in ("batch_tokens", "updates", "tokens")] == [128, 60, 60 * 128]
    assert (row["P1 hidden"], row["P1 heads"], row["P1 layers"]) == ("2048", "24", "32")
    assert pd.isna(rows["1.3B", 2]["P1 hidden"])
    assert pd.isna(rows["control:1.3B", 24]["P1 hidden"])
    assert math.isnan(rows["1.3B", 2]["lr_low"])
    assert pd.isna(rows["60M", 8]["parameters"])
    assert tables.shown(frame)["lr"].tolist()[frame.index[frame["layers"] == 24][0]] == "0.0004 … 0.0005"


# ---- P2


@pytest.fixture(scope="module")
def methods(tmp_path_factory):
    """The shipped grid of P2's methods at its size, its weights and states in bfloat16 as P2 holds them."""
    out = tmp_path_factory.mktemp("methods")
    for cell, settings in grid.cells(grid.read(Path("methods")), [0]).items():
        training = replace(settings.training, precision="bf16")
        settings = replace(settings, training=training, optimizer=replace(settings.optimizer, state_dtype="bf16"))
        write(out / cell, settings, loss_of(cell, 0), speeds={20_000: 256 * len(cell)})
    return load_runs(out)


def test_runs_are_told_by_p2s_names(methods):
    found = {run["label"]: costs.row_of_p2(run) for _, run in methods.iterrows()}
    assert {label: row for label, row in found.items() if row} == {
        "full": "full",
        "full-bf16": "full",
        "adam-mini": "adam-mini",
        "galore": "galore",
        "galore-ef": "galore-ef(0.1)",
        "galore-dynamics": "galore-dynamics",
        "galore-dynamics-ef": "galore-dynamics-ef(0.2)",
        "relora-scratch": "relora",
        "redora-scratch": "redora",
        "repissa-scratch": "repissa",
        "reloqra-scratch": "reloqra",
        "reloqra-paper-scratch": "reloqra",
        "reloqra-10k-scratch": "reloqra 10k",
        "reloqra-10k": "reloqra 10k + warm start",
        "relora-10k": "relora 10k + warm start",
    }
    assert set(filter(None, found.values())) == set(paper.table("P2", "Table 1").index)


def test_memory_in_p2s_dtypes_is_p2s_and_derived_numbers_stand_apart(methods):
    frame = tables.load("costs").table(methods).set_index("label")
    cells = frame[["param", "grad", "os", "act", "extra"]].round(2)
    assert cells.loc["relora"].tolist() == [0.91, 0.35, 0.69, 0.3, 0.06]
    totals = {"full": 3.11, "galore-ef": 2.83, "adam-mini": 2.55, "relora": 2.31, "redora-scratch": 2.31}
    assert cells.loc[list(totals)].sum(axis=1).round(2).to_dict() == totals
    assert frame.loc["relora-nf4", "total"] < 2
    speeds = {label: len(f"{label}-seed0") for label in frame.index}
    assert frame["examples/s"].to_dict() == speeds
    assert frame.loc["relora-scratch", ["P2 perplexity", "P2 total", "P2 examples/s"]].tolist() == [
        "27.61",
        "2.31",
        "120.0",
    ]
    assert frame.loc["galore-dynamics-ef", ["P2 perplexity", "P2 total", "P2 examples/s"]].tolist() == [
        "20.66",
        "2.83",
        "141.4",
    ]
    assert frame.loc["galore", ["P2 perplexity", "P2 derived perplexity", "P2 derived from"]].tolist() == [
        "",
        "21.01",
        "20.66 + 0.35",
    ]
    assert frame.loc["relora", [name for name in frame if name.startswith("P2")]].isna().all()
    assert frame.loc["relora", "perplexity"] == pytest.approx(math.exp(loss_of("relora-seed0", 0)))


def test_memory_is_that_of_the_runs_own_dtypes_and_vocabulary(tmp_path):
    settings = changed(tiny_tables(), method={"name": "redora", "rank": 2, "restart_every": 14, "restart_warmup": 3})
    write(tmp_path / "redora-seed0", settings)
    row = tables.load("costs").table(load_runs(tmp_path)).iloc[0]
    hidden, inner, rank, layers = 16, 40, 2, 2
    rest = 2 * 256 * hidden + (2 * layers + 1) * hidden
    frozen = layers * (4 * hidden**2 + 3 * hidden * inner)
    factors = layers * rank * (4 * 2 * hidden + 3 * (hidden + inner))
    trained = rest + factors + layers * (4 * hidden + 2 * inner + hidden)  # ReDoRA's magnitudes
    assert row["param"] == pytest.approx(4 * (trained + frozen) / 2**30)
    assert (row["grad"], row["os"]) == pytest.approx((4 * trained / 2**30, 8 * trained / 2**30))
    assert row["extra"] == 4 * 256 * hidden / 2**30
    assert row["total"] == pytest.approx(row[["param", "grad", "os", "act", "extra"]].sum())


# ---- all


def test_what_is_not_there_leaves_tables_empty_or_with_gaps(sped):
    waiting = sped[sped["state"] == "waiting"]
    one = sped[sped["run"] == "relora-seed0"]
    for name in NEW:
        module = tables.load(name)
        for runs in (waiting, one, sped):
            frame = module.table(runs)
            if not frame.empty:
                assert tables.shown(frame).shape[0] == len(frame)
                assert (module.note(frame) if hasattr(module, "note") else module.NOTE).endswith(".")
            elif not getattr(module, "OPTIONAL", False):
                assert name == "during_training"
    for name in ("online", "one_setting", "costs", "rank_throughput"):
        assert tables.load(name).OPTIONAL
        assert tables.load(name).table(one).empty
    assert sweeps.one_setting(waiting).columns.tolist() == sweeps.COLUMNS


@pytest.mark.parametrize("module", tables.available(), ids=lambda module: module.__name__.rpartition(".")[2])
def test_every_printed_table_that_is_named_is_there(module):
    for of, name in getattr(module, "PRINTED", ()):
        assert not paper.table(of, name).empty
        assert paper.quantity(of, name)
