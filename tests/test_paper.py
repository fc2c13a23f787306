"""The papers' printed numbers: each with its place, and what contradicts it. Where two can be checked, they agree or
a flag says so."""

import tomllib
from decimal import Decimal

import pandas as pd
import pytest
from conftest import ROOT

from analysis import paper
from relora_lab.optim.galore import refresh_schedule
from relora_lab.sizes import SIZES, count_parameters


def flag_of(name, table, row, column):
    """What contradicts a number, or ""."""
    found = paper.numbers().set_index(["paper", "table", "row", "column"])["flag"]
    return found[(name, table, row, column)]


def flagged(name, table):
    """(row, column) of the numbers of a table that something contradicts."""
    found = paper.flags()
    found = found[(found["paper"] == name) & (found["table"] == table)]
    return set(zip(found["row"], found["column"], strict=True))


def is_rounded(text, value):
    """Is a text the value, rounded to the printed digits? The zeros of 250M are no digits, that of 85.0 is."""
    printed = Decimal(text)
    digits = printed.normalize() if printed.as_tuple().exponent > 0 else printed
    return abs(value - float(printed)) <= 0.5 * 10.0 ** digits.as_tuple().exponent + 1e-9


def cells(name, table):
    """((row, column), text) of a table's cells that are not empty."""
    found = paper.table(name, table).stack()
    return [(place, text) for place, text in found.items() if text]


def test_every_number_has_its_place_and_its_kind():
    frame = paper.numbers()
    assert set(frame["paper"]) == {"P1", "P1v1", "P2"}
    assert set(frame["kind"]) == {"printed", "text", "derived", "public notebook"}
    assert not frame.duplicated(["paper", "table", "row", "column"]).any()
    assert (frame[["table", "row", "column", "quantity", "note"]].map(len) > 0).all(axis=None)
    words = frame.loc[frame["value"].isna() & ~frame["column"].isin(["method", "from", "sentence"]), "text"]
    assert set(words) == {"", "diverged", "N/A"}


def test_every_flag_is_of_a_number_that_is_there():
    written = set()
    for path in (ROOT / "experiments" / "papers").glob("*.toml"):
        read = tomllib.loads(path.read_text(encoding="utf-8"))
        for table in read["tables"]:
            written |= {(read["paper"], table["table"], place) for place in table.get("flags", {})}
    found = paper.flags()
    places = found["row"] + " / " + found["column"]
    assert set(zip(found["paper"], found["table"], places, strict=True)) == written
    assert list(found) == ["paper", "table", "row", "column", "text", "flag"]


def test_the_papers_numbers_are_as_printed():
    table2 = paper.table("P1", "Table 2")
    assert table2.loc["relora"].tolist() == ["34.46", "25.04", "22.48", "19.32", "17.27"]
    assert table2.loc["control", "130M"] == "27.30"
    assert paper.table("P1", "Table 6").loc["restarts + reset", "perplexity"] == "diverged"
    assert paper.table("P2", "Table 1").loc["reloqra 10k"].tolist() == ["23.50", "2.31", ""]
    values = paper.numbers().query("paper == 'P1' and table == 'Table 1' and row == '1.3B'")["value"]
    assert values.tolist() == [2048, 24, 32, 4e-4, 786_000, 512, 23.1e9]
    with pytest.raises(KeyError, match="P1 Table 99"):
        paper.table("P1", "Table 99")


def test_the_counts_of_figure_12_are_there():
    """Guitaricet/relora, notebooks/09_bar_plot.ipynb; lora is 12·(768 − 128) a projection."""
    counts = paper.table("P1", "Figure 12").astype(int)
    assert counts.loc["full"].to_dict() == {"q": 1173, "k": 1203, "v": 2641, "up": 0, "down": 0}
    assert counts.loc["relora"].to_dict() == {"q": 5693, "k": 5723, "v": 6050, "up": 4884, "down": 4942}
    assert (counts.loc["lora"] - 12 * (768 - 128)).to_dict() == {"q": 0, "k": 0, "v": 1, "up": 0, "down": 0}
    assert (counts.loc["relora"] >= 12 * (768 - 3 * 128)).all()  # three cycles of rank 128


