"""Which beginnings the cells of a grid share."""

import pytest
from conftest import changed

from relora_lab import stages


def planned(cells):
    """Each stage's start, end and cells, in order."""
    found = stages.plan(cells).values()
    return sorted((stage.start, stage.cuts[-1], sorted(stage.cells)) for stage in found)


@pytest.fixture
def cell(tiny):
    """Makes a cell: changes to the tiny run, whose warm start ends at 20 and first restart is at 34."""
    return lambda **parts: changed(tiny, **parts)


LORA = {"name": "lora", "rank": 2}
FULL = {"name": "full"}


def test_the_full_run_is_cut_at_every_warm_start_of_the_grid(cell):
    cells = {f"warm{w}": cell(training={"warm_start": w}) for w in (10, 24, 31)}
    cells["full"] = cell(method=FULL, training={"warm_start": 0, "reference_step": 40})
    full_rank = [found for found in planned(cells) if "full" in found[2]]
    assert full_rank == [
        (0, 10, ["full", "warm10", "warm24", "warm31"]),
        (10, 24, ["full", "warm24", "warm31"]),
        (24, 31, ["full", "warm31"]),
        (31, 40, ["full"]),
    ]


def test_a_reference_before_the_cut_is_logged_from_there_so_only_those_who_have_it_share(cell):
    cells = {
        "early": cell(training={"warm_start": 30, "reference_step": 20}),
        "full": cell(method=FULL, training={"warm_start": 0, "reference_step": 20}),
        "late": cell(training={"warm_start": 30}),
    }
    assert planned(cells) == [
        (0, 20, ["early", "full", "late"]),
        (20, 30, ["early", "full"]),
        (20, 30, ["late"]),
    ]


def test_what_differs_at_restarts_alone_is_shared_up_to_the_first_one(cell):
    cells = {
        "relora": cell(),
        "pruned": cell(method={"optimizer_reset": "magnitude"}),
        "no-jags": cell(method={"jagged": False}),
        "later": cell(method={"restart_every": 19}),
        "lora": cell(method=LORA),
        "rank4": cell(method={"rank": 4}),
    }
    assert planned(cells) == [
        (0, 20, sorted(cells)),
        (20, 33, ["later", "lora", "no-jags", "pruned", "relora"]),
        (33, 38, ["later", "lora"]),
    ]


def test_a_merge_ends_what_is_shared_too_and_other_layers_share_among_themselves(cell):
    online = {"name": "online_relora", "rank": 2, "merge_every": 5, "restart_every": 14, "restart_warmup": 3}
    redora = {"name": "redora", "rank": 2, "restart_every": 14, "restart_warmup": 3}
    cells = {
        "relora": cell(),
        "online": cell(method=online),
        "redora": cell(method=redora),
        "redora-zero": cell(method={**redora, "optimizer_reset": "zero"}),
    }
    assert planned(cells)[1:] == [
        (20, 24, ["online", "relora"]),
        (20, 33, ["redora", "redora-zero"]),
    ]


@pytest.mark.parametrize(
    "parts",
    [
        {"training": {"seed": 1}},
        {"training": {"eval_every": 5}},
        {"training": {"norms_every": 5}},
        {"training": {"micro_batches": 2}},
        {"training": {"precision": "bf16-autocast"}},
        {"training": {"steps": 61}},
        {"optimizer": {"lr": 1e-3}},
        {"divergence": {"window": 5}},
        {"data": {"batch_size": 8}},
        {"model": {"layers": 1}},
    ],
    ids=lambda parts: str(next(iter(parts.values()))),
)
def test_whatever_shows_in_bits_or_logs_is_not_shared(cell, parts):
    cells = {"one": cell(), "other": cell(**parts)}
    assert all(len(names) == 1 for *_, names in planned(cells))


def test_weights_kept_on_the_way_end_what_is_shared(cell):
    cells = {"kept": cell(training={"snapshot_every": 30}), "pruned": cell(method={"optimizer_reset": "magnitude"})}
    assert planned(cells) == [(0, 20, ["kept", "pruned"]), (20, 29, ["kept", "pruned"])]


def test_a_method_with_an_optimizer_of_its_own_shares_nothing(cell):
    galore = {"name": "galore", "rank": 2}
    cells = {
        name: cell(method={**galore, "gap": gap}, training={"warm_start": 0})
        for name, gap in zip("ab", (5, 9), strict=True)
    }
    assert planned(cells) == []


def test_a_single_low_rank_run_is_not_cut(cell):
    assert planned({"relora": cell()}) == [(0, 20, ["relora"])]
