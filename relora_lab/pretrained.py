"""Weights that training begins with: of a run folder's final/, a Hugging Face folder, or a name on the hub."""

import hashlib
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import safe_open
from torch import Tensor

from relora_lab import files, model_files, sizes, tasks, tensor_files
from relora_lab.errors import BadInput, require
from relora_lab.runs import RunFolder
from relora_lab.settings import Model, RunConfig
from relora_lab.tied import own_tensors

EMBEDDINGS = {"llama": "model.embed_tokens.weight", "t5": "shared.weight"}
HEADS = ("lm_head.weight", "score.weight")
# What a T5 on the hub holds beside the model: copies of its embeddings, and a table that nothing reads.
IN_T5 = (
    "encoder.embed_tokens.weight",
    "decoder.embed_tokens.weight",
    "decoder.block.0.layer.1.EncDecAttention.relative_attention_bias.weight",
)
BEYOND_SHAPES = (
    "hidden_act",
    "rms_norm_eps",
    "rope_parameters",
    "rope_scaling",
    "rope_theta",
    "max_position_embeddings",
    "layer_norm_epsilon",
    "relative_attention_max_distance",
)


class Stored(NamedTuple):
    """A tensor of a file."""

    file: Path
    shape: tuple[int, ...]


def folder_of(model: Model) -> Path:
    """The folder with the weights, its config.json and perhaps a tokenizer. Raises BadInput naming the setting."""
    assert model.weights is not None
    try:
        found = model_files.locate(Path(model.weights).expanduser() if model.weights[0] == "~" else model.weights)
        run = RunFolder(found)
        return run.weights("final") if run.started else found
    except BadInput as error:
        raise BadInput(f"model.weights: {error}") from None


def tokenizer_of(model: Model) -> str:
    """The tokenizer beside the weights: a folder, or a name on the hub."""
    assert model.weights is not None
    here = Path(model.weights).expanduser().exists()
    return str(folder_of(model)) if here else model.weights.partition("@")[0]


def identity(model: Model) -> str:
    """sha256 of the weights' files and config.json, which decide a run as its settings do."""
    folder = folder_of(model)
    read = [(path, path.stat()) for path in (*model_files.shards(folder), folder / "config.json")]
    found = [_sha256(path, facts.st_size, facts.st_mtime_ns) for path, facts in read]
    return hashlib.sha256("".join(found).encode()).hexdigest()


@lru_cache  # a run asks several times, and weights have gigabytes
def _sha256(path: Path, size: int, time: int) -> str:  # noqa: ARG001
    return files.sha256(path)


def check(run: RunConfig, vocab_size: int | None) -> None:
    """Raise BadInput unless the weights are there and those of the model that the settings describe.

    Only headers are read; a vocabulary that is not known yet is not compared. Dimensions that no weight tells (heads,
    the norms' eps) are those of config.json.
    """
    from relora_lab import models  # which needs this module

    model = run.model
    if model.weights is None:
        return
    folder = folder_of(model)
    try:
        run_folder = RunFolder(folder.parent)
        if run_folder.started:
            run_folder.require_undamaged(f"{folder.name}/")
        config = _config(folder, model)
        needed = {f"{matrix.name}.weight": (matrix.rows, matrix.cols) for matrix in sizes.matrices(model.shape)}
        if vocab_size is not None:
            needed[EMBEDDINGS["t5" if model.is_t5 else "llama"]] = (vocab_size, model.shape.hidden)
        stored = _stored(folder)
        _require_shapes(stored, needed, run)
        heads, layers = ("num_heads", "num_layers") if model.is_t5 else ("num_attention_heads", "num_hidden_layers")
        for what, needs in ((heads, model.shape.heads), (layers, model.shape.layers)):
            has, told = config.get(what), what.rpartition("_")[2]
            require(has == needs, f"has {has} {told}, and the model needs {needs} (model.size, model.{told})")
        # Last, for a model without memory takes a second: what the sizes do not list, as norms and biases.
        rows = stored[EMBEDDINGS["t5" if model.is_t5 else "llama"]].shape[0]
        _taken(stored, own_tensors(models.without_memory(run, rows if vocab_size is None else vocab_size)), run)
    except BadInput as error:
        told = str(error).removeprefix(f"{folder}: ")
        raise BadInput(f"model.weights: {folder}: {told}") from None