def test_shapes_are_those_of_the_presets_or_flagged():
    for size, printed in paper.table("P1", "Table 1").iterrows():
        for column in ("hidden", "heads", "layers"):
            same = int(printed[column]) == getattr(SIZES[size], column)
            assert same or flag_of("P1", "Table 1", size, column), (size, column)
    assert {("1.3B", "heads"), ("1.3B", "layers"), ("250M", "hidden")} <= flagged("P1", "Table 1")


def test_trainable_parameters_are_those_of_the_sizes_or_a_flag_says_how_many_those_are():
    table, other = "Table 2 (trainable parameters)", []
    for (row, size), text in cells("P1", table):
        rank = None if row in ("full", "control") else 128
        _, counted = count_parameters(f"control:{size}" if row == "control" else size, rank=rank)
        if not is_rounded(text, counted):
            other.append((row, size))
            assert f"{counted / 1e6:.1f}M" in flag_of("P1", table, row, size)
    assert other == [("full", "350M"), ("full", "1.3B"), ("control", "60M"), ("control", "130M")]


def test_tokens_are_those_of_the_updates_or_flagged():
    sizes = paper.table("P1", "Table 1")
    updates = {"60M": 10, "130M": 20, "250M": 20, "350M": 20, "1.3B": 30}  # thousands
    for size, text in paper.table("P1", "Table 2 (tokens)").loc["training tokens"].items():
        assert text == sizes.loc[size, "tokens"]
        seen = float(sizes.loc[size, "batch tokens"]) * updates[size] * 1e3
        for place in (("Table 1", size, "tokens"), ("Table 2 (tokens)", "training tokens", size)):
            assert is_rounded(text, seen) or f"{seen / 1e9:.1f}B" in flag_of("P1", *place), place
    table4 = paper.table("P1", "Table 4").loc["training tokens (billions)"]
    batch = float(sizes.loc["1.3B", "batch tokens"])
    other = {column for column, text in table4.items() if not is_rounded(text, batch * int(column[:-1]) / 1e6)}
    assert {column for row, column in flagged("P1", "Table 4") if row == table4.name} == other == {"30K"}


def test_tokens_of_p2_are_those_of_its_updates_or_flagged():
    settings = paper.table("P2", "Section 5")["value"].astype(float)
    assert settings["batch"] % (settings["micro-batch"] * settings["devices"]) == 0
    seen = settings["updates"] * settings["batch"] * settings["sequence length"]
    assert not is_rounded(paper.table("P2", "Section 5").loc["tokens", "value"], seen)
    assert f"{seen / 1e9:.1f}B" in flag_of("P2", "Section 5", "tokens", "value")


def test_table_4_ends_where_table_2_does_and_the_texts_gaps_are_its():
    table4, table2 = paper.table("P1", "Table 4"), paper.table("P1", "Table 2")
    rows = ["full", "control", "lora + warm start", "relora"]
    assert table4.loc[rows, "30K"].tolist() == table2.loc[rows, "1.3B"].tolist()
    gap = table4.loc["lora + warm start"].map(Decimal) - table4.loc["relora"].map(Decimal)
    assert gap.map(str).tolist() == ["0.56", "0.74", "0.96"]
    behind = Decimal(table2.loc["relora", "1.3B"]) - Decimal(table2.loc["full", "1.3B"])
    assert str(behind) == "0.44"  # as the text says, whose 17.24 is flagged
    for table, column in (("Table 2", "1.3B"), ("Table 4", "30K")):
        assert "17.24" in flag_of("P1", table, "relora", column)


@pytest.mark.parametrize("table", ["Table 3", "Table 8"])
def test_the_averages_of_glue_are_means_of_their_rows_or_flagged(table):
    printed = paper.table("P1", table)
    means = printed.drop(columns="Avg").astype(float).mean(axis=1)
    other = {row for row, mean in means.items() if not is_rounded(printed.loc[row, "Avg"], mean)}
    assert {row for row, column in flagged("P1", table) if column == "Avg"} == other
    for row in other:
        assert f"{means[row]:.2f}" in flag_of("P1", table, row, "Avg")


