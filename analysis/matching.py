"""The matrices that two models share, by name, one of them in memory at a time; and no for what does not fit.

GPT-2's Conv1D and some experts are stored (in, out): they are read as (out, in). A 3-D tensor of experts is a matrix
an expert. Embeddings, head, norms and all that is no linear map of a numbered block is left out unless it is chosen.
"""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence, Set
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from analysis import factors as known
from analysis.checkpoints import ROUNDING, Checkpoint, Stored, open_checkpoint
from analysis.factors import Adapter, Factors
from analysis.naming import Place, Selection, choose, in_block, module_of
from analysis.tied import HEAD, has_head, refuse_copies, refuse_shared
from relora_lab.errors import BadInput, require
from relora_lab.model_files import locate
from relora_lab.runs import RunFolder

EVERYTHING = Selection()
EXPERTS = re.compile(r"expert|moe|input_linear|output_linear")
EXPERTS_IN_OUT = {"aria", "aria_text", "gpt_oss", "llama4", "llama4_text", "openai_privacy_filter"}


@dataclass(frozen=True)
class Matrix:
    """A matrix (rows, cols) = (out, in) that two models share; `layer` is -1 outside numbered blocks.

    `factors` are there where ΔW is known as a sum of products; of an adapter's matrix `final` is None: it is
    start + ΔW.
    """

    name: str
    layer: int
    role: str
    start: Stored
    final: Stored | None
    factors: Factors | None = None

    @property
    def rows(self) -> int:
        """Output features."""
        return self.start.shape[0]

    @property
    def cols(self) -> int:
        """Input features."""
        return self.start.shape[1]

    @property
    def dtype(self) -> str:
        """The coarser of the stored dtypes: what it rounds away is in ΔW."""
        return max(self.start.dtype, (self.final or self.start).dtype, key=ROUNDING.__getitem__)

    @property
    def files(self) -> tuple[Path, ...]:
        """What ΔW is read from."""
        own = () if self.final is None else (self.start.file, self.final.file)
        return own + (self.factors.files if self.factors else ())

    def ends(self) -> tuple[Tensor, Tensor]:
        """(start W, final W), both (rows, cols), in float32, or in float64 where either was stored so."""
        if self.final is None:
            start = self.start.read().double()
            return start, start + self.delta()
        start, final = self.start.read(), self.final.read()
        dtype = torch.promote_types(torch.promote_types(start.dtype, final.dtype), torch.float32)
        return start.to(dtype), final.to(dtype)

    def delta(self) -> Tensor:
        """ΔW (rows, cols): the difference in the dtype of `ends`, or in float64 the sum of an adapter's products."""
        if self.final is not None:
            start, final = self.ends()
            return final - start
        assert self.factors is not None
        total = torch.zeros(self.rows, self.cols, dtype=torch.float64)
        for B, A, scale in self.factors.read():
            total.addmm_(B.double(), A.double(), alpha=scale)
        return total


@dataclass(frozen=True)
class Matched:
    """The matrices that two models share, in the order of the model.

    `left_out` counts the tensors of the final model (of an adapter: its own and its base's) that are not among
    them; `passed_over` names those of more dimensions in blocks. `run` is there where both ends are one run's.
    """

    start: str
    final: str
    matrices: list[Matrix]
    left_out: int
    passed_over: list[str]
    run: RunFolder | None = None


