"""Every method from the same command to the same run folder: it ends, adds up, and goes on to the same bits."""

import signal

import pytest
import torch
from conftest import changed, tiny_tables
from test_repeat import content, in_child

from analysis import counts, load_runs, spectra, tables
from relora_lab import methods, train
from relora_lab.errors import BadInput
from relora_lab.optim.galore import refresh_schedule
from relora_lab.runs import RunFolder

CYCLE = {"rank": 2, "restart_every": 14, "restart_warmup": 3, "optimizer_reset": "zero"}
COLD = {"training": {"warm_start": 0}}
GALORE = {"name": "galore", "rank": 4, "gap": 10, "scale": 1.0}
SYSTEMS = {
    "full": ({"name": "full"}, COLD),
    "full-bf16": ({"name": "full"}, {"training": COLD["training"] | {"precision": "bf16"}}),
    "full-bf16-states": (
        {"name": "full"},
        {"training": COLD["training"] | {"precision": "bf16"}, "optimizer": {"state_dtype": "bf16"}},
    ),
    "adam-mini": ({"name": "adam_mini"}, COLD),
    "adam-mini-v1.1": ({"name": "adam_mini", "partition": "v1.1"}, COLD),
    "galore": (GALORE, COLD),
    "galore-ef": (GALORE | {"error_feedback": 0.2}, COLD),
    "galore-dynamics": (GALORE | {"dynamic": True, "dynamic_from": 10}, COLD),
    "galore-both": (GALORE | {"error_feedback": 0.1, "dynamic": True, "dynamic_from": 10}, COLD),
    "low-rank": ({"name": "low_rank", "rank": 2}, COLD),
    "lora-zero-base": ({"name": "lora", "rank": 2, "base": "zero"}, COLD),
    "lora": ({"name": "lora", "rank": 2}, COLD),
    "lora-warm": ({"name": "lora", "rank": 2}, {}),
    "relora": ({"name": "relora", **CYCLE}, {}),
    "online-relora": ({"name": "online_relora", "merge_every": 5, **CYCLE}, {}),
    "redora": ({"name": "redora", **CYCLE}, {}),
    "repissa": ({"name": "repissa", **CYCLE}, {}),
    "reloqra": ({"name": "reloqra", **CYCLE}, {}),
    "reloqra-paper": ({"name": "reloqra", "qr_mode": "paper", **CYCLE}, {}),
    "lora-resets": ({"name": "lora", **CYCLE}, {}),
    "lora-resets-later": ({"name": "lora", **CYCLE}, {"training": {"reference_step": 30}}),
    "lora-int8": ({"name": "lora", "quantise": "int8", **CYCLE}, {}),
    "relora-int8": ({"name": "relora", "quantise": "int8", **CYCLE}, {}),
    "repissa-nf4": ({"name": "repissa", "quantise": "nf4", **CYCLE}, {}),
}
# The most that ΔW's rank can be in each of the two matrices' shapes, 16×16 and 16×40: c = 3 cycles of rank 2.
CEILINGS = {
    "lora-warm": 2,
    "lora-resets": 2,  # they merge nothing
    "lora-resets-later": 4,
    "relora": 6,
    "online-relora": 16,  # of 10 cycles: all there is
    "repissa": 12,
    "reloqra": 12,
    "reloqra-paper": 6,
    "redora": 16,
    "galore": 16,
    "relora-int8": 16,
}