def test_adjusted_throughput_is_a_harmonic_mean_or_flagged():
    printed = paper.table("P1", "Table 7")
    full, relora = (printed.loc[f"{row} throughput"].astype(float) for row in ("full-rank", "relora"))
    adjusted = 1 / (0.33 / full + 0.67 / relora)
    texts = printed.loc["warm-start adjusted throughput"]
    claims = {
        "immediate speedup": [100 * (relora / full - 1)],
        "warm-start adjusted throughput": [adjusted],
        "total speedup": [100 * (adjusted / full - 1), 100 * (texts.astype(float) / full - 1)],
    }
    wrong = {
        (row, column)
        for row, values in claims.items()
        for column, text in printed.loc[row].items()
        if not all(is_rounded(text, value[column]) for value in values)
    }
    assert flagged("P1", "Table 7") == wrong
    for column, value in adjusted.items():
        assert f"{value:.1f}" in flag_of("P1", "Table 7", "warm-start adjusted throughput", column)
    mean = 0.33 * full + 0.67 * relora  # which the two flags call it
    assert [is_rounded(text, value) for text, value in zip(texts, mean, strict=True)] == [False, True, True]


def test_speedups_of_the_text_follow_from_its_hours_or_are_flagged():
    hours = paper.table("P1", "Section 4.1 (hours)")
    known = hours[hours["full"] != ""].astype(float)
    speedup = 100 * (known["full"] / known["relora"] - 1)
    wrong = {row for row, value in speedup.items() if not is_rounded(hours.loc[row, "speedup"], value)}
    assert wrong == {"6x A6000 (Ada)"}
    assert f"{speedup['6x A6000 (Ada)']:.1f} %" in flag_of("P1", "Section 4.1 (hours)", *wrong, "speedup")


def test_what_the_first_version_prints_otherwise_is_flagged_in_both():
    other = []
    for v1, p1 in (("Table 1", "Table 1"), ("Table 2", "Table 2"), ("Table 3", "Table 6")):
        now = dict(cells("P1", p1))
        for place, text in cells("P1v1", v1):
            if text != now[place]:
                other.append((v1, *place))
                assert f"P1 {p1} prints {now[place]}" in flag_of("P1v1", v1, *place)
                assert f"P1v1 {v1} prints {text}" in flag_of("P1", p1, *place)
    assert other == [
        ("Table 2", "full", "350M"),
        ("Table 2", "control", "250M"),
        ("Table 2", "relora", "60M"),
        ("Table 2", "relora", "350M"),
        ("Table 3", "restarts + reset", "perplexity"),
    ]


@pytest.mark.parametrize(
    ("table", "column"), [("Table 1 (derived)", "perplexity"), ("Table 1 (derived totals)", "total")]
)
def test_derived_numbers_are_the_differences_that_they_come_from(table, column):
    derived = paper.table("P2", table)
    stated = set(paper.table("P2", "Table 1")[column])
    for row, told in derived.iterrows():
        start, *changes = told["from"].replace("+ ", "+").replace("- ", "-").split()
        assert start in stated, row
        assert changes[-1][1:] in told["sentence"], row
        assert Decimal(told[column]) == sum(map(Decimal, changes), Decimal(start)), row
        said = paper.table("P2", "Table 1").loc[row, column] if row in paper.table("P2", "Table 1").index else ""
        assert said in ("", told[column]), row


def test_derived_numbers_that_contradict_the_text_are_flagged():
    perplexity = paper.table("P2", "Table 1 (derived)")["perplexity"].astype(float)
    lowest = float(paper.table("P2", "Table 1").loc["galore-dynamics-ef(0.2)", "perplexity"])
    full = {row for row in perplexity.index if row.startswith("full")}
    assert perplexity[list(full)].nunique() == 3
    below = set(perplexity.index[perplexity < lowest]) - full
    assert below == {"galore-dynamics"}
    behind = {"galore-ef(0.1)"}  # a variant that "surpasses all low-rank methods"
    assert perplexity[list(behind)].item() > float(
        paper.table("P2", "Table 1")["perplexity"]["reloqra 10k + warm start"]
    )
    assert {row for row, _ in flagged("P2", "Table 1 (derived)")} == full | below | behind


