"""Fine-tuning: a T5 that writes the label and a LLaMA with a head for it, through the same loop and run folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import assert_near, changed, run, tiny_tables
from transformers import (
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaForCausalLM,
    T5ForConditionalGeneration,
)

from analysis.spectra import delta_spectra
from relora_lab import config, environment, fine_tuning, models, objective, sizes, tasks, train
from relora_lab import state as states
from relora_lab.errors import BadInput, Interrupted
from relora_lab.fine_tuning import Batch
from relora_lab.runs import RunFolder
from relora_lab.update import update

MODELS = {
    "t5": {"size": "t5-demo", "hidden": 32, "intermediate": 48},
    "llama": {"size": "demo", "hidden": 32, "intermediate": 48, "heads": 2},
}
RELORA = {"name": "relora", "rank": 2, "restart_every": 8, "restart_warmup": 2, "optimizer_reset": "magnitude"}


def tables(kind: str) -> dict[str, Any]:
    """A run of 24 updates of a small model on the embedded task, with restarts at 8 and 16."""
    return {
        "model": MODELS[kind],
        "task": {"name": "packages", "eval_examples": 40},
        "data": {"sequence_length": 150, "batch_size": 8},
        "method": RELORA,
        "training": {"steps": 24, "eval_every": 12, "norms_every": 8, "checkpoint_every": 5},
        "optimizer": {"lr": 2e-3},
    }


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A folder in which all runs of this module share their examples."""
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module", params=MODELS)
def tuned(request, runs):
    """(kind, a finished run of it)."""
    return request.param, RunFolder(train.run(changed(tables(request.param)), runs / request.param))


def begin(settings: Any, runs: Path) -> tuple[states.TrainState, Any, Any]:
    """State at step 0, objective and examples of a run."""
    read = train.tokens(settings, runs)
    state = states.initial(settings, read.vocab_size)
    return state, objective.of(settings, read), read


def test_the_run_folder_is_that_of_any_run(tuned):
    _, folder = tuned
    assert folder.state == "finished"
    assert folder.status["identity_deviation"] < 1e-5
    assert [facts["end"] for facts in folder.cycle_facts()] == [8, 16, 24]
    assert {line["matrix"] for line in folder.logs.read("norms")} == {
        matrix.name for matrix in sizes.matrices(folder.config.model.shape)
    }
    frame = delta_spectra(folder.path / "warm_start", folder.path / "final")
    assert int((frame["sigma"] > 1e-5).groupby(frame["matrix"]).sum().max()) <= 6
    folder.require_undamaged("")


def test_evaluations_have_the_loss_and_the_tasks_metrics(tuned):
    _, folder = tuned
    lines = folder.logs.read("eval")
    assert [line["step"] for line in lines] == [0, 12, 24]
    assert all(set(line) == {"step", "loss", "score", "examples", "accuracy"} for line in lines)
    assert all(line["score"] == line["accuracy"] and line["examples"] == 40 for line in lines)
    assert lines[-1]["loss"] < lines[0]["loss"]
    assert folder.status["score"] == lines[-1]["score"]


def test_tokens_are_counted_without_padding(tuned, runs):
    _, folder = tuned
    settings = folder.config
    read = train.tokens(settings, runs)
    batches = [objective.of(settings, read).batch(step) for step in range(24)]
    assert folder.logs.read("metrics")[-1]["tokens"] == sum(int(batch.lengths.sum()) for batch in batches)
    assert any(batch.lengths.min() < batch.inputs.shape[1] for batch in batches)


def test_parameters_are_those_of_the_model(tuned, runs):
    _, folder = tuned
    state, _, read = begin(folder.config, runs)
    total = sum(p.numel() for p in state.model.parameters())
    states.begin_low_rank(state, folder.config.low_rank)
    trained = sum(p.numel() for p in state.model.parameters() if p.requires_grad)
    assert folder.environment["parameters"] == {"total": total, "trained": trained}
    assert folder.config.parameters(read.vocab_size) == (total, trained)


def test_only_the_head_embeddings_and_norms_are_not_wrapped(tuned, runs):
    kind, folder = tuned
    state, _, _ = begin(folder.config, runs)
    states.begin_low_rank(state, folder.config.low_rank)
    assert set(state.layers) == {matrix.name for matrix in sizes.matrices(folder.config.model.shape)}
    assert ("score.weight" in state.trained.values()) == (kind == "llama")


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize(
    "method", ["full", "lora", "online_relora", "redora", "repissa", "reloqra", "galore", "adam_mini"]
)
def test_every_method_fine_tunes(runs, kind, method):
    rank = {} if method in ("full", "adam_mini") else {"rank": 2}
    every = {"restart_every": 4, "restart_warmup": 1} if method in ("redora", "repissa", "reloqra") else {}
    every |= {"restart_every": 8, "merge_every": 3, "restart_warmup": 1} if method == "online_relora" else {}
    settings = changed(tables(kind), method={"name": method, **rank, **every}, training={"steps": 10})
    folder = RunFolder(train.run(settings, runs / f"{kind}-{method}"))
    assert folder.state == "finished"
    assert delta_spectra(folder.path / "warm_start", folder.path / "final")["sigma"].max() > 1e-4


