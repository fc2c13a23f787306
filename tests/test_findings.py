"""What FINDINGS.md says follows from the CSV files beside it, by the rule that it states."""

import re
import tomllib
from importlib.resources import files
from pathlib import Path

import pandas as pd
import pytest
from conftest import ROOT, changed, tiny_tables
from hypothesis import given
from hypothesis import strategies as st

from analysis import load_runs
from analysis.statistics import Paired
from experiments.findings import __main__ as command
from experiments.findings import measured, quotes, rates, verdicts
from relora_lab import grid, sizes, train
from relora_lab.errors import BadInput
from relora_lab.runs import RunFolder

BETAS = {"0.95", "0.999"}  # which are set
MEASURED = ROOT / "docs" / "findings"
CLAIMS = verdicts.claims()
CELLS = {
    name.rpartition("-seed")[0]: settings
    for of in command.GRIDS
    for name, settings in grid.cells(grid.read(Path(of))).items()
}


@pytest.fixture(scope="module")
def runs():
    return pd.read_csv(MEASURED / "runs.csv")


@pytest.fixture(scope="module")
def swept():
    return pd.read_csv(MEASURED / "rates.csv")


# ---- what is committed


def test_the_document_and_the_verdicts_are_what_the_measurements_give(tmp_path):
    out = tmp_path / "findings"
    out.mkdir()
    for csv in ("runs.csv", "rates.csv"):
        (out / csv).write_bytes((MEASURED / csv).read_bytes())
    assert command.main(["--document", "--out", str(out), "--file", str(tmp_path / "FINDINGS.md")]) == 0
    assert (out / "verdicts.csv").read_text() == (MEASURED / "verdicts.csv").read_text()
    assert (tmp_path / "FINDINGS.md").read_text() == (ROOT / "FINDINGS.md").read_text()


def test_prose_names_every_measured_number_by_its_place():
    text = files("experiments").joinpath("findings", "claims.toml").read_text()
    for claim in tomllib.loads(text).values():
        prose = re.sub(r"\{[^}]*\}", "", claim["says"] + claim.get("finding", ""))
        assert set(re.findall(r"\d\.\d\d+", prose)) <= BETAS, claim["title"]


def test_claims_are_of_rows_of_the_grids_and_every_row_is_measured(runs):
    text = runs[runs["score"].isna()]
    assert set(text["label"]) == set(CELLS)
    for claim in CLAIMS:
        assert set(claim.contrast) <= set(runs["label"]), claim.id
        assert claim.expect in ("below", "above", "same")
    seeds = text.groupby("label")["seed"].agg(set)
    ingredients = {name.rpartition("-seed")[0] for name in grid.cells(grid.read(Path("findings-ingredients")))}
    for label, found in seeds.items():
        assert found == (set(range(5)) if label in ingredients else set(range(3)))


def test_rows_have_the_rate_that_the_sweep_chose_and_those_that_vary_one_have_that_ones(runs, swept):
    chosen = swept[swept["chosen"]].set_index("row")["lr"]
    measured_with = runs.groupby("label")["lr"].first()
    for row, rate in chosen.items():
        assert measured_with[row] == rate
    assert all(measured_with[row] in set(chosen) for row in CELLS)
    for row, settings in CELLS.items():
        if settings.training.warm_start:
            assert settings.optimizer.lr == chosen["full"]  # one warm start for all
        if settings.low_rank:
            assert settings.low_rank_lr == measured_with[row]
    assert not set(swept["seed"]) & set(runs.loc[runs["score"].isna(), "seed"])


def test_no_chosen_rate_is_at_the_upper_end_of_its_range(swept):
    for row, mine in swept.groupby("row"):
        assert mine["lr"].max() > mine.loc[mine["chosen"], "lr"].item(), row


