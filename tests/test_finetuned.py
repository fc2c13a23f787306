"""Runs that are fine-tuned for tasks, as everything that reads runs shows them: no run is trained here."""

import json
import math
from itertools import pairwise, product

import numpy as np
import pandas as pd
import pytest
from conftest import run
from scipy import stats

from analysis import figures, load_runs, measures, paper, report, sweeps, tables, throughput
from analysis.figures import evaluation_loss, one_setting, paired_differences, small_values
from analysis.load import by_size_and_task, require_comparable
from analysis.naming import role_key
from relora_lab import config, sizes, tasks
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder

METHODS = {
    "full": {"name": "full"},
    "lora": {"name": "lora", "rank": 2},
    "relora": {
        "name": "relora",
        "rank": 2,
        "restart_every": 20,
        "restart_warmup": 3,
        "optimizer_reset": "magnitude",
        "jagged": True,
    },
}


def settings(name, on, seed=0, size="t5-demo", **parts):
    """Settings of a run of METHODS that is fine-tuned on a task."""
    table = {
        "model": {"size": size},
        "task": {"name": on},
        "data": {"sequence_length": 32, "batch_size": 4},
        "method": METHODS[name],
        "training": {"steps": 60, "seed": seed, "eval_every": 30},
        "optimizer": {"lr": 1e-3, "warmup_steps": 5},
    }
    return config.parse({part: {**table.get(part, {}), **parts.get(part, {})} for part in {**table, **parts}})


def score_of(method, task, seed):
    """A score that no two runs share."""
    return 0.5 + 0.1 * list(METHODS).index(method) + 0.01 * list(tasks.TASKS).index(task) + 0.003 * seed**2


def write(path, made, score, state="finished", sha="ab", majority=0.25):
    """A run folder as such a run leaves it."""
    path.mkdir(parents=True)
    metrics = tasks.resolve(made.task.name).metrics
    corpus = {"text_sha256": sha * 32, "majority": None if metrics[0] == "pearson" else majority}
    about = {"corpus": corpus, "parameters": {"total": 1000, "trained": 100}}
    status = {"state": state, "step": 60, "steps": 60, "score": score}
    values = [score, None if score is None else score - 0.05][: len(metrics)]
    lines = [
        {"step": step, "loss": loss, "score": score, "examples": 50, **dict(zip(metrics, values, strict=True))}
        for step, loss in ((30, 0.4), (60, 0.5 + (score or 0)))
    ]
    (path / "config.toml").write_text(config.dumps(made))
    (path / "environment.json").write_text(json.dumps(about))
    (path / "status.json").write_text(json.dumps(status))
    (path / "eval.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    lines = [
        {"step": step, "loss": 1.0, "lr": 1e-3, "tokens": 50 * step, "tokens_per_second": 100.0}
        for step in range(1, 61)
    ]
    (path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def grid(out, names=tuple(tasks.GLUE), methods=tuple(METHODS), seeds=(0, 1, 2), **about):
    """Runs of every method and task, called as a grid calls them."""
    for method, task, seed in product(methods, names, seeds):
        made = settings(method, task, seed, **about)
        write(out / f"{method}-{task}-seed{seed}", made, score_of(method, task, seed))
    return out


@pytest.fixture(scope="module")
def eight(tmp_path_factory):
    """Three methods on all of GLUE, three seeds."""
    return load_runs(grid(tmp_path_factory.mktemp("runs")))


# ---- runs


def test_a_run_of_a_task_has_its_scores_its_label_and_its_recipe(tmp_path):
    made = settings("lora", "mrpc")
    write(tmp_path / config.run_name(made), made, 0.8)
    write(tmp_path / "tuned-cola-b-seed3", settings("lora", "cola", 3), 0.5)
    runs = load_runs(tmp_path).set_index("task")
    about = ["label", "recipe", "score"]
    found = runs.loc["mrpc", [*about, "accuracy", "f1"]].tolist()
    assert found == ["lora-mrpc", "lora", 0.8, 0.8, pytest.approx(0.75)]
    assert runs.loc["cola", [*about, "matthews"]].tolist() == ["tuned-cola-b", "tuned-b", 0.5, 0.5]
    assert math.isnan(runs.loc["cola", "accuracy"])
    assert runs["perplexity"].isna().all()


def test_two_kinds_of_run_of_a_task_are_two_recipes_each_the_same_on_every_task(tmp_path):
    for rate, task in product((1e-3, 2e-3), ("rte", "cola")):
        made = settings("lora", task, optimizer={"lr": rate})
        write(tmp_path / config.run_name(made), made, rate * 100)
    runs = load_runs(tmp_path)
    assert runs["label"].nunique() == 4
    assert runs.groupby("optimizer.lr")["recipe"].agg(set).map(len).tolist() == [1, 1]
    assert runs["recipe"].nunique() == 2
    frame = tables.load("glue").table(runs)
    assert sorted(frame["CoLA"].dropna()) == pytest.approx([0.0, 10.0, 20.0])  # the first is the majority's


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"task": {"name": "cola"}}, r"the task rte \(a\) vs cola \(b\)"),
        ({"task": {"name": "rte", "eval_examples": 9}}, r"evaluation examples all \(a\) vs 9 \(b\)"),
        ({"data": {"batch_size": 8}}, r"examples seen 240 \(a\) vs 480 \(b\)"),
        ({"sha": "cd"}, r"the examples abababab \(a\) vs cdcdcdcd \(b\)"),
    ],
)
def test_runs_of_other_examples_are_not_comparable_and_it_says_why(tmp_path, parts, message):
    sha = parts.pop("sha", "ab")
    write(tmp_path / "a", settings("full", "rte"), 0.5)
    write(tmp_path / "b", settings("relora", "rte", **parts), 0.5, sha=sha)
    with pytest.raises(BadInput, match=message):
        require_comparable(load_runs(tmp_path))


