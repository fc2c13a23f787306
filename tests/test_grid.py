"""Grids: rows × seeds laid over base settings, refused as a whole before anything runs."""

import itertools
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from relora_lab import grid
from relora_lab.errors import BadInput

BASE = """
[base.model]
size = "demo"
[base.training]
steps = 100
[base.optimizer]
lr = 1e-3
"""
GRID = f"""
seeds = [0, 3]
{BASE}
[rows.full]
method.name = "full"
[rows.lora]
method = {{ name = "lora", rank = 2 }}
optimizer.lr = 2e-3
"""
AXES = f"""
{BASE}
[base.method]
rank = 4
restart_every = 20
restart_warmup = 5
[axes]
method.name = ["relora", "lora"]
method.reset_mask = ["shared"]
optimizer.lr = [1e-3, 0.5]
[axes.start]
scratch = {{}}
warm = {{ training.warm_start = 50 }}
[rows.full]
method.name = "full"
"""
PROFILES = f"""
{AXES}
[profiles.short]
seeds = [7]
base.training = {{ steps = 60 }}
[profiles.short.axes]
optimizer.lr = [2e-3]
start.cold = {{}}
[profiles.short.rows.full]
method.name = "adam_mini"
[profiles.small.base.method]
rank = 1
restart_every = 30
"""

# ---- rows and seeds


def test_each_row_and_seed_is_a_run_with_its_changes():
    cells = grid.cells(GRID)
    assert list(cells) == ["full-seed0", "lora-seed0", "full-seed3", "lora-seed3"]
    assert list(grid.cells(GRID, seeds=[7])) == ["full-seed7", "lora-seed7"]
    assert cells["lora-seed3"].training.seed == 3
    assert cells["lora-seed3"].optimizer.lr == 2e-3
    assert cells["full-seed3"].optimizer.lr == 1e-3
    assert cells["full-seed0"].name == "full-seed0"


def test_axes_make_a_row_of_every_combination_named_by_its_parts():
    cells = grid.cells(AXES)
    parts = itertools.product(["relora", "lora"], ["lr0.001", "lr0.5"], ["scratch", "warm"])
    assert list(cells) == [
        *(f"{method}-shared-{lr}-{start}-seed0" for method, lr, start in parts),
        "full-seed0",
    ]
    warm = cells["relora-shared-lr0.5-warm-seed0"]
    assert (warm.method_name, warm.optimizer.lr, warm.training.warm_start) == ("relora", 0.5, 50)
    assert cells["lora-shared-lr0.5-scratch-seed0"].training.warm_start == 0


@pytest.mark.parametrize(
    ("axis", "named"),
    [
        ("method.rank = [1, 2]", ["rank1", "rank2"]),
        ("optimizer.lr = [1e-5, 2.5]", ["lr1e-05", "lr2.5"]),
        ("method.jagged = [true, false]", ["jagged-true", "jagged-false"]),
        ("model.size = ['demo', '9M']", ["demo", "9M"]),
    ],
)
def test_a_value_is_named_with_its_setting_unless_it_is_text(axis, named):
    text = f"{BASE}[base.method]\nname = 'relora'\nrank = 2\nrestart_every = 40\nrestart_warmup = 9\n[axes]\n{axis}"
    assert list(grid.cells(text)) == [f"{name}-seed0" for name in named]


@given(
    ranks=st.lists(st.integers(1, 48), min_size=1, max_size=3, unique=True),
    lengths=st.lists(st.integers(2, 99), max_size=3, unique=True),
    starts=st.integers(0, 3),
    named=st.integers(0, 2),
    seeds=st.lists(st.integers(0, 2**40), min_size=1, max_size=3, unique=True),
)
def test_there_are_as_many_cells_as_combinations_and_named_rows_times_seeds(ranks, lengths, starts, named, seeds):
    text = f"seeds = {seeds}\n{BASE}[base.method]\nname = 'lora'\n[axes]\nmethod.rank = {ranks}\n"
    text += f"data.sequence_length = {lengths}\n" * bool(lengths)
    text += "".join(f"start.at{n}.training.warm_start = {n}\n" for n in range(starts))
    text += "".join(f"[rows.row{n}]\nmethod.rank = {n + 1}\ndata.batch_size = 3\n" for n in range(named))
    cells = grid.cells(text)
    assert len(cells) == (len(ranks) * max(1, len(lengths)) * max(1, starts) + named) * len(seeds)
    assert all(cell.name == name for name, cell in cells.items())
    assert {cell.training.seed for cell in cells.values()} == set(seeds)