def test_the_chosen_rate_is_the_lowest_near_the_best(swept):
    for _, mine in swept.groupby("row"):
        finished = mine[mine["state"] == "finished"]
        near = finished[finished["loss"] <= finished["loss"].min() + rates.TIE]
        assert mine.loc[mine["chosen"], "lr"].tolist() == [near["lr"].min()]


def test_what_was_run_is_what_the_grids_say():
    text = " ".join((ROOT / "FINDINGS.md").read_text().split())
    run = CELLS["relora"]
    shape, data, training, method = run.model.shape, run.data, run.training, run.method
    parameters, _ = sizes.count_parameters(shape, vocab_size=data.vocabulary)
    assert shape.layers == 2
    for told in (
        f"{parameters:,} parameters (width {shape.hidden}, two blocks)",
        f"{training.steps} updates of {data.batch_size} × {data.sequence_length} bytes, rank {method.rank}, "
        f"a warm start of {training.warm_start} updates",
        f"restarts every {method.restart_every} after that, {100 * method.reset_ratio:.0f} % of the moments",
        f"ΔW counts from update {training.reference} for all",
    ):
        assert told in text


# ---- the rule


def paired(low, high, n=3):
    low, high = sorted((low, high))
    return Paired((low + high) / 2, (low, high), n, (0, 0), (low, high), 0.5)


def claim(expect, margin=0.1):
    return verdicts.Claim(
        id="c", paper="P1", where="", title="", says="", contrast={"a": 1, "b": -1}, expect=expect, margin=margin
    )


@given(st.floats(-1, 1), st.floats(-1, 1))
def test_a_verdict_turns_with_the_sign_and_a_direction_and_its_opposite_are_never_both_shown(low, high):
    below = verdicts.judge(claim("below"), paired(low, high))
    assert below == verdicts.judge(claim("above"), paired(-low, -high))
    assert {below, verdicts.judge(claim("above"), paired(low, high))} != {verdicts.SHOWS}
    same = verdicts.judge(claim("same"), paired(low, high))
    assert same == verdicts.judge(claim("same"), paired(-low, -high))
    if below == verdicts.UNTOLD:
        assert min(low, high) <= 0 <= max(low, high)
    if same == verdicts.SHOWS:
        assert max(abs(low), abs(high)) <= 0.1


@pytest.mark.parametrize(
    ("expect", "low", "high", "verdict"),
    [
        ("below", -0.3, -0.2, "shows"),
        ("below", 0.2, 0.3, "does not show"),
        ("below", -0.05, 0.02, "does not show"),  # of no size that matters
        ("below", -0.09, -0.05, "does not show"),  # nor is this
        ("below", -0.3, 0.02, "cannot be told"),
        ("same", -0.1, 0.02, "shows"),
        ("same", 0.11, 0.2, "does not show"),
        ("same", 0.05, 0.2, "cannot be told"),
    ],
)
def test_the_rule(expect, low, high, verdict):
    assert verdicts.judge(claim(expect), paired(low, high)) == verdict
    assert verdicts.judge(claim(expect), paired(low, high, n=1)) == "cannot be told"


def test_divergence_counts_seeds_and_other_values_leave_out_what_diverged():
    frame = pd.DataFrame(
        {
            "label": ["a"] * 3 + ["b"] * 3,
            "seed": [0, 1, 2] * 2,
            "state": ["diverged", "diverged", "finished"] + ["finished"] * 3,
            "diverged": [1, 1, 0, 0, 0, 0],
            "loss": [9.0, 9.0, 1.5, 1.0, 1.0, 1.0],
        }
    )
    about = {"paper": "P1", "where": "", "title": "", "says": "", "contrast": {"a": 1, "b": -1}, "expect": "above"}
    asked = [verdicts.Claim(id="x", value=value, **about) for value in ("diverged", "loss")]
    found = verdicts.verdicts(asked, frame).set_index("value")
    assert found.loc["diverged", ["n", "mean"]].tolist() == [3, pytest.approx(2 / 3)]
    assert found.loc["loss", ["n", "mean"]].tolist() == [1, 0.5]
    with pytest.raises(ValueError, match="x: no value is called 'perplexities'"):
        verdicts.verdicts([verdicts.Claim(id="x", value="perplexities", **about)], frame)
    with pytest.raises(ValueError, match="x: no run is labelled 'c'"):
        verdicts.verdicts([verdicts.Claim(id="x", **about | {"contrast": {"c": 1}})], frame)


