"""A run on real text, from settings to run folder: what it leaves, and that it adds up."""

import itertools
import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from conftest import changed, tiny_tables
from transformers import AutoModelForCausalLM, AutoTokenizer

from relora_lab import data, state, train, trainer
from relora_lab.divergence import Monitor
from relora_lab.objective import LanguageModelling
from relora_lab.runs import RunFolder, snapshot
from relora_lab.schedule import lr_multiplier

LOW_RANK = {"rank": 2, "restart_every": 14, "restart_warmup": 3}
NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file of a folder."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def ranks(folder: RunFolder) -> set[int]:
    """Numerical ranks of ΔW over all wrapped matrices."""
    found = set()
    for pairs, _ in folder.cycles():
        for name in pairs:
            delta = folder.weight("final", f"{name}.weight") - folder.weight("warm_start", f"{name}.weight")
            sigma = torch.linalg.svdvals(delta.double())
            found.add(int((sigma > 1e-5 * sigma[0]).sum()))
    return found


@pytest.fixture(scope="module")
def relora(tmp_path_factory):
    """One finished ReLoRA run: warm start to 20, restarts after updates 34 and 48, end at 60."""
    config = changed(tiny_tables())
    return config, RunFolder(train.run(config, tmp_path_factory.mktemp("runs") / "relora"))


def test_the_run_folder_holds_what_the_readme_lists(relora):
    _, folder = relora
    found = {path.relative_to(folder.path).as_posix() for path in folder.path.rglob("*") if path.is_file()}
    expected = {"config.toml", "environment.json", "status.json", "manifest.json"}
    expected |= {"metrics.jsonl", "eval.jsonl", "norms.jsonl", ".lock"}
    weights = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")
    expected |= {f"{which}/{name}" for which in ("warm_start", "final") for name in weights}
    expected |= {f"cycles/{n:04d}.{kind}" for n in (1, 2, 3) for kind in ("json", "safetensors")}
    checkpoint = {"model.safetensors", "optimizer.safetensors", "start_factors.safetensors", "state.json"}
    assert found == expected | {f"checkpoints/000000060/{name}" for name in checkpoint}
    assert not (folder.path / "snapshots").exists()  # nobody asked for any
    assert folder.status["state"] == "finished"
    assert folder.environment["warm_start"] == "warm start"
    assert folder.environment["bit_identical"] is True
    assert folder.manifest.keys() >= {f"{which}/{name}" for which in ("warm_start", "final") for name in weights}
    corpus = folder.environment["corpus"]
    assert len(corpus["text_sha256"]) == 64
    assert (corpus["tokenizer"], corpus["vocab_size"]) == ("bytes", 256)


def test_metrics_have_a_line_an_update_with_the_schedule_of_each_phase(relora):
    config, folder = relora
    lines = folder.logs.read("metrics")
    assert [line["step"] for line in lines] == list(range(1, 61))
    assert lines[-1]["tokens"] == 60 * 4 * 32
    shape = {"warmup_steps": 5, "min_ratio": config.optimizer.min_ratio}
    full = [3e-3 * lr_multiplier(step, total_steps=60, **shape) for step in range(20)]
    jagged = {"restart_every": 14, "restart_warmup": 3, **shape}
    low_rank = [6e-3 * lr_multiplier(step, total_steps=40, **jagged) for step in range(40)]
    assert [line["lr"] for line in lines] == full + low_rank


def test_evaluations_are_at_the_warm_start_every_so_often_and_at_the_end(relora):
    _, folder = relora
    assert [line["step"] for line in folder.logs.read("eval")] == [20, 25, 50, 60]
    assert folder.logs.read("eval")[-1]["loss"] < folder.logs.read("eval")[0]["loss"]