def test_ten_thousand_cells_are_read_in_seconds():
    rows = "".join(f"[rows.row{n}]\nmethod = {{ name = 'lora', rank = {n + 1} }}\n" for n in range(10))
    begun = time.perf_counter()
    assert len(grid.cells(BASE + rows, seeds=range(1000))) == 10_000
    assert time.perf_counter() - begun < 20


# ---- base.method


def test_a_row_takes_of_base_method_what_its_method_has():
    cells = grid.cells(AXES)
    assert cells["relora-shared-lr0.5-warm-seed0"].method.rank == 4
    assert cells["lora-shared-lr0.5-warm-seed0"].method.restart_every == 20
    assert cells["full-seed0"].method_name == "full"


def test_base_can_name_the_method():
    cells = grid.cells(f"{BASE}[base.method]\nname = 'lora'\nrank = 3\n[rows.a]\n[rows.b]\nmethod.name = 'full'")
    assert [cell.method_name for cell in cells.values()] == ["lora", "full"]


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("rnak = 2", r"base\.method\.rnak: the method of no row has this field; did you mean 'rank'\?"),
        ("merge_every = 2", r"base\.method\.merge_every: the method of no row has this field"),
        ("rank = 'two'", r"rows\.lora: method\.rank: expected a whole number, got text \"two\""),
    ],
)
def test_a_slip_in_base_method_is_refused(field, message):
    with pytest.raises(BadInput, match=message):
        grid.cells(
            f"{BASE}[base.method]\n{field}\n[rows.full]\nmethod.name = 'full'\n[rows.lora]\nmethod.name = 'lora'"
        )


def test_a_grid_of_full_runs_alone_refuses_a_rank_in_base_method():
    with pytest.raises(BadInput, match=r"base\.method\.rank: the method of no row has this field"):
        grid.cells(f"{BASE}[base.method]\nrank = 2\n[rows.full]\nmethod.name = 'full'")


def test_a_field_in_the_row_itself_is_the_rows_own_mistake():
    with pytest.raises(BadInput, match=r"rows\.full: method\.rank: is no setting of full but of .*lora"):
        grid.cells(f"{BASE}[rows.full]\nmethod = {{ name = 'full', rank = 2 }}\n[rows.lora]\nmethod.name = 'lora'")


# ---- profiles


def test_a_profile_replaces_what_it_names_and_nothing_else():
    assert grid.profiles(PROFILES) == ["short", "small"]
    assert grid.cells(PROFILES) == grid.cells(AXES)
    short = grid.cells(PROFILES, profile="short")
    assert list(short) == ["relora-shared-lr0.002-cold-seed7", "lora-shared-lr0.002-cold-seed7", "full-seed7"]
    assert {cell.training.steps for cell in short.values()} == {60}
    assert {cell.model.size for cell in short.values()} == {"demo"}
    assert short["full-seed7"].method_name == "adam_mini"
    assert list(grid.cells(PROFILES, seeds=[1], profile="short"))[-1] == "full-seed1"


def test_a_table_of_a_profile_has_nothing_of_the_grids():
    cells = grid.cells(
        PROFILES.replace("restart_every = 30", "restart_every = 40\nrestart_warmup = 9"), profile="small"
    )
    method = cells["relora-shared-lr0.5-warm-seed0"].method
    assert (method.rank, method.restart_every, method.restart_warmup) == (1, 40, 9)
    with pytest.raises(BadInput, match=r"restart_warmup: 100 leaves no step"):  # the default, not the grid's 5
        grid.cells(PROFILES, profile="small")


def test_a_grid_has_the_profiles_that_it_names():
    assert grid.profiles(GRID) == []
    with pytest.raises(BadInput, match=r"unknown profile 'shrot'; did you mean 'short'\?"):
        grid.cells(PROFILES, profile="shrot")
    with pytest.raises(BadInput, match=r"unknown profile 'gpu'; the grid has short, small"):
        grid.cells(PROFILES, profile="gpu")
    with pytest.raises(BadInput, match=r"unknown profile 'cpu'; the grid has none"):
        grid.cells(GRID, profile="cpu")


