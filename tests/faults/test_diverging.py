"""A run that goes wrong: what stops it, what it keeps, and what it says."""

import itertools
import json
import math
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import changed, run, tiny_tables
from safetensors.torch import load_file, save_file

from relora_lab import config, train
from relora_lab.objective import LanguageModelling
from relora_lab.runs import RunFolder, snapshot

WEIGHTS = "model.safetensors"


def content(folder: Path) -> dict[str, bytes]:
    """The bytes of every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def before_update(monkeypatch: pytest.MonkeyPatch, number: int, act: Any) -> None:
    """Call `act` with the model before the loss of that update (1-based) of the next run."""
    loss, updates = LanguageModelling.loss, itertools.count(1)

    def counted(self: LanguageModelling, model: Any, batch: torch.Tensor) -> torch.Tensor:
        if model.training and next(updates) == number:
            act(model)
        return loss(self, model, batch)

    monkeypatch.setattr(LanguageModelling, "loss", counted)


def spoil_one_gradient(value: float) -> Any:
    """One entry of the gradient of one matrix, in one backward pass, is `value`."""

    def act(model: Any) -> None:
        projection = model.model.layers[1].mlp.down_proj
        parameter = getattr(projection, "lora_A", projection.weight)

        def spoiled(gradient: torch.Tensor) -> torch.Tensor:
            hook.remove()
            gradient = gradient.clone()
            gradient[0, 1] = value
            return gradient

        hook = parameter.register_hook(spoiled)

    return act


def stop(_: Any) -> None:
    raise RuntimeError("stopped")


# Of the full-rank stage, in the first cycle, and the first with fresh factors (after the restart at 34).
@pytest.mark.parametrize(("update", "value"), [(11, math.nan), (31, math.nan), (35, -math.inf)])
def test_a_gradient_that_is_no_number_is_not_applied(tmp_path, tiny, capsys, monkeypatch, update, value):
    step = update - 1
    toml = tmp_path / "run.toml"
    toml.write_text(config.dumps(changed(tiny, training={"checkpoint_every": 7})))
    out = tmp_path / "runs" / "diverges"
    with monkeypatch.context() as patch:
        before_update(patch, update, spoil_one_gradient(value))
        code, printed, _ = run(capsys, "train", toml, "--out", out)
    diverged = RunFolder(out)
    reason = f"grad_norm of update {update} is {'inf' if math.isinf(value) else 'nan'}"
    assert (code, diverged.state, diverged.status["step"]) == (5, "diverged", step)
    assert diverged.status["reason"] == reason
    assert f"diverged ({reason}) at step {step}" in printed
    lines = diverged.logs.read("metrics")
    assert [line["step"] for line in lines] == list(range(1, update))
    assert all(math.isfinite(number) for line in lines for number in line.values())

    # A run that was whole until then, and left its weights and its state at that very step.
    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="stopped"):
        before_update(patch, update, stop)
        reference = step if step < 20 else 20
        kept = {"checkpoint_every": step, "snapshot_every": step, "reference_step": reference}
        train.run(changed(tiny, training=kept), tmp_path / "whole", cuts=())
    whole = RunFolder(tmp_path / "whole")
    assert diverged.checkpoint_step == whole.checkpoint_step == step
    states = [content(folder.checkpoints / f"{step:09d}") for folder in (diverged, whole)]
    facts = [json.loads(state.pop("state.json")) for state in states]
    assert states[0] == states[1]
    assert facts[0]["optimizer"] == facts[1]["optimizer"]
    kept_weights = whole.path / ("warm_start" if step == reference else snapshot(step))
    assert content(out / "final") == content(kept_weights)
    assert all(tensor.isfinite().all() for tensor in load_file(out / "final" / WEIGHTS).values())

    left = content(out)
    code, printed, _ = run(capsys, "train", toml, "--out", out, "--resume")
    assert (code, content(out)) == (5, left)
    assert reason in printed


def published(**parts: dict[str, Any]) -> config.RunConfig:
    """The published recipe's reset at a high rate, on a tiny model: warm start to 40, restarts at 80 and 120."""
    recipe: dict[str, dict[str, Any]] = {
        "model": {"hidden": 32, "intermediate": 80},
        "data": {"batch_size": 8},
        "method": {"rank": 8, "restart_every": 40, "restart_warmup": 0, "optimizer_reset": "magnitude"},
        "training": {"steps": 160, "warm_start": 40, "norms_every": 1000, "checkpoint_every": 1000, "seed": 1},
        "optimizer": {"low_rank_lr": 4e-2},
        "divergence": {"window": 5},
    }
    recipe["method"] |= {"reset_mask": "separate", "jagged": False}
    return changed(tiny_tables(), **{name: part | parts.get(name, {}) for name, part in recipe.items()})


