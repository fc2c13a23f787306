"""Where ΔW is known as a sum of products Σ scale·B·A: a run's cycles, a PEFT adapter."""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from analysis.checkpoints import Stored, header
from analysis.naming import module_of
from relora_lab import files
from relora_lab.errors import BadInput, one_line, require
from relora_lab.runs import Pair, RunFolder

OF_ADAPTER = re.compile(r"(.+)\.lora_([AB])(\.[^.]+)?\.weight")
CONFIG = "adapter_config.json"
TRAINED_WHOLE = re.compile(r"\.modules_to_save(?:\.[^.]+)?\.")
# Settings of PEFT's LoraConfig under which the adapted weight is not W + scale·B·A of the base model's W.
NOT_PLAIN = [
    *("use_dora", "target_parameters", "layer_replication", "use_qalora", "alora_invocation_tokens"),
    *("use_bdlora", "arrow_config", "kasa_config", "monteclora_config"),
]
CHANGES_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclass(frozen=True)
class Factors:
    """A sum of products, whose factors `read` gets from `files`: (B (out, r), A (r, in), scale) each."""

    rank: int  # of all products together
    shape: tuple[int, int]
    files: tuple[Path, ...]
    read: Callable[[], list[Pair]]


@dataclass(frozen=True)
class Adapter:
    """A PEFT LoRA adapter: `factors` by the module they are added to, `whole` the tensors it replaces, by name.

    `ends` are the stored factors (B, A) by module, `tensors` counts all it holds.
    """

    path: Path
    factors: Mapping[str, Factors]
    ends: Mapping[str, tuple[Stored, Stored]]
    whole: Mapping[str, Stored]
    tensors: int

    def stored_of(self, module: str) -> list[Stored]:
        """Of what the module's change is made."""
        whole = self.whole.get(f"{module}.weight")
        return [*self.ends.get(module, ())] or ([whole] if whole else [])


def of_run(run: RunFolder) -> dict[str, Factors]:
    """Factors of ΔW = final − warm_start by module; none where their sum is not what is stored to float32's rounding.

    That is: its cycles are `factored`, the trainer's closing check has held, and weights are no narrower than float32
    (whose rounding is part of ΔW).
    """
    cycles = run.cycle_facts(since=run.config.training.reference)
    checked = run.status.get("identity_deviation")
    if not cycles or not all(facts["factored"] for facts in cycles) or checked is None or not math.isfinite(checked):
        return {}
    sources = tuple(file for facts in cycles for file in run.cycle_files(facts))  # factors and scales
    weights = [path for which in ("warm_start", "final") for path in run.weights(which).glob("*.safetensors")]
    stored = [tensor for path in weights for tensor in header(path)[0].values()]
    if any(tensor.dtype not in ("F32", "F64") for tensor in stored):
        return {}
    shapes = {module_of(tensor.name): tensor.shape for tensor in stored}
    pairs = Counter(key.rpartition(".")[0] for facts in cycles for key in facts["scales"])
    rank = run.config.low_rank.rank if run.config.low_rank else 0
    return {
        name: Factors(rank * times, (shapes[name][0], shapes[name][1]), sources, partial(_pairs, run, name, cycles))
        for name, times in pairs.items()
    }


def is_adapter(path: Path) -> bool:
    """Is this the folder of a PEFT adapter?"""
    return (path / CONFIG).exists()


def of_adapter(path: Path) -> Adapter:
    """A PEFT LoRA adapter, its headers read. Raises BadInput where it is not W + scale·B·A on the base model's W."""
    settings = files.read_json(path / CONFIG)
    kind = settings.get("peft_type")
    require(kind == "LORA", f"{path}: is an adapter of type {kind}; of PEFT's only LORA adds known products to W")
    merge = "merge it (merge_and_unload), save the model and compare that"
    for name in NOT_PLAIN:
        require(not settings.get(name), f"{path}: {name} is set, so it adds no plain product to W; {merge}")
    begun = str(settings.get("init_lora_weights"))
    require(
        not begun.startswith(CHANGES_THE_BASE),
        f"{path}: began with init_lora_weights = '{begun}', which changes the base model too; save it with "
        "path_initial_model_for_weight_conversion",
    )
    file = path / "adapter_model.safetensors"
    pickled = "; adapter_model.bin is a pickle, and never loaded" if file.with_suffix(".bin").exists() else ""
    require(file.exists(), f"{path}: holds no adapter_model.safetensors{pickled}")
    tensors, _ = header(file)
    ends, whole = _parts(file, tensors)
    factors = {module: _product(settings, path, module, B, A) for module, (B, A) in ends.items()}
    return Adapter(path, factors, ends, whole, len(tensors))


def _parts(file: Path, tensors: Mapping[str, Stored]) -> tuple[dict[str, tuple[Stored, Stored]], dict[str, Stored]]:
    """An adapter's factors (B, A) of linear maps by module, and the matrices that it has whole by name."""
    found: dict[str, dict[str, Stored]] = {}
    whole, adapters = {}, set()
    for name, stored in tensors.items():
        module = name.removeprefix("base_model.model.")
        require("lora_magnitude" not in module, f"{file}: {name} is of DoRA, which adds no plain product to W")
        if (factor := OF_ADAPTER.fullmatch(module)) and len(stored.shape) == 2:
            found.setdefault(factor[1], {})[factor[2]] = stored
            adapters.add(factor[3])
        elif len(stored.shape) == 2:
            whole[TRAINED_WHOLE.sub(".", module)] = stored
    require(len(adapters) < 2, f"{file}: holds several adapters; save one by itself")
    for module, factors in found.items():
        require(len(factors) == 2, f"{file}: {module} has lora_{min(factors)} alone")
    require(bool(found), f"{file}: holds no lora_A and lora_B of a linear map")
    return {module: (factors["B"], factors["A"]) for module, factors in found.items()}, whole


def _product(settings: Mapping[str, Any], path: Path, module: str, B: Stored, A: Stored) -> Factors:
    fits = A.shape[0] == B.shape[1] and A.shape[0] > 0
    require(fits, f"{B.file}: {module}: lora_B {B.shape} and lora_A {A.shape} have no product")
    try:
        scale = _scale(settings, module, A.shape[0])
    except (TypeError, ValueError, AttributeError, re.error) as error:
        raise BadInput(f"{path / CONFIG}: lora_alpha or alpha_pattern: {one_line(error)}") from None
    require(math.isfinite(scale), f"{path / CONFIG}: lora_alpha: expected a finite number, got {scale}")
    sources = (B.file, path / CONFIG)  # which has the scale
    return Factors(A.shape[0], (B.shape[0], A.shape[1]), sources, lambda: [(B.read(), A.read(), scale)])


def _scale(settings: Mapping[str, Any], module: str, rank: int) -> float:
    """alpha / r, or alpha / √r (rank-stabilised); alpha_pattern names modules by the end of their path (PEFT)."""
    own = [v for key, v in (settings.get("alpha_pattern") or {}).items() if re.match(rf"(.*\.)?({key})$", module)]
    alpha = own[0] if own else settings.get("lora_alpha", 8)
    return float(alpha) / (math.sqrt(rank) if settings.get("use_rslora") else rank)


def _pairs(run: RunFolder, name: str, cycles: list[dict[str, Any]]) -> list[Pair]:
    return list(run.pairs(name, cycles))
