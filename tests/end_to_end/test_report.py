"""From run folders to tables, figures and a report: what is shown is in the frames, whatever is missing."""

import json
import re
import shutil
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from conftest import ROOT, changed, run, tiny_tables
from safetensors.torch import load_file, save_file

from analysis import figures, load_runs, report, spectra, tables
from analysis.counts import count_singular_values, numerical_ranks, rank_ceilings
from analysis.norms import norm_traces
from analysis.report import drawing
from relora_lab import manifest, train
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder

LORA = {"name": "lora", "rank": 2}
CELLS = {  # label: what differs from the tiny ReLoRA run; ΔW of all is measured from step 20
    "full": {"method": {"name": "full"}, "training": {"warm_start": 0}, "optimizer": {"low_rank_lr": 3e-3}},
    "relora": {},
    "lora-warm": {"method": LORA},
    "lora": {"method": LORA, "training": {"warm_start": 0}},
}
RANKS = {"full": 16, "relora": 6, "lora-warm": 2, "lora": 4}  # of 16; lora is B₁A₁ − B₀A₀
CEILINGS = RANKS
DRAWN = {  # column: of every figure's frame, what is drawn
    "loss": "loss",
    "schedule": "multiplier",
    "spectra": "density",
    "spectra_by_layer": "density",
    "small_values": "below",
    "effective_rank": "per",
    "cycle_overlaps": "overlap",
    "evaluation_loss": "loss",
    "one_setting": "perplexity",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Four kinds of run, two seeds each."""
    out = tmp_path_factory.mktemp("runs")
    for seed in (0, 1):
        for label, parts in CELLS.items():
            training = {"seed": seed, "reference_step": 20, "snapshot_every": 20, **parts.get("training", {})}
            train.run(changed(tiny_tables(), **{**parts, "training": training}), out / f"{label}-seed{seed}")
    return out


@pytest.fixture(autouse=True)
def one_format(request, monkeypatch):
    """Where words are looked for, figures need not be drawn three times."""
    if "its_files" not in request.node.name:
        monkeypatch.setattr(drawing, "SUFFIXES", ("svg",))


@pytest.fixture
def copy(folder, tmp_path):
    """A copy of the runs to spoil."""
    return shutil.copytree(folder, tmp_path / "runs")


def edit(path, **changes):
    """Change a JSON file."""
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def cells(page):
    """Texts of all table cells of a page."""

    class Cells(HTMLParser):
        found: list[str] = []  # noqa: RUF012

        def handle_data(self, data):
            if self.lasttag in ("td", "th"):
                self.found.append(data)

    parser = Cells()
    parser.feed(page.read_text())
    return parser.found


def test_load_runs_has_a_row_a_run_with_settings_status_and_results(folder):
    runs = load_runs(folder)
    assert list(runs["label"].cat.categories) == ["full", "relora", "lora-warm", "lora"]
    assert runs["seed"].tolist() == [0, 1] * 4
    for row in runs.to_dict("records"):
        final = RunFolder(row["path"]).final_evaluation
        assert (row["loss"], row["perplexity"], row["state"]) == (final["loss"], final["perplexity"], "finished")
        assert row["training.steps"] == 60
    toggles = runs.drop_duplicates("label").set_index("label")[["restarts", "reset", "jagged", "warm_start"]]
    assert toggles.loc["relora"].all()
    assert toggles.loc["lora-warm"].tolist() == [False, False, False, True]
    assert not toggles.loc[["full", "lora"]].any(axis=None)
    one = load_runs(folder / "lora-seed1")
    assert one["run"].tolist() == ["lora-seed1"]
    assert len(load_runs([folder, folder / "lora-seed1"])) == 8


@pytest.mark.parametrize("label", RANKS)
def test_the_rank_of_an_update_is_what_its_cycles_allow(folder, label):
    for seed in (0, 1):
        path = folder / f"{label}-seed{seed}"
        comparison = spectra.of_run(path)
        assert set(numerical_ranks(comparison, merges=2)["rank"]) == {RANKS[label]}
        assert set(rank_ceilings(path, comparison.matrices)["ceiling"]) == {CEILINGS[label]}


def test_norms_have_both_sides_of_every_restart(folder):
    traces = norm_traces(folder / "relora-seed0")
    assert set(traces["moment"]) == {"trace", "before", "after"}
    around = traces[traces["moment"] != "trace"].pivot(index=["matrix", "step"], columns="moment")
    assert set(around.index.get_level_values("step")) == {34, 48}
    assert (around["sBA"]["after"] == 0).all()
    assert (around["sBA"]["before"] > 0).all()
    np.testing.assert_allclose(around["W_merged"]["before"], around["W_merged"]["after"], rtol=1e-6)
    assert set(norm_traces(folder / "full-seed0")["sBA"].isna()) == {True}


def test_tables_agree_with_the_spectra_they_are_made_from(folder):
    runs = load_runs(folder)
    found = spectra.of_runs(runs)
    for row in tables.load("small_values").table(runs).to_dict("records"):
        mine = found[(found["label"] == row["label"]) & (found["role"] == row["role"])]
        below = mine.assign(small=mine["sigma"] < 0.1).groupby("run")["small"].sum()
        assert row["below_0.1"] == below.mean()
        assert row["below_0.1"] + row["above_0.1"] == row["total"] == len(mine) / 2
        assert row["below_percent"] == 100 * below.mean() / row["total"]
    ranks = tables.load("ranks").table(runs).set_index("label")
    assert ranks["rank_low"].to_dict() == ranks["rank_high"].to_dict() == RANKS
    assert ranks["ceiling_high"].to_dict() == CEILINGS
    counts = count_singular_values(found)
    assert ranks["below_0.1"].to_dict() == (counts.groupby("label", observed=True)["below"].sum() / 2).to_dict()


def test_the_ablation_is_paired_with_relora_and_stands_beside_the_papers_numbers(folder):
    runs = load_runs(folder)
    table = tables.load("ablation").table(runs).set_index("label")
    assert table["P1 perplexity"].to_dict() == {
        "full": "23.65",
        "relora": "25.04",
        "lora-warm": "25.46",
        "lora": "34.17",
    }
    losses = runs.pivot(index="seed", columns="label", values="loss")
    for label in ("full", "lora-warm", "lora"):
        assert table.loc[label, "difference"] == pytest.approx((losses[label] - losses["relora"]).mean())
        assert table.loc[label, "less"] == "relora"
    assert table.loc["full", "perplexity"] == pytest.approx(runs.loc[runs["label"] == "full", "perplexity"].mean())


def test_figures_draw_the_numbers_of_their_frames(folder):
    runs = load_runs(folder)
    for module in figures.available():
        frame = module.data(runs)
        if frame.empty:
            assert module.__name__.rpartition(".")[2] in ("families", "products")  # of other methods
            continue
        figure = figures.make(module, frame)
        lines = [line for ax in figure.axes for line in ax.get_lines()]
        along = "get_xdata" if module.__name__.endswith("paired_differences") else "get_ydata"
        drawn = np.concatenate([getattr(line, along)() for line in lines] or [np.empty(0)])
        bars = [bar.get_height() for ax in figure.axes for bar in ax.patches if hasattr(bar, "get_height")]
        steps = [v for ax in figure.axes for p in ax.patches if hasattr(p, "get_data") for v in p.get_data().values]
        shades = [c.get_array() for ax in figure.axes for c in ax.collections if c.get_array() is not None]
        shades = [value for array in shades for value in array.flat]
        shown = {round(float(value), 9) for value in [*drawn, *bars, *steps, *shades] if np.isfinite(value)}
        values = frame[DRAWN.get(module.__name__.split(".")[-1], "value")].astype(float).dropna()
        assert {round(value, 9) for value in values} <= shown
        assert set(frame["label"]) <= set(CELLS)
        assert figure.axes[0].get_ylabel() or along == "get_xdata"


def test_the_report_is_one_page_and_its_files(folder, tmp_path):
    page = report.build(folder, tmp_path / "out")
    assert page == tmp_path / "out" / "report.html"
    text = page.read_text()
    assert not re.search(r"src=|@import|<link|url\((?!#)", text)  # nothing to fetch
    drawn = [module for module in figures.available() if not module.data(load_runs(folder)).empty]
    assert text.count('role="img"') == len(drawn)
    ablation = tables.load("ablation").table(load_runs(folder))
    assert set(tables.shown(ablation)["difference"]) <= set(cells(page))
    names = {path.relative_to(page.parent).as_posix() for path in page.parent.rglob("*.*")}
    for module in drawn:
        name = module.__name__.split(".")[-1]
        assert {f"figures/{name}.{kind}" for kind in ("png", "pdf", "svg", "csv")} <= names
    assert {f"tables/{name}.{kind}" for name in ("ablation", "ranks") for kind in ("csv", "tex")} <= names
    written = pd.read_csv(page.parent / "tables" / "ablation.csv")
    np.testing.assert_allclose(written["difference"], ablation["difference"].astype(float))
    latex = (page.parent / "tables" / "ablation.tex").read_text()
    assert r"\toprule" in latex
    assert latex.isascii()


def test_diverged_unfinished_missing_and_single_runs_are_said_in_words(copy, tmp_path, capsys):
    edit(copy / "lora-warm-seed0" / "status.json", state="diverged", reason="the loss rose", step=31)
    edit(copy / "relora-seed0" / "status.json", state="running", step=7)
    shutil.rmtree(copy / "relora-seed0" / "final")
    shutil.rmtree(copy / "lora-seed1")
    (copy / "full-seed0" / "norms.jsonl").unlink()
    code, out, _ = run(capsys, "report", copy, "--out", tmp_path / "out")
    assert code == 0
    assert "out/report.html" in out
    text = (tmp_path / "out" / "report.md").read_text()
    for words in (
        "diverged at step 31 (seed 0); one seed: no error",
        "running at step 7 (seed 0)",
        "seed 1 missing",
        "the loss rose",
    ):
        assert words in text


@pytest.mark.parametrize("keep", ["full-seed0", "lora-seed0"])
def test_one_run_alone_and_one_that_never_began_have_a_report(copy, tmp_path, keep):
    text = report.build(copy / keep, tmp_path / "out").with_name("report.md").read_text()
    assert "one seed: no error" in text
    waiting = copy / "waiting"
    waiting.mkdir()
    shutil.copy(copy / keep / "config.toml", waiting)
    page = report.build(waiting, tmp_path / "waiting")
    assert "Nothing to show" in page.with_name("report.md").read_text()
    ids = re.findall(r'id="([^"]+)"', page.read_text())
    assert len(ids) == len(set(ids)) > 10


def test_runs_that_are_not_comparable_are_refused_and_nothing_is_written(copy, tmp_path, capsys):
    environment = copy / "lora-seed1" / "environment.json"
    corpus = json.loads(environment.read_text())["corpus"]
    edit(environment, corpus={**corpus, "text_sha256": "c3d4" * 16})
    code, _, err = run(capsys, "report", copy, "--out", tmp_path / "out")
    assert (code, len(err.splitlines())) == (2, 1)
    assert re.search(r"rows are not comparable: corpus [0-9a-f]{8} \(.*\) vs c3d4c3d4 \(lora-seed1\)", err)
    assert not (tmp_path / "out").exists()
    settings = copy / "lora-seed1" / "config.toml"
    edit(environment, corpus=corpus)
    settings.write_text(settings.read_text().replace("steps = 60", "steps = 70"))
    with pytest.raises(BadInput, match=r"rows are not comparable: tokens 7680 .* vs 8960"):
        report.build(copy, tmp_path / "out")


def test_the_same_run_twice_and_names_made_by_the_trainer(copy, tmp_path):
    shutil.copytree(copy / "lora-seed0", tmp_path / "again" / "lora-seed0")
    with pytest.raises(BadInput, match=r"lora-seed0 and .*lora-seed0 are the same configuration"):
        report.build([copy, tmp_path / "again"], tmp_path / "out")
    for name, made in {"lora-seed0": "lora-demo-0-a1", "lora-warm-seed0": "lora-demo-0-b2"}.items():
        (copy / name).rename(copy / made)
    assert load_runs(copy)["label"].value_counts().to_dict() == dict.fromkeys(CELLS, 2)
    other = copy / "lora-demo-7-0123abcd"
    shutil.copytree(copy / "lora-warm-seed1", other)
    settings = (other / "config.toml").read_text().replace("rank = 2", "rank = 3").replace("seed = 1", "seed = 7")
    (other / "config.toml").write_text(settings)
    told = set(map(str, load_runs(copy)["label"]))
    assert {"full", "relora", "lora"} < told
    assert len([label for label in told if re.fullmatch("lora-warm-[0-9a-f]{8}", label)]) == 2  # ranks 2 and 3


def test_folders_of_one_name_stay_apart(copy):
    for seed in (0, 1):
        (copy / f"s{seed}").mkdir()
        for label in ("full", "relora"):
            (copy / f"{label}-seed{seed}").rename(copy / f"s{seed}" / label)
    runs = load_runs([copy / "s0", copy / "s1"])
    assert runs["label"].astype(str).tolist() == ["full", "full", "relora", "relora"]
    ranks = tables.load("ranks").table(runs)
    assert ranks["n"].tolist() == [2, 2]
    assert set(ranks["below_0.1"] + ranks["above_0.1"]) == {14 * 16}
    assert set(tables.load("small_values").table(runs)["total"]) == {2 * 16}


def test_a_label_without_a_finished_run_and_one_without_weights_do_not_stop_the_others(copy, tmp_path):
    for seed in (0, 1):
        edit(copy / f"lora-seed{seed}" / "status.json", state="diverged", step=3, reason="loss")
        shutil.rmtree(copy / f"lora-seed{seed}" / "warm_start")
    edit(copy / "lora-warm-seed0" / "status.json", state="waiting", step=0)
    shutil.rmtree(copy / "lora-warm-seed1")
    text = report.build(copy, tmp_path / "out").with_name("report.md").read_text()
    assert "lora: diverged at step 3 (seed 0, 1)." in text
    assert "lora-warm: waiting at step 0 (seed 0); seed 1 missing." in text
    assert "relora: ΔW has rank 6 of 16, the most that the sum of its factor pairs allows." in text


def test_lost_cycles_are_not_taken_for_a_full_rank(copy):
    shutil.rmtree(copy / "relora-seed0" / "cycles")
    matrices = spectra.of_run(copy / "relora-seed0").matrices
    assert rank_ceilings(copy / "relora-seed0", matrices)["ceiling"].isna().all()


@pytest.mark.parametrize("name", ["status.json", "eval.jsonl"])
def test_a_damaged_file_is_named(copy, capsys, name):
    (copy / "lora-seed0" / name).write_text('"no object"\n{broken\n')
    code, _, err = run(capsys, "runs", copy)
    assert (code, len(err.splitlines())) == (2, 1)
    assert re.search(f"lora-seed0/{name}: .*is damaged", err)


@pytest.mark.parametrize("name", ["_hidden", "$x$ {", "x" * 70])
def test_every_name_is_drawn(copy, name):
    (copy / "lora-seed0").rename(copy / name)
    runs = load_runs(copy)
    for module in figures.available():
        frame = module.data(runs)
        if frame.empty or module.__name__.endswith("one_setting"):  # which names recipes
            continue
        figure = figures.make(module, frame)
        legends = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
        told = [text.get_text() for legend in legends for text in legend.get_texts()]
        told += [ax.get_title() for ax in figure.axes]
        told += [text.get_text() for ax in figure.axes for text in ax.get_yticklabels()]
        found = any(text.strip().replace("\\", "").startswith(name[:8]) for text in told)
        assert found == (name in set(frame["label"])), module


def test_newer_and_half_run_folders_are_refused_by_name(copy, capsys):
    settings = copy / "lora-seed0" / "config.toml"
    settings.write_text(settings.read_text().replace("schema_version = 1", "schema_version = 3"))
    code, _, err = run(capsys, "report", copy)
    assert code == 2
    assert re.search(r"lora-seed0.*written by a newer version \(schema 3, this reads ≤ 1\)", err)
    shutil.rmtree(copy / "relora-seed0" / "final")
    edit(copy / "relora-seed0" / "status.json", state="stopped", step=7)
    code, _, err = run(capsys, "spectrum", copy / "relora-seed0")
    assert code == 2
    assert "run not finished (stopped at step 7 of 60)" in err
    code, _, err = run(capsys, "report")
    assert (code, "no runs are named" in err) == (2, True)
    code, _, err = run(capsys, "report", copy.parent / "nothing")
    assert (code, "no such folder" in err) == (2, True)


def test_non_finite_weights_are_marked_and_the_rest_is_reported(copy, tmp_path, capsys):
    path = copy / "full-seed0" / "final" / "model.safetensors"
    weights = load_file(path)
    name = "model.layers.0.self_attn.q_proj"
    weights[f"{name}.weight"][0, 0] = float("nan")
    save_file(weights, path)
    code, _, err = run(capsys, "spectrum", copy / "full-seed0")
    assert (code, "final/model.safetensors: is damaged or was changed" in err) == (2, True)
    manifest.record(copy / "full-seed0", "final")
    code, out, err = run(capsys, "spectrum", copy / "full-seed0", "--json")
    assert code == 3
    assert f"{name}: 1 non-finite values; marked nonfinite, the rest analysed" in err
    assert len(json.loads(out)["matrices"]) == 14
    code, _, err = run(capsys, "report", copy, "--out", tmp_path / "out")
    assert (code, "full-seed0: has non-finite weights" in err) == (3, True)
    table = tables.load("small_values").table(load_runs(copy / "full-seed0")).set_index("role")
    assert table["total"].drop("q").eq(32).all()
    assert table.loc["q", ["below_0.1", "above_0.1"]].sum() == table.loc["q", "total"] == 16
    save_file({n: w * float("nan") for n, w in weights.items()}, path)
    manifest.record(copy / "full-seed0", "final")
    assert report.build(copy / "full-seed0", tmp_path / "nothing").exists()


def test_runs_lists_tells_apart_and_cleans(copy, capsys, monkeypatch):
    code, out, _ = run(capsys, "runs", copy)
    assert (code, len(out.splitlines())) == (0, 9)
    code, out, _ = run(capsys, "runs", "diff", copy / "relora-seed0", copy / "lora-warm-seed0")
    assert "method.name                  relora → lora" in out
    assert "the same settings" in run(capsys, "runs", "diff", copy / "lora-seed0", copy / "lora-seed0")[1]

    edit(copy / "lora-seed0" / "status.json", state="stopped")
    (copy / "full-seed0" / ".metrics.jsonl-1").write_text("half")
    before = {path for path in copy.rglob("*") if path.is_file()}
    monkeypatch.setattr("builtins.input", lambda _: "n")
    code, out, _ = run(capsys, "runs", "clean", copy)
    assert {path for path in copy.rglob("*") if path.is_file()} >= before
    assert ".tokens" not in out  # a run that goes on needs them
    with RunFolder(copy / "relora-seed1").lock():
        run(capsys, "runs", "clean", copy, "--yes")
    left = {path.parent.name for path in copy.glob("*/checkpoints")}
    assert left == {"lora-seed0", "relora-seed1"}
    assert not (copy / "full-seed0" / ".metrics.jsonl-1").exists()
    gone = before - set(copy.rglob("*"))
    assert all("checkpoints" in path.parts or path.name.startswith(".metrics") for path in gone)
    edit(copy / "lora-seed0" / "status.json", state="finished")
    run(capsys, "runs", "clean", copy, "--yes")
    assert not (copy / ".tokens").exists()
    assert not any((copy / ".stages").iterdir())
    assert "nothing to remove" in run(capsys, "runs", "clean", copy)[1]
    assert len(load_runs(copy)) == 8


def test_the_readmes_lines_for_a_notebook_do_what_they_say(folder):
    lines = re.search(r"```python notebook\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    found = {}
    exec(lines.replace("runs/demo", str(folder)), found)  # noqa: S102
    assert (len(found["runs"]), found["sigma"]["run"].nunique()) == (8, 8)