@pytest.mark.parametrize(
    ("profile", "message"),
    [
        ("profiles = 3", r"profiles: is a table"),
        ("[profiles]\ncpu = 3", r"profiles\.cpu: is a table; write \[profiles\.cpu\]"),
        ("[profiles.cpu]\nsedes = [1]", r"unknown field 'profiles\.cpu\.sedes'; did you mean 'seeds'\?"),
        ("[profiles.cpu]\nprofiles = {}", r"unknown field 'profiles\.cpu\.profiles'"),
        ("[profiles.cpu]\nseeds = 1", r"profiles\.cpu\.seeds: must be a list"),
        ("[profiles.cpu.rows]\nfull = 3", r"profiles\.cpu\.rows\.full: is a table"),
        ("[profiles.cpu.axes]\nrank = [3]", r"profiles\.cpu\.axes\.rank: is a table"),
        ("[profiles.cpu.base]\nmodel = 'demo'", r"profiles\.cpu\.base\.model: is a table"),
    ],
)
def test_a_misshapen_profile_is_refused_even_if_it_is_not_asked_for(profile, message):
    text = profile + GRID if profile == "profiles = 3" else GRID + profile
    for ask in (grid.cells, grid.profiles):
        with pytest.raises(BadInput, match=message):
            ask(text)


def test_a_wrong_setting_of_a_profile_is_refused_when_it_is_asked_for():
    with pytest.raises(BadInput, match=r"rows\.full: unknown field 'stesp' in \[training\]; did you mean 'steps'\?"):
        grid.cells(GRID + "[profiles.cpu.base.training]\nstesp = 3", profile="cpu")


# ---- what is refused


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the grid is empty"),
        (GRID.replace("[0, 3]", "[]"), "the grid is empty"),
        (BASE, "the grid is empty"),
        (GRID.replace("seeds", "sedes"), r"unknown field 'sedes'; did you mean 'seeds'\?"),
        (GRID.replace("[0, 3]", "0"), "seeds: must be a list of whole numbers"),
        (GRID.replace("[0, 3]", "[true]"), "seeds: must be a list of whole numbers"),
        (GRID.replace("[0, 3]", "[1, 1]"), "seeds: 1 is there twice"),
        (GRID.replace("[0, 3]", "[0, -1]"), r"rows\.full: training\.seed: must be ≥ 0 \(got -1\)"),
        ("base = 3", r"base: is a table; write \[base\]"),
        ("base.model = 'demo'", r"base\.model: is a table"),
        ("base.method = 'lora'", r"base\.method: is a table"),
        ("[rows]\na = 3", r"rows\.a: is a table; write \[rows\.a\]"),
        ("[rows.a-lr0.01]\nmethod.name = 'full'", r'rows\.a-lr0: quote a name with a point: \[rows\."a-lr0\.01"\]'),
        ("rows = ['a']", r"rows: is a table"),
        ("[rows", "the grid is not valid TOML"),
        (GRID.replace("rank = 2", "rnak = 2"), r"rows\.lora: unknown field 'rnak'.*'rank'"),
        (GRID.replace("optimizer.lr = 2e-3", "lr = 2e-3"), r"rows\.lora: 'lr' belongs under 'optimizer'"),
        (GRID.replace("optimizer.lr = 2e-3", "model = 3"), r"rows\.lora: model: is a table"),
        (BASE + "[rows.a]\nmethod = 'lora'", r"rows\.a: method: is a table"),
        (BASE + "[rows.a]\noptimizer.lr = 1.0", r"rows\.a: method\.name: is missing"),
        (BASE + "[rows.a]\nmethod.name = ['lora']", r"rows\.a: method\.name: unknown method"),
        (
            GRID.replace('"full"', '"fulll"'),
            r"rows\.full: method\.name: unknown method 'fulll'; did you mean 'full'\?",
        ),
        (GRID.replace("rows.full", "rows.'a b'"), r"rows\.a b: name: 'a b-seed0' is no run name"),
        (GRID.replace("rows.full", "rows.'../x'"), r"rows\.\.\./x: name: '\.\./x-seed0' is no run name"),
        (GRID + "training.seed = 3", r"rows\.lora: name and training\.seed come from the grid: lora-seedN"),
        (GRID + "name = 'mine'", r"rows\.lora: name and training\.seed come from the grid: lora-seedN"),
        (GRID + "[rows.again]\nmethod.name = 'full'", r"rows\.full and rows\.again are the same configuration"),
    ],
)
def test_a_bad_grid_is_refused_with_its_row(text, message):
    with pytest.raises(BadInput, match=message) as refused:
        grid.cells(text)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("axes", "message"),
    [
        ("method.rank = []", r"axes\.method\.rank: must be a list of values, and not an empty one"),
        ("method.rank = 3", r"axes\.method\.rank: must be a list of values"),
        ("method = {}", r"axes\.method: is empty"),
        ("start = {}", r"axes\.start: is empty"),
        ("rank = [1, 2]", r"axes\.rank: is a table"),
        ("mehtod.rank = [1, 2]", r"axes\.mehtod\.rank: is a table of settings; did you mean 'method'\?"),
        ("start.warm = 3", r"axes\.start\.warm: is a table of settings"),
        ("optimizer.betas = [[0.9, 0.95]]", r"axes\.optimizer\.betas: \[0\.9, 0\.95\] makes no name.*named axis"),
        ("model.size = ['control:demo']", r"axes\.model\.size: 'control:demo' makes no name.*named axis"),
        ("method.rank = [2, 2]", r"axes\.method\.rank: 2 is there twice"),
        ("method.rank = [2, 2.0]", r"rows\.rank2\.0: method\.rank: expected a whole number"),
        ("method.rnak = [2]", r"rows\.rnak2: unknown field 'rnak'.*did you mean 'rank'"),
        ("method.rank = [300]", r"rows\.rank300: method\.rank: rank 300 > min\(48, 48\) = 48"),
        ("start = { '../x' = {} }", r"name: '\.\./x-seed0' is no run name"),
        ("start = { a = {}, b = {} }", r"rows\.a and rows\.b are the same configuration"),
        ("start = { full = {} }\n[rows.full]", r"rows\.full: two rows have this name"),
        ("a.x = {}\nb.x-x = {}\n[rows.x-x-x]", r"rows\.x-x-x: two rows have this name"),
    ],
)
def test_a_bad_axis_is_refused_by_name(axes, message):
    with pytest.raises(BadInput, match=message):
        grid.cells(f"{BASE}[base.method]\nname = 'lora'\nrank = 2\n[axes]\n{axes}")


