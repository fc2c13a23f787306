"""A LLaMA of a size, through transformers."""

from typing import TYPE_CHECKING, Any

import torch

from relora_lab import sizes

if TYPE_CHECKING:
    from transformers import LlamaConfig, LlamaForCausalLM


def llama_config(size: sizes.Size | str, *, vocab_size: int = 32000) -> "LlamaConfig":
    """The transformers configuration of a size: RMS eps 1e-6, untied head (P1 §4)."""
    from transformers import LlamaConfig  # takes seconds to import; settings are checked before

    size = sizes.resolve(size) if isinstance(size, str) else size
    return LlamaConfig(
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_attention_heads=size.heads,
        num_hidden_layers=size.layers,
        vocab_size=vocab_size,
        initializer_range=size.init_std,
        rms_norm_eps=1e-6,
        tie_word_embeddings=False,
        architectures=["LlamaForCausalLM"],
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
        attn_implementation="sdpa",
    )


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

    from relora_lab import blocks

    config = size_or_config
    if isinstance(config, str | sizes.Size):
        config = llama_config(config, vocab_size=vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    blocks.use_in(model)
    return model.to(device, dtype)


def checkpoint_blocks(model: Any) -> None:
    """Let each block keep its input alone, and compute the rest again in the backward pass."""
    new, old = "activation_checkpointing_enable", "gradient_checkpointing_enable"  # as of transformers 5.2
    getattr(model, new if hasattr(model, new) else old)({"use_reentrant": False})
