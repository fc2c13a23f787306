"""The grids that come along: the papers' rows and settings, and a profile for a laptop."""

import itertools
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path

import pytest

from relora_lab import grid, tasks
from relora_lab.settings import RunConfig

# ---- the grids of the package

COUNTS = {  # rows, seeds
    "demo": (4, 1),
    "findings-combinations": (9, 3),
    "findings-ingredients": (12, 5),
    "findings-lr-full": (19, 1),
    "findings-lr-low-rank": (33, 1),
    "findings-methods": (31, 3),
    "methods": (29, 3),
    "pruning": (11, 3),
    "rank": (9, 3),
    "reset-rate": (8, 3),
    "resets": (6, 3),
    "table2": (5, 1),
    "table3": (24, 3),
    "table6": (12, 3),
    "table6-all": (17, 3),
    "table8": (24, 3),
    "table9": (11, 3),
    "warm-start": (11, 3),
}
FINE_TUNING = ("table3", "table8", "table9")
FINDINGS = tuple(name for name in COUNTS if name.startswith("findings"))
SHIPPED = [
    (path.name.removesuffix(".toml"), profile)
    for path in sorted(files("experiments").joinpath("grids").iterdir(), key=lambda path: path.name)
    if path.name.endswith(".toml")
    for profile in [None, *grid.profiles(path.read_text(encoding="utf-8"))]
]
ON_A_LAPTOP = [(name, profile) for name, profile in SHIPPED if profile == "cpu" or name in ("demo", "resets")]
ON_A_LAPTOP = [(name, profile) for name, profile in ON_A_LAPTOP if name not in FINE_TUNING]
OF_P1 = [name for name in COUNTS if name not in ("demo", "methods", "resets", *FINE_TUNING, *FINDINGS)]


def shipped(name: str, profile: str | None = None, seeds: Sequence[int] = ()) -> dict[str, RunConfig]:
    """The cells of a grid that comes along."""
    return grid.cells(grid.read(Path(name)), seeds, profile)


def by_row(name: str, profile: str | None = None) -> dict[str, RunConfig]:
    """A cell of each row of a grid that comes along, by row."""
    return {cell.removesuffix("-seed0"): settings for cell, settings in shipped(name, profile, [0]).items()}


def test_the_grids_are_these_and_each_is_the_same_rows_in_every_profile():
    assert {name for name, _ in SHIPPED} == set(COUNTS)
    for name, profile in SHIPPED:
        rows, seeds = COUNTS[name]
        if profile == "cpu" and name in FINE_TUNING:
            rows = {24: 3}.get(rows, rows)  # of one task, not eight
        assert len(by_row(name, profile)) == rows
        assert len(shipped(name, profile)) == rows * (3 if (name, profile) == ("table2", "cpu") else seeds)


@pytest.mark.parametrize(("name", "profile"), SHIPPED)
def test_no_row_of_a_grid_is_seldom_meant(name, profile):
    for row, settings in by_row(name, profile).items():
        expected = 1 if row.startswith("reloqra-paper") else 0  # which is there to show the jump it is warned of
        assert len(settings.warnings()) == expected, row


@pytest.mark.parametrize(("name", "profile"), ON_A_LAPTOP)
def test_a_cpu_profile_is_the_demos_configuration(name, profile):
    demo = by_row("demo")["full"]
    for settings in by_row(name, profile).values():
        assert settings.model.size in ("demo", "control:demo")
        assert settings.data == demo.data
        assert (settings.training.device, settings.training.threads) == ("cpu", 1)
        assert settings.training.steps == 6000
        assert (settings.optimizer.lr, settings.low_rank_lr) in ((3e-3, 6e-3), (3e-3, 3e-3))
        assert (settings.optimizer.betas, settings.optimizer.warmup_steps) == ((0.9, 0.95), 100)


@pytest.mark.parametrize("name", [*OF_P1, "methods"])
def test_a_grid_of_a_paper_has_its_sizes_and_a_cpu_profile(name):
    text = grid.read(Path(name))
    assert text.startswith("# ")
    assert "# Look at: " in text
    assert "cpu" in grid.profiles(text)
    for profile in [None, *grid.profiles(text)]:
        for settings in by_row(name, profile).values():
            if profile in ("cpu", "bpe"):
                continue
            data, training = settings.data, settings.training
            assert (data.dataset, data.subset, data.streaming) == ("allenai/c4", "en", True)
            assert (data.tokenizer, data.vocab_size) == ("google-t5/t5-base", 32000)
            assert data.max_tokens > training.steps * data.batch_size * data.sequence_length  # no token twice
            assert 24 <= data.batch_size // training.micro_batches <= 60
            assert training.device == "cuda"
            assert settings.optimizer.betas == (0.9, 0.999)


