"""Grids: rows × seeds laid over base settings, refused as a whole before anything runs."""

from importlib.resources import files
from pathlib import Path

import pytest

from relora_lab import grid
from relora_lab.errors import BadInput

GRID = """
seeds = [0, 3]
[base.model]
size = "demo"
[base.training]
steps = 100
[base.optimizer]
lr = 1e-3
[rows.full]
method.name = "full"
[rows.lora]
method = { name = "lora", rank = 2 }
optimizer.lr = 2e-3
"""


def test_each_row_and_seed_is_a_run_with_its_changes():
    cells = grid.cells(GRID)
    assert list(cells) == ["full-seed0", "lora-seed0", "full-seed3", "lora-seed3"]
    assert list(grid.cells(GRID, seeds=[7])) == ["full-seed7", "lora-seed7"]
    assert cells["lora-seed3"].training.seed == 3
    assert cells["lora-seed3"].optimizer.lr == 2e-3
    assert cells["full-seed3"].optimizer.lr == 1e-3
    assert cells["full-seed0"].name == "full-seed0"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the grid is empty"),
        (GRID.replace("[0, 3]", "[]"), "the grid is empty"),
        (GRID.replace("seeds", "sedes"), "unknown field 'sedes'"),
        (GRID.replace("[0, 3]", "0"), "seeds: must be a list of whole numbers"),
        (GRID.replace("[0, 3]", "[1, 1]"), "seeds: 1 is there twice"),
        ("base = 3", r"base: is a table; write \[base\]"),
        ("[rows]\na = 3", r"rows\.a: is a table; write \[rows\.a\]"),
        ("rows = ['a']", r"rows: is a table"),
        ("[rows", "the grid is not valid TOML"),
        (GRID.replace("rank = 2", "rnak = 2"), r"rows\.lora: unknown field 'rnak'.*'rank'"),
    ],
)
def test_a_bad_grid_is_refused_with_its_row(text, message):
    with pytest.raises(BadInput, match=message):
        grid.cells(text)


def test_the_demo_is_four_runs_measured_from_the_same_step():
    cells = grid.cells(files("experiments").joinpath("grids/demo.toml").read_text())
    assert [cell.method_name for cell in cells.values()] == ["full", "relora", "lora", "lora"]
    assert {cell.training.reference for cell in cells.values()} == {1000}
    assert all(cell.warnings() == [] for cell in cells.values())


def test_every_grid_in_the_package_can_be_read():
    folder = files("experiments").joinpath("grids")
    for path in folder.iterdir():
        if path.name.endswith(".toml"):
            assert grid.cells(path.read_text())


def test_a_grid_is_a_file_or_the_name_of_one_that_comes_along(tmp_path):
    (tmp_path / "mine.toml").write_text(GRID)
    assert grid.read(tmp_path / "mine.toml") == GRID
    assert grid.cells(grid.read(Path("methods"))).keys() >= {"repissa-seed2", "galore-ef-seed0"}
    with pytest.raises(BadInput, match=r"methds: cannot be read .*; did you mean 'methods'\?"):
        grid.read(Path("methds"))
    with pytest.raises(BadInput, match=r"else\.toml: cannot be read .*one of demo, methods"):
        grid.read(tmp_path / "else.toml")
