"""The model of a run, through transformers: a LLaMA, one with a head for labels, or a T5."""

from typing import TYPE_CHECKING, Any

import torch

from relora_lab import pretrained, seeds, sizes, tasks
from relora_lab.precision import torch_dtype
from relora_lab.settings import RunConfig

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM, T5Config


def llama_config(size: sizes.Size | str, *, vocab_size: int = 32000, **others: Any) -> "LlamaConfig":
    """The transformers configuration of a size: RMS eps 1e-6, untied head (P1 §4); `others` of its fields."""
    from transformers import LlamaConfig  # takes seconds to import; settings are checked before

    size = sizes.resolve(size) if isinstance(size, str) else size
    fields: dict[str, Any] = {
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_attention_heads": size.heads,
        "num_hidden_layers": size.layers,
        "vocab_size": vocab_size,
        "initializer_range": size.init_std,
        "rms_norm_eps": 1e-6,
        "tie_word_embeddings": False,
        "architectures": ["LlamaForCausalLM"],
        "bos_token_id": None,
        "eos_token_id": None,
        "pad_token_id": None,
        "attn_implementation": "sdpa",
    }
    return LlamaConfig(**fields | others)


def t5_config(size: sizes.T5Size, *, vocab_size: int, **others: Any) -> "T5Config":
    """The transformers configuration of a T5 (Raffel et al. 2020): ReLU, the embeddings are the head.

    Without dropout: an update is a function of (seed, step) alone.
    """
    from transformers import T5Config

    fields: dict[str, Any] = {
        "d_model": size.hidden,
        "d_kv": size.head_width,
        "d_ff": size.intermediate,
        "num_heads": size.heads,
        "num_layers": size.layers,
        "vocab_size": vocab_size,
        "relative_attention_num_buckets": sizes.T5_BUCKETS,
        "dropout_rate": 0.0,
        "decoder_start_token_id": 0,
        "architectures": ["T5ForConditionalGeneration"],
    }
    return T5Config(**fields | others)


def build(
    size_or_config: Any,
    *,
    device: str = "cpu",
    seed: int = 0,
    vocab_size: int = 32000,
    dtype: torch.dtype = torch.float32,
) -> "LlamaForCausalLM":
    """A LLaMA with fresh weights that are a function of `seed` alone; torch's global seed stays.

    Weights are drawn in float32, then rounded to `dtype`.
    `size_or_config` is a name of sizes.py, a Size (both with `vocab_size`), or a LlamaConfig (taken as it is).
    """
    from transformers import LlamaForCausalLM

    config = size_or_config
    if isinstance(config, str | sizes.Size):
        config = llama_config(config, vocab_size=vocab_size)
    return _fresh(LlamaForCausalLM, config, seed).to(device, dtype)


def of_run(run: RunConfig, vocab_size: int) -> Any:
    """The model that a run begins with: `model.weights`, and what those have not, seeded by (seed, "model").

    Raises BadInput where the weights are not this model's.
    """
    model = _fresh(*_kind_and_config(run, vocab_size), seeds.derive(run.training.seed, "model"))
    if run.model.weights is not None:
        pretrained.load_into(model, run)
    return model.to(run.training.device, torch_dtype("bf16" if run.training.precision == "bf16" else "float32"))


def without_memory(run: RunConfig, vocab_size: int) -> Any:
    """The model of a run with names and shapes alone: on torch's meta device."""
    kind, config = _kind_and_config(run, vocab_size)
    with torch.device("meta"):
        return kind(config)


def _kind_and_config(run: RunConfig, vocab_size: int) -> tuple[Any, Any]:
    from transformers import LlamaForCausalLM, LlamaForSequenceClassification, T5ForConditionalGeneration

    shape, others = run.model.shape, {} if run.model.weights is None else pretrained.beyond_shapes(run.model)
    if isinstance(shape, sizes.T5Size):
        return T5ForConditionalGeneration, t5_config(shape, vocab_size=vocab_size, **others)
    if run.task is None:
        return LlamaForCausalLM, llama_config(shape, vocab_size=vocab_size, **others)
    labels = tasks.resolve(run.task.name).labels
    others |= {"num_labels": max(1, len(labels)), "architectures": ["LlamaForSequenceClassification"]}
    if labels:
        others["id2label"] = dict(enumerate(labels))
    return LlamaForSequenceClassification, llama_config(shape, vocab_size=vocab_size, **others)


def _fresh(kind: Any, config: Any, seed: int) -> Any:
    from relora_lab import blocks

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = kind(config)
    blocks.use_in(model)
    return model


def name_tokens(model: Any, *, eos: int | None, pad: int | None) -> None:
    """Let the model's configuration, which is written beside its weights, say which tokens end and pad a text."""
    model.config.eos_token_id, model.config.pad_token_id = eos, pad
    if model.config.is_encoder_decoder:
        model.config.decoder_start_token_id = pad  # as T5's


def checkpoint_blocks(model: Any) -> None:
    """Let each block keep its input alone, and compute the rest again in the backward pass."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # as of transformers 5.2
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
