"""Weights that a model uses in two places: tied embeddings and heads, and what save_model found to be shared."""

import re
from collections.abc import Iterable

import torch

from analysis.checkpoints import Checkpoint, Stored
from analysis.naming import IN_BLOCK
from relora_lab.errors import require

EMBEDDING = re.compile(r"(^|\.)(embed_tokens|wte|word_embeddings|embed_in|tok_embeddings|shared)\.weight")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|decoder)\.weight")


def refuse_shared(side: Checkpoint, chosen: Iterable[Stored]) -> None:
    """Raise BadInput if a chosen matrix is used in two places: its change would be counted as that of one."""
    aliases = {kept: alias for alias, kept in side.shared.items()}
    for stored in chosen:
        other = aliases.get(stored.name)
        if other is None and _is_tied(side) and (EMBEDDING.search(stored.name) or HEAD.search(stored.name)):
            other = "the output head" if EMBEDDING.search(stored.name) else "the embeddings"
        other = other or _same_elsewhere(side, stored)
        require(
            other is None,
            f"{side.path}: {stored.name} is shared with {other} (tied weights), so its change is not that of "
            "one matrix; select without it",
        )


def _is_tied(side: Checkpoint) -> bool:
    """Does the head use the embeddings? If config.json does not say: it should have a head, and none is stored."""
    tied = side.config.get("tie_word_embeddings")
    if tied is not None:
        return bool(tied)
    classes = side.config.get("architectures") or []
    headed = any(re.search(r"LM|ForConditionalGeneration", str(name)) for name in classes)
    return headed and not has_head(side)


def has_head(side: Checkpoint) -> bool:
    """Is an output head stored?"""
    return any(HEAD.search(name) for name in side.tensors)


def _same_elsewhere(side: Checkpoint, stored: Stored) -> str | None:
    """The other tensor outside the blocks that holds the same numbers, as copies of tied weights do."""
    if IN_BLOCK.search(stored.name):
        return None
    alike = [
        other
        for other in side.tensors.values()
        if other.name != stored.name
        and other.dtype == stored.dtype
        and other.shape == stored.shape
        and not IN_BLOCK.search(other.name)
    ]
    return next((other.name for other in alike if torch.equal(other.read(), stored.read())), None)