@pytest.mark.parametrize("profile", [None, "cpu"])
@pytest.mark.parametrize("name", ["methods", "pruning", "rank", "reset-rate", "table2", "table6", "table6-all"])
def test_rows_of_a_grid_measure_from_the_same_step(name, profile):
    assert len({settings.training.reference for settings in by_row(name, profile).values()}) == 1


def test_the_demo_is_four_runs_measured_from_the_same_step():
    cells = shipped("demo")
    assert [cell.method_name for cell in cells.values()] == ["full", "relora", "lora", "lora"]
    assert {cell.training.reference for cell in cells.values()} == {1000}


def test_the_demos_rows_are_rows_of_the_methods_too():
    methods, demo = by_row("methods", "cpu"), by_row("demo")
    assert {row: methods[row] for row in demo} == demo


@pytest.mark.parametrize(
    ("profile", "lr", "tokens", "length", "steps", "control"),
    [  # P1 Table 1, and the steps of its figures
        (None, 1e-3, 122_880, 256, 10_000, "60M"),
        ("130M", 1e-3, 153_600, 256, 20_000, "130M"),
        ("250M", 5e-4, 589_824, 512, 20_000, "250M"),
        ("350M", 5e-4, 589_824, 512, 20_000, "350M"),
        ("1.3B", 4e-4, 786_432, 512, 30_000, "1.3B"),
    ],
)
def test_table2_has_the_papers_settings(profile, lr, tokens, length, steps, control):
    rows = by_row("table2", profile)
    assert list(rows) == ["full", "control", "lora", "lora-warm", "relora"]
    for settings in rows.values():
        assert settings.data.batch_size * settings.data.sequence_length == tokens
        assert (settings.data.sequence_length, settings.training.steps) == (length, steps)
        assert settings.optimizer.lr == lr
        assert settings.low_rank is None or settings.low_rank.rank == 128
    assert rows["control"].model.size == f"control:{control}"
    assert {settings.model.size for row, settings in rows.items() if row != "control"} == {control}
    assert rows["lora"].method.base == "zero"
    assert rows["relora"].training.warm_start == (10_000 if profile == "1.3B" else steps // 4)
    assert rows["relora"].method.restart_warmup == (50 if profile == "1.3B" else 100)


@pytest.mark.parametrize("profile", [None, "cpu"])
def test_table6_has_the_papers_rows_and_each_reset_with_both_masks(profile):
    rows = by_row("table6", profile)
    found = {row: _toggles(settings) for row, settings in rows.items() if settings.low_rank}
    separate = {row.removesuffix("-separate"): on for row, on in found.items() if not row.endswith("-shared")}
    assert separate == {
        "none": (False, False, False, False),
        "restarts": (True, False, False, False),
        "restarts-reset": (True, True, False, False),
        "restarts-jagged": (True, False, True, False),
        "restarts-reset-jagged": (True, True, True, False),
        "warm": (False, False, False, True),
        "all": (True, True, True, True),
    }
    resets = {row: settings.method for row, settings in rows.items() if row in found and found[row][1]}
    assert {(m.optimizer_reset, m.reset_ratio) for m in resets.values()} == {("magnitude", 0.99)}
    assert all(row.endswith(f"-{method.reset_mask}") for row, method in resets.items())
    assert found.keys() >= {row.replace("-separate", "-shared") for row in found}
    assert rows["control"].model.size.startswith("control:")


@pytest.mark.parametrize("profile", [None, "cpu"])
def test_table6_all_is_every_combination_of_the_four_ingredients(profile):
    toggles = [_toggles(settings) for settings in by_row("table6-all", profile).values() if settings.low_rank]
    assert sorted(toggles) == sorted(itertools.product([False, True], repeat=4))


def _toggles(settings: RunConfig) -> tuple[bool, bool, bool, bool]:
    method = settings.low_rank
    assert method
    reset = method.optimizer_reset != "none"
    return method.merges, reset, method.jagged, settings.training.warm_start > 0


def test_one_setting_grids_vary_what_the_paper_does():
    pruning, rates = by_row("pruning"), by_row("reset-rate")
    ranks = {settings.low_rank.rank for settings in by_row("rank").values() if settings.low_rank}
    assert ranks == {16, 32, 64, 128}  # P1 Table 9, as the next two
    ratios = {settings.method.reset_ratio for row, settings in pruning.items() if "ratio" in row}
    assert ratios == {0.85, 0.92, 0.95, 0.99}
    assert {1, 2, 5, 11} < {_restarts(settings) for settings in rates.values() if settings.method_name == "relora"}
    cpu = [_restarts(s) for s in by_row("reset-rate", "cpu").values() if s.method_name == "relora"]
    assert sorted(cpu) == [1, 2, 3, 4, 9]
    assert by_row("warm-start").keys() >= {"relora-warm_start2000", "lora-warm_start2000"}  # P1 Figure 13


def _restarts(settings: RunConfig) -> int:
    return (settings.low_rank_steps - 1) // settings.method.restart_every


@pytest.mark.parametrize("name", FINE_TUNING)
def test_grids_of_fine_tuning_have_appendix_b(name):
    text = grid.read(Path(name))
    assert text.startswith("# ")
    assert "# Look at: " in text
    for profile in [None, *grid.profiles(text)]:
        cells = shipped(name, profile)
        assert not list(grid.notes(cells))
        for settings in cells.values():
            method = settings.method
            if settings.method_name == "relora":
                assert (method.optimizer_reset, method.jagged) == ("magnitude", True)
            if profile == "cpu":
                assert (settings.task.name, settings.data.vocab_size) == ("packages", 2048)
                continue
            assert (settings.data.batch_size, settings.data.dataset) == (128, None)
            assert 1e-4 <= settings.optimizer.lr <= settings.low_rank_lr <= 5e-4


def test_table3_and_table8_are_every_recipe_on_every_task():
    expected = {"table3": ["full-rank", "not-pretrained", "relora"], "table8": ["full", "lora", "relora"]}
    for name, recipes in expected.items():
        rows = by_row(name)
        assert list(rows) == [f"{recipe}-{task}" for recipe in recipes for task in tasks.GLUE]
        assert all(row.endswith(f"-{settings.task.name}") for row, settings in rows.items())
    sizes = {profile: {s.model.size for s in by_row("table8", profile).values()} for profile in (None, "large")}
    assert sizes == {None: {"t5-base"}, "large": {"t5-large"}}


@pytest.mark.parametrize(("profile", "of_table2"), [(None, "350M"), ("cpu", "bpe")])
def test_table3_begins_with_models_of_table2(profile, of_table2):
    before = by_row("table2", of_table2)
    for row, settings in by_row("table3", profile).items():
        weights = {"full-rank": "full", "relora": "relora"}.get(row.rpartition("-")[0])
        assert settings.model.weights == (weights and f"runs/table2-{of_table2}/{weights}-seed0")
        assert settings.model.size == before[weights or "full"].model.size
        assert settings.data.vocabulary == before[weights or "full"].data.vocabulary


def test_table9_varies_one_setting_at_a_time_from_a_row_in_common():
    rows = by_row("table9")
    common = rows["common"].method
    assert (common.rank, common.reset_ratio, _restarts(rows["common"])) == (64, 0.9, 5)
    assert {settings.method.rank for settings in rows.values()} == {16, 32, 64, 128}
    assert {settings.method.reset_ratio for settings in rows.values()} == {0.85, 0.9, 0.92, 0.95, 0.99}
    for profile in (None, "cpu"):
        assert {_restarts(settings) for settings in by_row("table9", profile).values()} == {1, 2, 5, 11}
    for settings in rows.values():
        of = ("rank", "reset_ratio", "restart_every")
        assert sum(getattr(settings.method, name) != getattr(common, name) for name in of) <= 1


def test_the_methods_have_p2s_settings():
    rows = by_row("methods")
    for row, settings in rows.items():
        assert settings.data.batch_size // settings.training.micro_batches == 48
        assert getattr(settings.method, "rank", 256) == 256
        own = row.startswith(("full", "control", "adam"))
        rate = settings.low_rank_lr if settings.low_rank else settings.optimizer.lr
        assert rate == (5e-4 if own else 1.5e-3), row
        if settings.low_rank and settings.low_rank.merges:
            assert settings.low_rank.restart_every == (10_000 if "10k" in row else 2500)
            assert settings.training.warm_start == (0 if row.endswith("scratch") else 5000)