def match_models(start: str | Path, final: str | Path, selection: Selection = EVERYTHING) -> Matched:
    """The matrices to compare of two models: run folders (warm_start/ of `start`, final/ of `final`), Hugging Face
    folders, files, hub names; or of a model and a PEFT LoRA adapter to it.

    Only headers are read (and embeddings or head, where they are chosen). Raises BadInput, naming the matrix, where a
    selected one is missing from one side, has another shape there, is stored in a format that cannot be subtracted,
    or is shared with another; and where nothing is selected.
    """
    start_path, final_path = locate(start), locate(final)
    for folder in map(RunFolder, (start_path, final_path)):
        _ = folder.started and folder.config  # where a newer version wrote it, weights may mean something else
    require(
        not known.is_adapter(start_path),
        f"{start}: is an adapter; give its base model first: relora-lab spectrum BASE ADAPTER",
    )
    first = open_checkpoint(start_path, "warm_start")
    if known.is_adapter(final_path):
        return _of_adapter(first, known.of_adapter(final_path), selection)
    second = open_checkpoint(final_path, "final")
    layout = _layout(first, second)
    here, there = _aligned(_matrices(first, layout), _matrices(second, layout))
    chosen = _chosen([*here, *there], selection, second)
    both = [name for name in chosen if name in here and name in there]
    _refuse_shapes(first, second, {name: (here[name].shape, there[name].shape) for name in both})
    _refuse_missing(first, here, second, there, chosen)
    for side, tensors in ((first, here), (second, there)):
        _refuse_codes(side.path, [tensors[name] for name in chosen])
        refuse_shared(side, [tensors[name] for name in chosen])
    refuse_copies(first, second, [(here[name], there[name]) for name in chosen])
    run = first.run if second.run and first.path.resolve() == second.path.resolve() else None
    products = known.of_run(run) if run else {}
    matrices = [
        Matrix(module, layer, role, here[name], there[name], products.get(module))
        for name, (module, layer, role) in chosen.items()
    ]
    used = {there[name].name for name in chosen}
    return Matched(str(start), str(final), matrices, len(second.tensors) - len(used), _passed_over(second, used), run)


# ---- what a checkpoint holds


@dataclass(frozen=True)
class _Layout:
    """What is stored (in, out): Conv1D's weights (as GPT-2's), experts in one tensor."""

    conv1d: bool
    experts: bool


def _layout(*sides: Checkpoint) -> _Layout:
    """Of both sides alike: a part of a model tells less than the whole.

    A fused or widening map is higher than wide as (out, in), so where it is wide it is Conv1D's.
    """
    tensors = [stored for side in sides for stored in side.tensors.values()]
    widening = [stored.shape for stored in tensors if re.search(r"\.(c_attn|c_fc)\.weight$", stored.name)]
    kinds = {_model_type(side.config) for side in sides}
    return _Layout(any(len(s) == 2 and s[1] > s[0] for s in widening), bool(kinds & EXPERTS_IN_OUT))


def _matrices(checkpoint: Checkpoint, layout: _Layout) -> dict[str, Stored]:
    """Every matrix of a checkpoint by name, as (out, in)."""
    found = {}
    for name, stored in checkpoint.tensors.items():
        if 0 in stored.shape or name.endswith("bias"):
            continue
        if len(stored.shape) == 2:
            turned = layout.conv1d and bool(re.search(r"\.(c_attn|c_proj|c_fc|q_attn)\.weight$", name))
            found[name] = stored.matrix(transposed=turned)
        elif len(stored.shape) == 3 and EXPERTS.search(name):
            path, _, last = module_of(name).rpartition(".")
            for part in range(stored.shape[0]):
                found[f"{path}.{part}.{last}"] = stored.matrix(part=part, transposed=layout.experts)
    return found


def _passed_over(checkpoint: Checkpoint, used: Set[str]) -> list[str]:
    """Tensors of blocks that might hold weights, but are no matrix that is known."""
    return [
        name
        for name, stored in checkpoint.tensors.items()
        if len(stored.shape) > 2 and name not in used and in_block(name) and not name.endswith("bias")
    ]


def _aligned(here: dict[str, Stored], there: dict[str, Stored]) -> tuple[dict[str, Stored], dict[str, Stored]]:
    """Both by the same names, where one side's all lack a beginning: a model without a head often has none."""
    if here.keys() & there.keys():
        return here, there
    for shorter, longer in ((here, there), (there, here)):
        beginning = _beginning(shorter, longer)
        if beginning:
            renamed = {f"{beginning}{name}": stored for name, stored in shorter.items()}
            return (renamed, there) if shorter is here else (here, renamed)
    return here, there


def _beginning(shorter: Iterable[str], longer: Iterable[str]) -> str:
    """What the names of `longer` have before those of `shorter`, or nothing."""
    for name in islice(filter(in_block, shorter), 10):
        for other in longer:
            if other.endswith(f".{name}"):
                return other.removesuffix(name)
    return ""


# ---- what does not fit


