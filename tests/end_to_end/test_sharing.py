"""Cells of a grid that begin together end with the bits they have alone."""

import pytest
from conftest import changed, tiny_tables
from test_repeat import content

from relora_lab import stages, train
from relora_lab.workspace import stage_folders

BASE = {"rank": 2, "restart_every": 14, "restart_warmup": 3}
COLD = {"warm_start": 0, "reference_step": 20}
GRIDS = {
    "after a warm start": [
        {"method": {"name": "relora", **BASE}},
        {"method": {"name": "relora", **BASE, "jagged": False, "optimizer_reset": "magnitude"}},
        {"method": {"name": "lora", **BASE, "optimizer_reset": "random"}},
        {"method": {"name": "online_relora", **BASE, "merge_every": 5}},
        {"method": {"name": "lora", "rank": 2}, "training": {"warm_start": 20}},
        {"method": {"name": "full"}, "training": {"warm_start": 0, "reference_step": 20}},
    ],
    "from scratch, ΔW from a later step": [
        {"method": {"name": "relora", **BASE}, "training": COLD},
        {"method": {"name": "lora", "rank": 2}, "training": COLD},
        {"method": {"name": "lora", "rank": 2}, "training": {"warm_start": 0, "reference_step": 9}},
    ],
    "a base of zero": [
        {"method": {"name": "lora", "rank": 2, "base": "zero"}, "training": COLD},
        {"method": {"name": "low_rank", "rank": 2}, "training": COLD},
    ],
    "factors out of W": [
        {"method": {"name": "reloqra", **BASE, "qr_mode": "paper"}, "training": {"snapshot_every": 30}},
        {"method": {"name": "reloqra", **BASE, "qr_mode": "paper", "jagged": False}},
        {"method": {"name": "reloqra", **BASE}},
        {"method": {"name": "reloqra", **BASE, "optimizer_reset": "zero"}},
    ],
    "rows rescaled": [
        {"method": {"name": "redora", **BASE}},
        {"method": {"name": "redora", **BASE, "restart_every": 19}},
    ],
}


@pytest.mark.parametrize("grid", GRIDS)
def test_cells_that_begin_together_have_the_bits_they_have_alone(tmp_path, grid):
    cells = {f"cell{n}": changed(tiny_tables(), **parts) for n, parts in enumerate(GRIDS[grid])}
    plan = stages.plan(cells)
    begins = stages.by_cell(plan)
    for name, config in cells.items():
        cuts = [plan[key].cuts[-1] for key in begins[name]]
        shared = train.run(config, tmp_path / "shared" / name, cuts=cuts)
        alone = train.run(config, tmp_path / "alone" / name, cuts=())
        assert content(shared) == content(alone), name
    assert len(stage_folders(tmp_path / "shared")) == len(plan)
    assert any(stage.config.low_rank and len(stage.cells) > 1 for stage in plan.values())


def test_a_beginning_that_diverges_is_the_end_of_all_that_share_it(tmp_path):
    """A learning rate that no model survives; the cells are as they are alone, and the stage is trained once."""
    wild = {"lr": 3e-3, "low_rank_lr": 1e4, "warmup_steps": 5}
    rule = {"window": 2, "rise": 0.1}
    parts = [{"method": {"name": "relora", **BASE, "jagged": jagged}} for jagged in (True, False)]
    cells = {f"c{n}": changed(tiny_tables(), optimizer=wild, divergence=rule, **p) for n, p in enumerate(parts)}
    plan = stages.plan(cells)
    for name, config in cells.items():
        shared = train.run(config, tmp_path / "shared" / name, cuts=[20, 33])
        alone = train.run(config, tmp_path / "alone" / name, cuts=())
        assert content(shared) == content(alone)
    assert sorted(stage.cuts[-1] for stage in plan.values()) == [20, 33]
    assert {run.state for run in stage_folders(tmp_path / "shared")} == {"finished", "diverged"}