def test_resumed_it_ends_with_the_same_bytes(tuned, runs, monkeypatch):
    kind, whole = tuned
    path = runs / f"{kind}-resumed"
    own = fine_tuning._OfExamples.batch

    def stops(self, step):
        if step == 13:
            raise Interrupted(15, "at the 13th batch")
        return own(self, step)

    monkeypatch.setattr(fine_tuning._OfExamples, "batch", stops)
    with pytest.raises(Interrupted):
        train.run(whole.config, path)
    monkeypatch.undo()
    resumed = RunFolder(train.run(whole.config, path, resume=True))
    for name in ("final/model.safetensors", "eval.jsonl", "norms.jsonl", "cycles/0003.safetensors"):
        assert (resumed.path / name).read_bytes() == (whole.path / name).read_bytes()
    drop = {"tokens_per_second"}
    lines, expected = (
        [{k: v for k, v in line.items() if k not in drop} for line in folder.logs.read("metrics")]
        for folder in (resumed, whole)
    )
    assert lines == expected


@pytest.mark.parametrize("kind", MODELS)
def test_micro_batches_give_the_same_update(runs, kind):
    """Though parts have targets of other lengths: each weighs as much as it predicts."""
    losses, weights = [], []
    for parts in (1, 4):
        settings = changed(tables(kind), training={"micro_batches": parts})
        state, trained_for, _ = begin(settings, runs)
        losses.append(update(state, trained_for).loss)
        update(state, trained_for)
        weights.append(list(state.model.state_dict().values()))
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert_near(*weights, tolerance=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_padding_changes_nothing(runs, kind):
    """Neither loss nor gradients nor what is said: LLaMA pools the last token that is none, T5 masks."""
    state, trained_for, read = begin(changed(tables(kind)), runs)
    batch = trained_for.batch(0)
    for pad in (read.pad_token_id, 65):  # whatever token it is
        more = torch.full((len(batch), 7), pad)
        places = torch.arange(batch.inputs.shape[1])
        inputs = torch.where(places < batch.lengths[:, None], batch.inputs, pad)
        padded = Batch(torch.cat([inputs, more], 1), batch.lengths, batch.labels)
        found = []
        for one in (batch, padded):
            state.model.zero_grad()
            loss = trained_for.loss(state.model, one)
            loss.backward()
            gradients = [p.grad.clone() for p in state.model.parameters() if p.grad is not None]
            with torch.no_grad(), objective.evaluating(state.model):
                said = trained_for._predict(state.model, one).nan_to_num(-1)
                found.append([loss, said + 10, *gradients])
        assert_near(*found, tolerance=1e-5)


@pytest.mark.parametrize("tuned", ["llama"], indirect=True)
def test_transformers_opens_the_classifier_and_padding_is_its_own(tuned, runs):
    _, folder = tuned
    state, trained_for, read = begin(folder.config, runs)
    theirs = AutoModelForSequenceClassification.from_pretrained(folder.path / "final").eval()
    assert theirs.config.id2label == dict(enumerate(tasks.PACKAGES))
    state.model.load_state_dict(theirs.state_dict())
    batch = trained_for._of(read.held_out, range(16))
    with torch.no_grad(), objective.evaluating(state.model):
        ours = fine_tuning._logits(state.model, batch)
        said = theirs(input_ids=batch.inputs, attention_mask=batch.mask).logits
    assert_near([ours], [said], tolerance=1e-5)


@pytest.mark.parametrize("tuned", ["t5"], indirect=True)
def test_transformers_opens_the_t5_and_writes_the_same(tuned, runs):
    _, folder = tuned
    state, trained_for, read = begin(folder.config, runs)
    theirs = AutoModelForSeq2SeqLM.from_pretrained(folder.path / "final").eval()
    state.model.load_state_dict(theirs.state_dict())
    tokenizer = AutoTokenizer.from_pretrained(folder.path / "final")
    assert (tokenizer.pad_token_id, tokenizer.eos_token_id) == (read.pad_token_id, read.eos_token_id)
    batch = trained_for._of(read.held_out, range(8))
    with torch.no_grad(), objective.evaluating(state.model):
        loss = theirs(input_ids=batch.inputs, attention_mask=batch.mask, labels=batch.labels).loss
        assert float(trained_for.loss(state.model, batch)) == pytest.approx(float(loss), rel=1e-6)


def test_a_t5_that_writes_a_label_says_it_and_one_that_writes_none_says_nothing(runs, monkeypatch):
    state, trained_for, read = begin(changed(tables("t5")), runs)
    batch = trained_for._of(read.held_out, range(3))
    right = read.targets[2]
    longest = max(map(len, read.targets))
    rows = [right, right[:-1], [*right, 70]]  # as it is, without its end, and with more after the end
    written = torch.tensor([[0, *row, *[0] * (longest + 1 - len(row))] for row in rows])
    monkeypatch.setattr(state.model, "generate", lambda *_, **__: written)
    said = trained_for._predict(state.model, batch)
    assert said[0] == said[2] == 2
    assert said[1].isnan()


# ---- weights to begin with


@pytest.fixture(scope="module")
def pretrained(runs):
    """A finished run on text, of the LLaMA that is tuned here."""
    tiny = tiny_tables()
    tiny["training"] |= {"steps": 30, "warm_start": 10}
    tiny["method"] |= {"restart_every": 10}
    return RunFolder(train.run(changed(tiny, model=MODELS["llama"]), runs / "pretrained"))


def weights_of(folder: Path) -> dict[str, Any]:
    return {**MODELS["llama"], "weights": str(folder)}


def test_a_run_is_tuned_from_its_final_weights(runs, pretrained):
    settings = changed(tables("llama"), model=weights_of(pretrained.path), training={"steps": 9})
    folder = RunFolder(train.run(settings, runs / "from-run"))
    assert folder.environment["warm_start"] == "pretrained"
    for matrix in sizes.matrices(settings.model.shape):
        name = f"{matrix.name}.weight"
        assert torch.equal(folder.weight("warm_start", name), pretrained.weight("final", name))
        assert not torch.equal(folder.weight("final", name), pretrained.weight("final", name))


def test_a_tuned_run_can_be_tuned_further_and_keeps_its_head(runs, tuned):
    kind, first = tuned
    settings = changed(tables(kind), model={"weights": str(first.path / "final")}, training={"steps": 9})
    folder = RunFolder(train.run(settings, runs / f"{kind}-further"))
    head = "score.weight" if kind == "llama" else "shared.weight"
    assert torch.equal(folder.weight("warm_start", head), first.weight("final", head))


def test_a_head_for_other_labels_is_not_taken(runs, tmp_path):
    first = train.run(changed(tables("llama"), training={"steps": 9}), tmp_path / "first") / "final"
    about = json.loads((first / "config.json").read_text())
    about["id2label"] = {number: f"other {number}" for number in about["id2label"]}
    other = shutil.copytree(first, tmp_path / "other")
    (other / "config.json").write_text(json.dumps(about))
    heads = []
    for weights in (None, first, other):
        model = MODELS["llama"] | ({"weights": str(weights)} if weights else {})
        state, _, _ = begin(changed(tables("llama"), model=model), runs)
        heads.append(state.model.score.weight)
    assert torch.equal(heads[2], heads[0])
    assert not torch.equal(heads[1], heads[0])


def test_training_on_text_begins_with_weights_too(runs, pretrained, tiny):
    tiny["training"] |= {"warm_start": 0, "steps": 20}
    settings = changed(tiny, model=weights_of(pretrained.path), data={"tokenizer": "model"})
    folder = RunFolder(train.run(settings, runs / "text-from-run"))
    first = folder.logs.read("eval")[0]["loss"]
    assert first == pytest.approx(pretrained.final_evaluation["loss"], rel=1e-5)


def test_weights_that_changed_are_not_resumed(pretrained, tmp_path):
    path = tmp_path / "copy"
    path.mkdir()
    for file in (pretrained.path / "final").iterdir():
        (path / file.name).write_bytes(file.read_bytes())
    settings = changed(tables("llama"), model=weights_of(path), training={"steps": 4})
    folder = train.run(settings, tmp_path / "run")
    before = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(before | {"rms_norm_eps": 1e-5}))
    assert environment.made_with(settings) != {
        k: RunFolder(folder).environment[k] for k in environment.made_with(settings)
    }
    with pytest.raises(BadInput, match=r"cannot resume with other model\.weights"):
        train.run(settings, folder, resume=True)


