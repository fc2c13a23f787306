"""Curves of training and what sums them up: by family, by one setting, by restart, and spectra of s·B·A."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import changed, tiny_tables
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text
from safetensors.numpy import load_file, save_file

from analysis import figures, load_runs, paper, products, spectra, tables
from analysis.figures import evaluation_loss, families, loss, one_setting, restarts
from analysis.figures import products as product_figure
from analysis.tables import products as product_table
from relora_lab import manifest, train

ALL = [evaluation_loss, families, one_setting, restarts, product_figure]
RESETS = {"rank": 2, "restart_every": 14, "restart_warmup": 3, "optimizer_reset": "magnitude"}
METHODS = {
    "full": {"name": "full"},
    "relora": {"name": "relora", **RESETS},
    "separate": {"name": "relora", **RESETS, "reset_mask": "separate", "reset_ratio": 0.5},
    "qr": {"name": "reloqra", **RESETS, "qr_mode": "paper"},
    "online": {"name": "online_relora", **RESETS, "merge_every": 7},
    "low-rank": {"name": "low_rank", "rank": 2},
    "galore": {"name": "galore", "rank": 4, "gap": 10},
    "galore-ef": {"name": "galore", "rank": 4, "gap": 10, "error_feedback": 0.2},
}
WARM = {"relora", "separate", "qr", "online"}
SEEDS = {"full": 2, "relora": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Runs of eight labels, two of them with two seeds; evaluated at 15, 30, 45 and 60."""
    out = tmp_path_factory.mktemp("runs")
    for label, method in METHODS.items():
        for seed in range(SEEDS.get(label, 1)):
            training = {
                "seed": seed,
                "warm_start": 20 if label in WARM else 0,
                "reference_step": 20,
                "eval_every": 15,
                "norms_every": 60,
                "checkpoint_every": 60,
            }
            train.run(changed(tiny_tables(), method=method, training=training), out / f"{label}-seed{seed}")
    return out


@pytest.fixture(scope="module")
def runs(folder):
    """Those runs."""
    return load_runs(folder)


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of them to spoil."""
    return shutil.copytree(folder, tmp_path / "runs")


def edit(path, **changes):
    """Change a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def lines(run, log):
    """The lines of a log, read by hand."""
    return [json.loads(line) for line in (Path(run) / f"{log}.jsonl").read_text().splitlines()]


def panels(figure: Figure) -> list[Axes]:
    """The axes that are drawn."""
    return [ax for ax in figure.axes if ax.axison]


def drawn(ax: Axes) -> dict[str, list[float]]:
    """Heights of the lines of axes, by label."""
    return {str(line.get_label()): list(line.get_ydata()) for line in ax.get_lines()}


# ---- held-out loss


def test_held_out_loss_is_that_of_the_logs(runs):
    frame = evaluation_loss.data(runs)
    for label, rows in frame.groupby("label", observed=True):
        by_run = [
            {line["step"]: line["loss"] for line in lines(path, "eval")}
            for path in runs.loc[runs["label"] == label, "path"]
        ]
        assert set(by_run[0]) >= {15, 30, 45, 60}
        assert rows["step"].tolist() == sorted(by_run[0])
        found = np.array([[run[step] for run in by_run] for step in rows["step"]])
        for column, expected in (("loss", found.mean(1)), ("low", found.min(1)), ("high", found.max(1))):
            np.testing.assert_allclose(rows[column], expected, rtol=1e-12)
        assert set(rows["n"]) == {len(by_run)}
    figure = figures.make(evaluation_loss, frame)
    [ax] = figure.axes
    assert drawn(ax) == {label: rows["loss"].tolist() for label, rows in frame.groupby("label", observed=True)}
    assert len(ax.collections) == len(SEEDS)  # a band where there are several seeds
    mean = runs.loc[runs["label"] == "relora", "loss"].mean()
    assert f"relora {mean:.3f}," in evaluation_loss.describe(frame)


def test_who_was_evaluated_only_at_the_end_has_no_curve(copy):
    for path in copy.glob("*/eval.jsonl"):
        path.write_text(path.read_text().splitlines(keepends=True)[-1])
        manifest.record(path.parent, path.name)
    runs = load_runs(copy)
    assert evaluation_loss.data(runs).empty
    frame = families.data(runs)
    assert set(frame.loc[frame["split"] == "held-out", "step"]) == {60}
    markers = {line.get_marker() for line in panels(figures.make(families, frame))[-1].get_lines()}
    assert markers == {"."}  # a line of one point would be invisible