def load_into(module: Any, run: RunConfig) -> None:
    """Give a model these weights. A head for labels that they have not, or of other labels, stays as it is.

    Raises BadInput, naming a tensor that is missing, has another shape, or that the model has no place for.
    """
    folder = folder_of(run.model)
    stored, own = _stored(folder), own_tensors(module)
    try:
        taken = _taken(stored, own, run)
    except BadInput as error:
        raise BadInput(f"model.weights: {folder}: {error}") from None
    with torch.no_grad():
        for name in taken:
            own[name].copy_(_read(stored[name].file, name))


def _taken(stored: Mapping[str, Stored], own: Mapping[str, Tensor], run: RunConfig) -> list[str]:
    """Names of the model's own tensors that are in the files. Raises BadInput unless both have the same."""
    needed = {name: tuple(tensor.shape) for name, tensor in own.items()}
    if "score.weight" in needed and not _same_labels(stored, needed["score.weight"], run):
        del needed["score.weight"]
    tied = "lm_head.weight" in needed and "lm_head.weight" not in stored
    require(not tied, "has no lm_head.weight: its embeddings are the head, and this model's are not; save it untied")
    _require_shapes(stored, needed, run)
    extra = [name for name in stored if name not in own and name not in (*HEADS, *IN_T5)]
    extra = [name for name in extra if not name.endswith("rotary_emb.inv_freq")]
    require(not extra, f"holds {extra[0] if extra else ''}, for which the model has no place")
    return list(needed)


def _same_labels(stored: Mapping[str, Stored], shape: tuple[int, ...], run: RunConfig) -> bool:
    """Do the weights have a head for the labels of the run's task?"""
    assert run.task is not None
    labels = tasks.resolve(run.task.name).labels
    theirs = tuple(_config(folder_of(run.model), run.model).get("id2label", {}).values())
    head = stored.get("score.weight")
    return head is not None and head.shape == shape and (not labels or theirs == labels)


def beyond_shapes(model: Model) -> dict[str, Any]:
    """What decides the model's function and shows in no shape: fields of its transformers configuration."""
    config = _config(folder_of(model), model)
    return {name: config[name] for name in BEYOND_SHAPES if config.get(name) is not None}


def _config(folder: Path, model: Model) -> dict[str, Any]:
    config = files.read_json(folder / "config.json")
    require(bool(config), "has no config.json, which says what kind of model it is")
    kind, wanted = config.get("model_type"), "t5" if model.is_t5 else "llama"
    require(kind == wanted, f"is a model of type {kind}, and model.size {model.size} is a {wanted}")
    require("quantization_config" not in config, "is quantised; save it dequantised")
    if model.is_t5:
        inner = config.get("feed_forward_proj", "relu")
        require(inner == "relu", f"has feed_forward_proj {inner}; a T5 here has relu, as the first ones (t5-base)")
        tied = config.get("tie_word_embeddings", True) and config.get("scale_decoder_outputs", True)
        require(tied, "is a T5 with a head of its own (tie_word_embeddings); a T5's here is its embeddings")
    return config


def _stored(folder: Path) -> dict[str, Stored]:
    return {
        name: Stored(path, entry.shape)
        for path in model_files.shards(folder)
        for name, entry in tensor_files.header(path).tensors.items()
    }


def _require_shapes(stored: Mapping[str, Stored], needed: Mapping[str, tuple[int, ...]], run: RunConfig) -> None:
    missing = [name for name in needed if name not in stored]
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    require(not missing, f"missing {missing[0] if missing else ''}{more}")
    other = [name for name, shape in needed.items() if stored[name].shape != shape]
    if not other:
        return
    name = other[0]
    more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
    hint = ""
    if other == [name] and name in EMBEDDINGS.values():
        rows = stored[name].shape[0]
        own = run.data.tokenizer in ("bytes", "bpe")
        hint = "; set data.tokenizer = 'model'" if own else f"; set data.vocab_size = {rows}"
    there, here = ("×".join(map(str, shape)) for shape in (stored[name].shape, needed[name]))
    raise BadInput(f"{name.removesuffix('.weight')}.weight is {there}, model needs {here}{more}{hint}")


def _read(path: Path, name: str) -> Tensor:
    with safe_open(path, "pt") as file:
        return file.get_tensor(name)
