"""Figures and tables of spectra, snapshots and cycles: what is drawn is what was measured, whatever the scale."""

import io
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from conftest import changed, tiny_tables
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_rgba
from matplotlib.text import Text
from scipy import stats

from analysis import figures, load_runs, report, tables
from analysis import spectra as measured
from analysis.counts import count_singular_values, rank_measures
from analysis.cycles import cycle_overlaps as overlaps_of
from analysis.figures import (
    cycle_overlaps,
    effective_rank,
    over_training,
    paired_differences,
    spectra,
    spectra_by_layer,
)
from analysis.naming import ROLES, role_key
from analysis.statistics import paired_difference
from relora_lab import train

FOUR = ["full", "relora", "lora-warm", "lora"]
BERT = ["query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense"]
ODD = ["", " ", "_a", "$x$", "$", "all", "nan", "a\nb", "\x1b[31mred", "<b>", "…", "a.very.long.name.of.a.kind", "."]
ODD += [f"a name of a run, the seed of which is {number}" for number in range(2)]


def found(labels=FOUR, layers=3, roles=ROLES, size=40, scale=1.0, zeros=0, seed=0):
    """Spectra of made-up matrices; of every label but the first, `zeros` σ are 0."""
    random, frames = np.random.default_rng(seed), []
    for number, label in enumerate(labels):
        for layer in range(layers):
            for role in roles:
                sigma = scale * np.sort(random.gamma(1.5 + number % 3, 0.2, size))[::-1]
                sigma[size - (zeros if number else 0) :] = 0
                about = {"label": label, "seed": 0, "run": label, "matrix": f"{layer}.{role}", "layer": layer}
                about |= {"role": role, "rows": size, "cols": size, "index": range(size), "sigma": sigma}
                frames.append(pd.DataFrame(about))
    frame = pd.concat(frames, ignore_index=True)
    return frame.astype({"label": pd.CategoricalDtype(labels, ordered=True)})


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two seeds of ReLoRA with snapshots at 30, 40 and 50, and LoRA without."""
    out = tmp_path_factory.mktemp("runs")
    for name, seed, every in (("relora", 0, 10), ("relora", 1, 10), ("lora", 0, None)):
        method = {} if name == "relora" else {"method": {"name": "lora", "rank": 2}}
        training = {"seed": seed, "snapshot_every": every}
        train.run(changed(tiny_tables(), **method, training=training), out / f"{name}-seed{seed}")
    return load_runs(out)


def panels(figure):
    """The axes that are drawn, without those that fill a row."""
    return [ax for ax in figure.axes if ax.axison]


def stairs(figure):
    """Heights of the stairs of each panel, a list a label."""
    return [[p.get_data().values for p in ax.patches if hasattr(p, "get_data")] for ax in panels(figure)]


def looks(figure):
    """(colour, dashes) of each label in the legends."""
    shown = [*figure.legends, *(ax.get_legend() for ax in figure.axes if ax.get_legend())]
    pairs = [pair for legend in shown for pair in zip(legend.get_texts(), legend.get_lines(), strict=True)]
    return {text.get_text(): (to_rgba(line.get_color()), line.get_linestyle()) for text, line in pairs}


@pytest.mark.parametrize("scale", [1e-9, 0.003, 0.02, 1.0, 30.0, 1e7])
def test_bins_are_the_papers_where_they_show_something_and_else_fit(scale):
    frame = found(scale=scale, zeros=20)
    upper, sigma = spectra.upper_end(frame), frame.loc[frame["sigma"] > 0, "sigma"]
    if scale == 1.0:
        assert upper == spectra.UPPER
    else:
        assert sigma.quantile(0.999) <= upper < 1.7 * sigma.quantile(0.999)
        assert f"{upper:.1e}"[:3] in {"1.0", "1.5", "2.0", "2.5", "3.0", "4.0", "5.0", "6.0", "8.0"}
    for module, bars in (
        (spectra, spectra.histograms(frame, upper=upper)),
        (spectra_by_layer, spectra_by_layer.histograms_by_layer(frame)),
    ):
        assert (bars["right"].max(), len(set(bars["left"]))) == (upper, 50)
        assert f"[0, {upper:g}]" in module.describe(bars)
        for ax in panels(figures.make(module, bars)):
            assert ax.get_xlim() == (0, upper)
            assert ax.get_ylim()[1] == spectra.highest(bars)


def test_zeros_and_what_the_paper_shows_do_not_move_the_bins():
    assert spectra.upper_end(found(zeros=40, labels=["a", "b"])) == 2  # b is 0
    assert spectra.upper_end(found().assign(sigma=0.0)) == 2
    assert spectra.upper_end(found().assign(sigma=float("nan"))) == 2
    frame = found(labels=["a"], layers=1, roles=["q"], size=100, scale=0.01)
    frame.loc[frame["index"] < 25, "sigma"] = 1.0
    assert spectra.upper_end(frame) == 2
    frame.loc[frame["index"] == 24, "sigma"] = 0.02
    assert spectra.upper_end(frame) == 1
    frame.loc[frame["index"] < 25, "sigma"] = 9.0
    assert spectra.upper_end(frame) == 10
    frame.loc[frame["index"] > 0, "sigma"] = 0.1
    frame.loc[0, "sigma"] = 1000.0
    assert spectra.upper_end(frame) == 2


@given(st.lists(st.floats(0, 3), min_size=1, max_size=30), st.sampled_from([0.5, 2.0, 10.0]))
def test_layers_are_counted_as_numpy_does_and_together_are_the_pooled_histogram(sigma, upper):
    frame = pd.DataFrame({"label": "x", "layer": np.arange(len(sigma)) % 3, "role": "q", "sigma": sigma})
    by_layer = spectra.histograms(frame, ("layer", "role"), upper=upper)
    for layer, rows in by_layer.groupby("layer"):
        mine = frame.loc[frame["layer"] == layer, "sigma"]
        assert rows["count"].tolist() == np.histogram(mine, np.linspace(0, upper, 51))[0].tolist()
        assert set(rows["total"]) == {len(mine)}
    pooled = spectra.histograms(frame, upper=upper)
    assert by_layer.groupby("left")["count"].sum().tolist() == pooled["count"].tolist()


def test_a_row_a_layer_and_a_column_a_projection():
    bars = spectra_by_layer.histograms_by_layer(found())
    drawn, places = stairs(figures.make(spectra_by_layer, bars)), [(n, role) for n in range(3) for role in ROLES]
    for panel, (layer, role) in zip(drawn, places, strict=True):
        rows = bars[(bars["layer"] == layer) & (bars["role"] == role)]
        for heights, label in zip(panel, FOUR, strict=True):
            assert heights.tolist() == rows.loc[rows["label"] == label, "density"].tolist()
    some = found(layers=2, roles=["wi_0", "wi_1", "wo", "x", "y"]).query("layer == 0 or role != 'wi_1'")
    figures.make(spectra_by_layer, spectra_by_layer.histograms_by_layer(some))  # an empty panel


@pytest.mark.parametrize("roles", [["gate", "q"], ROLES, BERT, [f"kind.{n}" for n in range(10, 23)]])
def test_every_role_is_drawn_in_rows_of_four_and_eight_of_them_by_layer(roles):
    frame, roles = found(["ΔW"], layers=2, roles=roles), sorted(roles, key=role_key)
    pooled, by_layer = spectra.histograms(frame), spectra_by_layer.histograms_by_layer(frame)
    figure = figures.make(spectra, pooled)
    for number, (ax, role) in enumerate(zip(panels(figure), roles, strict=True)):
        assert ax.get_title() == f"{spectra.PANELS.get(role, role)} projections"
        assert ax.get_subplotspec().colspan.start == number % 4
        assert bool(ax.get_xlabel()) == (number + 4 >= len(roles))
        [patch] = [patch for patch in ax.patches if hasattr(patch, "get_data")]
        assert patch.get_data().values.tolist() == pooled.loc[pooled["role"] == role, "density"].tolist()
    columns = panels(figures.make(spectra_by_layer, by_layer))[: len(roles[:8])]
    titles = [ax.get_title().replace("\n", "").removesuffix(" projections") for ax in columns]
    assert titles == [spectra.PANELS.get(role, role) for role in roles[:8]]
    told = f"not drawn: {', '.join(roles[8:])}:" if roles[8:] else "by layer:"
    assert told in spectra_by_layer.describe(by_layer)
    assert "not drawn" not in spectra.describe(pooled)


def test_of_very_many_roles_64_are_drawn_and_the_others_named():
    bars = spectra.histograms(found(["ΔW"], layers=1, roles=[f"r{n}" for n in range(10, 76)], size=9))
    figure = figures.make(spectra, bars)
    assert (len(panels(figure)), figure.get_figheight() < 30) == (64, True)
    assert "not drawn: r74, r75:" in spectra.describe(bars)


def test_bins_suit_every_role():
    frame = found(["ΔW"], roles=BERT)
    frame.loc[frame["role"] == "value", "sigma"] *= 1000
    frame.loc[frame["role"] != "value", "sigma"] = 0
    assert spectra.upper_end(frame) >= frame["sigma"].quantile(0.999)
    assert spectra_by_layer.histograms_by_layer(frame)["right"].max() == spectra.upper_end(frame)


def test_a_report_draws_the_papers_projections(runs):
    assert set(measured.of_runs(runs)["role"]) == set(ROLES)
    for module in (spectra, spectra_by_layer):
        frame = module.data(runs)
        assert set(frame["role"]) == {"q", "k", "v", "down"}
        titles = [ax.get_title() for ax in figures.make(module, frame).axes[:4]]
        assert titles == [f"{name} projections" for name in ("Q", "K", "V", "down")]


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("labels", "roles"), [(["ΔW"], ODD), (ODD, ["q"]), (["", "$"], [""])])
def test_any_text_is_drawn_as_role_and_as_label(labels, roles, tmp_path):
    frame = found(labels, layers=2, roles=roles, size=9)
    made = [(spectra, spectra.histograms(frame)), (effective_rank, effective_rank.by_layer(frame))]
    for module, bars in (*made, (spectra_by_layer, spectra_by_layer.histograms_by_layer(frame))):
        figure = figures.make(module, bars)
        figures.save(figure, tmp_path / "figure.pdf")
        told = [text.get_text() for text in figure.findobj(Text)] + [module.describe(bars)]
        assert "\x1b" not in "".join(told)
        if module is not effective_rank:
            assert len(looks(figure)) == len(labels)
        if module is spectra:
            assert len(panels(figure)) == len(roles)


def test_a_figure_is_saved_whole_or_not_at_all(tmp_path, monkeypatch):
    figure = figures.make(spectra, spectra.histograms(found(["ΔW"], layers=1, roles=["q"])))
    saved, buffer = tmp_path / "figure.png", io.BytesIO()
    figures.save(figure, saved)
    figures.save(figure, buffer, "png")
    assert saved.read_bytes() == buffer.getvalue()
    figures.save(figure, str(tmp_path / "other.pdf"))
    assert (tmp_path / "other.pdf").read_bytes().startswith(b"%PDF")

    def fails(file, **_options):
        (file.write if hasattr(file, "write") else Path(file).write_bytes)(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(figure, "savefig", fails)
    for path in (saved, tmp_path / "new.png"):
        with pytest.raises(OSError, match="disk full"):
            figures.save(figure, path)
    assert saved.read_bytes() == buffer.getvalue()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["figure.png", "other.pdf"]


def test_of_many_layers_24_are_drawn_on_a_page():
    bars = spectra_by_layer.histograms_by_layer(found(["ΔW"], layers=80, roles=["q"], size=9))
    drawn = sorted(set(bars["layer"]))
    assert (len(drawn), drawn[0], drawn[-1]) == (24, 0, 79)
    assert set(np.diff(drawn)) == {3, 4}
    assert "24 of 80 layers, evenly spread" in spectra_by_layer.describe(bars)
    assert figures.make(spectra_by_layer, bars).get_figheight() <= 9.5
    assert "evenly" not in spectra_by_layer.describe(spectra_by_layer.histograms_by_layer(found()))


def test_the_heat_map_has_the_means_of_rank_measures():
    first, second = found(zeros=30), found(zeros=30, seed=1).assign(seed=1)
    both = pd.concat([first, second.query("not (layer == 1 and role == 'o')")], ignore_index=True)
    both.loc[(both["layer"] == 2) & (both["role"] == "up"), "sigma"] = float("nan")
    frame = effective_rank.by_layer(both)
    expected = rank_measures(both).groupby(["label", "layer", "role"], observed=True)["per"].mean()
    assert frame.loc[(frame["layer"] == 1) & (frame["role"] == "o"), "n"].tolist() == [1] * 4
    figure = figures.make(effective_rank, frame)
    scales = set()
    for ax, label in zip(figure.axes, FOUR, strict=False):
        [mesh] = ax.collections
        shares = mesh.get_array()
        assert ax.get_title() == label
        assert np.argwhere(shares.mask).tolist() == [[2, ROLES.index("up")]]
        for (layer, column), share in np.ndenumerate(shares.filled(np.nan)):
            if np.isfinite(share):
                assert share == pytest.approx(expected[label, layer, ROLES[column]], rel=1e-12)
        scales.add(mesh.get_clim())
        numbers = {text.get_position(): float(text.get_text()) for text in ax.texts}
        ranks = frame[frame["label"] == label]
        assert len(numbers) == len(ranks) == 20
        for row in ranks.itertuples():
            drawn = numbers[ROLES.index(row.role) + 0.5, row.layer + 0.5]
            assert drawn == pytest.approx(row.effective_rank, abs=0.05 if drawn < 10 else 0.5)
    assert scales == {(0, frame["per"].max())}
    assert "relora" in effective_rank.describe(frame)


def test_a_heat_map_writes_numbers_only_where_they_can_be_read():
    for count, layers, written in ((4, 24, True), (26, 2, True), (9, 70, False), (1, 90, True)):
        labels = [f"a long name, of row {number}" for number in range(count)]
        frame = effective_rank.by_layer(found(labels, layers, ["q", "down"], size=4))
        figure = figures.make(effective_rank, frame)
        texts = [text for ax in figure.axes for text in ax.texts]
        assert len(texts) == (len(frame) if written else 0)
        assert all(text.get_fontsize() >= 4 for text in texts)
        assert figure.get_figheight() < 10


def test_many_labels_are_drawn_and_named_and_keep_their_colours():
    labels = [f"row {number}" for number in range(26)]
    frame = found(labels, layers=2, size=9)
    first = figures.make(spectra, spectra.histograms(frame))
    second = figures.make(spectra_by_layer, spectra_by_layer.histograms_by_layer(frame.query("label > 'row 0'")))
    lines = pd.DataFrame({"step": [9, 19], "value": 1.0, "low": 0.0, "high": 2.0, "overlap": 0.5, "chance": 0.1})
    lines = lines.assign(n=2, cycle=2).merge(frame[["label"]].drop_duplicates()[3:], how="cross")
    pairs = [lines.assign(side=side) for side in ("in", "out")]
    values = [lines.assign(measure=name) for name in over_training.PANELS]
    others = figures.make(cycle_overlaps, pd.concat(pairs)), figures.make(over_training, pd.concat(values))
    assert list(looks(first)) == labels
    for figure, start in ((second, 1), (others[0], 3), (others[1], 3)):
        assert looks(figure).items() <= looks(first).items()
        assert list(looks(figure)) == labels[start:]


def test_training_is_drawn_from_snapshots_and_from_nothing_else(runs):
    frame = over_training.data(runs)
    assert set(frame["label"]) == {"relora"}
    steps = {}
    for path in runs.loc[runs["label"] == "relora", "path"]:
        for step, spectrum in measured.over_training(path).groupby("step"):
            counts = count_singular_values(spectrum)
            share = counts["below"].sum() / counts["total"].sum()
            steps.setdefault(step, []).append((rank_measures(spectrum)["effective_rank"].mean(), share))
    assert sorted(steps) == [30, 40, 50, 60]
    figure = figures.make(over_training, frame)
    for number, (ax, measure) in enumerate(zip(figure.axes, over_training.PANELS, strict=True)):
        [line] = ax.get_lines()
        rows = frame[frame["measure"] == measure]
        assert line.get_xdata().tolist() == sorted(steps)
        np.testing.assert_array_equal(line.get_ydata(), rows["value"])
        np.testing.assert_allclose(rows["value"], [np.mean(steps[s], axis=0)[number] for s in sorted(steps)])
        np.testing.assert_allclose(rows["high"], [np.max(steps[s], axis=0)[number] for s in sorted(steps)])
    assert "at update 30 to" in over_training.describe(frame)
    assert over_training.data(runs[runs["label"] == "lora"]).empty


def test_overlaps_of_cycles_are_drawn_and_tabled_beside_chance(runs):
    frame = cycle_overlaps.data(runs)
    by_run = [overlaps_of(path).groupby(["side", "next_cycle"]).mean(numeric_only=True) for path in runs["path"][:2]]
    assert set(runs["label"][:2]) == set(frame["label"]) == {"relora"}
    for ax, side in zip(figures.make(cycle_overlaps, frame).axes, ("out", "in"), strict=True):
        overlap, chance = ax.get_lines()
        assert overlap.get_xdata().tolist() == [48, 60]
        both = sum(found.loc[side] for found in by_run) / 2
        np.testing.assert_allclose(overlap.get_ydata(), both["overlap"])
        np.testing.assert_allclose(chance.get_ydata(), both["chance"])
        assert (overlap.get_color(), overlap.get_linewidth() > chance.get_linewidth()) == (chance.get_color(), True)
    [row] = tables.load("overlaps").table(runs).to_dict("records")
    assert (row["label"], row["n"], row["pairs"]) == ("relora", 2, 2)
    for side in ("out", "in"):
        means = [found.loc[side, "overlap"].mean() for found in by_run]
        assert row[f"overlap_{side}"] == pytest.approx(np.mean(means))
        assert row[f"overlap_{side}_error"] == pytest.approx(stats.sem(means))
        told = f"{row[f'overlap_{side}']:.3f} {side} (chance {row[f'chance_{side}']:.3f})"
        assert told in cycle_overlaps.describe(frame)
    alone = runs[runs["label"] == "lora"]
    assert cycle_overlaps.data(alone).empty
    assert tables.load("overlaps").table(alone).empty


def made_up(labels, seeds=3, spread=0.01):
    """Runs of made-up losses, as load_runs has them; the first label has all ingredients of ReLoRA."""
    random = np.random.default_rng(0)
    names, numbers = np.repeat(labels, seeds), np.tile(np.arange(seeds), len(labels))
    frame = pd.DataFrame({"label": pd.Categorical(names, labels, ordered=True), "seed": numbers})
    loss = np.repeat(random.normal(2, 0.05, len(labels)), seeds) + random.normal(0, spread, len(frame))
    first = names == labels[0]
    toggles = dict.fromkeys(("restarts", "reset", "jagged"), first) | {"warm_start": True, "control": False}
    return frame.assign(loss=loss, state="finished", step=9, method="relora", parameters=100, **toggles)


@pytest.mark.filterwarnings("error::UserWarning")
@pytest.mark.parametrize(("count", "seeds"), [(2, 2), (4, 3), (30, 3), (60, 2), (4, 8)])
def test_paired_differences_are_drawn_as_measured_and_nothing_is_in_the_way(count, seeds):
    labels = [f"a long name of a row, the {number}th" for number in range(count)]
    runs = made_up(labels, seeds)
    frame = paired_differences.data(runs)
    figure = figures.make(paired_differences, frame)
    [ax] = figure.axes
    lines = {kind: [] for kind in ("bar", "diamond", "thin", "dots", "arrow")}
    kinds = {("None", 2): "bar", ("D", 1): "diamond", ("|", 2): "thin", ("o", seeds): "dots"}
    for line in ax.get_lines()[1:]:
        lines[kinds.get((line.get_marker(), len(line.get_xdata())), "arrow")].append(line)
    assert ax.get_lines()[0].get_xdata() == [0, 0]
    left, right = ax.get_xlim()
    for row, label in enumerate(labels[1:]):
        found = paired_difference(runs, label, labels[0])
        assert lines["diamond"][row].get_xdata() == [found.mean]
        assert tuple(lines["thin"][row].get_xdata()) == found.bootstrap
        losses = runs.pivot(index="seed", columns="label", values="loss")
        assert lines["dots"][row].get_xdata().tolist() == (losses[label] - losses[labels[0]]).tolist()
        for end, drawn, inwards in zip(found.interval, lines["bar"][row].get_xdata(), (1, -1), strict=True):
            cut = any(arrow.get_xdata()[0] == drawn and arrow.get_ydata()[0] == row for arrow in lines["arrow"])
            assert (drawn == end) != cut
            assert (drawn - end) * inwards >= 0
            assert left < drawn < right
        assert f"{figures.plain(label)} {tables.show(found.mean, 4)} (" in paired_differences.describe(frame)
    table = tables.load("ablation").differences(runs, labels, labels[0])
    written = [text.get_text() for text in ax.texts]
    shown = [text for p in table["p (Holm)"][1:] for text in (str(seeds), tables.show(float(p)))]
    assert written == [*shown, "n", "p (Holm)"]
    names = ax.get_yticklabels()
    assert [name.get_text() for name in names] == labels[1:]
    assert f"less that of {labels[0]} (nats); left is better" in ax.get_xlabel()
    assert f"the {count - 1} comparison" in paired_differences.describe(frame)
    width, height = figure.get_size_inches() * figure.dpi
    figure.draw_without_rendering()  # which puts labels in their places
    boxes = [text.get_window_extent() for text in (*names, *ax.texts, ax.xaxis.label, *figure.legends[0].get_texts())]
    assert min(min(box.x0, box.y0) for box in boxes) >= 0
    assert max(box.x1 for box in boxes) <= width
    assert max(box.y1 for box in boxes) <= height
    assert not any(one.overlaps(other) for number, one in enumerate(boxes) for other in boxes[:number])
    assert figure.get_figheight() < 10


@pytest.mark.filterwarnings("error::UserWarning")
def test_paired_differences_say_what_they_lack():
    runs = made_up(["relora", "one", "gone", "small", "whole"])
    runs.loc[(runs["label"] == "one") & (runs["seed"] > 0), "state"] = "diverged"
    runs.loc[runs["label"] == "gone", "state"] = "diverged"
    runs.loc[runs["label"] == "small", "parameters"] = 50
    frame = paired_differences.data(runs)
    [ax] = figures.make(paired_differences, frame).axes
    assert [name.get_text() for name in ax.get_yticklabels()] == ["one", "whole"]
    assert [text.get_text() for text in ax.texts][:2] == ["1", "–"]
    told = paired_differences.describe(frame)
    assert "Left out: gone (diverged at step 9 (seed 0, 1, 2)), small (another size)." in told
    assert "the 1 comparison of this figure" in told
    alone = paired_differences.data(runs[runs["seed"] == 0])
    figure = figures.make(paired_differences, alone)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one seed: no interval"]
    assert {len(line.get_xdata()) for line in figure.axes[0].get_lines()[1:]} == {1}
    told = paired_differences.describe(alone)
    assert "Dots: the one seed there is" in told
    assert "comparison" not in told
    assert paired_differences.data(runs[runs["label"] == "relora"]).empty
    assert paired_differences.data(runs[runs["label"] != "relora"].assign(warm_start=False)).empty
    assert paired_differences.data(runs[runs["label"].isin(["relora", "gone", "small"])]).empty
    same = runs[runs["label"].isin(["relora", "whole"])].assign(loss=1.0)  # 0 alone
    figures.make(paired_differences, paired_differences.data(same))


# Machado, Oliveira and Fernandes (2009), Table 1, severity 1, in linear RGB; and sight as most have it.
SIGHT = {
    "most": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
}


def lab(linear):
    """CIELAB (D65) of linear RGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    x = np.array(to_xyz) @ np.clip(linear, 0, 1) / [0.95047, 1, 1.08883]
    f = np.where(x > 0.008856, np.cbrt(x), 7.787 * x + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("sight", SIGHT)
def test_the_colour_blind_tell_methods_apart(sight):
    rgb = [np.array(to_rgba(colour)[:3]) for colour in figures.METHODS.values()]
    linear = [np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4) for c in rgb]
    seen = [lab(np.array(SIGHT[sight]) @ one) for one in linear]
    distances = [np.linalg.norm(a - b) for a, b in itertools.combinations(seen, 2)]
    assert min(distances) > 15  # 2.3 is what is just noticeable