def test_text_and_task_are_no_one_table(tmp_path, tiny):
    write(tmp_path / "a", settings("lora", "rte", size="demo"), 0.5)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "config.toml").write_text(config.dumps(config.parse(tiny)))
    with pytest.raises(BadInput, match=r"the task (rte|none, but text,) \(.\) vs (rte|none, but text,) \(.\)"):
        require_comparable(load_runs(tmp_path))
    assert list(by_size_and_task(load_runs(tmp_path))) == ["demo", "rte"]


# ---- GLUE


def test_the_table_of_tasks_is_means_over_seeds_and_avg_the_mean_of_the_eight(eight):
    frame = tables.load("glue").table(eight).set_index("recipe")
    assert frame.index.tolist() == ["full", "relora", "lora", "most frequent label"]
    titles = [task.title for task in tasks.GLUE.values()]
    assert [name for name in frame.columns if name in titles] == titles  # P1's order
    for method in METHODS:
        scores = np.array([[100 * score_of(method, task, seed) for task in tasks.GLUE] for seed in range(3)])
        found = frame.loc[method]
        assert found[titles].tolist() == pytest.approx(scores.mean(0))
        assert found[[f"{name}_error" for name in titles]].tolist() == pytest.approx(stats.sem(scores))
        assert found["Avg"] == pytest.approx(scores.mean())
        assert found["Avg_error"] == pytest.approx(stats.sem(scores.mean(1)))
        assert found[["n_low", "n_high"]].tolist() == [3, 3]
    majority = frame.loc["most frequent label"]
    assert majority["RTE"] == 25
    assert majority["CoLA"] == 0
    assert majority[["STS-B", "Avg"]].isna().all()
    assert not any(frame[name].notna().any() for name in frame if name.startswith("P1 "))  # of no size of P1's


def test_avg_needs_all_eight_and_never_counts_the_packages(tmp_path):
    grid(tmp_path, (*list(tasks.GLUE)[1:], "packages"), methods=["full"], seeds=[0])
    frame = tables.load("glue").table(load_runs(tmp_path))
    assert frame["Avg"].isna().all()
    assert frame["packages"].iloc[0] == pytest.approx(100 * score_of("full", "packages", 0))
    grid(tmp_path, ["sst2"], methods=["full"], seeds=[0])
    frame = tables.load("glue").table(load_runs(tmp_path))
    assert frame["Avg"].iloc[0] == pytest.approx(100 * np.mean([score_of("full", task, 0) for task in tasks.GLUE]))