def test_a_mean_does_not_jump_to_where_one_seed_ended():
    whole = pd.DataFrame({"run": "a", "step": range(10, 70, 10), "loss": 2.0})
    lost = pd.DataFrame({"run": "b", "step": [10, 20, 30, 33, 40], "loss": [3.0, 3.0, 3.0, 50.0, np.nan]})
    frame = loss.over_seeds(pd.concat([whole, lost]).assign(label="x"))
    assert frame["step"].tolist() == [10, 20, 30, 40, 50, 60]  # not 33
    assert frame["n"].tolist() == [2, 2, 2, 1, 1, 1]
    assert frame["loss"].tolist() == [2.5, 2.5, 2.5, 2.0, 2.0, 2.0]
    alone = loss.over_seeds(lost.assign(label="x"))
    assert alone["loss"].tolist() == [3.0, 3.0, 3.0, 50.0]
    assert loss.over_seeds(lost.assign(label="x", loss=np.nan)).empty


def test_neither_the_fall_from_chance_nor_a_diverged_run_flattens_the_others():
    steps = np.arange(10, 1010, 10)
    fine = pd.DataFrame({"label": "fine", "step": steps, "loss": 2 + 8 * np.exp(-steps / 20)})
    gone = pd.DataFrame({"label": "gone", "step": steps[:40], "loss": np.where(steps[:40] < 300, 2.5, 90.0)})
    frame = pd.concat([fine, gone], ignore_index=True).assign(n=1)
    frame = frame.assign(low=frame["loss"], high=frame["loss"], label=frame["label"].astype("category"))
    low, high = figures.make(evaluation_loss, frame).axes[0].get_ylim()
    assert 1.9 < low < 2 < 2.5 < high < 3
    assert "gone 90.000 (update 400)" in evaluation_loss.describe(frame)
    same = frame[frame["label"] == "fine"].tail(1)
    low, high = figures.make(evaluation_loss, same).axes[0].get_ylim()
    assert low < same["loss"].item() < high


# ---- families


def test_families_are_those_of_the_paper_and_their_curves_those_of_the_logs(runs):
    frame = families.data(runs)
    members = frame.groupby("family", observed=True)["label"].agg(set).to_dict()
    assert members == {
        "low-rank methods": {"relora", "separate", "qr", "online", "low-rank", "full", "galore"},
        "optimizers": {"galore", "galore-ef", "full"},
        "best of each": members["best of each"],
    }
    final = runs.groupby("label", observed=True)["loss"].mean()
    best = {final[names].idxmin() for names in (list(WARM | {"low-rank"}), ["galore", "galore-ef"])}
    assert members["best of each"] == {*best, "full", "galore"}
    sources = {"training": loss.data(runs), "held-out": evaluation_loss.data(runs)}
    for (_, split, label), rows in frame.groupby(["family", "split", "label"], observed=True):
        expected = sources[split][sources[split]["label"] == label]
        for column in ("step", "loss", "low", "high", "n"):
            assert rows[column].tolist() == expected[column].tolist()
    made = panels(figures.make(families, frame))
    assert [ax.get_title() for ax in made] == [*members, "", "", ""]
    for number, ax in enumerate(made):
        row, column = divmod(number, 3)
        rows = frame[(frame["family"] == list(members)[column]) & (frame["split"] == list(sources)[row])]
        assert drawn(ax) == {label: mine["loss"].tolist() for label, mine in rows.groupby("label", observed=True)}


def test_training_loss_is_smoothed_over_a_hundredth_of_the_steps(runs):
    run = runs.iloc[0]
    found = loss.smoothed(run.copy())
    raw = [line["loss"] for line in lines(run["path"], "metrics")]
    assert found["loss"].tolist() == raw  # of 60 steps a hundredth is one
    wide = loss.smoothed(pd.Series({**run, "steps": 500}))
    assert wide["loss"].iloc[-1] == pytest.approx(np.mean(raw[-5:]))


def test_a_family_without_methods_of_its_own_and_one_where_none_finished_are_left_out(runs):
    only = families.data(runs[runs["label"].isin(["full", "galore", "galore-ef"])])
    assert set(only["family"]) == {"optimizers", "best of each"}
    assert len(panels(figures.make(families, only))) == 4
    assert families.data(runs[runs["method"].isin(["full", "relora", "low_rank"])]).empty
    stopped = families.data(runs.assign(state="running"))
    assert set(stopped["family"]) == {"low-rank methods", "optimizers"}
    control = families.data(runs.assign(control=runs["label"] == "galore"))
    assert "galore" not in set(control["label"])