def losses(folder: RunFolder) -> list[float]:
    """Of every update."""
    return [line["loss"] for line in folder.logs.read("metrics")]


def test_the_published_reset_diverges_soon_after_a_restart_and_long_before_any_nan(tmp_path):
    watched = RunFolder(train.run(published(), tmp_path / "watched", cuts=()))
    assert watched.state == "diverged"
    assert watched.status["reason"].startswith("the mean loss ")
    assert 80 < watched.status["step"] <= 80 + 5  # the window, with no restart warm-up
    assert watched.cycle_facts()[0]["orphans"] > 50
    assert max(losses(watched)[80:]) > max(losses(watched)[40:80]) + 2
    # Nobody watches it: the same losses, and 75 updates and a restart later still no NaN that would have told.
    unwatched = RunFolder(train.run(published(divergence={"window": 1000}), tmp_path / "unwatched", cuts=()))
    assert (unwatched.state, unwatched.status["step"]) == ("finished", 160)
    assert losses(unwatched)[: watched.status["step"]] == losses(watched)
    assert all(map(math.isfinite, losses(unwatched)))


def test_the_published_reset_with_a_shared_mask_does_not_diverge(tmp_path):
    folder = RunFolder(train.run(published(method={"reset_mask": "shared"}), tmp_path / "run", cuts=()))
    assert folder.state == "finished"
    assert [facts["orphans"] for facts in folder.cycle_facts()[:2]] == [0, 0]
    assert max(losses(folder)[80:]) < max(losses(folder)[40:80])


def test_a_reset_that_zeroes_nothing_fails_the_run_in_a_line(tmp_path, tiny, capsys):
    rare = changed(tiny, method={"optimizer_reset": "random", "reset_ratio": 1e-9})
    toml = tmp_path / "run.toml"
    toml.write_text(config.dumps(rare))
    code, _, err = run(capsys, "train", toml, "--out", tmp_path / "run")
    said = "the optimizer reset (random, 1e-09) zeroed none of"
    folder = RunFolder(tmp_path / "run")
    assert (code, folder.state) == (1, "failed")
    assert said in folder.status["reason"]
    assert "\n" not in folder.status["reason"]
    assert [line for line in err.splitlines() if said in line] == err.splitlines()[-1:]
    assert "Traceback" not in err
    assert not (folder.path / "final").exists()


def test_a_matrix_that_is_not_finite_is_counted_and_the_others_are_analysed(tmp_path, tiny, capsys):
    folder = train.run(changed(tiny), tmp_path / "run", cuts=())
    ends = [tmp_path / name for name in ("start", "whole", "broken")]
    for which, end in zip(("warm_start", "final", "final"), ends, strict=True):
        shutil.copytree(folder / which, end)
    name = "model.layers.0.self_attn.v_proj"
    tensors = load_file(ends[2] / WEIGHTS)
    tensors[f"{name}.weight"][3, 5:8] = torch.tensor([math.nan, math.inf, -math.inf])
    save_file(tensors, ends[2] / WEIGHTS, {"format": "pt"})
    code, printed, err = run(capsys, "spectrum", ends[0], ends[1], "--json")
    assert (code, err) == (0, "")
    whole = {matrix["matrix"]: matrix for matrix in json.loads(printed)["matrices"]}
    code, printed, err = run(capsys, "spectrum", ends[0], ends[2], "--json", "--out", tmp_path / "spectra")
    broken = {matrix["matrix"]: matrix for matrix in json.loads(printed)["matrices"]}
    assert code == 3
    assert f"{name}: 3 non-finite values; marked nonfinite, the rest analysed" in err
    assert (broken[name]["nonfinite"], broken[name]["rank"]) == (3, None)
    assert set(broken[name]["sigma"]) == {None}
    del whole[name], broken[name]
    assert whole == broken
    assert len(whole) == 13
    assert (tmp_path / "spectra" / "spectra.png").exists()