def test_p1s_numbers_stand_beside_its_models(tmp_path):
    t5 = {"tokenizer": "google-t5/t5-base", "vocab_size": 32128}
    for size, method in product(("t5-base", "t5-large"), METHODS):
        write(tmp_path / "runs" / f"{size}-{method}-rte", settings(method, "rte", size=size, data=t5), 0.5)
    for name in ("full", "relora"):
        before = tmp_path / "before" / f"{name}-seed0"
        write(before, settings(name, "rte", size="350M"), 0.5)
        made = settings("relora", "rte", model={"size": "350M", "weights": str(before)})
        write(tmp_path / "runs" / f"after-{name}-rte", made, 0.5)
    write(tmp_path / "runs" / "scratch-rte", settings("relora", "rte", size="350M"), 0.5)
    frame = tables.load("glue").table(load_runs(tmp_path / "runs")).set_index("recipe")
    table3, table8 = (paper.table("P1", name)["RTE"] for name in ("Table 3", "Table 8"))
    assert frame["P1 RTE"].dropna().to_dict() == {
        "t5-base-full": table8["full fine-tuning"],
        "t5-base-lora": table8["lora"],
        "t5-base-relora": table8["relora"],
        "t5-large-full": table8["full fine-tuning (T5-L)"],
        "t5-large-lora": table8["lora (T5-L)"],
        "t5-large-relora": table8["relora (T5-L)"],
        "after-full": table3["full-rank pretrained"],
        "after-relora": table3["relora"],
        "scratch": table3["not pretrained"],
    }
    assert frame.loc["scratch", "P1 Avg"] == "54.68"


def test_p1s_averages_are_the_means_of_its_columns_but_for_the_two_that_the_note_names():
    differing = {}
    for name in ("Table 3", "Table 8"):
        printed = paper.table("P1", name)
        for row, values in printed.iterrows():
            mean, digits = values.iloc[:8].astype(float).mean(), len(values["Avg"].partition(".")[2])
            if abs(mean - float(values["Avg"])) > 0.5 * 10**-digits + 1e-9:
                differing[row] = (round(mean, 2), values["Avg"])
    assert differing == {"full fine-tuning (T5-L)": (85.09, "85.0"), "relora (T5-L)": (87.13, "87.47")}
    assert all(text in tables.load("glue").NOTE for found in differing.values() for text in map(str, found))


# ---- tables and figures of a task


def test_tables_have_the_score_in_place_of_perplexity_and_compare_by_it(eight):
    runs = by_size_and_task(eight)["mrpc"]
    scores = {m: [100 * score_of(m, "mrpc", seed) for seed in range(3)] for m in METHODS}
    frame = tables.load("perplexity").table(runs).set_index("label")
    assert frame.loc["lora-mrpc", "accuracy"] == pytest.approx(np.mean(scores["lora"]))
    assert frame.loc["lora-mrpc", "f1"] == pytest.approx(np.mean(scores["lora"]) - 5)
    compared = tables.load("ablation").table(runs).set_index("label")
    assert compared.loc["lora-mrpc", "less"] == "relora-mrpc"
    less = np.mean(scores["lora"]) - np.mean(scores["relora"])
    assert compared.loc["lora-mrpc", "difference"] == pytest.approx(less)
    for name in ("perplexity", "ablation", "during_training"):
        module = tables.load(name)
        found = module.table(runs)
        assert len(found)
        words = " ".join([*map(str, found.columns), module.note(found)])
        assert "perplexity" not in words.lower()
        assert not [column for column in found if str(column).startswith("P1")]
    assert "accuracy (percentage points) less" in tables.load("ablation").note(compared.reset_index())
    for name in ("sizes", "costs"):
        assert tables.load(name).table(runs).empty


def test_a_score_that_is_undefined_is_said_and_is_no_zero(tmp_path):
    for seed, score in enumerate((None, 0.4, 0.6)):
        write(tmp_path / f"lora-stsb-seed{seed}", settings("lora", "stsb", seed), score)
    [row] = tables.load("perplexity").table(load_runs(tmp_path)).to_dict("records")
    assert (row["pearson"], row["pearson_error"]) == (pytest.approx(50), pytest.approx(10))
    assert row["remark"] == "pearson is undefined (seed 0)"


def test_figures_show_the_score_and_say_that_more_is_better(eight):
    runs = by_size_and_task(eight)["cola"]
    frame = evaluation_loss.data(runs)
    [ax] = figures.make(evaluation_loss, frame).axes
    assert ax.get_ylabel() == "held-out matthews (%)"
    drawn = {line.get_label(): line.get_ydata()[-1] for line in ax.get_lines()}
    assert drawn["lora-cola"] == pytest.approx(np.mean([100 * score_of("lora", "cola", seed) for seed in range(3)]))
    frame = paired_differences.data(runs)
    [ax] = figures.make(paired_differences, frame).axes
    assert ax.get_xlabel() == "matthews less that of relora-cola (percentage points); right is better"
    assert paired_differences.describe(frame).startswith("Matthews less that of relora-cola")


