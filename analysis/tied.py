"""Weights that a model uses in two places: tied embeddings and heads, copies, what save_model found to be shared."""

import re
from collections.abc import Iterable

import torch
from torch import Tensor

from analysis.checkpoints import Checkpoint, Stored
from analysis.naming import in_block
from relora_lab.errors import require

EMBEDDING = re.compile(r"(^|[._])(embed\w*|wte|shared|word_embeddings?|tokens_embed|w)\.weight$")
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output|decoder)\.weight$")
VALUES = 32  # distinct ones that a matrix has if it is no constant, identity, or too small to tell


def refuse_shared(side: Checkpoint, chosen: Iterable[Stored]) -> None:
    """Raise BadInput if a chosen matrix is used in two places: its change would be counted as that of one."""
    aliases, tied = {kept: alias for alias, kept in side.shared.items()}, _is_tied(side)
    for stored in chosen:
        other = aliases.get(stored.name)
        if other is None and tied and not in_block(stored.name) and _is_of_words(side, stored):
            other = "the embeddings" if HEAD.search(stored.name) else "the output head"
        _refuse(other, side, stored)


def refuse_copies(first: Checkpoint, second: Checkpoint, chosen: Iterable[tuple[Stored, Stored]]) -> None:
    """Raise BadInput if a chosen matrix outside the blocks has a twin on both sides, as copies of tied weights."""
    for start, final in chosen:
        if not in_block(start.name):
            twins = _twin(first, start), _twin(second, final)
            _refuse(twins[0] if all(twins) else None, first, start)


def has_head(side: Checkpoint) -> bool:
    """Is an output head stored?"""
    return any(HEAD.search(name) for name in side.tensors)


def is_telling(W: Tensor) -> bool:
    """Has W so many values that another matrix has the same by no accident?"""
    return len(W.unique()) >= VALUES


def _refuse(other: str | None, side: Checkpoint, stored: Stored) -> None:
    require(
        other is None,
        f"{side.path}: {stored.name} is shared with {other} (tied weights), so its change is not that of one matrix; "
        "select without it",
    )


def _is_tied(side: Checkpoint) -> bool:
    """Does the head use the embeddings? If config.json does not say: it should have a head, and none is stored."""
    tied = side.config.get("tie_word_embeddings")
    if tied is not None:
        return bool(tied)
    classes = side.config.get("architectures") or []
    headed = any(re.search(r"LM|ForConditionalGeneration", str(name)) for name in classes)
    return headed and not has_head(side)


def _is_of_words(side: Checkpoint, stored: Stored) -> bool:
    """Is it the embeddings, or the head: by its name, or as high as the vocabulary is large?"""
    named = EMBEDDING.search(stored.name) or HEAD.search(stored.name)
    return bool(named) or side.config.get("vocab_size") in stored.shape


def _twin(side: Checkpoint, stored: Stored) -> str | None:
    """Another tensor outside the blocks that holds the same numbers, and not few."""
    alike = [
        other
        for other in side.tensors.values()
        if other.name != stored.name
        and (other.dtype, other.shape) == (stored.dtype, stored.shape)
        and not in_block(other.name)
    ]
    W = stored.read() if alike else None
    if W is None or not is_telling(W):
        return None
    return next((other.name for other in alike if torch.equal(other.read(), W)), None)