# ---- numbers in prose


def test_a_number_that_no_file_has_is_named(runs):
    found = quotes.of(runs, pd.read_csv(MEASURED / "verdicts.csv"))
    assert "{P1[Table 2/relora/130M]}".format_map(found) == "25.04"
    assert re.fullmatch(r"1\.\d{3} ± 0\.\d{3}", "{loss[relora]}".format_map(found))
    for wrong in ("{loss[rolera]}", "{P1[Table 2/relora]}", "{P2[Table 9/x]}", "{of[nothing]}"):
        with pytest.raises(ValueError, match=re.escape(wrong)):
            wrong.format_map(found)


@pytest.mark.parametrize(
    ("value", "digits", "signed", "text"),
    [(-0.25, 1, False, "−0.2"), (-0.0001, 2, True, "0.00"), (0.5, 2, True, "+0.50"), (12.0, 0, False, "12")],
)
def test_numbers_have_a_minus_that_is_one_and_none_before_zeros(value, digits, signed, text):
    assert quotes.number(value, digits, signed=signed) == text


# ---- what is measured of runs


@pytest.mark.slow
def test_what_is_measured_of_a_run(tmp_path):
    tiny = tiny_tables()
    tiny["method"]["restart_every"] = 30  # after update 50
    separate = {**tiny["method"], "optimizer_reset": "magnitude", "reset_mask": "separate", "reset_ratio": 0.9}
    low_rank = {"name": "low_rank", "rank": 2}
    told = {
        "full": {"method": {"name": "full"}, "training": {"warm_start": 0, "reference_step": 20}},
        "relora": {},
        "separate": {"method": separate},
        "low-rank": {"method": low_rank, "training": {"warm_start": 0, "reference_step": 20}},
    }
    for label, parts in told.items():
        train.run(changed(tiny, **parts), tmp_path / f"{label}-seed0")
    found = measured.of_grids({"tiny": tmp_path}).set_index("label")
    assert set(found["grid"]) == {"tiny"}
    assert found["lr"].to_dict() == {"full": 3e-3, "relora": 6e-3, "separate": 6e-3, "low-rank": 6e-3}
    assert found["to_full"]["full"] == 0 < found["to_full"]["relora"]
    assert found["orphans"]["relora"] == 0 < found["orphans"]["separate"]
    assert abs(found["rise"]["relora"]) < 1e-5
    assert (found["sBA_drop"]["relora"], found["W_drop"]["relora"]) == pytest.approx((1, 0), abs=1e-6)
    assert (found["rank"]["relora"], found["ceiling"]["relora"], found["gap"]["relora"]) == (4, 4, 0)
    assert found["zero"]["relora"] == pytest.approx(100 * (1 - 4 / 16))
    assert 0 < found["effective"]["relora"] < 4.001
    assert found["early"]["relora"] == pytest.approx(found["early"]["separate"], abs=1e-6)
    assert found["product_high"].notna().to_dict() == {label: label == "low-rank" for label in told}
    assert load_runs(tmp_path).set_index("label")["loss"]["relora"] == found["loss"]["relora"]
    RunFolder(tmp_path / "relora-seed0").write_status("stopped", step=30)
    with pytest.raises(BadInput, match="1 of 4 runs have not ended"):
        measured.of_grids({"tiny": tmp_path})


def test_runs_that_are_not_there_are_named(tmp_path, capsys):
    assert command.main(["--runs", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert told.startswith(f"findings: {tmp_path / 'findings-lr-full'}: is not there; `make findings`")
    assert not (tmp_path / "out").exists()