def test_gains_of_reloqra_are_flagged_with_those_of_table_3():
    perplexity = paper.table("P2", "Table 3")["perplexity"]
    for method, gain in paper.table("P2", "Section 6")["gain"].items():
        measured = str(Decimal(perplexity[method]) - Decimal(perplexity["reloqra"]))
        assert measured != gain
        assert measured in flag_of("P2", "Section 6", method, "gain")
        assert gain in flag_of("P2", "Table 3", method, "perplexity")
        if method != "relora":  # where the gain is the method's own over ReLoRA
            assert gain == str(Decimal(perplexity["relora"]) - Decimal(perplexity[method]))


def test_memory_totals_are_the_sums_of_their_rounded_cells():
    cells_of = paper.table("P2", "Table 3")[["param", "grad", "os", "act", "extra", "total"]].map(Decimal)
    assert (cells_of.drop(columns="total").sum(axis=1) == cells_of["total"]).all()
    assert set(cells_of["total"].map(str)) == {"2.31", "1.75"}


def test_counts_of_events_follow_from_the_settings_or_are_flagged():
    svds = paper.table("P2", "Section 4.2")["SVDs"].astype(int)
    settings = paper.table("P2", "Section 5")["value"].astype(float)
    gap, updates = int(settings["galore gap"]), int(settings["updates"])
    plain, dynamic = (refresh_schedule(gap, updates, dynamic=dynamic) for dynamic in (False, True))
    assert svds["galore"] == len(plain)
    late = sum(step >= 200 for step in dynamic)
    assert svds["galore-dynamics"] == late != len(dynamic)
    assert f"{len(dynamic)}; {late} from 200 on" in flag_of("P2", "Section 4.2", "galore-dynamics", "SVDs")
    for rate, (resets, _) in paper.table("P1", "Table 9 (reset rate)").iterrows():
        assert int(resets) == 11_999 // int(rate)
    settings = paper.table("P1", "Section 3")["value"].astype(int)
    assert settings["restarts"] != len(range(settings["warm start"], 20_000, settings["restart every"])) - 1
    assert flagged("P1", "Section 3") == {("restarts", "value")}


def test_throughputs_that_differ_from_place_to_place_are_flagged():
    stated, table2 = paper.table("P2", "Table 1")["examples/s"], paper.table("P2", "Table 2")["examples/s"]
    table3 = paper.table("P2", "Table 3")["examples/s"]
    more = 100 * (float(stated["full"]) / float(table2["full 24"]) - 1)  # by twice the micro-batch; not 0.04 %
    for table, row in (("Table 1", "full"), ("Table 2", "full 24")):
        assert f"{more:.1f} %" in flag_of("P2", table, row, "examples/s")
    assert table2["relora 256 48"] in flag_of("P2", "Table 3", "relora", "examples/s")
    assert table3["relora"] in flag_of("P2", "Table 2", "relora 256 48", "examples/s")
    for row in ("relora", "redora", "repissa", "reloqra"):
        near = abs(float(table3[row]) - float(stated[row])) < 1
        assert near or table3[row] in flag_of("P2", "Table 1", row, "examples/s")


def test_a_warm_start_that_is_said_to_beat_lora_but_does_not_is_flagged():
    for name, section, table in (("P1", "Section 4.2", "Table 6"), ("P1v1", "Section 5.1", "Table 3")):
        perplexity = paper.table(name, table)["perplexity"]
        assert float(perplexity["warm"]) < float(paper.table(name, section).loc["warm start", "perplexity"])
        assert perplexity["warm"] in flag_of(name, section, "warm start", "perplexity")
        drop = str(Decimal(perplexity["none"]) - Decimal(perplexity["warm"]))  # "almost 10 points"
        assert drop in flag_of(name, table, "warm", "perplexity")


def test_a_control_that_is_another_sizes_full_run_is_flagged():
    for name in ("P1", "P1v1"):
        table = paper.table(name, "Table 2")
        assert table.loc["control", "350M"] == table.loc["full", "130M"]
        assert "130M" in flag_of(name, "Table 2", "control", "350M")