def test_a_default_that_is_written_out_makes_no_other_run():
    with pytest.raises(BadInput, match=r"rows\.a and rows\.b are the same configuration"):
        grid.cells(f"{BASE}[base.method]\nname = 'lora'\nrank = 2\n[rows.a]\n[rows.b]\nmethod.alpha = 2.0")


def test_a_grid_is_a_file_or_the_name_of_one_that_comes_along(tmp_path):
    (tmp_path / "mine.toml").write_text(GRID)
    assert grid.read(tmp_path / "mine.toml") == GRID
    assert grid.cells(grid.read(Path("methods"))).keys() >= {"repissa-seed2", "galore-ef-seed0"}
    with pytest.raises(BadInput, match=r"methds: cannot be read .*; did you mean 'methods'\?"):
        grid.read(Path("methds"))
    with pytest.raises(BadInput, match=r"else\.toml: cannot be read .*one of demo, .*methods"):
        grid.read(tmp_path / "else.toml")


def test_a_full_run_that_could_share_and_rows_that_are_no_one_table_are_noted():
    warm = f"""
    {BASE}
    [rows.full]
    method.name = "full"
    [rows.lora]
    method = {{ name = "lora", rank = 2 }}
    training.warm_start = 30
    """
    (shares,) = grid.notes(grid.cells(warm))
    assert shares.startswith("full-seed0: its ΔW counts from step 0")
    assert "training.reference_step = 30" in shares
    with_reference = warm.replace('method.name = "full"', 'method.name = "full"\ntraining.reference_step = 30')
    assert list(grid.notes(grid.cells(with_reference))) == []
    longer = with_reference.replace("training.warm_start = 30", "training = { warm_start = 30, steps = 200 }")
    assert list(grid.notes(grid.cells(longer))) == [
        "full-seed0 and lora-seed0 differ in training.steps, so no one table or report can have both"
    ]