@pytest.mark.parametrize(("which", "step"), [("warm_start", 20), ("final", 60)])
def test_transformers_opens_the_weights_and_finds_the_runs_loss(relora, which, step):
    config, folder = relora
    model = AutoModelForCausalLM.from_pretrained(folder.path / which)
    corpus = data.open_corpus(
        config.data.corpus, folder.path.parent / ".tokens", sequence_length=config.data.sequence_length
    )
    found = LanguageModelling(config, corpus).evaluate(model)
    [logged] = [line for line in folder.logs.read("eval") if line["step"] == step]
    assert found.loss == pytest.approx(logged["loss"], abs=1e-5)
    assert found.perplexity == pytest.approx(logged["perplexity"], rel=1e-5)
    assert found.tokens == logged["tokens"]
    tokenizer = AutoTokenizer.from_pretrained(folder.path / which)
    assert len(tokenizer) == model.config.vocab_size == 256
    assert tokenizer.eos_token_id is model.config.eos_token_id is None
    assert tokenizer("é\n x")["input_ids"] == list("é\n x".encode())


def test_restarts_keep_the_function_and_say_what_they_reset(relora):
    _, folder = relora
    facts = [facts for _, facts in folder.cycles()]
    assert [(f["start"], f["end"]) for f in facts] == [(20, 34), (34, 48), (48, 60)]
    for restart in facts[:-1]:
        assert abs(restart["function_jump"]) <= 1e-5
        assert restart["merged"]
        assert restart["zeroed"] == restart["entries"] > 0
        assert restart["orphans"] == 0
        assert restart["lr"] > 0
    assert not facts[-1]["merged"]


def test_delta_w_is_the_sum_of_the_cycles_and_has_their_rank(relora):
    _, folder = relora
    assert folder.status["identity_deviation"] < 1e-5
    for name in NAMES:
        delta = folder.weight("final", f"{name}.weight") - folder.weight("warm_start", f"{name}.weight")
        total = sum(scale * B @ A for pairs, _ in folder.cycles() for B, A, scale in pairs[name])
        torch.testing.assert_close(delta, total, atol=1e-6, rtol=0)
    assert ranks(folder) == {6}  # three cycles of rank 2


def test_with_a_later_reference_delta_w_is_the_sum_of_the_cycles_since(tmp_path, tiny):
    folder = RunFolder(train.run(changed(tiny, training={"reference_step": 40}), tmp_path / "run"))
    delta = folder.weight("final", f"{NAMES[0]}.weight") - folder.weight("warm_start", f"{NAMES[0]}.weight")
    total = sum(scale * B @ A for pairs, _ in folder.cycles(since=40) for B, A, scale in pairs[NAMES[0]])
    torch.testing.assert_close(delta, total, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("method", "training", "steps"),
    [
        ({}, {}, [30, 40, 50]),
        ({}, {"reference_step": 40}, [50]),
        ({}, {"reference_step": 10}, [30, 40, 50]),
        ({}, {"snapshot_every": 60}, []),
        ({"name": "full"}, {"warm_start": 0, "reference_step": 20}, [30, 40, 50]),
        ({"name": "full"}, {"warm_start": 30, "reference_step": 20}, [40, 50]),
        ({"name": "galore", "rank": 2, "gap": 10}, {"warm_start": 0}, [10, 20, 30, 40, 50]),
    ],
)
def test_snapshots_are_kept_where_they_are_due_and_in_no_stage(tmp_path, tiny, method, training, steps):
    config = changed(tiny, method=method, training={"snapshot_every": 10} | training)
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert list(folder.snapshots) == list(config.training.snapshot_steps) == steps
    assert (folder.path / "snapshots").exists() == bool(steps)
    for step, path in folder.snapshots.items():
        found, final = content(path), content(folder.path / "final")
        assert found.pop("model.safetensors") != final.pop("model.safetensors")
        assert found == final  # model and tokenizer, as transformers reads them
        assert f"{snapshot(step)}/model.safetensors" in folder.manifest
    assert not list(tmp_path.glob(".stages/*/snapshots"))