def test_runs_that_are_not_those_of_another_table_are_flagged():
    table2 = paper.table("P1", "Table 2")
    for row in ("relora", "online relora"):
        assert table2.loc["relora", "250M"] in flag_of("P1", "Table 5", row, "250M @15K")
    at_25k = float(paper.table("P1", "Table 5").loc["relora", "1.3B @25K"])
    before, after = paper.table("P1", "Table 4").loc["relora", ["20K", "30K"]].astype(float)
    assert after < at_25k < before
    accuracies = [paper.table("P1", f"Table 9 ({what})")["accuracy"] for what in ("rank", "pruning", "reset rate")]
    every = pd.concat(accuracies).astype(float)
    assert float(paper.table("P1", "Table 8").loc["relora (T5-L)", "QNLI"]) < every.min()
    assert f"{every.min()} to {every.max()}" in flag_of("P1", "Table 8", "relora (T5-L)", "QNLI")
    early = paper.table("P1", "Figure 13")["perplexity"].astype(float)
    assert early["lora + warm start"] - early["relora"] == pytest.approx(1.4, abs=0.05)
    assert early["relora"] < float(table2.loc["full", "130M"])  # so it is no model of 130M, if behind full rank
    assert table2.loc["full", "130M"] in flag_of("P1", "Figure 13", "relora", "perplexity")


def test_what_a_sentence_says_of_a_number_is_flagged_where_it_is_wrong():
    memory = paper.table("P1", "Section 4.1 (memory)")["Gb"].astype(float)
    saved = f"{100 * (1 - memory['relora'] / memory['full']):.0f} %"
    assert saved in flag_of("P1", "Section 4.1 (memory)", "relora", "Gb")
    assert saved in flag_of("P1v1", "Section 7", "1.3B", "memory saved")
    rate = float(paper.table("P1", "Section 4.1 (settings)").loc["learning rate", "value"])
    more = rate / float(paper.table("P1", "Table 1").loc["1.3B", "learning rate"])  # Appendix A: 1.5 to 2
    for place in (("Table 1", "1.3B", "learning rate"), ("Section 4.1 (settings)", "learning rate", "value")):
        assert f"{more:.4g} times" in flag_of("P1", *place)
    trained, held = paper.table("P2", "Table 3").loc[["relora (trainable)", "relora"], "param"].astype(float)
    assert f"{100 * trained / held:.0f} %" in flag_of("P2", "Table 3", "relora (trainable)", "param")  # "one third"
    told = paper.table("P2", "Table 1")
    ours, full = told.loc[["galore-dynamics-ef(0.2)", "full"], "total"].astype(float)
    claims = paper.table("P2", "Abstract").loc["galore-dynamics-ef(0.2)"]
    assert is_rounded(claims["memory saved"], 100 * (1 - ours / full))
    lowest = float(told.loc["galore-dynamics-ef(0.2)", "perplexity"])
    full = float(paper.table("P2", "Table 1 (derived)").loc["full", "perplexity"])
    assert is_rounded(claims["perplexity added"], 100 * (lowest / full - 1))
    assert "less" in flag_of("P2", "Abstract", "galore-dynamics-ef(0.2)", "perplexity added")


@pytest.mark.parametrize(
    ("method", "ingredients", "control", "row"),
    [
        ("full", "", False, "full"),
        ("full", "", True, "control"),
        ("low_rank", "", False, "lora"),
        ("lora", "warm_start", False, "lora + warm start"),
        ("relora", "restarts reset jagged warm_start", False, "relora"),
        ("relora", "restarts", False, None),
        ("reloqra", "restarts reset jagged warm_start", False, None),
    ],
)
def test_a_run_has_the_row_of_its_recipe(method, ingredients, control, row):
    toggles = {name: name in ingredients.split() for name in ("restarts", "reset", "jagged", "warm_start")}
    run = pd.Series({"method": method, "control": control, **toggles})
    assert paper.row_of(run) == row
    if row == "relora":
        assert paper.toggles_in_words(run) in paper.table("P1", "Table 6").index