# ---- one setting


def sweep(values, *, setting="method.rank", methods=("relora", "lora"), seeds=2, gone=(), named=""):
    """Runs as load_runs has them, that differ in one setting alone; and full rank. `gone` are values that diverge."""
    rows = []
    for method in methods:
        for value in values:
            for seed in range(seeds):
                rows.append(
                    {"label": f"{named}{method}-{value}", "method": method, "method.name": method, "seed": seed}
                )
                rows[-1] |= {setting: value, "loss": 3 + value / 100 + seed / 10 + (method == "lora")}
                rows[-1] |= {"state": "diverged" if value in gone else "finished", "restarts": method == "relora"}
    rows += [
        {"label": "full", "method": "full", "method.name": "full", "seed": seed, "loss": 2.0} for seed in range(seeds)
    ]
    frame = pd.DataFrame(rows).fillna({"state": "finished", "restarts": False})
    about = dict.fromkeys(("control", "reset", "jagged"), False) | {"step": 7, "parameters": 9, "model.size": "demo"}
    frame = frame.assign(perplexity=np.exp(frame["loss"]), **about)
    labels = list(dict.fromkeys(frame["label"]))
    first = frame.drop_duplicates("label").set_index("label")
    variant = frame["label"].map(first.groupby("method").cumcount())
    return frame.assign(label=pd.Categorical(frame["label"], labels, ordered=True), variant=variant)


def test_one_setting_is_drawn_as_measured_with_its_errors():
    runs = sweep([1, 2, 4, 8], gone=(8,))
    frame = one_setting.data(runs)
    [ax] = panels(figures.make(one_setting, frame))
    by_label = runs.groupby("label", observed=True)["perplexity"]
    for method in ("relora", "lora"):
        [line] = [line for line in ax.get_lines() if line.get_label() == method]
        assert line.get_xdata().tolist() == [1, 2, 4, 8]
        np.testing.assert_allclose(line.get_ydata()[:3], [by_label.mean()[f"{method}-{v}"] for v in (1, 2, 4)])
        assert np.isnan(line.get_ydata()[3])
    lengths = [np.diff(bar[:, 1]).item() for bars in ax.collections for bar in bars.get_segments() if len(bar)]
    errors = by_label.std(ddof=1) / np.sqrt(2)
    assert sorted(length for length in lengths if np.isfinite(length)) == pytest.approx(
        sorted(2 * errors[f"{method}-{value}"] for method in ("relora", "lora") for value in (1, 2, 4))
    )
    crosses = [line for line in ax.get_lines() if line.get_marker() == "x"]
    assert [(*line.get_xdata(), *line.get_ydata()) for line in crosses] == [(8, 1), (8, 1)]
    assert all(line.get_transform() == ax.get_xaxis_transform() for line in crosses)  # 1 is the top edge
    [full] = [line for line in ax.get_lines() if line.get_label() == "full"]
    assert list(full.get_ydata()) == [np.exp(2), np.exp(2)]
    assert ax.get_xscale() == "log"
    assert [text.get_text() for text in ax.get_xticklabels()] == ["1", "2", "4", "8"]
    told = one_setting.describe(frame)
    assert f"relora is best at 1 with {by_label.mean()['relora-1']:.3f} (of 4 values; 8 diverged at step 7" in told


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(
    ("values", "scale"), [([0, 250, 2000], "linear"), ([0.9, 0.99], "linear"), ([1e-4, 1e-2], "log")]
)
def test_a_scale_is_logarithmic_where_values_span_far_and_none_is_0(values, scale):
    frame = one_setting.data(sweep(values, setting="training.warm_start", seeds=1))
    assert frame["perplexity_error"].isna().all()  # one seed
    [ax] = panels(figures.make(one_setting, frame))
    assert (ax.get_xscale(), ax.get_xlabel()) == (scale, "warm start")


@pytest.mark.filterwarnings("error::UserWarning")
def test_four_settings_are_drawn_and_a_recipe_has_one_look_in_all():
    runs = sweep([1, 2, 3], gone=(1, 2, 3))
    frame = one_setting.data(runs)
    assert figures.make(one_setting, frame)  # nothing but crosses and full rank
    assert "relora never finished (of 3 values; 1 diverged" in one_setting.describe(frame)
    many = pd.concat([one_setting.data(sweep([1, 2])).assign(setting=f"method.$s{n}\x1b") for n in range(6)])
    figure = figures.make(one_setting, many)
    assert [ax.get_xlabel() for ax in panels(figure)] == [rf"\$s{n}\x1b" for n in range(4)]
    for label in ("relora", "lora", "full"):
        assert (
            len({line.get_color() for ax in figure.axes for line in ax.get_lines() if line.get_label() == label}) == 1
        )
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["relora", "lora", "full"]
    assert r"Not drawn: method.$s4\x1b, method.$s5\x1b" in one_setting.describe(many)
    assert one_setting.data(runs[runs["label"].isin(["full", "relora-1"])]).empty


