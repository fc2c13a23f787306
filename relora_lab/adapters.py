"""What a run trained, as a PEFT LoRA adapter to its warm_start/: its own factors side by side, none made anew.

ΔW, the sum of ±s·B·A over the cycles, is s·[±B1, ±B2, …]·[A1; A2; …]: one LoRA whose rank is the sum of theirs.
Nothing but signs changes in the stored numbers. What was trained beside the factors goes in whole.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from relora_lab import files, tensor_files
from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder
from relora_lab.settings import RunConfig
from relora_lab.workspace import check_place

Cycles = list[dict[str, Any]]
TASK_TYPES = {
    "CausalLM": "CAUSAL_LM",
    "SequenceClassification": "SEQ_CLS",
    "ConditionalGeneration": "SEQ_2_SEQ_LM",
}


def export(run: RunFolder, out: Path) -> int:
    """Write the adapter into the folder `out`, whole or not at all. Returns its rank.

    On warm_start/ it gives what final/ gives, but for rounding. Raises BadInput where the run's ΔW is no sum of
    factor pairs, and where `out` is no place for it.
    """
    check_place(out)
    require(not out.exists() or not any(out.iterdir()), f"--out {out}: is not empty; choose another folder")
    cycles = _without_cancelled(_cycles(run))
    config, matrices = run.config, run.factored_matrices(cycles)
    method = config.low_rank
    assert method
    pairs = sum(key.rpartition(".")[0] == matrices[0] for facts in cycles for key in facts["scales"])
    exact = pairs == 1 or config.training.precision != "bf16"
    require(exact, f"{run.path}: its weights are bfloat16, and what merges rounded is in no factor; use its final/")
    whole = _trained_whole(run, matrices)
    settings = {
        "peft_type": "LORA",
        "task_type": TASK_TYPES[_architecture(run).rpartition("For")[2]],
        "base_model_name_or_path": str(run.weights("warm_start").absolute()),
        "r": pairs * method.rank,
        "lora_alpha": pairs * (method.rank if method.alpha is None else method.alpha),  # alpha / r is as it was
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": matrices,
        "modules_to_save": sorted({name.rpartition(".")[0] for name in whole}) or None,
        "inference_mode": True,
    }
    made: dict[str, Callable[[], Tensor]] = {
        f"{name}.lora_{factor}.weight": partial(_joined, run, name, cycles, factor)
        for name in matrices
        for factor in "AB"
    }
    made |= {name: partial(run.weight, "final", stored) for name, stored in whole.items()}
    tensors = _Made({f"base_model.model.{name}": make for name, make in made.items()})
    out = out.absolute()
    out.parent.mkdir(parents=True, exist_ok=True)
    with files.new_folder(out) as making:
        files.write_json(making / "adapter_config.json", settings)
        tensor_files.write(making / "adapter_model.safetensors", tensors)
    return pairs * method.rank


class _Made(Mapping[str, Tensor]):
    """Tensors by name, each made when it is asked for, so that memory holds one."""

    def __init__(self, made: Mapping[str, Callable[[], Tensor]]) -> None:
        self._made = made

    def __getitem__(self, name: str) -> Tensor:
        return self._made[name]()

    def __iter__(self) -> Iterator[str]:
        return iter(self._made)

    def __len__(self) -> int:
        return len(self._made)


def _joined(run: RunFolder, name: str, cycles: Cycles, factor: str) -> Tensor:
    """A or B of one matrix: those of all pairs, with the signs in B."""
    pairs = run.pairs(name, cycles)
    if factor == "A":
        return torch.cat([A for _, A, _ in pairs])
    return torch.cat([B if scale > 0 else -B for B, _, scale in pairs], dim=1)


# ---- which runs are a sum of factor pairs


def _cycles(run: RunFolder) -> Cycles:
    """The cycles whose sum is ΔW. Raises BadInput, naming the run, where it is none."""
    require(run.started, f"{run.path}: is no run folder")
    config = run.config
    run.weights("final")
    require(run.state == "finished", f"{run.path}: has {run.state}; only a finished run has an adapter")
    run.require_undamaged("warm_start/", "final/", "cycles/")
    cycles = run.cycle_facts(since=config.training.reference)
    if not cycles or not all(facts["factored"] for facts in cycles):
        raise BadInput(f"{run.path}: {_why_not(config)}, so it has no LoRA adapter; use its final/")
    return cycles


def _why_not(config: RunConfig) -> str:
    method, training = config.low_rank, config.training
    if method is None:
        return f"{config.method_name} trains every weight"
    if method.rescales:
        return f"{config.method_name} scales W beside adding to it"
    if method.quantise:
        return f"ΔW has the rounding of W to {method.quantise}"
    if not method.keeps_function:
        return "W jumps at every restart (method.qr_mode)"
    if training.reference < training.warm_start:
        return f"ΔW counts from step {training.reference}, and all weights are trained up to {training.warm_start}"
    return f"ΔW counts from step {training.reference}, and no cycle ends after it"


def _without_cancelled(cycles: Cycles) -> Cycles:
    """Without the pairs that cancel: where factors went on unmerged (LoRA's do), what a cycle ended with is what the
    next one takes away again."""
    found, went_on = [], False
    for facts in cycles:
        goes_on = not facts["merged"] and facts is not cycles[-1]
        gone = {"0": goes_on, "1": went_on}  # the end's pair, the start's
        scales = {key: scale for key, scale in facts["scales"].items() if not gone[key.rpartition(".")[2]]}
        found.append({**facts, "scales": scales})
        went_on = goes_on
    return found


# ---- what was trained beside the factors


def _trained_whole(run: RunFolder, matrices: list[str]) -> dict[str, str]:
    """Of all other tensors those that changed: the name in final/, by each name that the model has for it."""
    factored = {f"{name}.weight" for name in matrices}
    stored = tensor_files.header(run.path / "final" / "model.safetensors").tensors.keys() - factored
    ends = ((name, run.weight("warm_start", name), run.weight("final", name)) for name in sorted(stored))
    changed = [name for name, start, final in ends if not torch.equal(start, final)]
    names = _names_of_tied(run)
    return {alias: name for name in changed for alias in names.get(name, [name])}


def _names_of_tied(run: RunFolder) -> dict[str, list[str]]:
    """All names of each parameter, by each of them. PEFT unties what it saves whole, so it has to have each."""
    import transformers

    config = transformers.AutoConfig.from_pretrained(run.weights("final"))
    with torch.device("meta"):
        model = getattr(transformers, _architecture(run))(config)
    names = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names[parameter].append(name)
    return {name: tied for tied in names.values() for name in tied}


def _architecture(run: RunFolder) -> str:
    return str(files.read_json(run.weights("final") / "config.json")["architectures"][0])