def config_of(name, **parts):
    if any(kind in name for kind in ("int8", "nf4")):
        pytest.importorskip("bitsandbytes")
    method, changes = SYSTEMS[name]
    both = {table: changes.get(table, {}) | parts.get(table, {}) for table in {**changes, **parts}}
    return changed(tiny_tables(), method=method, **both)


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The run of a system, trained when a test first asks for it."""
    found, folder = {}, tmp_path_factory.mktemp("systems")

    def run(name):
        if name not in found:
            found[name] = RunFolder(train.run(config_of(name), folder / name))
        return found[name]

    return run


def test_the_systems_are_all_methods():
    assert {method["name"] for method, _ in SYSTEMS.values()} == set(methods.available())


@pytest.mark.parametrize("name", SYSTEMS)
def test_every_system_learns_and_leaves_the_same_folder(ended, name):
    folder = ended(name)
    losses = [line["loss"] for line in folder.logs.read("eval")]
    assert folder.state == "finished"
    assert losses[-1] < losses[0]
    assert folder.has_weights
    assert bool(folder.cycle_facts()) == (folder.config.low_rank is not None)
    assert folder.environment["parameters"]["trained"] == folder.config.method.trained(
        folder.config.model.shape, folder.environment["corpus"]["vocab_size"]
    )


@pytest.mark.parametrize("name", ["relora", "online-relora", "redora", "repissa", "reloqra"])
def test_methods_that_keep_the_function_do_not_jump(ended, name):
    *restarts, last = ended(name).cycle_facts()
    assert all(abs(facts["function_jump"]) <= 1e-5 for facts in restarts)
    assert abs(restarts[0]["wrap_jump"]) <= 1e-5
    assert "function_jump" not in last
    assert all(facts["sBA"] > 0 for facts in restarts if facts["end"] - facts["start"] > 2)


def test_the_papers_reloqra_jumps_and_says_so(ended):
    folder = ended("reloqra-paper")
    *restarts, _ = folder.cycle_facts()
    assert all(abs(facts["function_jump"]) > 1e-3 for facts in restarts)
    assert abs(restarts[0]["wrap_jump"]) > 1e-3
    assert not any(facts["factored"] for facts in folder.cycle_facts())
    (warning,) = folder.config.warnings()
    assert "qr_mode = 'paper' at scale 1" in warning
    method = SYSTEMS["reloqra-paper"][0]
    assert changed(tiny_tables(), method=method | {"alpha": 1.0}).warnings() == []


@pytest.mark.parametrize("name", CEILINGS)
def test_ranks_meet_their_ceilings(ended, name):
    folder = ended(name)
    found = counts.of_run(folder.path)
    assert set(found["ceiling"]) == {CEILINGS[name]}
    assert (found["rank"] <= found["ceiling"]).all()
    if name == "reloqra":
        # (c + 1)·r: what is frozen has r columns of zeros, so Q begins each cycle in the span of the last one's B.
        assert set(found["rank"]) == {8}
    elif not name.startswith(("online", "reloqra")):
        assert (found["rank"] == found["ceiling"]).mean() > 0.8  # they use what they may


@pytest.mark.parametrize("name", ["relora", "online-relora", "repissa", "reloqra", "reloqra-paper"])
def test_factor_pairs_sum_up_to_what_changed(ended, name):
    """The paper's ReLoQRa too, whose cycles' starts do not count."""
    folder = ended(name)
    assert ("identity_deviation" in folder.status) == (name != "reloqra-paper")
    summed = {}
    for pairs, _ in folder.cycles(since=folder.config.training.reference):
        for matrix, found in pairs.items():
            change = sum(scale * (B.double() @ A.double()) for B, A, scale in found)
            summed[matrix] = summed.get(matrix, 0) + change
    for matrix, change in summed.items():
        weights = [folder.weight(which, f"{matrix}.weight").double() for which in ("warm_start", "final")]
        torch.testing.assert_close(weights[1] - weights[0], change, atol=2e-6, rtol=0)


def test_online_relora_merges_between_restarts_and_keeps_its_moments(ended):
    facts = ended("online-relora").cycle_facts()
    spans = [(one["end"] - 20, one.get("event")) for one in facts]
    merges = [(5, "merge"), (10, "merge"), (14, "restart"), (15, "merge"), (20, "merge"), (25, "merge")]
    assert spans == [*merges, (28, "restart"), (30, "merge"), (35, "merge"), (40, None)]
    assert all((one["zeroed"] == one["entries"]) == (one["event"] == "restart") for one in facts[1:-1])


def test_the_table_of_restarts_says_what_the_folders_say(ended):
    names = ["lora-warm", "online-relora", "reloqra-paper", "relora-int8"]
    table = tables.load("restarts").table(load_runs([ended(name).path for name in names])).set_index("label")
    assert set(table.index) == set(names[1:])  # LoRA has none
    for name in names[1:]:
        *facts, _ = ended(name).cycle_facts()
        jumps, row = [one["function_jump"] for one in facts], table.loc[name]
        assert (row["jump_low"], row["jump_high"]) == (min(jumps), max(jumps))
        assert row["restarts"] == 2
        assert row["merges"] == len(facts)
        assert row["wrap_jump_low"] == facts[0]["wrap_jump"]
        assert row["zeroed_percent"] == 100
    assert table.loc["online-relora", "merges"] == 9
    assert table.loc["relora-int8", "quantisation_error"] > 0
    assert tables.shown(table.reset_index())["quantisation error"].tolist()[0] == "–"


def test_the_table_of_methods_compares_with_relora(ended):
    names = ["full", "relora", "repissa", "galore", "adam-mini"]
    table = tables.load("methods").table(load_runs([ended(name).path for name in names])).set_index("label")
    for name in names:
        less = ended(name).final_evaluation["loss"] - ended("relora").final_evaluation["loss"]
        assert table.loc[name, "loss"] == ended(name).final_evaluation["loss"]
        if name != "relora":
            assert table.loc[name, "difference"] == pytest.approx(less)
    assert tables.load("methods").table(load_runs([ended(name).path for name in names[:2]])).empty


@pytest.mark.parametrize("name", ["relora-int8", "repissa-nf4"])
def test_the_error_of_requantising_is_recorded(ended, name):
    most = 0.01 if "int8" in name else 0.15
    *restarts, _ = ended(name).cycle_facts()
    assert all(0 < facts["quantisation_error"] < most for facts in restarts)
    assert all(0 < abs(facts["function_jump"]) < 0.01 for facts in restarts)


@pytest.mark.parametrize("name", ["galore", "galore-both"])
def test_galore_refreshes_on_schedule(name, tmp_path):
    rule = {"dynamic": name != "galore", "dynamic_from": 10}
    config = config_of(name, training={"checkpoint_every": 1})
    folder = RunFolder(train.run(config, tmp_path / "run"))
    _, facts = folder.load_checkpoint()
    last = {value for key, value in facts["optimizer"].items() if key.endswith(".last_refresh")}
    assert last == {refresh_schedule(10, 60, **rule)[-1]}


def test_bf16_is_stored_as_bf16_and_labelled(ended):
    folder = ended("full-bf16-states")
    assert folder.weight("final", "lm_head.weight").dtype == torch.bfloat16
    tensors, _ = folder.load_checkpoint()
    assert {t.dtype for key, t in tensors["optimizer"].items() if not key.endswith("step")} == {torch.bfloat16}
    tensors, _ = ended("full-bf16").load_checkpoint()
    assert {t.dtype for key, t in tensors["optimizer"].items() if not key.endswith("step")} == {torch.float32}
    assert spectra.of_run(folder.path).matrices["dtype"].unique().tolist() == ["BF16"]


def test_autocast_and_gradient_checkpointing_train_as_float32_does(tmp_path, ended):
    expected = [line["loss"] for line in ended("relora").logs.read("metrics")]
    for name, settings, within in (
        ("checkpointing", {"gradient_checkpointing": True}, 1e-5),
        ("autocast", {"precision": "bf16-autocast"}, 0.05),
        ("both", {"precision": "bf16-autocast", "gradient_checkpointing": True}, 0.05),
    ):
        folder = RunFolder(train.run(config_of("relora", training=settings), tmp_path / name))
        found = [line["loss"] for line in folder.logs.read("metrics")]
        assert found == pytest.approx(expected, abs=within)
        assert name == "checkpointing" or found != expected
        assert folder.weight("final", "lm_head.weight").dtype == torch.float32


@pytest.mark.parametrize("name", ["galore-both", "adam-mini", "redora", "repissa", "lora-int8", "online-relora"])
def test_killed_and_resumed_is_as_if_nothing_had_happened(tmp_path, ended, name):
    config = config_of(name)
    expected = content(ended(name).path)
    for at in (22, 45):
        assert in_child(config, tmp_path / "run", at, signal.SIGKILL) == -signal.SIGKILL
    train.run(config, tmp_path / "run", resume=True)
    assert content(tmp_path / "run") == expected


@pytest.mark.parametrize("name", ["repissa", "reloqra-paper"])
def test_delta_w_counts_from_before_the_wrapping(tmp_path, ended, name):
    """Through a stage, without one, and stopped at that very step: the same reference."""
    expected = content(ended(name).path)
    alone = train.run(config_of(name), tmp_path / "alone", cuts=())
    assert content(alone) == expected
    assert in_child(config_of(name), tmp_path / "stopped", 20, signal.SIGTERM) == 1
    train.run(config_of(name), tmp_path / "stopped", resume=True)
    assert content(tmp_path / "stopped") == expected


@pytest.mark.parametrize(
    ("method", "training", "message"),
    [
        ({"name": "adam_mini", "rank": 2}, {}, "method.rank: is no setting of adam_mini but of galore, lora"),
        ({"name": "galore", "rank": 2, "restart_every": 9}, {}, "method.restart_every: is no setting of galore"),
        ({"name": "galore", "rank": 17}, {}, r"rank 17 > min\(16, 16\) = 16 for model.layers.0.self_attn.q_proj"),
        ({"name": "galore", "rank": 2}, {"warm_start": 20}, "training.warm_start: galore trains at full rank"),
        ({"name": "adam_mini"}, {"warm_start": 20}, "training.warm_start: adam_mini trains at full rank"),
        ({"name": "galore", "rank": 2, "error_feedback": 2.0}, {}, r"method.error_feedback: must be in \[0, 1\]"),
        ({"name": "redora", **CYCLE, "base": "zero"}, {}, "method.base: expected 'random'"),
        ({"name": "repissa", "rank": 2}, {}, "method.restart_every: repissa needs it"),
        ({"name": "reloqra", **CYCLE, "qr_mode": "papr"}, {}, "method.qr_mode: expected 'residual' or 'paper'"),
        ({"name": "relora", **CYCLE, "quantise": "int4"}, {}, "method.quantise: expected 'int8' or 'nf4'"),
        ({"name": "redorra", **CYCLE}, {}, "unknown method 'redorra'; did you mean 'redora'"),
        ({"name": "online_relora", **CYCLE, "merge_every": 0}, {}, "method.merge_every: must be ≥ 1"),
        (
            {"name": "full"},
            {"precision": "fp8"},
            "training.precision: expected 'float32' or 'bf16-autocast'",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_by_name(tiny, method, training, message):
    with pytest.raises(BadInput, match=message):
        changed(tiny, method=method, training={"warm_start": 0} | training)