# ---- restarts


def test_restarts_are_those_of_the_cycles_and_merges_between_them_are_none(runs):
    frame = restarts.data(runs)
    assert set(frame["label"]) == {"relora", "separate", "qr", "online"}
    for (label, measure), rows in frame.groupby(["label", "measure"], observed=True):
        paths = runs.loc[runs["label"] == label, "path"]
        facts = [json.loads(file.read_text()) for path in paths for file in sorted(Path(path).glob("cycles/*.json"))]
        assert any(cycle.get("event") == "merge" for cycle in facts) == (label == "online")
        ends = pd.DataFrame(facts).query("event == 'restart'").groupby("end")[measure]
        assert rows["step"].tolist() == sorted(ends.groups) == [34, 48]
        np.testing.assert_allclose(rows["value"], ends.mean())
        np.testing.assert_allclose(rows[["low", "high"]], ends.agg(["min", "max"]))
    wide = frame.pivot_table(index="label", columns="measure", values="high", aggfunc="max", observed=True)
    assert wide.loc["qr", "function_jump"] > 0.01 > 1e-5 > wide.loc["relora", "function_jump"]
    assert wide.loc["separate", "orphans"] > 0 == wide.loc["relora", "orphans"]
    figure = figures.make(restarts, frame)
    for ax, measure in zip(panels(figure), restarts.PANELS, strict=True):
        rows = frame[frame["measure"] == measure]
        assert drawn(ax) == {label: mine["value"].tolist() for label, mine in rows.groupby("label", observed=True)}
        low, high = ax.get_ylim()
        assert low < 0 <= rows["high"].max() <= high
    jump = max(frame.loc[(frame["label"] == "qr") & (frame["measure"] == "function_jump"), "high"])
    assert f"qr {jump:+.3g} nats and 0 orphans (2 restarts)" in restarts.describe(frame)
    assert restarts.data(runs[runs["label"].isin(["full", "low-rank", "galore"])]).empty


@pytest.mark.parametrize(("jumps", "scale"), [([0, 0], "linear"), ([0, 1], "linear"), ([-0.002, 1], "symlog")])
def test_a_jump_of_0_and_one_of_1_can_both_be_read(jumps, scale):
    rows = [
        {"measure": measure, "step": n, "value": float(v)} for measure in restarts.PANELS for n, v in enumerate(jumps)
    ]
    frame = pd.DataFrame(rows).assign(label=pd.Categorical(["x"] * 4), n=1)
    [ax, _] = panels(figures.make(restarts, frame.assign(low=frame["value"], high=frame["value"])))
    assert ax.get_yscale() == scale
    heights = ax.transAxes.inverted().transform(ax.transData.transform([(0, v) for v in (0, *jumps)]))[:, 1]
    assert heights.min() > 0.02
    assert heights.max() < 0.98
    assert abs(heights[1] - heights[2]) > 0.2 or jumps == [0, 0]


# ---- products


def test_spectra_of_products_are_those_of_the_final_weights(runs):
    found = products.of_runs(runs)
    assert found.groupby("label", observed=True)["product"].unique().map(list).to_dict() == {
        "full": [False],
        "relora": [False],
        "separate": [False],
        "low-rank": [True],
    }
    path = Path(runs.loc[runs["label"] == "low-rank", "path"].item())
    weights = load_file(path / "final" / "model.safetensors")
    mine = found[found["product"]]
    assert mine["matrix"].nunique() == 14
    for matrix, rows in mine.groupby("matrix"):
        expected = np.linalg.svd(weights[f"{matrix}.weight"].astype(float), compute_uv=False)
        np.testing.assert_allclose(rows["sigma"], expected, atol=1e-6 * expected[0])
        assert (expected > 1e-5 * expected[0]).sum() == 2  # its rank: the weights are s·B·A and nothing else
    deltas = spectra.of_runs(runs[runs["label"].isin(["full", "relora", "separate"])])
    assert found.loc[~found["product"], "sigma"].tolist() == deltas["sigma"].tolist()