def _chosen(names: Iterable[str], selection: Selection, final: Checkpoint) -> dict[str, Place]:
    """Of the selected names module, layer and role. Raises BadInput where there is none."""
    names = list(names)
    chosen = choose(names, selection)
    hint = f" by {selection}" if str(selection) else "; choose some with --match"
    if selection.roles and not chosen:
        roles = dict.fromkeys(role for _, _, role in choose(names, Selection(selection.match)).values())
        hint += f"; the roles are {', '.join(roles)}" if roles else ""
    tied = any(HEAD.search(f"{module_of(glob).removeprefix('*.')}.weight") for glob in selection.match)
    hint += "; the head is tied to the embeddings and not stored" if tied and not has_head(final) else ""
    require(bool(chosen), f"{final.path}: no matrix is selected{hint}")
    modules = Counter(module for module, _, _ in chosen.values())
    twice = [module for module, times in modules.items() if times > 1]
    require(not twice, f"{final.path}: {_and_more(twice)} and {_and_more(twice)}.weight are both there; select one")
    return chosen


def _refuse_missing(
    first: Checkpoint, here: dict[str, Stored], second: Checkpoint, there: dict[str, Stored], chosen: Iterable[str]
) -> None:
    for side, mine, other, theirs in ((first, here, second, there), (second, there, first, here)):
        gone = [name for name in chosen if name not in mine]
        if gone and gone[0] in side.tensors:  # there, but no matrix
            ends = side.tensors[gone[0]].shape, theirs[gone[0]].shape
            _refuse_shapes(first, second, {gone[0]: ends if side is first else ends[::-1]})
        alone = [name for name in chosen if name not in theirs]
        instead = f"; it has {alone[0]}, which {other.path} has not" if alone else f", which {other.path} has"
        require(not gone, f"{side.path}: missing {_and_more(gone)}{instead}")


def _refuse_shapes(
    first: Checkpoint, second: Checkpoint, shapes: Mapping[str, tuple[tuple[int, ...], tuple[int, ...]]]
) -> None:
    other = [name for name, (here, there) in shapes.items() if here != there]
    if other:
        here, there = (_by(shape) for shape in shapes[other[0]])
        also = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        raise BadInput(f"{first.path}: {other[0]} is {here}, but {there} in {second.path}{also}")


def _refuse_codes(path: Path, chosen: Iterable[Stored]) -> None:
    for stored in chosen:
        fine = stored.dtype in ROUNDING
        require(fine, f"{path}: {stored.name} is stored as {stored.dtype}, which cannot be subtracted")


# ---- adapters


def _of_adapter(base: Checkpoint, adapter: Adapter, selection: Selection) -> Matched:
    here = _matrices(base, _layout(base))
    changed = [f"{module}.weight" for module in adapter.factors]
    beginning = "" if any(name in here for name in changed) else _beginning(here, changed)
    here = {f"{beginning}{name}": stored for name, stored in here.items()}
    unknown = [name for name in changed if name not in here]
    require(not unknown, f"{base.path}: has no {_and_more(unknown)}, which the adapter {adapter.path} changes")
    chosen = _chosen([name for name in here if name in changed or name in adapter.whole], selection, base)
    matrices = []
    for name, (module, layer, role) in chosen.items():
        factors, whole = adapter.factors.get(module), adapter.whole.get(name)
        shape, start = factors.shape if factors else whole.shape if whole else (), here[name]
        if factors and start.shape != shape and start.shape[::-1] == shape:  # fan_in_fan_out
            start = base.tensors[start.name].matrix(transposed=not start.transposed)
        fits = start.shape == shape
        require(fits, f"{base.path}: {name} is {_by(start.shape)}, but {_by(shape)} for the adapter {adapter.path}")
        matrices.append(Matrix(module, layer, role, start, None if factors else whole, factors))
    starts = [matrix.start for matrix in matrices]
    refuse_shared(base, starts)
    _refuse_codes(base.path, starts)
    _refuse_codes(adapter.path, [stored for matrix in matrices for stored in adapter.stored_of(matrix.name)])
    left_out = (
        len(base.tensors) - len(matrices) + adapter.tensors - sum(len(adapter.stored_of(m.name)) for m in matrices)
    )
    used = {start.name for start in starts}
    return Matched(str(base.path), str(adapter.path), matrices, left_out, _passed_over(base, used))


# ---- words


def _model_type(config: Mapping[str, Any]) -> str:
    inner = config.get("text_config")
    return str((inner if isinstance(inner, dict) else config).get("model_type", ""))


def _by(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _and_more(names: Sequence[str]) -> str:
    return "" if not names else names[0] + (f" (and {len(names) - 1} more)" if len(names) > 1 else "")
