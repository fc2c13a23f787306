"""What the README tells people to type does what it says."""

import re
import tomllib
from importlib.resources import files
from itertools import count

import pytest
import torch
from conftest import ROOT
from torch import nn

from analysis import figures, tables
from relora_lab import cli, config, grid

README = (ROOT / "README.md").read_text()
PARTS = [*tables.available(), *figures.available()]


def test_the_recipe_for_ones_own_loop_trains_and_leaves_a_plain_model():
    recipe = re.search(r"```python\n(.*?)```", README, re.DOTALL).group(1)
    assert len([line for line in recipe.splitlines() if line.strip()]) <= 25
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48), nn.Tanh(), nn.Linear(48, 64))
    start = {name: weight.clone() for name, weight in model.state_dict().items()}
    target = nn.Linear(64, 64)
    losses = []

    def loss_of(model, seed):
        x = torch.randn(16, 64, generator=torch.Generator().manual_seed(seed))
        losses.append(nn.functional.mse_loss(model(x), target(x).detach()))
        return losses[-1]

    exec(recipe, {"model": model, "batches": count(), "loss_of": loss_of})  # noqa: S102
    assert losses[-1] < 0.5 * losses[0]
    assert all(type(model[i]) is nn.Linear for i in (0, 2))
    for name in ("0.weight", "2.weight"):
        sigma = torch.linalg.svdvals((model.state_dict()[name] - start[name]).double())
        assert int((sigma > 1e-5 * sigma[0]).sum()) == 4 * 8  # four cycles of rank 8


def test_the_settings_are_settings():
    toml = re.search(r"```toml\n(.*?)```", README, re.DOTALL).group(1)
    made = config.parse(tomllib.loads(toml))
    assert made.method_name == "relora"
    assert made.warnings() == []


def test_the_grid_is_a_grid():
    declared = re.search(r"```toml grid\n(.*?)```", README, re.DOTALL).group(1)
    assert list(grid.cells(declared, seeds=[0])) == [
        *(f"rank{rank}-{reset}-seed0" for rank in (1, 2, 4) for reset in ("pruned", "zeroed")),
        "full-seed0",
    ]
    assert len(grid.cells(declared, profile="long")) == 7


def test_the_docs_name_every_table_and_figure_and_where_the_papers_have_it():
    text = (ROOT / "docs" / "report.md").read_text()
    named = set(re.findall(r"`((?:tables|figures)/\w+)`", text))
    assert named == {module.__name__.removeprefix("analysis.").replace(".", "/") for module in PARTS}
    listed = re.findall(r"(?m)^\| (P[12] .*?) \|", text)
    for paper, kind, last in (("P1", "Figure", 13), ("P2", "Figure", 9), ("P2", "Table", 3)):
        numbers = set()
        for place in listed:
            for group in re.findall(rf"{paper}.*?{kind}s? ([\d, –]+)", place):
                for part in group.split(","):
                    first, _, end = part.strip().partition("–")
                    numbers |= set(range(int(first), int(end or first) + 1)) if first else set()
        assert numbers == set(range(1, last + 1))


def test_the_grids_that_come_along_are_listed():
    table = re.search(r"\| grid \| \|\n(.*?)\n\n", README, re.DOTALL).group(1)
    shipped = {path.name for path in files("experiments").joinpath("grids").iterdir() if path.name.endswith(".toml")}
    listed = set(re.findall(r"`([\w-]+)`", table.replace("`make demo`", "")))
    assert {f"{name}.toml" for name in listed | {f"findings-{name}" for name in listed}} >= shipped


def test_every_option_of_a_command_in_the_readme_is_in_its_help(capsys):
    commands = [line for line in README.splitlines() if line.startswith("relora-lab ")]
    assert len(commands) >= 3
    for line in commands:
        name, *options = line.split("#")[0].split()[1:]
        with pytest.raises(SystemExit):
            cli.main([name, "--help"])
        told = capsys.readouterr().out
        assert all(option in told for option in options if option.startswith("--"))


def test_the_targets_of_make_are_there():
    makefile = (ROOT / "Makefile").read_text()
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    assert set(targets) == {"demo", "test", "faults", "findings"}
    assert all(f"\n{target}:" in makefile for target in targets)