def test_products_are_drawn_and_counted_as_the_paper_does(runs):
    frame = product_figure.data(runs)
    assert set(frame["role"]) == {"q", "k", "v", "down"}
    found = products.of_runs(runs)
    for ax, role in zip(figures.make(product_figure, frame).axes, ("q", "k", "v", "down"), strict=True):
        heights = {patch.get_label(): patch.get_data().values.tolist() for patch in ax.patches}
        for label, rows in found[found["role"] == role].groupby("label", observed=True):
            edges = np.linspace(0, frame["right"].max(), 51)
            count = np.histogram(rows["sigma"], edges)[0]
            np.testing.assert_allclose(heights[label], count / len(rows) / np.diff(edges))
    assert product_figure.describe(frame).startswith("Of low-rank these are values of s·B·A, of all others of ΔW.")
    table = product_table.table(runs).set_index(["label", "role"])
    printed = paper.table("P1", "Figure 12").astype(int)
    for (label, role), row in table.iterrows():
        rows = found[(found["label"] == label) & (found["role"] == role)]
        matrices = rows.groupby(["run", "matrix"]).ngroups
        below = (rows["sigma"] < 0.1).sum() / matrices
        assert (row["below"], row["total"]) == (int(below), 16)
        assert row["below_percent"] == pytest.approx(100 * below / 16)
        of_paper = printed.loc[{"full": "full", "low-rank": "lora"}.get(label, "relora"), role]
        assert row["P1_below"] == of_paper // 12
        assert row["P1_below_percent"] == pytest.approx(100 * of_paper / 9216)
    assert table.loc["low-rank", "below"].tolist() == [14] * 5  # all but its rank
    assert "> 0.1" in product_table.NOTE
    for others in (runs[runs["label"] != "low-rank"], runs[runs["label"] == "galore"]):
        assert product_figure.data(others).empty
        assert product_table.table(others).empty


def test_non_finite_products_are_left_out(copy):
    path = copy / "low-rank-seed0" / "final" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight"
    weights[name] = np.full_like(weights[name], np.nan)
    save_file(weights, path)
    runs = load_runs(copy / "low-rank-seed0")
    found = products.of_runs(runs)
    assert found.loc[found["sigma"].isna(), "matrix"].unique().tolist() == [name.removesuffix(".weight")]
    assert set(product_table.table(runs)["below"]) == {14}
    save_file({name: np.full_like(weight, np.nan) for name, weight in weights.items()}, path)
    runs = load_runs(copy / "low-rank-seed0")
    assert product_figure.data(runs).empty
    assert product_table.table(runs).empty


# ---- whatever is missing


def test_what_is_missing_is_left_out_and_nothing_raises(copy):
    for log in ("metrics", "eval"):
        (copy / "galore-seed0" / f"{log}.jsonl").unlink()
    shutil.rmtree(copy / "separate-seed0" / "cycles")
    shutil.rmtree(copy / "low-rank-seed0" / "final")
    edit(copy / "qr-seed0" / "status.json", state="diverged", step=30)
    edit(copy / "relora-seed1" / "status.json", state="running", step=7)
    (copy / "waiting").mkdir()
    shutil.copy(copy / "full-seed0" / "config.toml", copy / "waiting")
    hostile = ["_a", "$x$ \x1b[31m", "<b>=cmd()|", "x" * 90]
    for label, name in zip(("online", "qr", "galore-ef", "relora"), hostile, strict=True):
        (copy / f"{label}-seed0").rename(copy / name)
    everything = load_runs(copy)
    alone = [*hostile[1:], "separate-seed0", "low-rank-seed0", "galore-seed0"]
    for chosen in (everything, *(everything[everything["run"] == run] for run in alone)):
        for module in (loss, *ALL):
            frame = module.data(chosen)
            if len(frame):
                assert set(frame["label"]) <= set(chosen["label"])
                figure = figures.make(module, frame)
                told = [text.get_text() for text in figure.findobj(Text)] + [module.describe(frame)]
                assert "\x1b" not in "".join(told)
    assert "galore" not in set(evaluation_loss.data(everything)["label"])
    waiting = everything[everything["run"] == "waiting"]
    assert all(module.data(waiting).empty for module in (loss, *ALL))
    assert product_table.table(waiting).empty


def test_figures_and_tables_have_a_place_of_their_own():
    for modules in (figures.available(), tables.available()):
        places = [module.ORDER for module in modules]
        assert len(places) == len(set(places))