@pytest.mark.parametrize(
    ("method", "training"),
    [
        ({}, {}),
        ({"name": "lora", "rank": 2}, {}),
        ({"name": "redora", **LOW_RANK}, {}),
        ({"name": "reloqra", **LOW_RANK, "qr_mode": "paper", "alpha": 0.2}, {}),
        ({"quantise": "int8"}, {}),
        ({}, {"precision": "bf16"}),
        ({"name": "full"}, {"warm_start": 0, "reference_step": 20}),
    ],
)
def test_a_snapshot_is_the_weights_that_delta_w_could_be_measured_from_there(tmp_path, tiny, method, training):
    """Byte for byte the warm_start/ of a run whose reference is that step, at a restart (34) and between (51)."""
    config = changed(tiny, method=method, training={"snapshot_every": 17} | training)
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert list(folder.snapshots) == [34, 51]
    for step, path in folder.snapshots.items():
        other = changed(tiny, method=method, training=training | {"reference_step": step})
        reference = RunFolder(train.run(other, tmp_path / f"reference{step}")).weights("warm_start")
        assert content(path) == content(reference)
    assert content(folder.snapshots[51]) != content(folder.path / "final")


def test_a_snapshot_is_the_reference_and_the_cycles_before_it(tmp_path, tiny):
    config = changed(tiny, training={"snapshot_every": 2})
    folder = RunFolder(train.run(config, tmp_path / "run"))
    for restart in (34, 48):
        for name in NAMES:
            delta = folder.weight(snapshot(restart), f"{name}.weight") - folder.weight("warm_start", f"{name}.weight")
            cycles = [pairs[name] for pairs, facts in folder.cycles() if facts["end"] <= restart]
            assert len(cycles) == {34: 1, 48: 2}[restart]
            torch.testing.assert_close(delta, sum(s * B @ A for c in cycles for B, A, s in c), atol=1e-6, rtol=0)
            sigma = torch.linalg.svdvals(delta.double())
            assert int((sigma > 1e-5 * sigma[0]).sum()) == 2 * len(cycles)


def test_a_diverged_run_has_its_last_weights_in_final_alone(tmp_path, tiny):
    config = changed(tiny, optimizer={"low_rank_lr": 100.0, "clip": float("inf")}, training={"snapshot_every": 1})
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert folder.state == "diverged"
    assert list(folder.snapshots) == list(range(21, folder.status["step"]))


def test_norms_are_traced_and_surround_each_restart(relora):
    _, folder = relora
    rows = [row for row in folder.logs.read("norms") if row["matrix"] == NAMES[0]]
    moments = [(row["step"], row["moment"]) for row in rows]
    restarts = [(step, moment) for step in (34, 48) for moment in ("before", "after")]
    assert moments == sorted([(step, "trace") for step in range(10, 61, 10)] + restarts, key=lambda m: m[0])
    for step in (34, 48):
        before, after = (next(r for r in rows if (r["step"], r["moment"]) == (step, m)) for m in ("before", "after"))
        assert before["sBA"] > 0 == after["sBA"] == after["B"]
        assert before["W_merged"] == pytest.approx(after["W_merged"], rel=1e-6)
        assert before["delta_W"] == pytest.approx(after["delta_W"], rel=1e-4)
    assert rows[0]["sBA"] is None  # step 10 is full-rank, and before the reference
    assert rows[0]["delta_W"] is None
    last = folder.weight("final", f"{NAMES[0]}.weight") - folder.weight("warm_start", f"{NAMES[0]}.weight")
    assert rows[-1]["delta_W"] == pytest.approx(float(last.norm()), rel=1e-5)


@pytest.mark.parametrize("warm_start", [0, 20])
@pytest.mark.parametrize("jagged", [False, True])
@pytest.mark.parametrize("reset", ["none", "magnitude"])
@pytest.mark.parametrize("method", ["lora", "relora"])
def test_every_combination_of_the_toggles_trains(tmp_path, tiny, method, reset, jagged, warm_start):
    config = changed(
        tiny,
        method={"name": method, **LOW_RANK, "optimizer_reset": reset, "jagged": jagged},
        training={"warm_start": warm_start},
    )
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert folder.state == "finished"
    events = [facts for _, facts in folder.cycles()][:-1]
    assert [event["end"] for event in events] == list(range(warm_start + 14, 60, 14))
    for event in events:
        assert event["merged"] == (method == "relora")
        assert abs(event["function_jump"]) <= 1e-5
        assert (event["zeroed"] / event["entries"] > 0.9) == (reset == "magnitude")
    rates = {line["step"]: line["lr"] for line in folder.logs.read("metrics")}
    assert (rates[warm_start + 15] == 0) == jagged
    # One cycle is one rank of 2; from scratch ΔW is counted from B = 0 too.
    assert ranks(folder) == {2 * (len(events) + 1) if method == "relora" else 2}