@pytest.mark.parametrize(
    ("model", "data", "says"),
    [
        ({"hidden": 16}, {}, r"q_proj.weight is 32×32, model needs 16×16 \(and 1[34] more\)"),
        ({"layers": 3}, {}, r"missing model.layers.2.self_attn.q_proj.weight \(and 6 more\)"),
        ({"layers": 1}, {}, r"has 2 layers, and the model needs 1 \(model.size, model.layers\)"),
        ({"heads": 4}, {}, r"has 2 heads, and the model needs 4"),
        ({"size": "t5-demo"}, {}, "is a model of type llama, and model.size t5-demo is a t5"),
        ({}, {"tokenizer": "bpe", "vocab_size": 300}, "embed_tokens.weight is 256×32, model needs 300×32"),
    ],
)
def test_weights_of_another_model_are_refused_before_anything_is_written(pretrained, tmp_path, model, data, says):
    settings = changed(tables("llama"), model=weights_of(pretrained.path) | model, data=data)
    with pytest.raises(BadInput, match=says):
        train.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def hub_folder(folder: Path, kind: str, **fields: Any) -> Path:
    """A model of the shape of MODELS as transformers saves it, but for some fields of its configuration."""
    shape = changed(tables(kind)).model.shape
    if kind == "t5":
        T5ForConditionalGeneration(models.t5_config(shape, vocab_size=256, **fields)).save_pretrained(folder)
    else:
        LlamaForCausalLM(models.llama_config(shape, vocab_size=256, **fields)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "fields", "says"),
    [
        ("llama", {"attention_bias": True}, "self_attn.k_proj.bias, for which the model has no place"),
        ("t5", {"num_decoder_layers": 3}, "holds decoder.block.2.*for which the model has no place"),
        ("t5", {"tie_word_embeddings": False}, "is a T5 with a head of its own"),
        ("t5", {"feed_forward_proj": "gelu"}, "has feed_forward_proj gelu; a T5 here has relu"),
    ],
)
def test_weights_of_another_function_are_refused_before_anything_is_written(tmp_path, kind, fields, says):
    weights = hub_folder(tmp_path / "hub", kind, **fields)
    settings = changed(tables(kind), model={**MODELS[kind], "weights": str(weights)})
    with pytest.raises(BadInput, match=f"model.weights: .*{says}"):
        train.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_tied_llama_is_no_beginning_for_training_on_text(tmp_path, tiny):
    weights = hub_folder(tmp_path / "hub", "llama", tie_word_embeddings=True)
    settings = changed(tiny, model=weights_of(weights), training={"warm_start": 0})
    with pytest.raises(BadInput, match=r"has no lm_head.weight: its embeddings are the head"):
        train.run(settings, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_weights_that_are_not_there_are_named(capsys, tmp_path):
    path = tmp_path / "run.toml"
    path.write_text(config.dumps(changed(tables("llama"), model=weights_of(tmp_path / "gone"))))
    code, _, err = run(capsys, "train", path, "--out", tmp_path / "run")
    assert code == 2
    assert err.strip().endswith(f"model.weights: {tmp_path / 'gone'}: no such file or folder")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"task": {"name": "sst-2"}}, "task.name: unknown task 'sst-2'; did you mean 'sst2'?"),
        ({"task": {"eval_examples": 0}}, "task.eval_examples: must be ≥ 1"),
        ({"data": {"corpus": "a.txt"}}, "data.corpus: is for training on text"),
        ({"data": {"dataset": "glue/"}}, "data.dataset: packages is made here"),
        ({"training": {"eval_tokens": 512}}, "training.eval_tokens: is of text"),
        ({"data": {"tokenizer": "model"}}, "data.tokenizer: 'model' is the one beside model.weights"),
        (
            {"model": {"weights": "x"}, "method": {"name": "lora", "rank": 2, "base": "zero"}},
            "method.base: a base of zero",
        ),
        ({"model": {"init_std": 0.1}}, "model.init_std: is LLaMA's"),
        ({"method": {"rank": 99}}, r"method.rank: rank 99 > min\(64, 32\) = 32 for encoder.block.0.layer.0"),
    ],
)
def test_settings_that_do_not_fit_are_named(parts, says):
    with pytest.raises(BadInput, match=says):
        changed(tables("t5"), **parts)


def test_a_t5_needs_a_task(tiny):
    with pytest.raises(BadInput, match=r"model.size: t5-base writes text for a task; name it in \[task\]"):
        changed(tiny, model={"size": "t5-base", "hidden": None, "intermediate": None, "heads": None})


# ---- what it learns


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "steps", "times"), [("llama", 120, 3), ("t5", 300, 2)])
def test_the_embedded_task_is_learned_to_several_times_what_the_majority_scores(runs, kind, steps, times):
    settings = changed(
        tables(kind),
        model={"size": {"t5": "t5-demo", "llama": "demo"}[kind], **dict.fromkeys(MODELS[kind].keys() - {"size"})},
        method={"name": "full"},
        task={"eval_examples": 300},
        data={"tokenizer": "bpe", "vocab_size": 2048, "sequence_length": 96, "batch_size": 32},
        training={"steps": steps, "eval_every": steps, "norms_every": steps},
        optimizer={"lr": 5e-3, "warmup_steps": 30},
    )
    folder = RunFolder(train.run(settings, runs / f"{kind}-learns"))
    majority = folder.environment["corpus"]["majority"]
    assert majority == pytest.approx(1 / 6)
    assert folder.status["score"] > times * majority