def test_one_setting_is_read_by_its_score(tmp_path):
    for rank, score in ((1, 0.6), (2, 0.9), (4, 0.7)):
        write(tmp_path / f"lora-rank{rank}", settings("lora", "qnli", method={"rank": rank}), score)
    runs = load_runs(tmp_path)
    found = sweeps.one_setting(runs).set_index("value")
    assert found["accuracy"].to_dict() == pytest.approx({1: 60, 2: 90, 4: 70})
    assert found.loc[4, "difference"] == pytest.approx(10)  # points, less rank 1
    frame = one_setting.data(runs)
    assert "is best at 2 with 90.000" in one_setting.describe(frame)
    assert figures.make(one_setting, frame).axes[0].get_ylabel() == "held-out accuracy (%)"


def test_a_report_has_a_section_a_task_and_says_which_score_is_highest(tmp_path):
    grid(tmp_path / "runs", ["rte", "cola"], seeds=[0, 1])
    report.build(tmp_path / "runs", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")][-3:] == ["## rte", "## cola", "## All runs"]
    best = 100 * np.mean([score_of("relora", "rte", seed) for seed in range(2)])
    assert f"rte: Highest accuracy (percent): relora-rte ({best:.2f})" in text.replace("\\", "")
    told = [line for line in text.splitlines() if not line.startswith("Left out") and "perplexity" in line.lower()]
    assert not [line for line in told if "perplexity" in line.lower().partition("numbers: ")[0]]
    assert "240 examples of RTE" in text
    assert (tmp_path / "out" / "tables" / "cola-perplexity.csv").exists()


def test_roles_of_a_t5_are_in_the_models_order_and_short_enough_to_read():
    roles = list(dict.fromkeys(matrix.role for matrix in sizes.matrices("t5-demo")))
    found = sorted(roles, key=role_key)
    assert found[:6] == [f"encoder.{role}" for role in [*(f"SelfAttention.{x}" for x in "qkvo"), "wi", "wo"]]
    assert found[-2:] == ["decoder.wi", "decoder.wo"]
    names = [figures.of_role(role) for role in found]
    assert names[3] == "encoder.self.o"
    assert "decoder.cross.q" in names
    assert len(set(names)) == 16
    frame = pd.DataFrame({"label": "x", "role": roles, "below": 3.0, "total": 8, "at_least": 1.0})
    figure = figures.make(small_values, frame.astype({"label": "category"}))
    figure.draw_without_rendering()
    boxes = [text.get_window_extent() for text in figure.axes[0].get_xticklabels()]
    assert not any(one.overlaps(other) for one, other in pairwise(boxes))


# ---- summaries


def test_status_and_summaries_name_the_metric_and_only_that(tmp_path, capsys, tiny):
    write(tmp_path / "a", settings("lora", "rte"), 0.853)
    code, out, _ = run(capsys, "status", tmp_path)
    assert (code, out.splitlines()[3].split()) == (0, ["cell", "state", "step", "accuracy", "left"])
    assert out.splitlines()[4].split()[:4] == ["a", "finished", "60/60", "0.853"]
    write(tmp_path / "b", settings("lora", "stsb"), None)
    RunFolder(tmp_path / "c").make()
    RunFolder(tmp_path / "c").write_config(config.parse(tiny))
    RunFolder(tmp_path / "c").write_status("finished", step=60, steps=60, perplexity=21.5)
    _, out, _ = run(capsys, "status", tmp_path)
    assert "reached" in out.splitlines()[3]
    assert "accuracy 0.853" in out
    assert "perplexity 21.500" in out
    assert RunFolder(tmp_path / "a").summary().endswith("finished at step 60, accuracy 0.853 (loss 1.353)")


def test_more_is_better_of_scores_and_less_of_perplexity():
    frame = pd.DataFrame({"perplexity": [2.0, 1.0, math.nan], "accuracy": [2.0, 1.0, math.nan]})
    assert measures.PERPLEXITY.best_first(frame)["perplexity"].tolist() == [1, 2]
    assert measures.of_metric("accuracy").best_first(frame)["accuracy"].tolist() == [2, 1]


def test_examples_a_second_do_not_depend_on_how_long_they_are(tmp_path):
    grid(tmp_path, names=("rte",), seeds=(0,))
    found = throughput.of_runs(load_runs(tmp_path))
    assert found["examples"].tolist() == [4 * 100 / 50] * len(found)  # a batch of 4 in 50 tokens


def test_of_many_tasks_a_report_says_little_of_each(tmp_path):
    grid(tmp_path / "runs", seeds=(0,))
    report.build(tmp_path / "runs", tmp_path / "out")
    said = (tmp_path / "out" / "report.md").read_text().partition("\n## ")[0]
    assert "24 runs: 3 of sst2, 3 of mnli," in said
    assert said.count("\n- ") == 2 * len(tasks.GLUE)