@pytest.mark.parametrize(
    ("method", "training", "rank", "kind"),
    [
        ({"name": "full"}, {"reference_step": 20}, None, "snapshot"),
        ({"name": "lora", "rank": 2}, {"reference_step": 30}, 4, "snapshot"),
        ({"name": "lora", "rank": 2}, {"reference_step": 20}, 2, "warm start"),
        ({"name": "lora", "rank": 2}, {"warm_start": 0, "reference_step": 20}, 4, "snapshot"),
        ({"name": "lora", "rank": 2, "base": "zero"}, {"warm_start": 0}, 4, "init"),
        ({"name": "low_rank", "rank": 2}, {"warm_start": 0}, 4, "init"),
        ({"name": "relora", **LOW_RANK, "base": "zero"}, {"warm_start": 0}, 12, "init"),
        ({"name": "relora", **LOW_RANK}, {"reference_step": 40}, 6, "snapshot"),
        ({"name": "relora", **LOW_RANK}, {"reference_step": 10}, 16, "snapshot"),
    ],
)
def test_delta_w_from_any_reference_and_base(tmp_path, tiny, method, training, rank, kind):
    """Ranks as factor pairs bound them: 2r for LoRA from a reference where B·A is not zero, and so for a cycle."""
    config = changed(tiny, method=method, training={"warm_start": 20 if method["name"] != "full" else 0} | training)
    folder = RunFolder(train.run(config, tmp_path / "run"))
    assert folder.state == "finished"
    assert folder.environment["warm_start"] == kind
    factored = [facts["factored"] for _, facts in folder.cycles()]
    assert all(factored) == (config.training.reference != 10)
    assert ("identity_deviation" in folder.status) == (bool(factored) and all(factored))
    if rank is not None:
        assert ranks(folder) == {rank}
    if method["name"] == "low_rank":
        merged = sum(scale * B @ A for B, A, scale in next(folder.cycles())[0][NAMES[0]][:1])
        torch.testing.assert_close(folder.weight("final", f"{NAMES[0]}.weight"), merged)


def test_accumulating_micro_batches_gives_the_same_losses(tmp_path, tiny):
    losses = []
    for parts in (1, 4):
        config = changed(tiny, training={"micro_batches": parts})
        folder = RunFolder(train.run(config, tmp_path / f"run{parts}"))
        losses.append([line["loss"] for log in ("metrics", "eval") for line in folder.logs.read(log)])
    assert losses[0] == pytest.approx(losses[1], abs=1e-4)


def test_gradients_are_clipped_and_their_norm_is_logged_as_it_was(tmp_path, tiny):
    losses, norms = [], []
    for clip in (1e-7, float("inf")):  # so small that Adam's eps shows
        folder = RunFolder(train.run(changed(tiny, optimizer={"clip": clip}), tmp_path / f"clip{clip}"))
        losses.append([line["loss"] for line in folder.logs.read("metrics")])
        norms.append(folder.logs.read("metrics")[0]["grad_norm"])
    assert losses[0][:2] == losses[1][:2]
    assert losses[0][-1] > losses[1][-1] + 0.1
    assert norms[0] == norms[1] > 0.1


@pytest.mark.parametrize(("mask", "orphans"), [("separate", True), ("shared", False)])
def test_orphans_of_separate_masks_are_recorded(tmp_path, tiny, mask, orphans):
    method = {"optimizer_reset": "magnitude", "reset_ratio": 0.9, "reset_mask": mask}
    folder = RunFolder(train.run(changed(tiny, method=method), tmp_path / "run"))
    assert all((facts["orphans"] > 0) == orphans for _, facts in list(folder.cycles())[:-1])