def test_a_method_has_one_colour_and_its_labels_differ(runs):
    frame = runs[["label", "seed"]]
    for shown in (runs, runs[runs["label"] == "lora"], runs[runs["label"] == "relora"]):
        looks = {
            label: look["color"]
            for label, _, look in figures.by_label(figures.labelled(frame, runs).loc[shown.index])
        }
        for label, colour in looks.items():
            assert to_rgba(colour) == to_rgba(figures.METHODS[str(label)])
    many = pd.DataFrame({"label": [f"{n}" for n in range(8)], "method": "relora", "variant": range(8)})
    styles = {(look["color"], str(look["linestyle"])) for _, _, look in figures.by_label(many)}
    assert len(styles) == 8


def test_a_report_leaves_out_what_these_runs_have_not(runs, tmp_path):
    page, left_out = report.build(runs[runs["label"] == "lora"], tmp_path / "out").read_text(), False
    for module in (*figures.available(), *tables.available()):
        kind, name = module.__name__.split(".")[1:]
        optional = getattr(module, "OPTIONAL", False)
        empty = (module.table if kind == "tables" else module.data)(runs[runs["label"] == "lora"]).empty
        across = getattr(module, "ACROSS_SIZES", False)
        assert (f'id="{kind}-{name}"' in page) == (not optional or not empty)
        left_out |= optional and empty and not across
    assert left_out
    assert "Left out, having nothing to show of these runs: " in page