def test_the_optimizer_has_its_settings_and_seeds_reach_weights_and_batches(tmp_path, tiny):
    settings = {"betas": [0.8, 0.9], "eps": 1e-5, "min_ratio": 0.3}
    configs = [changed(tiny, optimizer=settings, training={"seed": seed}) for seed in (0, 0, 1)]
    corpus = data.open_corpus(tiny["data"]["corpus"], tmp_path, sequence_length=32)
    made = [state.initial(config, corpus.vocab_size) for config in configs]
    for one in made:
        state.begin_low_rank(one, one.config.low_rank)
        assert (one.optimizer.defaults["betas"], one.optimizer.defaults["eps"]) == ((0.8, 0.9), 1e-5)
        assert one.optimizer.defaults["weight_decay"] == 0
    batches = [LanguageModelling(config, corpus).batch(3) for config in configs]
    weights = [one.model.get_parameter(f"{NAMES[0]}.weight") for one in made]
    factors = [one.layers[NAMES[0]].lora_A for one in made]
    for first, same, other in (batches, weights, factors):
        assert torch.equal(first, same)
        assert not torch.equal(first, other)


def test_an_evaluation_weighs_every_token_alike(tmp_path, tiny):
    config = changed(tiny, training={"eval_tokens": 32 * 7})  # batches of 4 and of 3 sequences
    corpus = data.open_corpus(tiny["data"]["corpus"], tmp_path, sequence_length=32)
    model = state.initial(config, corpus.vocab_size).model
    rows = torch.cat(list(data.held_out_batches(corpus, tokens=32 * 7, batch_size=1, sequence_length=32)))
    with torch.no_grad():
        losses = F.cross_entropy(model(rows).logits[:, :-1].transpose(1, 2), rows[:, 1:], reduction="none")
    found = LanguageModelling(config, corpus).evaluate(model)
    assert found.tokens == losses.numel() == 7 * 31
    assert found.loss == pytest.approx(float(losses.mean()), rel=1e-6)
    assert found.perplexity == pytest.approx(float(losses.mean().exp()), rel=1e-5)


def test_the_monitor_knows_the_restarts(tmp_path, tiny, monkeypatch):
    known = []
    monkeypatch.setattr(trainer, "Monitor", lambda *arguments: known.append(arguments[2:]) or Monitor(*arguments))
    train.run(changed(tiny), tmp_path / "run", cuts=())
    assert [(list(restarts), warmup) for restarts, warmup in known] == [([34, 48], 3)]


def test_divergence_is_a_result(tmp_path, tiny):
    config = changed(tiny, optimizer={"low_rank_lr": 100.0, "clip": float("inf")})
    folder = RunFolder(train.run(config, tmp_path / "run"))
    status = folder.status
    assert status["state"] == "diverged"
    assert 20 < status["step"] < 60
    assert status["reason"]
    assert len(folder.logs.read("metrics")) == status["step"]
    assert all(torch.isfinite(folder.weight("final", f"{name}.weight")).all() for name in NAMES)
    assert train.run(config, folder.path, resume=True) == folder.path  # nothing left to do


def test_a_loss_that_is_no_number_is_not_applied(tmp_path, tiny, monkeypatch):
    loss = LanguageModelling.loss

    updates = itertools.count(1)

    def failing(self, model, batch):
        found = loss(self, model, batch)
        return found * float("nan") if model.training and next(updates) == 31 else found

    monkeypatch.setattr(LanguageModelling, "loss", failing)
    folder = RunFolder(train.run(changed(tiny), tmp_path / "run", cuts=()))
    assert folder.status["reason"] == "loss of update 31 is nan"
    assert folder.status["step"] == 30 == len(folder.logs.read("metrics"))
    assert torch.isfinite(folder.weight("final", f"{NAMES[0]}.weight")).all()


def test_a_failed_check_is_a_failed_run(tmp_path, tiny, monkeypatch):
    def forget(layer, _):
        layer.lora_B.data.zero_()
        return {}

    monkeypatch.setattr("relora_lab.lowrank.LowRankLinear.restart", forget)
    with pytest.raises(RuntimeError, match="differs from the sum of the cycles"):
        train.run(changed(tiny), tmp_path / "run")
    assert RunFolder(tmp_path / "run").state == "failed"
    assert "differs from the sum" in json.loads((tmp_path / "run" / "status.json").read_text())["reason"]
